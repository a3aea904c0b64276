"""Processes that take part in an election and write down what they did, and when.

    python -m tests.fault.leaders URL NAMESPACE LOG [options]

LOG is a `dsync.testing.History`; `leaving` is the very last line of a body, when its cleanup is
done.  And of its own:

    saw       an observer's item: its fence, or None
    behind    the program goes on behind the `async with`
    unmoved   a body has not cared for its cancellation
    cleaning  a body has failed               cleaned   ... and has been cancelled while cleaning up
    theirs    a handler for SIGTERM that is none of dsync's
    child     a forked child is there         reaped    ... and has ended; with its status
    stopped   the loop is left in the middle of a term
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import uvloop

import dsync
from dsync.leader import Election
from dsync.testing import History
from tests.fault.workers import ROOT, Worker, Workers

__all__ = ["Candidates"]


class Candidate(Worker):
    """One process."""

    def __init__(self, log: History, arguments: list[str]) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.leaders", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def reap(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # and what it has forked
        super().reap()


class Candidates(Workers):
    """The processes of one test, on one log; none of them outlives it."""

    def spawn(self, *options: str) -> Worker:
        worker = Candidate(self.log, [*self._common, *options])
        self.all.append(worker)
        return worker


# -- what a process does ---------------------------------------------------------------------------


class Part:
    """What all of them need."""

    def __init__(self, args: argparse.Namespace, client: dsync.Client, log: History) -> None:
        self.args, self.client, self.log = args, client, log

    def election(self, name: str) -> Election:
        return self.client.leader(name, lease=self.args.lease, sigterm=not self.args.no_sigterm)

    @asynccontextmanager
    async def term(self, name: str | None = None) -> AsyncIterator[dsync.Lease]:
        """A term, and what is written about it."""
        of = name or self.args.name
        self.log.write("waiting", of=of)
        try:
            async with self.election(of) as term:
                self.log.write("held", fence=term.fence, of=of)
                try:
                    yield term
                finally:
                    if self.args.cleanup:
                        await asyncio.sleep(self.args.cleanup)
                    self.log.write("leaving", of=of)
        except dsync.LeaseLost as exc:
            self.log.write("lost", why=str(exc), of=of)
        self.log.write("behind", of=of)

    async def steps(self) -> None:
        while True:
            await asyncio.sleep(self.args.step)
            self.log.write("step")


async def lead(part: Part) -> None:
    """Lead for ever, or so many terms, each for a step."""
    for _ in range(part.args.rounds):
        async with part.term():
            await asyncio.sleep(part.args.step)
    while not part.args.rounds:
        async with part.term():
            await part.steps()


async def observe(part: Part) -> None:
    async for leader in part.election(part.args.name).observe():
        part.log.write("saw", fence=leader and leader.fence)


async def several(part: Part) -> None:
    """Three elections, in a task each; the third is inside a fourth."""

    async def one(name: str) -> None:
        async with part.term(name):
            if name == "c":
                async with part.term("d"):
                    await part.steps()
            await part.steps()

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(one(name))


async def stubborn(part: Part) -> None:
    """A body that does not care for the first cancellation, and ends when it likes."""
    async with part.term():
        with suppress(asyncio.CancelledError):
            await part.steps()
        part.log.write("unmoved")
        for _ in range(part.args.rounds):
            await asyncio.sleep(part.args.step)
            part.log.write("step")


async def failing(part: Part) -> None:
    """A body that has raised, and is cleaning up."""
    async with part.term():
        try:
            raise ValueError
        finally:
            part.log.write("cleaning")
            try:
                await part.steps()
            finally:
                part.log.write("cleaned")


async def before(part: Part) -> None:
    """The program handles SIGTERM already: as people do it with asyncio."""
    task = asyncio.current_task()
    assert task is not None

    def theirs() -> None:
        part.log.write("theirs")
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, theirs)
    with suppress(asyncio.CancelledError):
        async with part.term():
            await part.steps()
    sys.exit(7)


async def during(part: Part) -> None:
    """The program begins to handle SIGTERM while it leads, and after its term still does."""
    heard = asyncio.Event()

    def theirs() -> None:
        part.log.write("theirs")
        heard.set()

    async with part.term():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, theirs)
    part.log.write("step")
    await heard.wait()
    sys.exit(7)


async def after(part: Part) -> None:
    """A term is over: SIGTERM is what it was."""
    async with part.term():
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    await part.steps()


async def fork(part: Part) -> None:
    """A child that is forked in the middle of a term takes part in an election of its own."""
    async with part.term():
        pid = os.fork()
        if pid == 0:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            part.log.write("child", number=os.getpid())
            if part.args.cleanup:
                os._exit(anew(part.args, part.log))
            while True:
                time.sleep(0.05)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        part.log.write("reaped", status=os.waitstatus_to_exitcode(status))
        await part.steps()


def anew(args: argparse.Namespace, log: History) -> int:
    """In the child: a loop, a client and a term of its own."""
    args.do, args.name, args.cleanup = "lead", "child's", 0.0
    asyncio._set_running_loop(None)  # it is the parent's
    try:
        asyncio.run(play(args, log))
    except BaseException as exc:
        log.write("failed", why=repr(exc))
    return 1


async def thread(part: Part) -> None:
    """A loop in another thread leads, while this one leads in another election."""
    inner = argparse.Namespace(**vars(part.args) | {"do": "lead"})
    worker = threading.Thread(target=asyncio.run, args=(play(inner, part.log),), daemon=True)
    async with part.term("main"):
        worker.start()
        await asyncio.Event().wait()


DOINGS: dict[str, Callable[[Part], Awaitable[None]]] = {
    one.__name__: one
    for one in (lead, observe, several, stubborn, failing, before, during, after, fork, thread)
}


async def play(args: argparse.Namespace, log: History) -> None:
    async with dsync.connect(
        args.url, namespace=args.namespace, outage_timeout=args.outage, on_lost=lambda lease: None
    ) as client:
        await DOINGS[args.do](Part(args, client, log))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("namespace")
    parser.add_argument("log")
    parser.add_argument("--do", choices=DOINGS, default="lead")
    parser.add_argument("--name", default="x")
    parser.add_argument("--lease", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--step", type=float, default=0.02, help="seconds")
    parser.add_argument("--cleanup", type=float, default=0.0, help="seconds")
    parser.add_argument("--outage", type=float, default=10.0, help="outage_timeout, seconds")
    parser.add_argument("--no-sigterm", action="store_true")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--stop-loop", action="store_true", help="leave the loop in mid-term")
    args = parser.parse_args()
    log = History(args.log)
    if args.stop_loop:
        loop = asyncio.new_event_loop()
        task = loop.create_task(play(args, log))
        loop.run_until_complete(asyncio.wait([task], timeout=1.0))
        log.write("stopped")
        while True:
            time.sleep(0.05)
    run = uvloop.run if args.uvloop else asyncio.run
    run(play(args, log))


if __name__ == "__main__":
    main()
