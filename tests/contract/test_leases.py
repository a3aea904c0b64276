"""Leases: kept, lost, told in time, and never masking what the body raised."""

import asyncio
import time

import pytest

import dsync
from tests.conftest import World, settled


async def test_a_held_lock_is_renewed_past_its_lease(world: World) -> None:
    one, two = world.client(), world.client().lock("x")
    async with one.lock("x", lease=0.3) as lease:
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            assert lease.held
            assert not await two.try_acquire()
            await asyncio.sleep(0.02)


async def test_without_renewal_the_lease_ends(world: World) -> None:
    one, two = world.client().lock("x", lease=0.3, renew=False), world.client().lock("x")
    await one.acquire()
    lease = one.lease
    assert lease is not None
    started = time.monotonic()
    await two.acquire(timeout=5)
    assert time.monotonic() - started < 0.3 + 1
    assert lease.lost.is_set()
    with pytest.raises(dsync.LeaseLost, match=r"its lease of 0\.3 s ran out"):
        one.release()
    assert two.fence > (lease.fence or 0)
    await two.release()  # untouched by the release that came late


async def test_the_holder_gives_up_before_the_server_does(world: World) -> None:
    lock = world.client().lock("x", lease=0.8, renew=False)
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    await lease.lost.wait()
    info = await lock.info()
    assert info.holder is not None  # the server still counts on us
    assert 0 < info.holder.lease_left < 0.3
    with pytest.raises(dsync.LeaseLost):
        lock.release()


async def test_max_hold_is_a_cap_that_renewal_does_not_pass(world: World) -> None:
    lock, other = world.client().lock("x", lease=0.4, max_hold=0.9), world.client().lock("x")
    started = time.monotonic()
    with pytest.raises(dsync.LeaseLost):
        async with lock:
            await asyncio.sleep(30)
    lasted = time.monotonic() - started
    assert 0.6 < lasted < 0.9
    await other.acquire(timeout=5)
    await other.release()


async def test_a_grant_by_message_is_good_for_the_waiters_own_lease_at_most(world: World) -> None:
    one, two = world.client().lock("x"), world.client().lock("x", lease=1.5, max_hold=1.2)
    await one.acquire()
    waiting = asyncio.create_task(two.acquire())
    await settled(lambda: two._cohort.waiting() == 1)

    async def stands() -> bool:
        return len((await one.info()).waiters) == 1

    await settled(stands)
    await one.release()
    await waiting
    info = await one.info()
    assert info.holder is not None
    assert info.holder.lease_left <= 1.2
    await two.release()


async def test_on_loss_the_body_is_cancelled_and_leaves_as_lease_lost(world: World) -> None:
    client = world.client()
    task = asyncio.current_task()
    assert task is not None
    reached = False
    with pytest.raises(dsync.LeaseLost) as raised:
        async with client.lock("x", lease=0.2, renew=False):
            await asyncio.sleep(30)
            reached = True
    assert not reached
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # no cancel is left over


async def test_with_flag_the_body_goes_on_and_a_clean_end_still_raises(world: World) -> None:
    client = world.client()
    reached = False
    with pytest.raises(dsync.LeaseLost):
        async with client.lock("x", lease=0.2, renew=False, on_lost="flag") as lease:
            await lease.lost.wait()
            assert not lease.held
            assert lease.left == 0
            reached = True
    assert reached


async def test_an_exception_of_the_body_is_not_masked(world: World) -> None:
    client = world.client()
    with pytest.raises(ValueError, match="mine") as raised:
        async with client.lock("x", lease=0.2, renew=False, on_lost="flag") as lease:
            await lease.lost.wait()
            raise ValueError("mine")
    assert any("lock 'x' was lost" in note for note in raised.value.__notes__)


async def test_an_exception_raised_on_the_cancel_is_not_masked(world: World) -> None:
    client = world.client()
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(KeyError) as raised:
        async with client.lock("x", lease=0.2, renew=False):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                raise KeyError("cleaning up") from None
    assert any("was lost" in note for note in raised.value.__notes__)
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_cancel_from_outside_is_not_masked(world: World) -> None:
    client = world.client()

    async def body() -> None:
        async with client.lock("x", lease=0.2, renew=False, on_lost="flag") as lease:
            await lease.lost.wait()
            await asyncio.sleep(30)

    task = asyncio.create_task(body())
    lock = client.lock("x")
    await settled(lambda: bool(lock.locked()))
    await settled(lambda: not lock.locked())
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_timeout_around_the_lock_is_not_masked(world: World) -> None:
    client = world.client()
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0.5):
            async with client.lock("x", lease=0.2, renew=False, on_lost="flag"):
                await asyncio.sleep(30)
    assert not isinstance(raised.value, dsync.DsyncError)


async def test_both_a_loss_and_a_cancel_from_outside_end_as_cancelled(world: World) -> None:
    client = world.client()

    async def body() -> None:
        async with client.lock("x", lease=0.2, renew=False):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await asyncio.sleep(0)

    task = asyncio.create_task(body())
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_body_that_blocks_the_loop_past_its_lease_sees_the_truth_on_its_next_line(
    world: World,
) -> None:
    client = world.client()
    with pytest.raises(dsync.LeaseLost):
        async with client.lock("x", lease=0.2) as lease:
            time.sleep(0.4)
            assert not lease.held
            assert lease.left == 0


async def test_a_task_group_survives_a_loss_in_one_of_its_tasks(world: World) -> None:
    client = world.client()

    async def body() -> None:
        async with client.lock("x", lease=0.2, renew=False):
            await asyncio.sleep(30)

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(body())
    assert isinstance(raised.value.exceptions[0], dsync.LeaseLost)


async def test_two_tasks_that_share_an_object_never_release_each_others_hold(world: World) -> None:
    lock = world.client().lock("x", lease=0.3, renew=False, on_lost="flag")
    await lock.acquire()
    first = lock.lease
    assert first is not None
    await first.lost.wait()

    async def second() -> dsync.Lease:
        await lock.acquire(timeout=5)
        lease = lock.lease
        assert lease is not None
        return lease

    lease = await asyncio.create_task(second())
    with pytest.raises(dsync.LeaseLost):
        lock.release()  # this task's own, which is lost
    assert lease.held
    await lock.release()  # and now the other's: any task may


async def test_a_permit_of_a_dead_process_comes_back_within_its_lease(world: World) -> None:
    dead, alive = world.client(), world.client().semaphore("x", 1)
    world.leftovers_allowed = True
    await dead.semaphore("x", 1, lease=0.4).acquire()
    dead.keeper.close()  # it renews no more
    started = time.monotonic()
    await alive.acquire(timeout=5)
    assert time.monotonic() - started < 0.4 + 0.5
    await alive.release()


async def test_a_hold_the_server_has_forgotten_is_lost_at_the_next_renewal(world: World) -> None:
    client = world.client()
    with pytest.raises(dsync.LeaseLost, match="the store has forgotten it"):
        async with client.lock("x", lease=1.0):
            await world.expire("lock", "x")
            await asyncio.sleep(30)


async def test_waiters_here_ask_anew_when_the_hold_is_lost(world: World) -> None:
    client = world.client()
    lock = client.lock("x", lease=0.4)
    await lock.acquire()
    waiting = asyncio.create_task(lock.acquire(timeout=5))
    await asyncio.sleep(0)
    await world.expire("lock", "x")
    await waiting
    with pytest.raises(dsync.LeaseLost):
        await released_by_first(lock)
    await lock.release()


async def released_by_first(lock: dsync.Lock) -> None:
    await lock.release()


async def test_the_on_lost_hook_hears_of_every_loss(world: World) -> None:
    lost: list[dsync.Lease] = []
    client = world.client(on_lost=lost.append)
    with pytest.raises(dsync.LeaseLost):
        async with client.lock("x", lease=0.2, renew=False) as lease:
            await asyncio.sleep(30)
    assert lost == [lease]


async def test_fences_grow_after_the_store_lost_its_data(world: World) -> None:
    client = world.client()
    lock = client.lock("x")
    before: int | None = None
    for _ in range(300):  # so quick that fences must not run ahead of the clock
        async with lock as lease:
            before = lease.fence
    if world.admin is None:
        memory = client.store.memory  # type: ignore[attr-defined]
        memory.records.clear()
        memory.floor = 0
    else:
        for key in await world.keys():
            await world.admin.delete(key)
    async with lock as lease:
        assert before is not None
        assert lease.fence is not None
        assert lease.fence > before


async def test_a_body_that_releases_after_a_loss_leaves_others_alone(world: World) -> None:
    lock = world.client().lock("x", lease=0.3, renew=False, on_lost="flag")
    taken = asyncio.Event()

    async def second() -> dsync.Lease:
        await lock.acquire(timeout=5)
        taken.set()
        lease = lock.lease
        assert lease is not None
        return lease

    task = None
    with pytest.raises(dsync.NotHeld):
        async with lock as lease:
            await lease.lost.wait()
            task = asyncio.create_task(second())
            await taken.wait()
            with pytest.raises(dsync.LeaseLost):
                lock.release()
    assert task is not None
    assert (await task).held
    await lock.release()


async def test_a_lock_may_be_entered_by_one_task_and_left_by_another(world: World) -> None:
    lock = world.client().lock("x")
    await asyncio.create_task(lock.__aenter__())
    assert lock.locked()
    await asyncio.create_task(lock.__aexit__(None, None, None))
    assert await lock.locked() is False


async def test_a_body_may_release_and_acquire_again(world: World) -> None:
    lock = world.client().lock("x")
    async with lock:
        lock.release()
        await lock.acquire()
    assert await lock.locked() is False
    with pytest.raises(RuntimeError, match="Lock is not acquired"):
        async with lock:
            lock.release()


async def test_what_is_not_renewed_is_good_for_its_whole_lease_also_after_waiting(
    world: World,
) -> None:
    one, two = world.client().lock("x"), world.client().lock("x", lease=20, renew=False)
    await one.acquire()
    waiting = asyncio.create_task(two.acquire())

    async def stands() -> bool:
        return len((await one.info()).waiters) == 1

    await settled(stands)
    await one.release()
    await waiting
    assert two.lease is not None
    assert two.lease.left > 10
    await two.release()


async def test_a_released_lease_is_not_held(world: World) -> None:
    lock = world.client().lock("x")
    async with lock as lease:
        assert lease.held
    assert not lease.held
    assert lease.left == 0
    assert not lease.lost.is_set()
    async with lock:
        assert not lease.held


async def test_an_on_lost_hook_may_release_other_leases_that_have_ended(world: World) -> None:
    locks: list[dsync.Lock] = []

    def hook(lease: dsync.Lease) -> None:
        for lock in locks:
            try:
                lock.release()
            except (dsync.LeaseLost, dsync.NotHeld):
                pass

    client = world.client(on_lost=hook)
    locks += [client.lock(name, lease=0.4) for name in "xyz"]
    for lock in locks:
        await lock.acquire()
    leases = [lock.lease for lock in locks]
    time.sleep(0.6)  # all of them end while the loop stands still
    for lease in leases:
        assert lease is not None
        await asyncio.wait_for(lease.lost.wait(), 2)


async def test_a_task_that_gets_the_lock_from_one_with_a_shorter_lease_gets_its_own(
    world: World,
) -> None:
    client = world.client()
    short, long = client.lock("x", lease=0.5), client.lock("x", lease=30)
    await short.acquire()
    waiting = asyncio.create_task(long.acquire())
    await asyncio.sleep(0)
    short.release()
    await waiting

    def long_enough() -> bool:
        return long.lease is not None and long.lease.left > 10

    await settled(long_enough)
    await long.release()
