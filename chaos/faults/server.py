"""A server that hangs up, forgets its scripts, or forgets everything."""

import asyncio

from chaos.faults import Fault
from chaos.scene import Scene

__all__ = ["FAULTS"]


async def hang_up(scene: Scene) -> None:
    async for _ in scene.moments(0.1, 0.5):
        with scene.harm("hang up"):
            for kind in ("normal", "pubsub"):
                await scene.admin.client_kill_filter(_type=kind, skipme=True)


async def flush_scripts(scene: Scene) -> None:
    async for _ in scene.moments(0.1, 0.1):
        with scene.harm("script flush"):
            await scene.admin.script_flush()


async def restart_empty(scene: Scene) -> None:
    async for _ in scene.moments(2.0, 3.0):
        with scene.harm("restart"):
            await asyncio.to_thread(scene.backend.restart, empty=True)


FAULTS = [
    Fault("client-kill", "CLIENT KILL of every connection", hang_up, goal=1.0),
    Fault("script-flush", "SCRIPT FLUSH every 100 ms", flush_scripts, goal=1.0),
    Fault(
        "restart-empty",
        "the server is killed and starts empty",
        restart_empty,
        overlap=2.0,  # a lease
        loses=True,
        goal=1.5,
    ),
]
