"""How much of a semaphore's permits 64 tasks in 4 processes can use."""

import asyncio
import time
from functools import partial

import dsync
from benchmarks.crew import Window, crew
from benchmarks.locks import DSYNC
from benchmarks.measure import Goal, Measured, Ratio, Slice, Workload, value
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "contend"]

PERMITS, PROCESSES, TASKS = 10, 4, 16


async def contend(member: Member, hold: float) -> list[float]:
    """-> of all tasks: seconds held inside the window, cycles inside it, cycles in all."""
    async with dsync.connect(member.url, namespace=member.namespace) as client:
        semaphore = client.semaphore("permits", PERMITS)
        window = await member.signal()
        found = await asyncio.gather(*(cycle(semaphore, hold, window) for _ in range(TASKS)))
    return [sum(column) for column in zip(*found, strict=True)]


async def cycle(semaphore: dsync.Semaphore, hold: float, window: Window) -> list[float]:
    held = counted = total = 0.0
    while until(window.end):
        async with semaphore:
            began = time.monotonic()
            await asyncio.sleep(hold)
            ended = time.monotonic()
        held += max(min(ended, window.end) - max(began, window.start), 0)
        counted += window.start <= ended <= window.end
        total += 1
    return [held, counted, total]


async def slice_of(hold: float, rig: Rig) -> Measured:
    async with crew(PROCESSES, contend, rig, hold) as members:
        sent = rig.commands()
        members.go(rig.seconds)
        found = await members.results()
        sent = rig.commands() - sent
    held, counted, total = (sum(column) for column in zip(*found, strict=True))
    return {
        "used": held / (PERMITS * rig.seconds),
        "cycles/s": counted / rig.seconds,
        "commands/cycle": sent / total,
    }


def workload(ms: int, goal: float) -> Workload:
    contenders: dict[str, Slice | None] = {
        DSYNC: partial(slice_of, ms / 1000),
        "redis.asyncio (has no semaphore)": None,
    }
    return Workload(
        f"semaphore-{ms}ms",
        f"{TASKS} tasks in each of {PROCESSES} processes share {PERMITS} permits, {ms} ms each",
        contenders,
        (Ratio("share of the permits' time in use", value(DSYNC, "used"), Goal("≥", None, goal)),),
    )


WORKLOADS = (workload(1, 0.75), workload(10, 0.95))
