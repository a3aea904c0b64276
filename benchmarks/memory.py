"""What a lock weighs, a held lease and a waiting task: here, by tracemalloc, and on the server."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.crew import crew
from benchmarks.locks import DSYNC, FAIR, LOCKS, PEER, dismiss
from benchmarks.measure import Measured, Ratio, Workload, over, value
from benchmarks.rig import Rig
from benchmarks.worker import Member
from dsync import local

__all__ = ["WORKLOADS", "weigh"]

COUNT = 1000
BURST = 100  # acquired at once
SETTLING = 0.5  # seconds, until all wait
LOCAL, ASYNCIO = "dsync.local.Lock", "asyncio.Lock"
LOCK, LEASE, WAITER = "bytes/lock", "bytes more/held lock", "bytes/waiting task"
LEASE_THERE, WAITER_THERE = "server bytes/held lock", "server bytes/waiting task"


@asynccontextmanager
async def plain(make: Callable[[], Any]) -> AsyncIterator[Callable[[str], Any]]:
    yield lambda name: make()


def opened(contender: str, url: str, namespace: str) -> AbstractAsyncContextManager[Any]:
    if contender in (LOCAL, ASYNCIO):
        return plain(local.Lock if contender == LOCAL else asyncio.Lock)
    return LOCKS[contender](url, namespace, lease=300.0)


async def weigh(member: Member, contender: str, count: int) -> list[float]:
    """-> bytes here for each lock, for what is held with it, and for each task that waits.

    Says when it has begun, when the locks are held, and when the tasks wait.
    """
    async with opened(contender, member.url, member.namespace) as make:
        await make("first").acquire()  # connects, loads scripts
        kept = make("kept")
        await kept.acquire()
        tracemalloc.start()
        weights = [now()]
        await step(member)
        locks = [make(f"own-{i}") for i in range(count)]
        weights.append(now())
        for i in range(0, count, BURST):
            await asyncio.gather(*(lock.acquire() for lock in locks[i : i + BURST]))
        weights.append(now())
        await step(member)
        tasks = [asyncio.create_task(kept.acquire()) for _ in range(count)]
        await asyncio.sleep(SETTLING)
        weights.append(now())
        tracemalloc.stop()
        await step(member)
        await dismiss(tasks)
    return [(after - before) / count for before, after in pairwise(weights)]


async def step(member: Member) -> None:
    """Let the other side look at the server."""
    member.say(True)
    await member.hear()


def now() -> int:
    return tracemalloc.get_traced_memory()[0]


async def slice_of(contender: str, rig: Rig) -> Measured:
    count = COUNT // 10 if rig.quick else COUNT
    async with crew(1, weigh, rig, contender, count) as members:
        server = [rig.memory()]
        for _ in range(2):
            members.say(True)
            await members.results()
            server.append(rig.memory())
        members.say(True)
        [found] = await members.results()
    on_server = [(after - before) / count for before, after in pairwise(server)]
    measured: dict[str, float] = dict(zip((LOCK, LEASE, WAITER), found, strict=True))
    if contender not in (LOCAL, ASYNCIO):
        measured.update(zip((LEASE_THERE, WAITER_THERE), on_server, strict=True))
    return measured


def share(quantity: str, theirs: str) -> Ratio:
    return Ratio(f"{quantity}, dsync ÷ {theirs}", over(quantity, DSYNC, theirs))


WORKLOADS = (
    Workload(
        "memory",
        f"{COUNT:,} locks are made and held, and {COUNT:,} tasks wait for another",
        {who: partial(slice_of, who) for who in (ASYNCIO, LOCAL, DSYNC, FAIR, PEER)},
        (
            share(LOCK, PEER),
            Ratio(LEASE, value(DSYNC, LEASE)),
            share(WAITER, ASYNCIO),
            Ratio(LEASE_THERE, value(DSYNC, LEASE_THERE)),
            Ratio(WAITER_THERE, value(DSYNC, WAITER_THERE)),
            Ratio(f"fair=True: {WAITER_THERE}", value(FAIR, WAITER_THERE)),
        ),
        rounds=1,
    ),
)
