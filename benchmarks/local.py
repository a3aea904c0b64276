"""dsync.local against asyncio's own, in one process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over
from benchmarks.rig import Rig, until
from dsync import local

__all__ = ["WORKLOADS"]

OURS, THEIRS = "dsync.local", "asyncio"
BATCH = 1000  # cycles between two looks at the clock


async def cycle(module: Any) -> None:
    """One task takes a free lock."""
    lock = module.Lock()
    for _ in range(BATCH):
        await lock.acquire()
        lock.release()


async def body(module: Any) -> None:
    """One task enters `async with` on a free lock."""
    lock = module.Lock()
    for _ in range(BATCH):
        async with lock:
            pass


async def permit(module: Any) -> None:
    """One task takes a free permit."""
    semaphore = module.Semaphore(2)
    for _ in range(BATCH):
        await semaphore.acquire()
        semaphore.release()


async def event_wake_up(module: Any) -> None:
    """Two tasks wake each other by events."""
    ping, pong = module.Event(), module.Event()

    async def answer() -> None:
        for _ in range(BATCH):
            await ping.wait()
            ping.clear()
            pong.set()

    answering = asyncio.create_task(answer())
    for _ in range(BATCH):
        ping.set()
        await pong.wait()
        pong.clear()
    await answering


async def condition_wake_up(module: Any) -> None:
    """Two tasks wake each other by notifying; both hold the lock at the time, as they have to."""
    condition = module.Condition()

    async def turns() -> None:
        await condition.acquire()
        for _ in range(BATCH):
            condition.notify()
            await condition.wait()
        condition.notify()
        condition.release()

    await asyncio.gather(turns(), turns())


async def slice_of(batch: Callable[[Any], Awaitable[None]], module: Any, rig: Rig) -> Measured:
    cycles = 0
    began = time.monotonic()
    while until(began + rig.seconds):
        await batch(module)
        cycles += BATCH
    return {"ns/cycle": 1e9 * (time.monotonic() - began) / cycles}


def workload(name: str, batch: Callable[[Any], Awaitable[None]], goal: Goal | None) -> Workload:
    assert batch.__doc__ is not None
    about = batch.__doc__.rstrip(".")
    return Workload(
        name,
        about[0].lower() + about[1:],
        {THEIRS: partial(slice_of, batch, asyncio), OURS: partial(slice_of, batch, local)},
        (Ratio("cycle, dsync.local ÷ asyncio", over("ns/cycle", OURS, THEIRS), goal),),
        Score("ns/cycle", False, OURS),
    )


WORKLOADS = (
    workload("local", cycle, Goal("≤", 2)),
    workload("local-with", body, None),
    workload("local-semaphore", permit, None),
    workload("local-event", event_wake_up, Goal("≤", 1.5)),
    workload("local-condition", condition_wake_up, Goal("≤", 1.5)),
)
