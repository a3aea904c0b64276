"""What 500 tasks cost that wait for one lock which somebody else keeps."""

import asyncio
import time

from benchmarks.crew import crew
from benchmarks.locks import DSYNC, FAIR, LOCKS, PEER, Lock, dismiss, each_of
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, value
from benchmarks.peer_locks import BLOCKING
from benchmarks.rig import Rig
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "wait"]

TASKS = 500
LEAST = 4.0  # seconds: two of the beats by which a process keeps its places
SETTLING = 1.0  # seconds, until all of them have been told that they wait
LINGERING = 0.5  # seconds, so that nothing of their leaving falls into the window


async def wait(member: Member, contender: str, settling: float) -> float:
    """-> CPU seconds inside the window."""
    async with LOCKS[contender](member.url, member.namespace) as make:
        tasks = [asyncio.create_task(take(make("kept"))) for _ in range(TASKS)]
        await asyncio.sleep(settling)
        window = await member.signal()
        await member.opening(window)
        cpu = time.process_time()
        await member.closing(window)
        cpu = time.process_time() - cpu
        await asyncio.sleep(LINGERING)
        await dismiss(tasks)
    return cpu


async def take(lock: Lock) -> None:
    await lock.acquire()
    raise RuntimeError("a lock that is kept was acquired")


async def slice_of(contender: str, rig: Rig) -> Measured:
    seconds, settling = rig.seconds, SETTLING / 2
    if not rig.quick:
        seconds, settling = max(seconds, LEAST), SETTLING
    # With this lease the one who keeps it has nothing to renew meanwhile.
    async with LOCKS[contender](rig.url, rig.namespace, lease=300.0) as make:
        await make("kept").acquire()
        before = rig.connections()
        async with crew(1, wait, rig, contender, settling) as members:
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
        # A blocking lock takes a thread for each task.
        each_of((DSYNC, FAIR, PEER), slice_of, without=[BLOCKING]),
        (
            Ratio("commands/s of the process", value(DSYNC, "commands/s"), Goal("≤", 1)),
            Ratio("commands/s of the process, fair=True", value(FAIR, "commands/s"), Goal("≤", 1)),
            Ratio("connections of the process", value(DSYNC, "connections"), Goal("≤", 1)),
            Ratio(
                "connections of the process, fair=True", value(FAIR, "connections"), Goal("≤", 1)
            ),
        ),
        Score("CPU ms/s", False),
        rounds=1,
    ),
)
