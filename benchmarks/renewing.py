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
LEAST = 1.0  # seconds


async def slice_of(leases: int, rig: Rig) -> Measured:
    """Each lease is renewed once in a window, or about so; what the window costs idle is deducted."""
    seconds = max(rig.seconds, LEAST)
    async with dsync.connect(rig.url, namespace=rig.namespace) as client:
        idle_cpu, idle_stall, _ = await window(seconds)
        locks = [client.lock(f"kept-{i}", lease=3 * seconds) for i in range(leases)]
        for i in range(0, leases, 500):
            await asyncio.gather(*(lock.acquire() for lock in locks[i : i + 500]))
        sent = rig.commands()
        cpu, stall, cpu_stall = await window(seconds)
        sent = rig.commands() - sent
        if not all(lock.lease is not None and lock.lease.held for lock in locks):
            raise RuntimeError("a lease was lost during the measurement")
        for i in range(0, leases, 500):
            await asyncio.gather(*(lock.release() for lock in locks[i : i + 500]))
    return {
        "µs/renewal": 1e6 * (cpu - idle_cpu) / max(sent, 1),
        "renewals/lease": sent / leases,
        "longest stall ms": 1000 * stall,
        "longest stall, idle ms": 1000 * idle_stall,
        "longest stall, our CPU ms": 1000 * cpu_stall,
    }


async def window(seconds: float) -> tuple[float, float, float]:
    """-> CPU seconds, and by how much a tick was late at most: in all, and by CPU of ours."""
    stall = cpu_stall = 0.0
    began = last_cpu = time.process_time()
    last = time.monotonic()
    end = last + seconds
    while last < end:
        await asyncio.sleep(TICK)
        now, cpu = time.monotonic(), time.process_time()
        stall = max(stall, now - last - TICK)
        cpu_stall = max(cpu_stall, cpu - last_cpu)
        last, last_cpu = now, cpu
    return last_cpu - began, stall, cpu_stall


def workload(leases: int) -> Workload:
    who = f"dsync, {leases:,} leases"
    contenders: dict[str, Slice | None] = {who: partial(slice_of, leases), PEER: None}
    return Workload(
        f"renewing-{leases}",
        f"the Keeper renews {leases:,} leases while a task ticks every ms",
        contenders,
        (
            Ratio("CPU µs per renewal", value(who, "µs/renewal"), Goal("≤", None, 15)),
            Ratio("longest stall of the loop, ms", value(who, "longest stall ms"),
                  Goal("≤", None, 3)),
        ),
    )  # fmt: skip


WORKLOADS = (workload(1000), workload(10_000))
