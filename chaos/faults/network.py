"""A network that is slow, cut or silent."""

import asyncio
from typing import Literal

from chaos.faults import Fault
from chaos.scene import Scene

__all__ = ["FAULTS"]

CUT = 3.0  # seconds
# A cut shorter than the lease less 2 s takes nothing from anybody.  Two that come so fast that
# somebody is not back in between are one to him: moments() keeps them apart.
LEASE = 6.0  # seconds
# A connection is given up when a reply is missing for so long, a third of `outage_timeout`; who
# only waits asks, and so expects a reply, once in 2 s.
DEAD = 10 / 3 + 2  # seconds

Way = Literal["requests", "replies"]


async def cut(scene: Scene) -> None:
    """All connections end, and none can be made."""
    async for _ in scene.moments(1.5, 2.5):
        with scene.harm("cut"):
            scene.proxy.refusing = True
            scene.proxy.cut()
            await asyncio.sleep(CUT)
            scene.proxy.heal()


async def silence(scene: Scene) -> None:
    """Nothing arrives, and nobody is told; then all of it does."""
    async for _ in scene.moments(1.5, 2.5):
        with scene.harm("silence"):
            scene.proxy.black_hole()
            await asyncio.sleep(CUT)
            scene.proxy.heal()


async def one_way(scene: Scene) -> None:
    """What we ask does not arrive, or it does and no answer comes; then all of it does."""
    async for _ in scene.moments(1.5, 2.5):
        way: Way = "requests" if scene.random.random() < 0.5 else "replies"
        with scene.harm(f"no {way}"):
            scene.proxy.black_hole(way)
            await asyncio.sleep(CUT)
            scene.proxy.heal()


async def strand(scene: Scene) -> None:
    """The connections there are go dead, and nobody is told; those to come are well.

    Who has made another one hears at last that the old one ends; the server reads it to its end.
    """
    async for _ in scene.moments(1.5, 2.5):
        with scene.harm("strand"):
            scene.proxy.strand()
            await asyncio.sleep(DEAD)
            scene.proxy.heal()


async def latency(scene: Scene) -> None:
    scene.proxy.jitter = 0.05
    async for _ in scene.moments(0.5, 1.0):
        with scene.harm("latency"):
            pass


FAULTS = [
    Fault(
        "cut",
        f"no connection for {CUT:g} s",
        cut,
        lease=LEASE,
        goal=1.0,
        proxied=True,
    ),
    Fault(
        "silence",
        f"a black hole both ways for {CUT:g} s",
        silence,
        lease=LEASE,
        goal=1.0,
        proxied=True,
    ),
    Fault(
        "one-way",
        f"a black hole one way, to or from the server, for {CUT:g} s",
        one_way,
        lease=LEASE,
        goal=1.0,
        proxied=True,
    ),
    Fault(
        "half-open",
        "connections go dead in silence; new ones can be made",
        strand,
        lease=2 * LEASE,
        goal=1.0,
        proxied=True,
    ),
    Fault("latency", "50 ± 50 ms to the server and back", latency, proxied=True),
]
