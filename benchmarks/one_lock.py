"""One lock that many tasks want all the time: of 4 processes, and of one."""

import asyncio
import time

from benchmarks.crew import Window, crew
from benchmarks.locks import DSYNC, FAIR, LOCKS, PEER, QUICK_PEER, Lock, dismiss, each_of
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over, value
from benchmarks.rig import Rig, until
from benchmarks.worker import Member
from dsync import local

__all__ = ["WORKLOADS", "contend"]

PROCESSES, FEW, MANY = 4, 8, 100
TASKS = 32  # of one process
LINGERING = 0.3  # seconds
LEAST = 1.0  # seconds, with many: some take so long to connect them all
CYCLES, COMMANDS, EVENNESS = "cycles/s", "commands/cycle", "most ÷ least served"


async def contend(member: Member, contender: str, tasks: int) -> list[list[int]]:
    """-> for each task, the cycles inside the window, and all of them."""
    tallies = [[0, 0] for _ in range(tasks)]
    async with LOCKS[contender](member.url, member.namespace) as make:
        locks = [make("one") for _ in range(tasks)]
        window = await member.signal()
        working = [
            asyncio.create_task(cycle(lock, window, tally))
            for lock, tally in zip(locks, tallies, strict=True)
        ]
        await member.closing(window)
        # Of those who poll, some would be asleep long after.
        _, late = await asyncio.wait(working, timeout=LINGERING)
        await dismiss(late)
    return tallies


async def cycle(lock: Lock, window: Window, tally: list[int]) -> None:
    while until(window.end):
        await lock.acquire()
        await lock.release()
        tally[0] += window.start <= time.monotonic() <= window.end
        tally[1] += 1


async def slice_of(contender: str, tasks: int, rig: Rig) -> Measured:
    seconds = max(rig.seconds, LEAST) if tasks == MANY else rig.seconds
    async with crew(PROCESSES, contend, rig, contender, tasks) as members:
        sent = rig.commands()
        members.go(seconds)
        found = [task for member in await members.results() for task in member]
        sent = rig.commands() - sent
    counted = [counted for counted, _ in found]
    return {
        CYCLES: sum(counted) / seconds,
        COMMANDS: sent / max(sum(total for _, total in found), 1),
        EVENNESS: max(counted) / max(min(counted), 1),
    }


def workload(name: str, tasks: int, rounds: int, goals: bool) -> Workload:
    def goal(sign: str, bound: float) -> Goal | None:
        return Goal(sign, bound) if goals else None

    names = (DSYNC, FAIR, PEER, QUICK_PEER)
    contenders = each_of(names, slice_of, tasks)
    if tasks == MANY:  # they need seconds to come in
        contenders = {who: contenders[who] for who in names}
    return Workload(
        name,
        f"{PROCESSES} processes of {tasks} tasks want one lock, without hold time",
        contenders,
        (
            Ratio(
                "dsync vs redis.asyncio.Lock (default sleep=0.1)",
                over(CYCLES, DSYNC, PEER),
                goal("≥", 30),
            ),
            Ratio("dsync vs the better of its sleeps", over(CYCLES, DSYNC, PEER, QUICK_PEER)),
            Ratio("commands per cycle", value(DSYNC, COMMANDS), goal("≤", 0.05)),
            Ratio("fair=True: commands per cycle", value(FAIR, COMMANDS), goal("≤", 2.1)),
            Ratio("fair=True: most ÷ least served task", value(FAIR, EVENNESS), goal("≤", 1.1)),
            Ratio("fair=True vs redis.asyncio.Lock (not fair)", over(CYCLES, FAIR, PEER)),
        ),
        Score(CYCLES, True),
        rounds,
        long=tasks == MANY,
    )


# -- in one process --------------------------------------------------------------------------------

ASYNCIO, LOCAL = "asyncio.Lock", "dsync.local.Lock"


async def turn(lock: Lock, end: float) -> int:
    """Again and again, each time for one turn of the event loop; -> how often."""
    count = 0
    while until(end):
        await lock.acquire()
        await asyncio.sleep(0)
        await lock.release()
        count += 1
    return count


async def local_turn(lock: asyncio.Lock | local.Lock, end: float) -> int:
    count = 0
    while until(end):
        await lock.acquire()
        await asyncio.sleep(0)
        lock.release()
        count += 1
    return count


async def alone(contender: str, rig: Rig) -> Measured:
    began = time.monotonic()
    end = began + rig.seconds
    if contender in (ASYNCIO, LOCAL):
        lock = asyncio.Lock() if contender == ASYNCIO else local.Lock()
        counts = await asyncio.gather(*(local_turn(lock, end) for _ in range(TASKS)))
        return {CYCLES: sum(counts) / (time.monotonic() - began)}
    async with LOCKS[contender](rig.url, rig.namespace) as make:
        first = make("one")
        await first.acquire()  # connects, loads scripts
        await first.release()
        began = time.monotonic()
        end = began + rig.seconds
        counts = await asyncio.gather(*(turn(make("one"), end) for _ in range(TASKS)))
        took = time.monotonic() - began
    return {CYCLES: sum(counts) / took, EVENNESS: max(counts) / max(min(counts), 1)}


WORKLOADS = (
    Workload(
        "one-process",
        f"{TASKS} tasks of one process want one lock, for one turn of the event loop each",
        each_of((ASYNCIO, LOCAL, DSYNC, FAIR, PEER), alone),
        (
            Ratio("dsync ÷ asyncio.Lock", over(CYCLES, DSYNC, ASYNCIO)),
            Ratio("dsync vs redis.asyncio.Lock", over(CYCLES, DSYNC, PEER)),
        ),
        Score(CYCLES, True),
    ),
    workload("one-lock", FEW, 1000, goals=True),
    workload("one-lock-100", MANY, 2, goals=False),
)
