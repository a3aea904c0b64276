"""What a lock that lingers in one process costs another that wants it."""

import asyncio
import time
from functools import partial

from benchmarks.crew import crew
from benchmarks.hand_over import P50, spread
from benchmarks.locks import DSYNC, LOCKS
from benchmarks.measure import Measured, Ratio, Score, Workload, over
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "want"]

FREE, KEPT = "released", "lingering"
PAUSE = 0.002  # seconds, in which the lock is released or lingers, and is wanted elsewhere


async def want(member: Member, linger: float) -> list[float]:
    """One member uses the lock now and then; -> how long each acquire took the other."""
    waits = []
    kept = 0.0 if member.index else linger
    async with LOCKS[DSYNC](member.url, member.namespace, linger=kept) as make:
        lock = make("baton")
        window = await member.signal()
        while until(window.end):
            asked = time.monotonic()
            await lock.acquire()
            took = time.monotonic() - asked
            await lock.release()
            if member.index == 1 and asked >= window.start:
                waits.append(took)
            await asyncio.sleep(PAUSE * (1 + 2 * member.index))
    return waits


async def slice_of(linger: float, rig: Rig) -> Measured:
    async with crew(2, want, rig, linger) as members:
        members.go(rig.seconds)
        _, found = await members.results()
    return spread(found, rig)


WORKLOADS = (
    Workload(
        "wanted-elsewhere",
        "a lock that another process has just used: it lingers there, or was released",
        {FREE: partial(slice_of, 0.0), KEPT: partial(slice_of, 1.0)},
        (Ratio(f"p50 of an acquire, {KEPT} ÷ {FREE}", over(P50, KEPT, FREE)),),
        Score(P50, False, KEPT),
    ),
)
