"""How much of a semaphore's permits 64 tasks in 4 processes can use."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import redis.asyncio

import dsync
from benchmarks.crew import Window, crew
from benchmarks.locks import DSYNC
from benchmarks.measure import Goal, Measured, Ratio, Score, Slice, Workload, value
from benchmarks.peers import load
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "contend"]

PERMITS, PROCESSES, TASKS = 10, 4, 16
THEIRS, LISTS = "py-redis-semaphore, Semaphore", "steindamm, AsyncSemaphore"
USED = "used"

Permit = AbstractAsyncContextManager[Any]  # held inside; each task makes one of its own
Opened = AbstractAsyncContextManager[Callable[[], Permit]]


@asynccontextmanager
async def ours(url: str, namespace: str) -> AsyncIterator[Callable[[], Permit]]:
    async with dsync.connect(url, namespace=namespace) as client:
        semaphore = client.semaphore("permits", PERMITS)
        yield lambda: semaphore


@asynccontextmanager
async def theirs(url: str, namespace: str) -> AsyncIterator[Callable[[], Permit]]:
    theirs = load("redis_semaphore")
    async with redis.asyncio.Redis.from_url(url, max_connections=2 * TASKS) as client:
        config = theirs.SemaphoreConfig(name="permits", limit=PERMITS, namespace=namespace)
        yield lambda: theirs.Semaphore(client, config)


@asynccontextmanager
async def lists(url: str, namespace: str) -> AsyncIterator[Callable[[], Permit]]:
    """It has no leases: what a process holds when it dies is gone."""
    create = load("steindamm").AsyncSemaphore.create
    async with redis.asyncio.Redis.from_url(
        url, max_connections=2 * TASKS, decode_responses=True
    ) as client:
        yield lambda: create(name=f"{namespace}:permits", capacity=PERMITS, connection=client)


SEMAPHORES: dict[str, Callable[[str, str], Opened]] = {DSYNC: ours, THEIRS: theirs, LISTS: lists}


async def contend(member: Member, contender: str, hold: float) -> list[float]:
    """-> of all tasks: seconds held inside the window, cycles inside it, cycles in all."""
    async with SEMAPHORES[contender](member.url, member.namespace) as make:
        window = await member.signal()
        found = await asyncio.gather(*(cycle(make(), hold, window) for _ in range(TASKS)))
    return [sum(column) for column in zip(*found, strict=True)]


async def cycle(permit: Permit, hold: float, window: Window) -> list[float]:
    held = counted = total = 0.0
    while until(window.end):
        async with permit:
            began = time.monotonic()
            await asyncio.sleep(hold)
            ended = time.monotonic()
        held += max(min(ended, window.end) - max(began, window.start), 0)
        counted += window.start <= ended <= window.end
        total += 1
    return [held, counted, total]


async def slice_of(contender: str, hold: float, rig: Rig) -> Measured:
    async with crew(PROCESSES, contend, rig, contender, hold) as members:
        sent = rig.commands()
        members.go(rig.seconds)
        found = await members.results()
        sent = rig.commands() - sent
    held, counted, total = (sum(column) for column in zip(*found, strict=True))
    return {
        USED: held / (PERMITS * rig.seconds),
        "cycles/s": counted / rig.seconds,
        "commands/cycle": sent / total,
    }


def workload(ms: int, goal: float) -> Workload:
    contenders: dict[str, Slice | None] = {
        who: partial(slice_of, who, ms / 1000) for who in SEMAPHORES
    }
    return Workload(
        f"semaphore-{ms}ms",
        f"{TASKS} tasks in each of {PROCESSES} processes share {PERMITS} permits, {ms} ms each",
        {**contenders, "redis.asyncio (has no semaphore)": None},
        (Ratio("share of the permits' time in use", value(DSYNC, USED), Goal("≥", goal)),),
        Score(USED, True),
    )


WORKLOADS = (workload(1, 0.75), workload(10, 0.95))
