"""What it costs to keep many leases alive, in CPU and in stalls of the event loop."""

import asyncio
import time
from functools import partial

import dsync
from benchmarks.locks import PEER
from benchmarks.measure import Goal, Measured, Ratio, Slice, Workload, value
from benchmarks.rig import Rig

__all__ = ["WORKLOADS"]

TICK = 0.001  # seconds
LEAST, LEAST_MANY, LEAST_QUICK = 1.0, 2.0, 0.3  # seconds
BURST = 500  # acquired at once
SOME, MANY = 1000, 10_000  # leases


async def slice_of(leases: int, rig: Rig) -> Measured:
    """Three windows: ticking with no leases, only the leases, and both."""
    least = LEAST if leases < MANY else LEAST_MANY
    seconds = max(rig.seconds, LEAST_QUICK if rig.quick else least)
    async with dsync.connect(rig.url, namespace=rig.namespace) as client:
        idle, _ = await ticking(seconds)
        # A third of the lease is one window, so each is renewed once in it, or about so.
        locks = [client.lock(f"kept-{i}", lease=3 * seconds) for i in range(leases)]
        for i in range(0, leases, BURST):
            await asyncio.gather(*(lock.acquire() for lock in locks[i : i + BURST]))
        sent, cpu = rig.commands(), time.process_time()
        await asyncio.sleep(seconds)
        cpu, sent = time.process_time() - cpu, rig.commands() - sent
        stall, own_stall = await ticking(seconds)
        if not all(lock.lease is not None and lock.lease.held for lock in locks):
            raise RuntimeError("a lease was lost during the measurement")
        for i in range(0, leases, BURST):
            await asyncio.gather(*(lock.release() for lock in locks[i : i + BURST]))
    return {
        "CPU µs/renewal": 1e6 * cpu / max(sent, 1),
        "renewals/lease": sent / leases,
        "longest stall ms": 1000 * stall,
        "longest stall without leases ms": 1000 * idle,
        "longest stall by CPU of ours ms": 1000 * own_stall,
    }


async def ticking(seconds: float) -> tuple[float, float]:
    """-> by how much a tick was late at most, and how much CPU we used between two at most."""
    stall = own_stall = 0.0
    last, last_cpu = time.monotonic(), time.process_time()
    end = last + seconds
    while last < end:
        await asyncio.sleep(TICK)
        now, cpu = time.monotonic(), time.process_time()
        stall = max(stall, now - last - TICK)
        own_stall = max(own_stall, cpu - last_cpu)
        last, last_cpu = now, cpu
    return stall, own_stall


def workload(leases: int) -> Workload:
    who = f"dsync, {leases:,} leases"
    contenders: dict[str, Slice | None] = {who: partial(slice_of, leases), PEER: None}
    return Workload(
        f"renewing-{leases}",
        f"the Keeper renews {leases:,} leases while a task ticks every ms",
        contenders,
        (
            Ratio("CPU µs per renewal", value(who, "CPU µs/renewal"), Goal("≤", 15)),
            Ratio("longest stall, ms", value(who, "longest stall ms"), Goal("≤", 3)),
            Ratio("the same, by CPU of ours", value(who, "longest stall by CPU of ours ms")),
        ),
        rounds=3 if leases < MANY else 2,
        long=leases == MANY,
    )


WORKLOADS = (workload(SOME), workload(MANY))
