"""A scene: workers at work on a server of their own, and the hands that do them harm."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import redis.asyncio

from chaos import worker
from chaos.faults import Fault
from chaos.servers import Backend
from chaos.work import Terms, Work
from dsync.testing import History, Proxy, holds

__all__ = ["Scene", "until"]

RECENT = 3000  # events in which a hold of now has begun


def _nursery() -> Any:
    """Where workers are forked from: a process that has imported all that they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chaos.worker"])
    return context


class Scene:
    """What a fault may act upon.

    Attributes:
        backend: the server.
        proxy: between the workers and it, if the fault is `proxied`.
        admin: a Redis client past the proxy.
        history: what they do, and what is done to them.
        random: the only chance there is.
        workers: those that run, by pid.
    """

    namespace = "chaos"

    def __init__(
        self,
        fault: Fault,
        work: Work,
        backend: Backend,
        proxy: Proxy,
        path: Path,
        seed: str,
        connect: str,
    ) -> None:
        self.fault = fault
        self.work = work
        self.backend = backend
        self.proxy = proxy
        self.history = History(path)
        self.random = Random(seed)
        self.terms = Terms(fault.lease, fault.overlap, fault.loses, fault.deaths)
        self.workers: dict[int, BaseProcess] = {}
        self.ends = 0.0  # when no more harm is done, time.monotonic()
        self.admin: Any = redis.asyncio.Redis.from_url(backend.url)
        self._connect = connect
        self._context = _nursery()

    # -- for faults --------------------------------------------------------------------------------

    async def moments(self, least: float, most: float) -> AsyncIterator[None]:
        """Random moments, so many seconds apart, until it is time to end."""
        while True:
            pause = self.random.uniform(least, most)
            if time.monotonic() + pause > self.ends:
                return
            await asyncio.sleep(pause)
            yield

    @contextmanager
    def harm(self, kind: str) -> Iterator[None]:
        """What is done in here keeps everybody from getting on; recovery counts from its end."""
        self.history.write("harm", kind=kind)
        try:
            yield
        finally:
            self.history.write("over", kind=kind)

    async def catch(self) -> int | None:
        """Stop a worker in the middle of a hold; -> its pid, or None if none holds just now."""
        for _ in range(50):
            holders = self._holders()
            if holders:
                pid = self.random.choice(sorted(holders))
                os.kill(pid, signal.SIGSTOP)
                await until(lambda: _stands(pid), 1.0)  # noqa: B023
                if pid in self._holders():
                    self.history.write("stopped", whom=pid)
                    return pid
                os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.005)
        return None

    def go_on(self, pid: int) -> None:
        """SIGCONT."""
        self.history.write("continued", whom=pid)
        os.kill(pid, signal.SIGCONT)

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        os.kill(pid, signal.SIGKILL)
        self.history.write("killed", whom=pid)

    def spawn(self) -> None:
        """One worker more."""
        url = self.proxy.url if self.fault.proxied else self.backend.url
        job = worker.Job(
            url,
            self.namespace,
            str(self.history.path),
            self.work.name,
            self.terms,
            self.random.getrandbits(32),
            self._connect,
        )
        process: BaseProcess = self._context.Process(target=worker.main, args=(job,), daemon=True)
        process.start()
        assert process.pid is not None
        self.workers[process.pid] = process
        loop = asyncio.get_running_loop()
        loop.add_reader(process.sentinel, self._ended, process, process.pid)

    # -- for the one who runs it -------------------------------------------------------------------

    def _ended(self, process: BaseProcess, pid: int) -> None:
        asyncio.get_running_loop().remove_reader(process.sentinel)
        process.join()
        self.history.write("ended", whom=pid, code=process.exitcode)
        self.workers.pop(pid, None)

    def _holders(self) -> set[int]:
        recent = self.history.events()[-RECENT:]
        pids = {hold.event["pid"] for hold in holds(recent) if hold.end is None}
        return pids & self.workers.keys()

    async def dismiss(self, within: float = 8.0) -> list[int]:
        """Ask all to end; -> the pids of those that would not, and were killed."""
        for pid in list(self.workers):
            os.kill(pid, signal.SIGTERM)
        await until(lambda: not self.workers, within)
        stubborn = list(self.workers)
        await self.close()
        return stubborn

    async def close(self) -> None:
        """Nobody is left."""
        for pid in list(self.workers):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not self.workers, 5.0)


async def until(condition: Callable[[], bool], within: float) -> bool:
    """Whether it came true in so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


def _stands(pid: int) -> bool:
    """Whether SIGSTOP has arrived, or the process has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "TZ"
