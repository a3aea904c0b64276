"""A server that is out of memory, and refuses to write or throws keys away."""

import asyncio
import contextlib
import os
import time

import redis.exceptions

from chaos.faults import Fault
from chaos.scene import Scene

__all__ = ["FAULTS"]

LEASE = 2.0  # seconds
ROOM = 400_000  # bytes that are left when the pressure begins
JUNK = 5_000  # bytes of each key of somebody else's


async def oom(scene: Scene) -> None:
    """No writes that take memory, for longer than the lease."""
    async for _ in scene.moments(1.0, 2.0):
        with scene.harm("oom"):
            await scene.admin.config_set("maxmemory", 1_000_000)  # less than it uses
            await asyncio.sleep(scene.random.uniform(1.2, 1.6) * LEASE)
            await scene.admin.config_set("maxmemory", 0)


async def evict(scene: Scene) -> None:
    """Somebody else writes more than fits, and keys of ours go, too, again and again."""
    async for _ in scene.moments(1.0, 2.0):
        with scene.harm("pressure"):
            used = (await scene.admin.info("memory"))["used_memory"]
            await scene.admin.config_set("maxmemory", used + ROOM)
            ends = time.monotonic() + scene.random.uniform(0.5, 1.5)
            number = 0
            while time.monotonic() < ends:
                # Where nothing is left to evict, it is refused.
                with contextlib.suppress(redis.exceptions.OutOfMemoryError):
                    await scene.admin.set(f"junk:{number % 100}", os.urandom(JUNK))
                number += 1
                await asyncio.sleep(0.005)
            await scene.admin.config_set("maxmemory", 0)
            await scene.admin.delete(*(f"junk:{number}" for number in range(100)))


FAULTS = [
    Fault(
        "oom",
        f"maxmemory is reached for more than {LEASE:g} s, and nothing is evicted",
        oom,
        lease=LEASE,
        goal=1.0,
    ),
    *(
        Fault(
            f"evict-{policy}",
            f"others' keys push ours out, under allkeys-{policy}",
            evict,
            lease=LEASE,
            overlap=LEASE,
            loses=True,
            options=("--maxmemory-policy", f"allkeys-{policy}"),
        )
        for policy in ("lru", "random")
    ),
]
