"""No harm at all: what is seen here is the machine's."""

from chaos.faults import Fault
from chaos.scene import Scene

__all__ = ["FAULTS"]


async def nothing(scene: Scene) -> None:
    async for _ in scene.moments(0.5, 1.0):
        with scene.harm("nothing"):
            pass


FAULTS = [Fault("none", "the control: nothing happens", nothing, goal=1.0)]
