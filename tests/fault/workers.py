"""Worker processes that hold a lock or a semaphore and write down what they did, and when.

    python -m tests.fault.workers URL NAMESPACE LOG [options]

Each event goes to LOG, a `dsync.testing.History`; holds with the fence where there is one:

    waiting   before the acquire         held      the body begins
    step      the body goes on           leaving   the body's last line
    told      the on_lost hook           lost      LeaseLost has left the body
    failed    anything else has          done      the process is about to end
    lingers   it was released here, and with `--linger` the store has not been told

and, with `--do`, see there:

    asleep    before a condition's wait  notified  behind a notify, the lock still held
    woken     a task's event has come    turn      it was this process's turn

SIGTERM ends the body, and so the work.
"""

import argparse
import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import dsync
from dsync.testing import Event, History

__all__ = ["Worker", "Workers"]

ROOT = Path(__file__).parents[2]


class Worker:
    """One worker process; events of it alone in `events()`."""

    def __init__(self, log: History, arguments: list[str]) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.workers", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests, which reap it
        )
        self.pid = self.process.pid

    def events(self, what: str | None = None) -> list[Event]:
        return self.log.events(what, self.pid)

    def did(self, what: str) -> bool:
        return bool(self.events(what))

    def signal(self, number: int) -> float:
        """Send a signal; -> when."""
        self.process.send_signal(number)
        return time.monotonic()

    def reap(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


class Workers:
    """The workers of one test, on one log; none of them outlives it."""

    def __init__(self, url: str, namespace: str, path: Path) -> None:
        self.log = History(path)
        self.all: list[Worker] = []
        self._common = [url, namespace, str(path)]

    def spawn(self, *options: str) -> Worker:
        worker = Worker(self.log, [*self._common, *options])
        self.all.append(worker)
        return worker

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self.all:
            worker.reap()


# -- what a worker does --------------------------------------------------------------------------


async def count(path: Path) -> None:
    """Add one to the number in a file, in a way that only exclusion makes right."""
    number = int(path.read_text())
    await asyncio.sleep(0.001)
    path.write_text(str(number + 1))


async def body(args: argparse.Namespace, log: History, ended: asyncio.Event) -> None:
    if args.count:
        await count(Path(args.count))
    elif args.read:  # a step for each line of stdin
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while await reader.readline():
            log.write("step")
    elif args.rounds == 0:
        while not ended.is_set():
            await asyncio.sleep(args.step)
            log.write("step")
    else:
        await asyncio.sleep(args.step)


async def do_wait(
    args: argparse.Namespace, log: History, client: dsync.Client, ended: asyncio.Event
) -> None:
    """Wait for a condition once, then hold its lock until SIGTERM (or for one step)."""
    condition = client.condition(args.name, lease=args.lease)
    async with condition:
        log.write("asleep")
        await condition.wait()
        lease = condition.lock.lease
        log.write("held", fence=lease.fence if lease else None)
        await body(args, log, ended)
        log.write("leaving")


async def do_notify(
    args: argparse.Namespace, log: History, client: dsync.Client, ended: asyncio.Event
) -> None:
    """Notify one, and hold the lock until SIGTERM (or for one step)."""
    condition = client.condition(args.name, lease=args.lease)
    async with condition as lease:
        log.write("held", fence=lease.fence)
        condition.notify()
        log.write("notified")
        await body(args, log, ended)
        log.write("leaving")


async def do_turns(
    args: argparse.Namespace, log: History, client: dsync.Client, ended: asyncio.Event
) -> None:
    """Take turns with another process: the file `--count` grows by one in each, here if odd."""
    path, mine = Path(args.count), args.step > 0.5
    condition = client.condition(args.name, lease=args.lease)
    async with condition:
        for _ in range(args.rounds):
            await condition.wait_for(lambda: int(path.read_text()) % 2 == mine)
            await count(path)
            log.write("turn")
            condition.notify()


async def do_events(
    args: argparse.Namespace, log: History, client: dsync.Client, ended: asyncio.Event
) -> None:
    """Wait for an event, with so many tasks as `--rounds` says."""
    event = client.event(args.name)

    async def wait() -> None:
        await event.wait()
        log.write("woken")

    async with asyncio.TaskGroup() as group:
        for _ in range(args.rounds or 1):
            group.create_task(wait())
        await asyncio.sleep(0)
        while any(watcher.noted is None for watcher in event._flag.waiters):
            await asyncio.sleep(0.002)
        log.write("waiting")  # and each of them knows for what


DOINGS = {"wait": do_wait, "notify": do_notify, "turns": do_turns, "events": do_events}


async def work(args: argparse.Namespace) -> None:
    log = History(Path(args.log))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with dsync.connect(
        args.url, namespace=args.namespace, on_lost=lambda lease: log.write("told")
    ) as client:
        if args.do:
            try:
                await DOINGS[args.do](args, log, client, ended)
            except dsync.LeaseLost as exc:
                log.write("lost", why=str(exc))
            except Exception as exc:
                log.write("failed", why=repr(exc))
            log.write("done")
            return
        thing: dsync.Lock | dsync.Semaphore
        if args.permits:
            thing = client.semaphore(args.name, args.permits, lease=args.lease, fair=args.fair)
        else:
            thing = client.lock(args.name, lease=args.lease, fair=args.fair, linger=args.linger)
        for _ in range(args.rounds or 1):
            log.write("waiting")
            try:
                async with thing as lease:
                    log.write("held", fence=lease.fence)
                    await body(args, log, ended)
                    log.write("leaving")
            except dsync.LeaseLost as exc:
                log.write("lost", why=str(exc))
            except Exception as exc:
                log.write("failed", why=repr(exc))
            if args.linger and not ended.is_set():
                log.write("lingers")
                await ended.wait()
        log.write("done")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("namespace")
    parser.add_argument("log")
    parser.add_argument("--name", default="x")
    parser.add_argument("--permits", type=int, default=0, help="a semaphore of so many")
    parser.add_argument("--lease", type=float, default=1.0)
    parser.add_argument("--fair", action="store_true")
    parser.add_argument("--linger", type=float, default=0.0, help="and wait for SIGTERM, once")
    parser.add_argument("--rounds", type=int, default=0, help="0: one, until SIGTERM")
    parser.add_argument("--step", type=float, default=0.02, help="seconds of a step")
    parser.add_argument("--count", help="a file with a number to add one to in each round")
    parser.add_argument("--do", choices=DOINGS, help="something else than holding")
    parser.add_argument("--read", action="store_true", help="step by lines of stdin")
    asyncio.run(work(parser.parse_args()))


if __name__ == "__main__":
    main()
