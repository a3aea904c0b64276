"""What a Lock promises, on every store."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

import dsync
from dsync import beat
from tests.conftest import World, settled


async def queued(world: World, lock: dsync.Lock, count: int) -> None:
    """Wait until `count` requests stand in the store's queue."""

    async def there() -> bool:
        return len((await lock.info()).waiters) == count

    await settled(there, f"{count} in the queue of {lock!r}")


async def test_the_lock_is_held_by_one_at_a_time(world: World) -> None:
    one, two = world.client(), world.client()
    inside = most = 0

    async def work(client: dsync.Client) -> None:
        nonlocal inside, most
        for _ in range(30):
            async with client.lock("x"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.gather(*(work((one, two)[i % 2]) for i in range(8)))
    assert most == 1


async def test_acquire_returns_true_and_release_frees(world: World) -> None:
    lock = world.client().lock("x")
    assert await lock.acquire() is True
    assert lock.locked()
    assert await lock.locked() is True
    assert await lock.release() is None  # type: ignore[func-returns-value]
    assert not lock.locked()
    assert await lock.locked() is False


async def test_a_release_that_nobody_awaits_happens_all_the_same(world: World) -> None:
    one, two = world.client().lock("x"), world.client().lock("x")
    await one.acquire()
    one.release()
    await two.acquire(timeout=5)
    await two.release()


async def test_releasing_what_is_not_held_is_asyncios_error(world: World) -> None:
    lock = world.client().lock("invoices")
    with pytest.raises(RuntimeError, match=r"Lock is not acquired\. \(lock 'invoices'\)") as raised:
        lock.release()
    assert isinstance(raised.value, dsync.NotHeld)


async def test_any_task_of_the_process_may_release(world: World) -> None:
    lock = world.client().lock("x")
    await asyncio.create_task(lock.acquire())
    await asyncio.create_task(released(lock))
    assert await lock.try_acquire()
    await lock.release()


async def released(lock: dsync.Lock) -> None:
    await lock.release()


async def test_objects_of_one_name_are_one_lock_and_kinds_and_namespaces_are_apart(
    world: World,
) -> None:
    client = world.client()
    async with client.lock("x"):
        assert not await client.lock("x").try_acquire()
        assert await client.semaphore("x").try_acquire()
        other = world.client(namespace=world.namespace + "-b").lock("x")
        assert await other.try_acquire()
        await other.release()


async def test_the_lock_is_not_reentrant(world: World) -> None:
    lock = world.client().lock("x")
    async with lock:
        with pytest.raises(dsync.AcquireTimeout):
            await lock.acquire(timeout=0.05)


@pytest.mark.parametrize("fair", [False, True])
async def test_waiters_of_one_process_are_served_in_order(world: World, fair: bool) -> None:
    client = world.client()
    served: list[int] = []

    async def work(number: int) -> None:
        async with client.lock("x", fair=fair):
            served.append(number)

    async with client.lock("x"):
        tasks = [asyncio.create_task(work(i)) for i in range(10)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert served == list(range(10))


async def test_fair_waiters_of_many_processes_are_served_in_order_of_arrival(world: World) -> None:
    clients = [world.client() for _ in range(3)]
    first = clients[0].lock("x")
    await first.acquire()
    served: list[int] = []

    async def work(number: int) -> None:
        async with clients[number % 3].lock("x", fair=True):
            served.append(number)

    tasks = []
    for i in range(9):
        tasks.append(asyncio.create_task(work(i)))
        await queued(world, first, i + 1)
    await first.release()
    await asyncio.gather(*tasks)
    assert served == list(range(9))


async def test_the_waiter_of_another_process_owns_the_lock_as_soon_as_it_is_released(
    world: World,
) -> None:
    holder, waiter, newcomer = (world.client().lock("x") for _ in range(3))
    await holder.acquire()
    waiting = asyncio.create_task(waiter.acquire())
    await queued(world, holder, 1)
    await holder.release()
    assert not await newcomer.try_acquire()
    await waiting
    await waiter.release()


async def test_a_process_with_many_tasks_lets_the_others_in(world: World) -> None:
    busy, other = world.client(), world.client().lock("x")
    stop = False
    passes = 0

    async def work() -> None:
        nonlocal passes
        while not stop:
            async with busy.lock("x"):
                passes += 1
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(work()) for _ in range(8)]
    await settled(lambda: passes > 10)
    for _ in range(3):
        await other.acquire(timeout=5)
        await other.release()
    stop = True
    await asyncio.gather(*tasks)


async def test_try_acquire_never_waits_and_never_overtakes(world: World) -> None:
    one, two, three = (world.client().lock("x") for _ in range(3))
    assert await one.try_acquire() is True
    assert await two.try_acquire() is False
    waiting = asyncio.create_task(two.acquire())
    await queued(world, one, 1)
    assert await three.try_acquire() is False
    await one.release()
    await waiting
    assert await three.try_acquire() is False
    await two.release()
    assert await three.try_acquire() is True
    await three.release()


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_a_timeout_raises_and_leaves_nothing(world: World, timeout: float) -> None:
    one, two = world.client().lock("x"), world.client().lock("x")
    async with one:
        with pytest.raises(TimeoutError, match=r"lock 'x' was not free within") as raised:
            await two.acquire(timeout=timeout)
        assert isinstance(raised.value, dsync.AcquireTimeout)
        await queued(world, one, 0)
    assert await two.acquire(timeout=0)
    await two.release()


async def test_asyncio_timeout_works_as_everywhere(world: World) -> None:
    one, two = world.client().lock("x"), world.client().lock("x")
    async with one:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await two.acquire()
        await queued(world, one, 0)


async def test_a_cancelled_waiter_leaves_the_queue(world: World) -> None:
    one, two = world.client().lock("x"), world.client().lock("x")
    await one.acquire()
    waiting = asyncio.create_task(two.acquire())
    await queued(world, one, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await queued(world, one, 0)
    await one.release()
    assert await one.try_acquire()
    await one.release()


async def test_a_waiter_cancelled_just_when_it_is_served_passes_the_lock_on(world: World) -> None:
    client = world.client()
    lock = client.lock("x")
    await lock.acquire()
    first = asyncio.create_task(lock.acquire())
    second = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)
    lock.release()  # `first` owns it now, but has not run yet
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 5)
    await lock.release()


async def test_fences_grow_over_processes_and_tasks(world: World) -> None:
    clients = [world.client() for _ in range(2)]
    fences: list[int] = []

    async def work(client: dsync.Client, fair: bool) -> None:
        for _ in range(40):
            async with client.lock("x", fair=fair) as lease:
                assert lease.fence is not None
                fences.append(lease.fence)
                await asyncio.sleep(0)

    await asyncio.gather(*(work(clients[i % 2], i == 5) for i in range(6)))
    assert len(fences) == 240
    assert all(a < b for a, b in pairwise(fences))


async def test_the_fence_can_be_read_while_the_lock_is_held_only(world: World) -> None:
    lock = world.client().lock("x")
    with pytest.raises(dsync.NotHeld):
        _ = lock.fence
    async with lock as lease:
        assert lock.fence == lease.fence
        assert lock.lease is lease
        assert lease.held
        assert 0 < lease.left <= 30
    assert lock.lease is None


async def test_info_tells_who_holds_and_who_waits(world: World) -> None:
    one = world.client(label="first one")
    two = world.client(label="zweite")
    lock = one.lock("x")
    assert await lock.info() == dsync.LockInfo("x", None, (), 0)
    async with lock:
        waiting = asyncio.create_task(two.lock("x").acquire(timeout=5))
        await queued(world, lock, 1)
        info = await lock.info()
        assert info.fence == lock.fence
        assert info.holder is not None
        assert info.holder.label == "first one"
        assert info.holder.pid > 0
        assert 29 < info.holder.lease_left <= 30
        assert 0 <= info.holder.held < 5
        assert [waiter.label for waiter in info.waiters] == ["zweite"]
    await waiting
    assert (await lock.info()).holder.label == "zweite"  # type: ignore[union-attr]


async def test_a_lock_taken_away_by_force_goes_to_the_next_and_its_holder_is_told(
    world: World,
) -> None:
    holder, waiter, admin = (world.client().lock("x") for _ in range(3))
    assert await admin.force_release() is False

    async def body() -> None:
        async with holder:
            await asyncio.sleep(30)

    task = asyncio.create_task(body())
    await settled(lambda: holder.lease is not None)
    waiting = asyncio.create_task(waiter.acquire())
    await queued(world, admin, 1)
    assert await admin.force_release() is True
    with pytest.raises(dsync.LeaseLost, match="lock 'x' was lost: it was released by force"):
        await task
    await waiting
    await waiter.release()


async def test_at_most_max_waiters_wait(world: World) -> None:
    client = world.client()
    held = world.client().lock("x")
    await held.acquire()
    tasks = [asyncio.create_task(client.lock("x", max_waiters=2).acquire()) for _ in range(2)]
    await queued(world, held, 1)
    # Until its answer has come, a free permit may be on its way as far as this process knows.
    cohort = client._cohorts["lock", "x"]
    await settled(lambda: any(request.queued for request in cohort.requests.values()))
    with pytest.raises(dsync.TooManyWaiters, match="2 tasks of this process wait already"):
        await client.lock("x", max_waiters=2).acquire()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await held.release()


async def test_repr_tells_the_state(world: World) -> None:
    lock = world.client().lock("x")
    assert repr(lock).endswith(" 'x' [unlocked]>")
    await lock.acquire()
    waiting = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)
    assert repr(lock).endswith(" 'x' [locked, waiters:1]>")
    lock.release()
    await waiting
    await lock.release()


async def test_strange_names_are_names(world: World) -> None:
    client = world.client()
    strange = ["a b", "{x}", "ünï", "\x00\n", "%", ":", "a:b", "x" * 5000, "x" * 4999 + "y", "🔒"]
    locks = [client.lock(name) for name in strange]
    for lock in locks:
        assert await lock.try_acquire()  # none is another's
    for lock in locks:
        await lock.release()


async def test_closing_a_client_releases_what_it_holds_and_wakes_who_waits(world: World) -> None:
    one, two = world.client(), world.client()
    lock = one.lock("x")
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    waiting = asyncio.create_task(one.lock("x").acquire())
    elsewhere = asyncio.create_task(two.lock("x").acquire())
    await queued(world, two.lock("x"), 1)
    await one.aclose()
    with pytest.raises(dsync.ClientClosed):
        await waiting
    assert lease.lost.is_set()
    await asyncio.wait_for(elsewhere, 5)
    with pytest.raises(dsync.ClientClosed):
        await one.lock("x").acquire()
    await one.aclose()


async def test_one_object_is_shared_by_many_tasks(world: World) -> None:
    lock = world.client().lock("x")
    inside: list[Any] = []

    async def work() -> None:
        for _ in range(20):
            async with lock:
                inside.append(None)
                assert len(inside) == 1
                await asyncio.sleep(0)
                inside.pop()

    await asyncio.gather(*(work() for _ in range(10)))


async def test_a_try_whose_token_is_refused_tries_again_and_does_not_wait(world: World) -> None:
    """Its first question came behind a copy of its own leave: it asks under another token."""
    client = world.client()
    lock, holder = client.lock("x"), world.client().lock("x")
    for free in (True, False):
        upcoming = f"{client.client_id}.{client._counter + 1}/5000"
        lock._cohort.permits.bury(upcoming, lambda call: None)
        assert await asyncio.wait_for(lock.try_acquire(), 2) is free
        if free:
            await lock.release()
            await holder.acquire()
    await queued(world, holder, 0)
    await holder.release()


async def test_waiters_whose_messages_are_all_lost_are_served_by_asking(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits has a beat ahead, whatever became of the questions before."""
    monkeypatch.setattr(beat, "BEAT", 0.05)
    holder, deaf = world.client().lock("x"), world.client()
    await holder.acquire()
    lock, served = deaf.lock("x", fair=True), []

    async def work(number: int) -> None:
        async with lock:
            served.append(number)

    monkeypatch.setattr(deaf, "pushed", lambda message, evidence: None)
    tasks = [asyncio.create_task(work(number)) for number in range(5)]
    await queued(world, holder, 5)
    await holder.release()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 3, 4]
