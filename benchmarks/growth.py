"""Whether a step costs the same beside 10 names, waiters, permits or leases, and beside 100,000.

Those on the server are written there by hand: as many as real ones would take minutes, and all that
is asked of them is to be there.  They stand behind the real ones, and never get anything.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import dsync
from benchmarks.measure import Goal, Measured, Ratio, Slice, Workload, over
from benchmarks.rig import Rig, until
from dsync.names import tag

__all__ = ["WORKLOADS"]

SIZES = (10, 1_000, 100_000)
FEWER = (10, 1_000, 10_000)  # real ones
SCRIPT, STEP, CPU = "server µs/script", "µs/step", "CPU µs/step"
FLAT = Goal("≤", 1.5)
TASKS = 8  # so many that the next real one waits already, whenever the lock is released
BURST = 500  # acquired at once
MANY_TASKS = 32  # so many that the server is asked often, though each stays for a while
STAY = 0.002  # seconds
AN_HOUR = 3_600_000  # ms
LATE = 8_000_000_000_000_000  # µs: a ticket behind all real ones

NAMES = """
for i = 1, tonumber(ARGV[1]) do
  redis.call('HSET', '{' .. ARGV[2] .. ':lock:other-' .. i .. '}:state', 'schema', 1, 'fence', i)
end
"""
# KEYS: a queue, alive.  A process of which has just been heard waits `ARGV[1]` times.
WAITERS = """
local now = redis.call('TIME')[1] * 1000
for i = 1, tonumber(ARGV[1]) do
  redis.call('ZADD', KEYS[1], ARGV[2] + i, 'crowd:host:1:x.' .. i .. '/5000' .. ARGV[3])
end
redis.call('ZADD', KEYS[2], now + ARGV[4], 'crowd:host:1:x')
"""
# KEYS: holders, since.
PERMITS = """
local now = redis.call('TIME')[1] * 1000
for i = 1, tonumber(ARGV[1]) do
  local token = 'crowd:host:1:x.' .. i .. '/5000'
  redis.call('ZADD', KEYS[1], now + ARGV[2], token)
  redis.call('HSET', KEYS[2], token, now)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""

Step = Callable[[], Awaitable[object]]


# -- on the server ---------------------------------------------------------------------------------


@asynccontextmanager
async def names(client: dsync.Client, size: int, rig: Rig) -> AsyncIterator[Step]:
    """A free lock is taken and given back, beside other locks."""
    await cycle(lock := client.lock("one"))
    rig.fill(NAMES, [], size, rig.namespace)
    yield partial(cycle, lock)


@asynccontextmanager
async def waiters(client: dsync.Client, size: int, rig: Rig) -> AsyncIterator[Step]:
    """A lock is handed over in strict order, to those in front of a long queue."""
    key = tag(rig.namespace, "lock", "wanted")
    await cycle(lock := client.lock("wanted", fair=True))
    # From here on some real one has to wait always, or one of these gets the lock.
    rig.fill(WAITERS, [f"{key}:waiters", f"{key}:alive"], size, LATE, "", AN_HOUR)
    yield partial(cycle, lock)


@asynccontextmanager
async def sleepers(client: dsync.Client, size: int, rig: Rig) -> AsyncIterator[Step]:
    """Two tasks notify each other, in front of many sleepers of their condition."""
    condition = client.condition("ball")
    key = tag(rig.namespace, "condition", "ball")

    async def answer() -> None:
        async with condition:
            while True:
                await condition.wait()
                condition.notify()

    async def ask() -> None:
        async with condition:
            condition.notify()
            await condition.wait()

    answering = asyncio.create_task(answer())
    await asyncio.sleep(0)
    async with condition:  # so the other one sleeps
        rig.fill(WAITERS, [f"{key}:sleepers:ball", f"{key}:alive"], size, LATE, "/ball", AN_HOUR)
    yield ask
    answering.cancel()
    await asyncio.wait([answering])


@asynccontextmanager
async def permits(client: dsync.Client, size: int, rig: Rig) -> AsyncIterator[Step]:
    """A permit is taken and given back, beside others that are held."""
    key = tag(rig.namespace, "semaphore", "shared")
    await cycle(semaphore := client.semaphore("shared", size + 1))
    rig.fill(PERMITS, [f"{key}:holders", f"{key}:since"], size, AN_HOUR)
    yield partial(cycle, semaphore)


@asynccontextmanager
async def arrivals(client: dsync.Client, size: int, rig: Rig) -> AsyncIterator[Step]:
    """A party arrives at a barrier where many wait, and leaves."""
    key = tag(rig.namespace, "barrier", "gate")
    rig.fill(WAITERS, [f"{key}:arrivals", f"{key}:alive"], size, LATE, "", AN_HOUR)
    barrier = client.barrier("gate", size + 1000)  # a leave may still be on its way

    async def come_and_go() -> None:
        try:
            await barrier.wait(timeout=STAY)
        except dsync.WaitTimeout:
            return
        raise RuntimeError("a barrier let somebody pass that is short of one")

    await come_and_go()
    yield come_and_go


async def cycle(thing: dsync.Lock | dsync.Semaphore) -> None:
    await thing.acquire()
    thing.release()  # the next question follows in the same write


Beside = Callable[[dsync.Client, int, Rig], AbstractAsyncContextManager[Step]]


async def on_server(beside: Beside, tasks: int, size: int, rig: Rig) -> Measured:
    async with (
        dsync.connect(rig.url, namespace=rig.namespace) as client,
        beside(client, size, rig) as step,
    ):
        before, spent = rig.scripts()
        began = time.monotonic()
        counts = await asyncio.gather(*(steps(step, began + rig.seconds) for _ in range(tasks)))
        took = time.monotonic() - began
        after, spent_after = rig.scripts()
    return {
        SCRIPT: (spent_after - spent) / (after - before),
        STEP: 1e6 * took / sum(counts),
    }


async def steps(step: Step, end: float) -> int:
    count = 0
    while not count or until(end):
        await step()
        count += 1
    return count


# -- in one process --------------------------------------------------------------------------------


async def beside_leases(size: int, rig: Rig) -> Measured:
    """A free lock is taken and given back by a client that holds many others."""
    async with dsync.connect(rig.url, namespace=rig.namespace) as client:
        locks = [client.lock(f"held-{i}", lease=300.0) for i in range(size)]
        for i in range(0, size, BURST):
            await asyncio.gather(*(lock.acquire() for lock in locks[i : i + BURST]))
        lock = client.lock("one")
        await cycle(lock)
        began, cpu = time.monotonic(), time.process_time()
        count = await steps(partial(cycle, lock), began + rig.seconds)
        cpu = time.process_time() - cpu
        for i in range(0, size, BURST):
            await asyncio.gather(*(lock.release() for lock in locks[i : i + BURST]))
    return {CPU: 1e6 * cpu / count}


async def beside_tasks(make: Callable[[], Any], size: int, rig: Rig) -> Measured:
    """The last of many tasks that wait for a lock is cancelled, and another one comes."""
    lock = make()
    await lock.acquire()
    waiting = [asyncio.create_task(lock.acquire()) for _ in range(size)]
    await asyncio.sleep(0)

    async def come_and_go() -> None:
        task = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    began, cpu = time.monotonic(), time.process_time()
    count = await steps(come_and_go, began + rig.seconds)
    cpu = time.process_time() - cpu
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    lock.release()
    return {CPU: 1e6 * cpu / count}


async def our_tasks(size: int, rig: Rig) -> Measured:
    async with dsync.connect("memory://") as client:
        return await beside_tasks(partial(client.lock, "one", lease=300.0), size, rig)


def server_side(name: str, about: str, what: str, beside: Beside, tasks: int = 1) -> Workload:
    """All sizes, and the greatest against the least."""
    least, *_, most = (f"{size:,} {what}" for size in SIZES)
    return Workload(
        f"growth-{name}",
        about,
        {f"{size:,} {what}": partial(on_server, beside, tasks, size) for size in SIZES},
        (Ratio(f"{SCRIPT}, {most} ÷ {least}", over(SCRIPT, most, least), FLAT),),
        rounds=3,
        long=True,
    )


def held_leases() -> Workload:
    least, *_, most = (f"{size:,} leases" for size in FEWER)
    return Workload(
        "growth-leases",
        "a lock is cycled in a process that holds others",
        {f"{size:,} leases": partial(beside_leases, size) for size in FEWER},
        (Ratio(f"{CPU}, {most} ÷ {least}", over(CPU, most, least), FLAT),),
        rounds=2,
        long=True,
    )


def local_tasks() -> Workload:
    contenders: dict[str, Slice] = {}
    for size in SIZES:
        contenders[f"asyncio.Lock, {size:,} tasks"] = partial(beside_tasks, asyncio.Lock, size)
        contenders[f"dsync, {size:,} tasks"] = partial(our_tasks, size)
    theirs, ours = list(contenders)[-2:]
    return Workload(
        "growth-tasks",
        "a task comes last to those of its process that wait for a lock, and is cancelled",
        contenders,
        (Ratio(f"{CPU}, {ours} ÷ asyncio.Lock", over(CPU, ours, theirs), FLAT),),
        rounds=1,
        long=True,
    )


WORKLOADS = (
    server_side("names", "a lock is cycled, beside other locks on the server", "names", names),
    server_side(
        "waiters", "a lock goes from hand to hand, before a long queue", "waiters", waiters, TASKS
    ),
    server_side("permits", "a permit is cycled, beside others that are held", "permits", permits),
    server_side(
        "sleepers", "two tasks notify each other, before many sleepers", "sleepers", sleepers
    ),
    server_side(
        "arrivals",
        "a party arrives at a barrier where many wait, and leaves",
        "parties",
        arrivals,
        MANY_TASKS,
    ),
    held_leases(),
    local_tasks(),
)
