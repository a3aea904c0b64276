"""How fast a lock that nobody else wants is taken and given back, by one task and by many."""

import asyncio
import time
from functools import partial

from benchmarks.locks import DSYNC, FLOOR, LOCKS, PEER, Lock
from benchmarks.measure import Goal, Measured, Ratio, Workload, over
from benchmarks.rig import Rig, until

__all__ = ["WORKLOADS"]

MANY = 200


async def slice_of(contender: str, tasks: int, rig: Rig) -> Measured:
    """Each task with a lock of its own."""
    async with LOCKS[contender](rig.url, rig.namespace) as make:
        locks = [make(f"own-{i}") for i in range(tasks)]
        await asyncio.gather(*(cycle(lock, 0) for lock in locks))  # connects, loads scripts
        await asyncio.gather(*(cycle(lock, 0) for lock in locks))
        began, cpu = time.monotonic(), time.process_time()
        counts = await asyncio.gather(*(cycle(lock, began + rig.seconds) for lock in locks))
        cpu = time.process_time() - cpu
        took = time.monotonic() - began
    return {"cycles/s": sum(counts) / took, "CPU µs/cycle": 1e6 * cpu / sum(counts)}


async def cycle(lock: Lock, end: float) -> int:
    """Again and again until `end`, once at least; -> how often."""
    count = 0
    while not count or until(end):
        await lock.acquire()
        await lock.release()
        count += 1
    return count


def workload(name: str, about: str, tasks: int, floor: Goal | None, peer: Goal) -> Workload:
    return Workload(
        name,
        about,
        {who: partial(slice_of, who, tasks) for who in (FLOOR, DSYNC, PEER)},
        (
            Ratio("dsync ÷ floor", over("cycles/s", DSYNC, FLOOR), floor),
            Ratio("dsync vs redis.asyncio.Lock", over("cycles/s", DSYNC, PEER), peer),
        ),
    )


WORKLOADS = (
    workload(
        "uncontended", "one task takes one free lock", 1, Goal("≥", 0.6, 0.75), Goal("≥", 1.8)
    ),
    workload("own-locks", f"{MANY} tasks, each its own free lock", MANY, None, Goal("≥", 10)),
)
