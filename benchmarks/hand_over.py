"""How long a lock takes from one process to another, against a bare message."""

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

from benchmarks.crew import crew
from benchmarks.locks import DSYNC, LOCKS, PEER, each_of
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over
from benchmarks.raw import raw_link
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "pass_on", "ping_pong"]

MESSAGE = "floor: publish → message"
P50 = "p50 µs"


async def pass_on(member: Member, contender: str) -> list[tuple[float, float]]:
    """-> when each acquire returned and its release was called, inside the window."""
    held = []
    async with LOCKS[contender](member.url, member.namespace) as make:
        lock = make("baton")
        window = await member.signal()
        while until(window.end):
            await lock.acquire()
            acquired = time.monotonic()
            released = time.monotonic()
            await lock.release()
            if acquired >= window.start:
                held.append((acquired, released))
    return held


async def slice_of(contender: str, rig: Rig) -> Measured:
    async with crew(2, pass_on, rig, contender) as members:
        members.go(rig.seconds)
        found = await members.results()
    held = sorted((*times, member) for member in (0, 1) for times in found[member])
    waits = [after[0] - before[1] for before, after in pairwise(held) if before[2] != after[2]]
    return spread(waits, rig)


async def ping_pong(member: Member) -> list[float]:
    """-> how long each message took to us, inside the window."""
    hops: list[float] = []
    start = float("inf")

    def answer(message: list[bytes]) -> None:
        now = time.monotonic()
        if now >= start:
            hops.append(now - float(message[0]))
        publish()

    def publish() -> None:
        link.call(("PUBLISH", other, repr(time.monotonic())), lambda call: None)

    async with raw_link(member.url, member.namespace, f"raw-{member.index}", answer) as link:
        other = f"{link.channel[:-1]}{1 - member.index}"
        window = await member.signal()
        if member.index == 0:
            publish()
        await member.opening(window)
        start = window.start
        await member.closing(window)
    return hops


async def messages(rig: Rig) -> Measured:
    async with crew(2, ping_pong, rig) as members:
        members.go(rig.seconds)
        return spread([hop for found in await members.results() for hop in found], rig)


def spread(waits: Sequence[float], rig: Rig) -> Measured:
    if len(waits) < 2:  # it stayed with one process
        return {P50: 1e6 * rig.seconds, "p95 µs": 1e6 * rig.seconds, "per s": 0}
    return {
        P50: 1e6 * statistics.median(waits),
        "p95 µs": 1e6 * statistics.quantiles(waits, n=20)[-1],
        "per s": len(waits) / rig.seconds,
    }


WORKLOADS = (
    Workload(
        "hand-over",
        "2 processes of 1 task pass one lock to and fro",
        {MESSAGE: messages, **each_of((DSYNC, PEER), slice_of)},
        (
            Ratio("p50, dsync ÷ message", over(P50, DSYNC, MESSAGE), Goal("≤", 1.5)),
            Ratio("p50, redis.asyncio.Lock ÷ dsync", over(P50, PEER, DSYNC)),
        ),
        Score(P50, False),
    ),
)
