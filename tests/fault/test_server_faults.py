"""A server that hangs up, forgets its scripts, or forgets everything."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

import dsync
from tests.conftest import settled
from tests.fault.conftest import OwnServer

Fault = Callable[[OwnServer], Awaitable[None]]


async def kill_connections(server: OwnServer) -> None:
    for kind in ("normal", "pubsub"):
        await server.admin.client_kill_filter(_type=kind, skipme=True)


async def flush_scripts(server: OwnServer) -> None:
    await server.admin.script_flush()


async def both(server: OwnServer) -> None:
    await flush_scripts(server)
    await kill_connections(server)


FAULTS = pytest.mark.parametrize("fault", [kill_connections, flush_scripts, both])


@FAULTS
@pytest.mark.parametrize("fair", [False, True], ids=["", "fair"])
async def test_a_lock_under_load_neither_doubles_nor_stops_nor_fails(
    own_server: OwnServer, fault: Fault, fair: bool
) -> None:
    locks = [own_server.client().lock("x", fair=fair) for _ in range(4)]
    inside = most = 0
    fences: list[int] = []
    ended = asyncio.Event()

    async def work(lock: dsync.Lock) -> None:
        nonlocal inside, most
        while not ended.is_set():
            async with lock as lease:
                inside += 1
                most = max(most, inside)
                assert lease.fence is not None
                fences.append(lease.fence)
                await asyncio.sleep(0.001)
                inside -= 1

    tasks = [asyncio.create_task(work(lock)) for lock in locks for _ in range(3)]
    for _ in range(15):
        served = len(fences)
        await fault(own_server)
        # Well below a heartbeat: nobody waits for one, as no message was lost for good.
        await settled(lambda: len(fences) > served + 20, "work goes on", 1.9)  # noqa: B023
    ended.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert most == 1
    assert fences == sorted(set(fences))


@FAULTS
async def test_a_semaphore_under_load_neither_over_admits_nor_stops_nor_fails(
    own_server: OwnServer, fault: Fault
) -> None:
    semaphores = [own_server.client().semaphore("x", 2) for _ in range(4)]
    inside = most = served = 0
    ended = asyncio.Event()

    async def work(semaphore: dsync.Semaphore) -> None:
        nonlocal inside, most, served
        while not ended.is_set():
            async with semaphore:
                inside += 1
                served += 1
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= 1

    tasks = [asyncio.create_task(work(semaphore)) for semaphore in semaphores for _ in range(3)]
    for _ in range(15):
        before = served
        await fault(own_server)
        await settled(lambda: served > before + 20, "work goes on", 1.9)  # noqa: B023
    ended.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert most == 2
    info = await semaphores[0].info()
    assert (info.held, info.waiting, info.value) == (0, 0, 2)


@FAULTS
async def test_a_release_after_the_fault_still_tells_a_loss_from_a_success(
    own_server: OwnServer, fault: Fault
) -> None:
    """A repeated command must not hide that the lock had been taken away."""
    lock, other = own_server.client().lock("x"), own_server.client().lock("x")
    await lock.acquire()
    await fault(own_server)
    await lock.release()
    await lock.acquire()
    # Taken away without a word: as by a failover to a replica that never heard of it.
    await own_server.admin.delete(own_server.key("lock", "x", "holders"))
    await own_server.admin.script_flush()
    with pytest.raises(dsync.LeaseLost):
        await lock.release()
    async with other:
        pass


async def test_a_server_that_came_back_empty_means_a_loss_and_a_new_holder_with_a_higher_fence(
    own_server: OwnServer,
) -> None:
    holder = own_server.client().lock("x")
    waiters = [own_server.client().lock("x") for _ in range(3)]
    await holder.acquire()
    lease = holder.lease
    assert lease is not None
    assert lease.fence is not None
    fences = [lease.fence]

    async def take(lock: dsync.Lock) -> None:
        async with lock as mine:
            assert mine.fence is not None
            fences.append(mine.fence)
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(take(lock)) for lock in waiters]
    await settled(lambda: all("waiters:1" in repr(lock) for lock in waiters))
    own_server.restart()
    async with asyncio.timeout(5):
        await lease.lost.wait()
        await asyncio.gather(*tasks)
    with pytest.raises(dsync.LeaseLost):
        holder.release()
    assert len(fences) == 4
    assert fences == sorted(set(fences))


async def test_a_body_is_cancelled_when_the_server_came_back_empty(own_server: OwnServer) -> None:
    lock = own_server.client().lock("x")
    with pytest.raises(dsync.LeaseLost, match="forgotten"):
        async with asyncio.timeout(5), lock:
            own_server.restart()
            await asyncio.sleep(10)
    async with asyncio.timeout(2), lock:
        pass


async def test_waiters_are_served_after_everything_was_flushed(own_server: OwnServer) -> None:
    """FLUSHALL takes the queue along and breaks no connection: the beat finds out."""
    holder, waiter = own_server.client().lock("x"), own_server.client().lock("x")
    await holder.acquire()
    task = asyncio.create_task(waiter.acquire())
    await settled(lambda: "waiters:1" in repr(waiter))
    await own_server.admin.flushall()
    await asyncio.wait_for(task, 3)
    with pytest.raises(dsync.LeaseLost):
        await holder.release()
    assert waiter.lease is not None
    assert waiter.lease.held
    await waiter.release()


async def test_a_server_that_stood_still_for_longer_than_a_lease_ends_it_for_both_sides(
    own_server: OwnServer,
) -> None:
    """The renewals that it finds on waking came too late: they bring nothing back."""
    lock, other = own_server.client().lock("x", lease=0.8), own_server.client().lock("x")
    took = asyncio.Event()

    async def take() -> None:
        async with other:
            took.set()
            await asyncio.sleep(0.05)

    with pytest.raises(dsync.LeaseLost):
        async with asyncio.timeout(3), lock:
            task = asyncio.create_task(take())
            await settled(lambda: "waiters:1" in repr(other))
            os.kill(own_server.server.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(10)
            finally:
                assert not took.is_set()
                await asyncio.sleep(0.3)  # the rest of the lease, as the server sees it
                os.kill(own_server.server.pid, signal.SIGCONT)
    await asyncio.wait_for(task, 3)
    async with asyncio.timeout(2), lock:
        pass


async def test_calls_wait_for_a_server_that_is_down_for_a_moment(own_server: OwnServer) -> None:
    client = own_server.client()
    await client.check()
    own_server.kill()
    acquiring = asyncio.create_task(client.lock("x").acquire())
    await settled(lambda: not client.listening())
    own_server.restart()
    await asyncio.wait_for(acquiring, 3)


async def test_a_server_that_stays_down_is_reported_after_the_outage_timeout(
    own_server: OwnServer,
) -> None:
    client = own_server.client(outage_timeout=0.5)
    await client.check()
    own_server.kill()
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(dsync.StoreUnavailable, match=r"could not be asked for 0\.5 s"):
        await client.lock("x").acquire()
    assert loop.time() - began < 1.0
    own_server.restart()
    await client.check()
