"""How long after the lease of a holder that was killed the next one has the lock."""

import asyncio
import time
from functools import partial

from benchmarks.crew import crew
from benchmarks.locks import DSYNC, LOCKS, PEER, Lock
from benchmarks.measure import Goal, Measured, Ratio, Workload, value
from benchmarks.peer_locks import COREDIS, FIFO
from benchmarks.rig import Rig
from benchmarks.worker import Member
from dsync.names import tag

__all__ = ["WORKLOADS", "hold"]

LEASE = 1.0  # seconds
SETTLING = 0.2  # seconds, until the next one has been told that it waits
BEYOND = "ms beyond the lease"
# Who keeps a lease as the time to live of a key of that name.
TTL_OF = (PEER, COREDIS)


async def hold(member: Member, contender: str) -> None:
    """Hold the lock until we are killed."""
    async with LOCKS[contender](member.url, member.namespace, lease=LEASE) as make:
        await make("fated").acquire()
        await member.signal()


async def slice_of(contender: str, rig: Rig) -> Measured:
    async with (
        LOCKS[contender](rig.url, rig.namespace, lease=LEASE) as make,
        crew(1, hold, rig, contender) as members,
    ):
        waiting = asyncio.create_task(acquired(make("fated")))
        await asyncio.sleep(SETTLING)
        killed = time.monotonic()
        members.processes[0].kill()
        await members.processes[0].wait()
        asked = time.monotonic()
        left = lease_left(contender, rig)
        got = await waiting
    return {BEYOND: 1000 * (got - asked - left), "ms from the kill": 1000 * (got - killed)}


async def acquired(lock: Lock) -> float:
    """-> when it was ours."""
    await lock.acquire()
    got = time.monotonic()
    await lock.release()
    return got


def lease_left(contender: str, rig: Rig) -> float:
    """Seconds, as the server sees it."""
    if contender in TTL_OF:
        return rig.time_to_live(f"{rig.namespace}:fated")
    return rig.first_score(f"{tag(rig.namespace, 'lock', 'fated')}:holders") / 1000 - rig.now()


WORKLOADS = (
    Workload(
        "crash",
        f"a process that holds a lock on a lease of {LEASE:g} s is killed; another one waits",
        # Whoever waits for a FifoLock looks again after 30 s.
        {**{who: partial(slice_of, who) for who in (DSYNC, *TTL_OF)}, FIFO: None},
        (Ratio(BEYOND, value(DSYNC, BEYOND), Goal("≤", 50)),),
        rounds=3,
    ),
)
