"""How fast a lock that nobody else wants is taken and given back, by one task and by many."""

import asyncio
import time
from functools import partial

from benchmarks.crew import crew
from benchmarks.locks import (
    BARE,
    DSYNC,
    FLOOR,
    LINGER,
    LOCKS,
    PEER,
    PLAIN,
    Lock,
    each_of,
)
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over
from benchmarks.peer_locks import BLOCKING
from benchmarks.rig import ASYNCIO, Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "spin"]

SOME, MANY = 200, 2000
CYCLES = "cycles/s"


async def slice_of(contender: str, tasks: int, rig: Rig) -> Measured:
    return await spun(contender, tasks, rig.seconds, rig.url, rig.namespace)


async def spun(contender: str, tasks: int, seconds: float, url: str, namespace: str) -> Measured:
    """Each task with a lock of its own."""
    async with LOCKS[contender](url, namespace) as make:
        locks = [make(f"own-{i}") for i in range(tasks)]
        await asyncio.gather(*(cycle(lock, 0) for lock in locks))  # connects, loads scripts
        if tasks < MANY:
            await asyncio.gather(*(cycle(lock, 0) for lock in locks))
        began, cpu = time.monotonic(), time.process_time()
        counts = await asyncio.gather(*(cycle(lock, began + seconds) for lock in locks))
        cpu = time.process_time() - cpu
        took = time.monotonic() - began
    return {CYCLES: sum(counts) / took, "CPU µs/cycle": 1e6 * cpu / sum(counts)}


async def cycle(lock: Lock, end: float) -> int:
    """Again and again until `end`, once at least; -> how often."""
    count = 0
    while not count or until(end):
        await lock.acquire()
        await lock.release()
        count += 1
    return count


def workload(
    name: str, about: str, tasks: int, floor: Goal | None, peer: Goal | None, rounds: int = 1000
) -> Workload:
    styles = (PLAIN, LINGER) if tasks == 1 else ()
    names = (FLOOR, BARE, DSYNC, *styles, PEER)
    # A blocking lock takes a thread for each task.
    contenders = each_of(names, slice_of, tasks, without=[BLOCKING] * (tasks > 1))
    if tasks == MANY:  # they need seconds to come in
        contenders = {who: contenders[who] for who in names}
    return Workload(
        name,
        about,
        contenders,
        (
            Ratio("dsync ÷ floor", over(CYCLES, DSYNC, FLOOR), floor),
            Ratio("dsync ÷ Protocol and hiredis alone", over(CYCLES, DSYNC, BARE)),
            Ratio("dsync vs redis.asyncio.Lock", over(CYCLES, DSYNC, PEER), peer),
            *(Ratio(f"{style} vs {PEER}", over(CYCLES, style, PEER)) for style in styles),
        ),
        Score(CYCLES, True),
        rounds,
        long=tasks == MANY,
    )


# -- event loops -----------------------------------------------------------------------------------


async def spin(member: Member, contender: str, tasks: int, seconds: float) -> Measured:
    await member.signal()
    return await spun(contender, tasks, seconds, member.url, member.namespace)


async def on(loop: str, contender: str, tasks: int, rig: Rig) -> Measured:
    """In a process of its own, which runs on that loop."""
    async with crew(1, spin, rig, contender, tasks, rig.seconds, loop=loop) as members:
        members.go(rig.seconds)
        [found] = await members.results()
    return dict(found)


def loops(tasks: int) -> Workload:
    ours, uvloop = f"{DSYNC} on {ASYNCIO}", f"uvloop, {DSYNC}"
    return Workload(
        f"uvloop-{tasks}",
        f"{tasks} task{'s' * (tasks > 1)}, each its own free lock, on asyncio and on uvloop",
        {
            ours: partial(on, ASYNCIO, DSYNC, tasks),
            uvloop: partial(on, "uvloop", DSYNC, tasks),
            f"uvloop, {PEER}": partial(on, "uvloop", PEER, tasks),
            f"uvloop, {FLOOR}": partial(on, "uvloop", FLOOR, tasks),
        },
        (
            Ratio("dsync on uvloop ÷ on asyncio", over(CYCLES, uvloop, ours)),
            Ratio("dsync ÷ floor, both on uvloop", over(CYCLES, uvloop, f"uvloop, {FLOOR}")),
        ),
        Score(CYCLES, True, uvloop),
    )


WORKLOADS = (
    workload("uncontended", "one task takes one free lock", 1, Goal("≥", 0.75), Goal("≥", 1.8)),
    workload("own-locks", f"{SOME} tasks, each its own free lock", SOME, None, Goal("≥", 10)),
    workload("own-locks-2000", f"{MANY:,} of them", MANY, None, None, rounds=2),
    loops(1),
    loops(SOME),
)
