"""How long a notification takes to another process, lock and all, against a bare message."""

import time
from functools import partial
from itertools import pairwise

import dsync
from benchmarks import hand_over
from benchmarks.crew import crew
from benchmarks.hand_over import MESSAGE, P50, messages, spread
from benchmarks.locks import DSYNC
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over, value
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "play"]

COMMANDS = "commands/trip"
LOCK = "dsync, a lock handed over"


async def play(member: Member) -> tuple[list[tuple[float, float]], int]:
    """-> when each wait returned and the next began, inside the window; how often one returned.

    Whoever is awake wakes the other and goes to sleep: two tasks, one lock, strictly in turns.
    """
    awake: list[tuple[float, float]] = []
    woken = 0
    async with dsync.connect(member.url, namespace=member.namespace) as client:
        condition = client.condition("ball")
        window = await member.signal()
        async with condition:
            while until(window.end):
                condition.notify()
                slept = time.monotonic()
                await condition.wait()
                if awake:
                    awake[-1] = (awake[-1][0], slept)
                awake.append((time.monotonic(), slept))
                woken += 1
            condition.notify()
    return [times for times in awake[:-1] if times[0] >= window.start], woken


async def slice_of(rig: Rig) -> Measured:
    async with crew(2, play, rig) as members:
        sent = rig.commands()
        members.go(rig.seconds)
        found = await members.results()
        sent = rig.commands() - sent
    turns = sorted((*times, member) for member in (0, 1) for times in found[member][0])
    trips = [after[0] - before[1] for before, after in pairwise(turns) if before[2] != after[2]]
    return {**spread(trips, rig), COMMANDS: sent / sum(woken for _, woken in found)}


WORKLOADS = (
    Workload(
        "condition",
        "2 processes of 1 task notify each other in turns, over one condition",
        {
            MESSAGE: messages,
            DSYNC: slice_of,
            LOCK: partial(hand_over.slice_of, DSYNC),
            "redis.asyncio (has no condition)": None,
        },
        (
            Ratio("p50 of a trip, dsync ÷ message", over(P50, DSYNC, MESSAGE), Goal("≤", 2.5)),
            Ratio("p50 of a trip ÷ a lock's hand-over", over(P50, DSYNC, LOCK)),
            Ratio("commands per trip", value(DSYNC, COMMANDS), Goal("≤", 3)),
        ),
        Score(P50, False),
    ),
)
