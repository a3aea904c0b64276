"""A server that hangs up, stands still, restarts, goes back in time, or forgets."""

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


async def pause(scene: Scene) -> None:
    """Answer nobody, or nobody who may write, for 1 to 3 s."""
    async for _ in scene.moments(1.0, 2.0):
        everybody = scene.random.random() < 0.5
        seconds = scene.random.uniform(1.0, 3.0)
        with scene.harm("pause all" if everybody else "pause writes"):
            await scene.admin.client_pause(int(seconds * 1000), all=everybody)
            await asyncio.sleep(seconds)


async def restart_empty(scene: Scene) -> None:
    async for _ in scene.moments(2.0, 3.0):
        with scene.harm("restart"):
            await asyncio.to_thread(scene.backend.restart, empty=True)


async def restart_aof(scene: Scene) -> None:
    async for _ in scene.moments(1.0, 2.0):
        with scene.harm("restart"):
            await asyncio.to_thread(scene.backend.restart, empty=False)


async def restart_old(scene: Scene) -> None:
    """All that has happened since the snapshot has not."""
    async for _ in scene.moments(0.3, 1.0):
        await scene.admin.save()
        await asyncio.sleep(scene.random.uniform(0.3, 1.5))
        with scene.harm("restart"):
            await asyncio.to_thread(scene.backend.restart, empty=False)
        await scene.admin.connection_pool.disconnect()  # what is left of the one to the last server


async def flush_all(scene: Scene) -> None:
    async for _ in scene.moments(1.0, 2.0):
        with scene.harm("flushall"):
            await scene.admin.flushall()


FAULTS = [
    Fault("client-kill", "CLIENT KILL of every connection", hang_up, goal=1.0),
    Fault("script-flush", "SCRIPT FLUSH every 100 ms", flush_scripts, goal=1.0),
    Fault("client-pause", "CLIENT PAUSE for 1 - 3 s, ALL or WRITE", pause, lease=6.0, goal=1.0),
    Fault(
        "restart-empty",
        "the server is killed and starts empty",
        restart_empty,
        overlap=2.0,  # a lease
        loses=True,
        goal=1.5,
    ),
    Fault(
        "restart-aof",
        "the server is killed and starts with all it has confirmed",
        restart_aof,
        lease=4.0,  # nobody may lose it, however slowly the server starts
        goal=1.5,
        options=("--appendonly", "yes", "--appendfsync", "always"),
    ),
    Fault(
        "restart-old",
        "the server is killed and starts with a snapshot 0.3 - 1.5 s old",
        restart_old,
        overlap=2.0,  # a lease
        loses=True,
    ),
    Fault("flushall", "FLUSHALL", flush_all, overlap=2.0, loses=True),
]
