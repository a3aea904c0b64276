"""Processes that are killed, and processes that stand still."""

import asyncio

from chaos.faults import Fault
from chaos.scene import Scene

__all__ = ["FAULTS"]


async def kill(scene: Scene) -> None:
    """Kill one that holds; another process takes its place."""
    async for _ in scene.moments(0.3, 1.5):
        victim = await scene.catch()
        if victim is None:
            continue
        scene.kill(victim)
        scene.spawn()


async def stop(scene: Scene) -> None:
    """Stop one that holds, for longer than its lease."""
    async for _ in scene.moments(0.2, 1.0):
        victim = await scene.catch()
        if victim is None:
            continue
        await asyncio.sleep(scene.fault.lease * scene.random.uniform(1.2, 1.6))
        scene.go_on(victim)


FAULTS = [
    Fault(
        "kill-holder",
        "SIGKILL of one that holds, again and again",
        kill,
        lease=1.5,
        deaths=True,
        concerns="next",
        goal=1.5 + 0.05,
    ),
    Fault(
        "stop-holder",
        "SIGSTOP of one that holds for longer than its lease, then SIGCONT",
        stop,
        lease=1.5,
    ),
]
