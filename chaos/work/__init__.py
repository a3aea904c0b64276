"""What workers do with each primitive, and what has to be true of it: one module a primitive."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import dsync
from dsync.testing import Event, History, Violation

__all__ = ["Shift", "Terms", "Work", "works"]

# Each has a WORK, or several WORKS; in the order in which they are run and reported.
MODULES = (
    "lock",
    "semaphore",
    "event",
    "condition",
    "barrier",
    "bus",
    "limiter",
    "leader",
)


@dataclass(frozen=True)
class Terms:
    """On what terms the work is done, and what the fault makes excusable."""

    lease: float  # seconds
    overlap: float = 0.0  # seconds for which too many may hold
    loses: bool = False  # others than the stopped ones may lose what they hold
    deaths: bool = False  # processes are killed

    @property
    def forgets(self) -> bool:
        """Whether the server loses its data: nothing else lets too many hold."""
        return self.overlap > 0


class Shift:
    """What one worker process works with, until it is time to go."""

    def __init__(self, client: dsync.Client, history: History, random: Random, terms: Terms):
        self.client = client
        self.history = history
        self.random = random
        self.terms = terms
        self.ending = asyncio.Event()
        # Who holds on which lease: what its events carry.
        self.leases: dict[dsync.Lease, dict[str, Any]] = {}

    def write(self, what: str, **more: Any) -> float:
        return self.history.write(what, **more)

    @contextmanager
    def turn(self, task: object) -> Iterator[None]:
        """The middle of something that is not held: a fault may catch us in here, too."""
        who = {"of": "turn", "task": task}
        self.write("held", **who)
        try:
            yield
        finally:
            self.write("leaving", **who)

    async def work(self, *jobs: Coroutine[Any, Any, None], grace: float = 0.0) -> None:
        """Do them all at once until it is time to end; cancel them `grace` seconds later."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
            await self.ending.wait()
            if grace:
                await asyncio.wait(tasks, timeout=grace)
            for task in tasks:
                task.cancel()

    def told(self, lease: dsync.Lease) -> None:
        """The on_lost hook."""
        if lease in self.leases:
            self.write("told", **self.leases[lease])


@dataclass(frozen=True)
class Work:
    """A primitive at work.

    Attributes:
        run: what a worker does, over and over, until `shift.ending` is set.
        check: what its events have to be like.
        free: returns at once, with a fresh client, if all workers have left nothing behind; raises
            AssertionError if it sees that they have.
        success: the event that counts as an operation that succeeded.
        processes: how many workers.
        queues: whether anybody waits for a turn.
    """

    name: str
    about: str
    run: Callable[[Shift], Awaitable[None]]
    check: Callable[[list[Event], Terms], list[Violation]]
    free: Callable[[dsync.Client, Terms], Awaitable[None]]
    success: str = "held"
    processes: int = 8
    queues: bool = True


def works() -> dict[str, Work]:
    """All of them, by name."""
    found: list[Work] = []
    for name in MODULES:
        module = importlib.import_module(f"chaos.work.{name}")
        found += getattr(module, "WORKS", None) or [module.WORK]
    return {work.name: work for work in found}
