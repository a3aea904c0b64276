"""Locks that linger in processes that die, stand still, fork, or are cut off."""

import asyncio
import signal
import time

from dsync.beat import BEAT
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import Through
from tests.fault.test_boundaries import in_child, pytestmark, stepped
from tests.fault.test_processes import lease_end
from tests.fault.workers import Worker, Workers

__all__ = ["pytestmark"]

LEASE, LONG = 1.0, 60.0


async def lingering(workers: Workers) -> Worker:
    worker = workers.spawn(
        "--rounds", "2", "--lease", str(LEASE), "--linger", str(LONG)
    )  # fmt: skip
    await settled(lambda: worker.did("lingers"), "it lingers", 10)
    return worker


async def test_a_process_killed_while_its_lock_lingers_costs_its_lease(
    real: World, workers: Workers
) -> None:
    worker = await lingering(workers)
    killed = worker.signal(signal.SIGKILL)
    ends = await lease_end(real)
    assert ends <= killed + LEASE
    async with real.client().lock("x") as lease:
        assert -0.01 < time.monotonic() - ends < 0.25
        assert lease.fence is not None
        assert lease.fence > worker.events("held")[0]["fence"]


async def test_a_process_that_stood_still_past_its_lease_does_not_take_what_lingered(
    real: World, workers: Workers
) -> None:
    worker = await lingering(workers)
    worker.signal(signal.SIGSTOP)
    lock = real.client().lock("x", lease=30)
    await lock.acquire(timeout=LEASE + 2)
    worker.signal(signal.SIGTERM)  # it wants the lock once more ...
    worker.signal(signal.SIGCONT)
    await settled(lambda: len(worker.events("waiting")) == 2, "it goes on")

    async def queued() -> bool:
        return len((await lock.info()).waiters) == 1

    await settled(queued, "and waits for it")
    fence = lock.fence
    assert len(worker.events("held")) == 1
    await lock.release()
    await settled(lambda: worker.did("done"), "it is served")
    assert worker.events("held")[1]["fence"] > fence
    assert not worker.did("told")


async def test_a_forked_child_does_not_take_what_lingers(real: World) -> None:
    client = real.client()
    lock = client.lock("x", linger=LONG)
    async with lock:
        await settled(client.listening)
    token = next(iter(lock._cohort.holds))
    for use in (lock.acquire, lock.try_acquire, lock.__aenter__):
        assert in_child(stepped(use)).startswith("RuntimeError: ")
    await asyncio.wait_for(lock.acquire(), 2)
    assert list(lock._cohort.holds) == [token]
    await lock.release()


async def test_who_begins_to_wait_while_we_are_cut_off_is_served_when_we_are_back(
    real: World, proxy: Proxy, through: Through
) -> None:
    client = through()
    lock = client.lock("x", linger=LONG)
    async with lock:
        await settled(client.listening)
    proxy.black_hole()
    other = real.client().lock("x")
    waiting = asyncio.create_task(other.acquire())

    async def queued() -> bool:
        return len((await other.info()).waiters) == 1

    await settled(queued, "it waits")
    proxy.cut()
    proxy.heal()
    await asyncio.wait_for(waiting, 10)
    assert not lock._cohort.holds
    await other.release()


async def test_a_message_that_others_wait_and_that_is_lost_costs_a_heartbeat(real: World) -> None:
    client, other = real.client(), real.client()
    lock = client.lock("x", linger=LONG)
    async with lock:
        await settled(client.listening)
    pushed = client.store.link.inbox.pushed  # type: ignore[attr-defined]
    lost: list[list[bytes]] = []
    client.pushed = lambda message, evidence: lost.append(message)  # type: ignore[method-assign]
    waiting = asyncio.create_task(other.lock("x").acquire())
    await settled(lambda: bool(lost), "a message is lost")
    client.pushed = pushed  # type: ignore[method-assign]
    await asyncio.wait_for(waiting, 2 * BEAT)
