"""What 500 tasks cost that wait for one lock which somebody else keeps."""

import asyncio
import time
from functools import partial

from benchmarks.crew import crew
from benchmarks.locks import DSYNC, FAIR, LOCKS, PEER, Lock
from benchmarks.measure import Goal, Measured, Ratio, Workload, value
from benchmarks.rig import Rig
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "wait"]

TASKS = 500
LEAST = 6.0  # seconds: three of the beats by which a process keeps its places
SETTLING = 1.0  # seconds, until all of them have been told that they wait
LINGERING = 0.5  # seconds, so that nothing of their leaving falls into the window


async def wait(member: Member, contender: str) -> float:
    """-> CPU seconds inside the window."""
    async with LOCKS[contender](member.url, member.namespace) as make:
        tasks = [asyncio.create_task(take(make("kept"))) for _ in range(TASKS)]
        await asyncio.sleep(SETTLING)
        window = await member.signal()
        await member.opening(window)
        cpu = time.process_time()
        await member.closing(window)
        cpu = time.process_time() - cpu
        await asyncio.sleep(LINGERING)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return cpu


async def take(lock: Lock) -> None:
    await lock.acquire()
    raise RuntimeError("a lock that is kept was acquired")


async def slice_of(contender: str, rig: Rig) -> Measured:
    seconds = max(rig.seconds, LEAST)
    # With this lease the one who keeps it has nothing to renew meanwhile.
    async with LOCKS[contender](rig.url, rig.namespace, lease=300.0) as make:
        await make("kept").acquire()
        before = rig.connections()
        async with crew(1, wait, rig, contender) as members:
            window = members.go(seconds)
            await asyncio.sleep(window.start - time.monotonic())
            sent = rig.commands()
            await asyncio.sleep(window.end - time.monotonic())
            sent = rig.commands() - sent
            connections = rig.connections() - before
            [cpu] = await members.results()
    return {
        "commands/s": sent / seconds,
        "connections": connections,
        "CPU ms/s": 1000 * cpu / seconds,
    }


WORKLOADS = (
    Workload(
        "waiting",
        f"{TASKS} tasks of one process wait for one lock that another keeps ({LEAST:g} s at least)",
        {who: partial(slice_of, who) for who in (DSYNC, FAIR, PEER)},
        (
            Ratio("commands/s of the process", value(DSYNC, "commands/s"), Goal("≤", 1)),
            Ratio("commands/s of the process, fair=True", value(FAIR, "commands/s"), Goal("≤", 1)),
            Ratio("connections of the process", value(DSYNC, "connections"), Goal("≤", 1)),
            Ratio(
                "connections of the process, fair=True", value(FAIR, "connections"), Goal("≤", 1)
            ),
        ),
    ),
)
