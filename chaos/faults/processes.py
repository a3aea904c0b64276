"""Processes that are killed, and processes that stand still."""

import asyncio
import os
import signal

from chaos.faults import Fault
from chaos.scene import Scene
from chaos.worker import STANDSTILL
from dsync.names import who
from dsync.testing import waits

__all__ = ["FAULTS"]

LEASE = 1.5  # seconds
HOLD = 0.3  # seconds, the longest that workers hold
# After so many seconds a waiter that is not connected any more is passed over; until then its turn
# costs its claim.
SILENCE = 3.0


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


async def block(scene: Scene) -> None:
    """Block the event loop of one that holds, by computing for longer than its lease."""
    async for _ in scene.moments(0.2, 1.0):
        victim = await scene.catch()
        if victim is None:
            continue
        os.kill(victim, signal.SIGUSR1)
        scene.go_on(victim)
        await asyncio.sleep(scene.fault.lease * STANDSTILL)


async def kill_head(scene: Scene) -> None:
    """Kill the process whose turn is next."""
    async for _ in scene.moments(1.2 * LEASE, 2 * LEASE):  # what the last one got has ended
        queue = await _queue(scene)
        if queue:
            scene.kill(queue[0])
            scene.spawn()


async def kill_waiters(scene: Scene) -> None:
    """Kill every process that waits, but for those which hold as well."""
    async for _ in scene.moments(1.0, 2.0):
        with scene.harm("dead waiters"):
            queue = await _queue(scene)
            for pid in queue:
                scene.kill(pid)
            for _ in queue:
                scene.spawn()
            await asyncio.sleep(SILENCE)


async def kill_granted(scene: Scene) -> None:
    """Kill a process that it was just granted to, and that has not heard of it."""
    async for _ in scene.moments(1.2 * LEASE, 2 * LEASE):  # what the last one had has ended
        queue = await _queue(scene)
        if not queue:
            continue
        head = queue[0]
        os.kill(head, signal.SIGSTOP)
        scene.history.write("stopped", whom=head)
        for _ in range(100):  # or it was not in the server's queue, or the others are slow
            if head in await _tokens(scene, "holders"):
                break
            await asyncio.sleep(0.005)
        scene.kill(head)
        scene.spawn()


async def _queue(scene: Scene) -> list[int]:
    """The processes that wait and do not hold, the next one first.

    Those that sleep at a condition come behind those that wait for its lock.  Where the server has
    no queue, they come as long as they have waited.
    """
    waiting = [w for w in waits(scene.history.events(), (scene.work.success,)) if w.end is None]
    pids = [*await _tokens(scene, "waiters"), *await _tokens(scene, "sleepers:*")]
    pids += [wait.event["pid"] for wait in waiting]
    holding = await _tokens(scene, "holders")
    return [pid for pid in dict.fromkeys(pids) if pid in scene.workers and pid not in holding]


async def _tokens(scene: Scene, part: str) -> list[int]:
    """The processes whose tokens are in this part of a record, in its order."""
    found: list[int] = []
    async for key in scene.admin.scan_iter(match=f"{{{scene.namespace}:*}}:{part}"):
        found += [who(token.decode())[3] for token in await scene.admin.zrange(key, 0, -1)]
    return found


FAULTS = [
    Fault(
        "kill-holder",
        "SIGKILL of one that holds, again and again",
        kill,
        lease=LEASE,
        deaths=True,
        concerns="next",
        goal=LEASE + 0.05,
    ),
    Fault(
        "kill-head",
        "SIGKILL of the one that waits as the next",
        kill_head,
        lease=LEASE,
        deaths=True,
        waiters=True,
        concerns="next",
        goal=HOLD + LEASE + 0.05,
    ),
    Fault(
        "kill-waiters",
        "SIGKILL of all that wait, at once",
        kill_waiters,
        lease=LEASE,
        deaths=True,
        waiters=True,
        concerns="next",
        goal=SILENCE + LEASE + 0.05,
    ),
    Fault(
        "kill-granted",
        "SIGKILL of one that was granted it and has not heard so",
        kill_granted,
        lease=LEASE,
        deaths=True,
        waiters=True,
        concerns="next",
        goal=LEASE + 0.05,
    ),
    Fault(
        "stop-holder",
        "SIGSTOP of one that holds for longer than its lease, then SIGCONT",
        stop,
        lease=LEASE,
    ),
    Fault(
        "block-loop",
        "an event loop that a holder blocks by computing for longer than its lease",
        block,
        lease=LEASE,
    ),
]
