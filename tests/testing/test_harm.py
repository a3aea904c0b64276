"""Faults on demand do to a client what the real ones do, in memory and on a server."""

import asyncio

import fakeredis
import pytest

import dsync
from dsync.testing import VirtualClock, assert_free, assert_held, cut, heal, kill_process, lose
from tests.conftest import LOOP, settled
from tests.testing.conftest import Process


async def test_a_lock_that_is_lost_cancels_its_body(process: Process) -> None:
    client = process()
    with pytest.raises(dsync.LeaseLost, match="released by force"):
        async with client.lock("x"):
            await lose(client.lock("x"))
            await asyncio.Event().wait()
    await assert_free(client.lock("x"))


async def test_a_lock_that_is_lost_goes_to_the_next(process: Process) -> None:
    client, other = process(), process()
    await client.lock("x", on_lost="flag").acquire()
    waiting = asyncio.create_task(other.lock("x").acquire())
    await settled(lambda: waits(client))
    await lose(other.lock("x"))
    assert await waiting
    await assert_held(client.lock("x"), by=other)


async def waits(client: dsync.Client) -> bool:
    return bool((await client.lock("x").info()).waiters)


async def test_every_permit_of_a_semaphore_is_lost(process: Process) -> None:
    client = process()
    semaphores = [client.semaphore("s", 2, on_lost="flag") for _ in range(2)]
    leases = []
    for semaphore in semaphores:
        await semaphore.acquire()
        leases.append(semaphore._pick())
    await lose(client.semaphore("s", 2))
    assert [lease.held for lease in leases if lease] == [False, False]
    assert all(lease.lost.is_set() for lease in leases if lease)


async def test_over_a_pool_the_holder_knows_of_the_loss_as_well() -> None:
    """There the message comes by another connection than the answer, and may come after it."""
    async with dsync.Client(redis=fakeredis.FakeAsyncRedis()) as client:
        lock = client.lock("x", on_lost="flag")
        await lock.acquire()
        lease = lock.lease
        assert lease is not None
        await lose(lock)
        assert lease.lost.is_set()


async def test_what_nobody_holds_cannot_be_lost(process: Process) -> None:
    with pytest.raises(AssertionError, match="lock 'x' is held by nobody: nothing can be lost"):
        await lose(process().lock("x"))


async def test_a_client_that_is_cut_off_reaches_nobody(
    dsync_memory: str, dsync_server: str
) -> None:
    for url in (dsync_memory, dsync_server):
        async with dsync.connect(url, outage_timeout=0.2) as client:
            await client.lock("before").acquire()
            cut(client)
            assert not client.listening()
            with pytest.raises(RuntimeError, match="cut off already"):
                cut(client)
            with pytest.raises(dsync.StoreUnavailable, match="could not be asked"):
                await client.lock("x").acquire()
            heal(client)
            async with client.lock("x"):
                await assert_held(client.lock("x"), by=client)
            with pytest.raises(RuntimeError, match="is not cut off"):
                heal(client)
            await client.lock("x").force_release()


async def test_who_is_healed_hears_what_it_missed(process: Process) -> None:
    client, other = process(), process()
    flag = client.event("ready")
    waiting = asyncio.create_task(flag.wait())
    await settled(lambda: "waiters:1" in repr(flag))
    cut(client)
    await other.event("ready").set()
    heal(client)
    async with asyncio.timeout(5):
        await waiting


async def test_who_is_healed_hears_what_is_said_from_then_on(process: Process) -> None:
    client, other = process(), process()
    heard: list[object] = []
    await client.event_bus().on("news", heard.append)
    cut(client)
    heal(client)
    await client.check()  # on a server: connected again
    await settled(client.listening)
    await other.event_bus().trigger("news", 1)
    await settled(lambda: heard == [1], lambda: f"heard {heard}")


@pytest.mark.skipif(LOOP != "asyncio", reason="uvloop keeps its own time")
async def test_who_is_healed_is_handed_a_lock_at_once(
    dsync_client: dsync.Client, dsync_memory: str, dsync_clock: VirtualClock
) -> None:
    async with dsync.connect(dsync_memory) as other:
        cut(dsync_client)
        heal(dsync_client)
        await other.lock("x").acquire()
        waiting = asyncio.create_task(dsync_client.lock("x").acquire())
        await dsync_clock.advance(0)
        await other.lock("y").acquire()
        holder = other.lock("x")
        assert not waiting.done()
        await holder.force_release()
        await dsync_clock.advance(0)
        assert waiting.done()
        await dsync_client.lock("x").force_release()


async def test_a_lock_that_was_lost_meanwhile_is_known_lost_once_healed(process: Process) -> None:
    client, other = process(), process()
    lock = client.lock("x", on_lost="flag")
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    cut(client)
    await lose(other.lock("x"))
    await asyncio.sleep(0)
    assert not lease.lost.is_set()
    heal(client)
    async with asyncio.timeout(5):
        await lease.lost.wait()
    assert not lease.held


async def test_a_killed_process_neither_releases_nor_hears(process: Process) -> None:
    client, other = process(), process()
    lock = client.lock("x")
    await lock.acquire()
    heard: list[object] = []
    heard_elsewhere: list[object] = []
    await client.event_bus().on("news", heard.append)
    await other.event_bus().on("news", heard_elsewhere.append)
    kill_process(client)
    kill_process(client)  # once more changes nothing
    with pytest.raises(dsync.ClientClosed):
        await lock.release()
    await other.event_bus().trigger("news", 1)
    await settled(lambda: heard_elsewhere == [1])
    await assert_held(other.lock("x"))
    with pytest.raises(dsync.ClientClosed):
        await client.lock("y").acquire()
    with pytest.raises(RuntimeError, match="is not cut off"):
        heal(client)
    assert heard == []


async def test_a_killed_process_holds_until_its_lease_ends(process: Process) -> None:
    client, other = process(), process()
    await client.lock("x", lease=0.4).acquire()
    kill_process(client)
    assert not await other.lock("x").try_acquire()
    async with asyncio.timeout(5), other.lock("x"):
        await assert_held(other.lock("x"), by=other)


@pytest.mark.skipif(LOOP != "asyncio", reason="uvloop keeps its own time")
async def test_a_killed_process_is_not_told_that_its_lease_has_run_out(
    dsync_client: dsync.Client, dsync_clock: VirtualClock
) -> None:
    lock = dsync_client.lock("x", lease=30)
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    kill_process(dsync_client)
    await dsync_clock.advance(60)
    assert not lease.held
    assert not lease.lost.is_set()


@pytest.mark.skipif(LOOP != "asyncio", reason="uvloop keeps its own time")
async def test_the_place_of_a_killed_process_in_the_queue_is_passed_over(
    dsync_client: dsync.Client, dsync_memory: str, dsync_clock: VirtualClock
) -> None:
    dead = dsync.connect(dsync_memory)
    lock = dsync_client.lock("x")
    await lock.acquire()
    waiting = asyncio.create_task(dead.lock("x").acquire())
    await settled(lambda: waits(dsync_client))
    kill_process(dead)
    await lock.release()
    async with asyncio.timeout(30):
        await lock.acquire()
    await lock.release()
    with pytest.raises(dsync.ClientClosed):
        await waiting


async def test_a_client_that_has_no_wire_of_its_own_cannot_be_cut() -> None:
    client = dsync.Client("redis+cluster://127.0.0.1:1")
    with pytest.raises(TypeError, match=r"put a dsync\.testing\.Proxy between"):
        cut(client)
    await client.aclose()
