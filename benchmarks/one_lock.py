"""One lock that 32 tasks in 4 processes want all the time, and nobody keeps."""

import asyncio
import time
from functools import partial

from benchmarks.crew import Window, crew
from benchmarks.locks import DSYNC, FAIR, LOCKS, PEER, QUICK_PEER, Lock
from benchmarks.measure import Goal, Measured, Ratio, Slice, Workload, over, value
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "contend"]

PROCESSES, TASKS = 4, 8


async def contend(member: Member, contender: str) -> list[list[int]]:
    """-> for each task, the cycles inside the window, and all of them."""
    async with LOCKS[contender](member.url, member.namespace) as make:
        locks = [make("one") for _ in range(TASKS)]
        window = await member.signal()
        return list(await asyncio.gather(*(cycle(lock, window) for lock in locks)))


async def cycle(lock: Lock, window: Window) -> list[int]:
    counted = total = 0
    while until(window.end):
        await lock.acquire()
        await lock.release()
        total += 1
        counted += window.start <= time.monotonic() <= window.end
    return [counted, total]


async def slice_of(contender: str, rig: Rig) -> Measured:
    async with crew(PROCESSES, contend, rig, contender) as members:
        sent = rig.commands()
        members.go(rig.seconds)
        tasks = [task for found in await members.results() for task in found]
        sent = rig.commands() - sent
    counted = [counted for counted, _ in tasks]
    return {
        "cycles/s": sum(counted) / rig.seconds,
        "commands/cycle": sent / sum(total for _, total in tasks),
        "most ÷ least served": max(counted) / max(min(counted), 1),
    }


def contenders(*names: str) -> dict[str, Slice | None]:
    return {who: partial(slice_of, who) for who in names}


WORKLOADS = (
    Workload(
        "one-lock",
        f"{PROCESSES} processes of {TASKS} tasks want one lock, without hold time",
        contenders(DSYNC, PEER, QUICK_PEER),
        (
            Ratio(
                "dsync vs redis.asyncio.Lock (default sleep=0.1)",
                over("cycles/s", DSYNC, PEER),
                Goal("≥", 20, 30),
            ),
            Ratio("dsync vs the better of its sleeps", over("cycles/s", DSYNC, PEER, QUICK_PEER)),
            Ratio("commands per cycle", value(DSYNC, "commands/cycle"), Goal("≤", 0.05)),
        ),
    ),
    Workload(
        "one-lock-fair",
        "the same in strict order of arrival, fair=True",
        contenders(FAIR, PEER),
        (
            Ratio("dsync vs redis.asyncio.Lock (not fair)", over("cycles/s", FAIR, PEER)),
            Ratio("commands per cycle", value(FAIR, "commands/cycle"), Goal("≤", 2.1)),
            Ratio("most ÷ least served task", value(FAIR, "most ÷ least served"), Goal("≤", 1.1)),
        ),
    ),
)
