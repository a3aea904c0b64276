"""What `linger=` promises, on every store: a process keeps what it releases until it is wanted."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

import dsync
from dsync.line import Waiter
from tests.conftest import World, settled

LONG = 60.0  # seconds: no test waits for that to be over


async def lingering(world: World, **kwargs: Any) -> dsync.Lock:
    """A lock that was held and released, and lingers."""
    client = world.client(**kwargs)
    lock = client.lock("x", linger=LONG)
    async with client.lock("x"):  # whose end tells the server the script of a release
        await settled(client.listening)
    async with lock:
        pass
    assert not lock.locked()
    return lock


async def holder(lock: dsync.Lock) -> str | None:
    """The token that the store has as the holder's."""
    info = await lock.info()
    return info.holder.token if info.holder else None


async def test_a_process_takes_again_what_lingers_and_fences_grow(world: World) -> None:
    lock = await lingering(world)
    token = await holder(lock)
    fences = []
    for _ in range(30):
        async with lock:
            fences.append(lock.fence)
    assert fences == list(range(fences[0], fences[0] + 30))
    assert await lock.try_acquire()
    assert lock.fence == fences[-1] + 1
    assert await holder(lock) == token
    lock.release()
    await lock.acquire(timeout=0)
    lock.release()


async def test_who_never_lets_the_loop_turn_goes_to_the_store_when_the_fences_are_used_up(
    world: World,
) -> None:
    lock = await lingering(world)
    fences: list[int] = []
    tokens: set[str] = set()
    for _ in range(200):
        await lock.acquire()
        fences.append(lock.fence)
        tokens.update(lock._cohort.holds)
        lock.release()
    assert all(earlier < later for earlier, later in pairwise(fences))
    # In memory the next block is there at once.
    assert len(tokens) == 1 if world.kind == "memory" else len(tokens) > 1


async def test_a_waiter_elsewhere_gets_at_once_what_lingers(world: World) -> None:
    lock = await lingering(world)
    other = world.client().lock("x")
    for _ in range(3):
        async with lock:
            before = lock.fence
        await other.acquire(timeout=5)
        assert other.fence > before
        await other.release()


async def test_what_others_wait_for_does_not_linger(world: World) -> None:
    lock = await lingering(world)
    other = world.client().lock("x")
    await lock.acquire()
    waiting = asyncio.create_task(other.acquire())
    await settled(lambda: lock._cohort._contended is not None, "it is told")
    await lock.release()
    await asyncio.wait_for(waiting, 5)
    assert not await lock.try_acquire()
    await other.release()


async def test_it_is_released_when_nobody_has_used_it_for_so_long(world: World) -> None:
    lock = world.client().lock("x", linger=0.02)
    other = world.client().lock("x")
    for _ in range(3):
        async with lock:
            pass
    await settled(other.try_acquire, "released")
    await other.release()
    assert not lock._cohort.holds


async def test_an_object_that_lingers_less_is_kept_to_it(world: World) -> None:
    lock = await lingering(world)
    brief = lock._cohort.client.lock("x", linger=0.02)
    other = world.client().lock("x")
    async with brief:
        pass
    await settled(other.try_acquire, "released")
    await other.release()


async def test_each_permit_is_released_in_its_own_time(world: World) -> None:
    client = world.client()
    brief, longer = (client.semaphore("x", 2, linger=linger) for linger in (0.01, 0.05))
    other = world.client().semaphore("x", 2)
    for permits in (longer, brief):
        await permits.acquire()
    for permits in (longer, brief):
        permits.release()
    for _ in range(2):
        await settled(other.try_acquire, "released")


async def test_who_only_tries_elsewhere_sees_it_as_taken(world: World) -> None:
    lock = await lingering(world)
    other = world.client().lock("x")
    assert not await other.try_acquire()
    with pytest.raises(dsync.AcquireTimeout):
        await other.acquire(timeout=0)
    assert await other.locked()
    assert await holder(lock) == await holder(other) is not None
    assert lock._cohort.idle


@pytest.mark.parametrize("terms", [{"fair": True}, {"renew": False}, {"max_hold": 9.0}])
async def test_what_is_never_passed_on_cannot_linger(world: World, terms: dict[str, Any]) -> None:
    client = world.client()
    makes: list[Callable[..., object]] = [
        client.lock, client.semaphore, client.bounded_semaphore
    ]  # fmt: skip
    for make in makes:
        with pytest.raises(ValueError, match=r"linger=0\.005 keeps a permit"):
            make("x", linger=0.005, **terms)
        make("x", linger=0, **terms)
        for bad in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="linger"):
                make("x", linger=bad)
        with pytest.raises(TypeError, match="linger"):
            make("x", linger=True)


@pytest.mark.parametrize("terms", [{}, {"fair": True}, {"renew": False}, {"max_hold": 9.0}])
async def test_other_objects_of_the_name_here_get_it_too(
    world: World, terms: dict[str, Any]
) -> None:
    lock = await lingering(world)
    other = lock._cohort.client.lock("x", **terms)
    for acquire in (other.try_acquire(), other.acquire(timeout=5), other.acquire(timeout=0)):
        assert await acquire
        assert other.locked()
        assert not await world.client().lock("x").try_acquire()
        await other.release()
        await lock.acquire()
        await lock.release()


async def test_what_this_process_asks_the_store_does_not_find_it_in_the_way(world: World) -> None:
    lock = await lingering(world)
    cohort = lock._cohort
    waiter = Waiter(asyncio.get_running_loop().create_future(), lock._terms)
    before = list(cohort.holds)
    cohort.ask_for(lock._terms, waiter)
    assert list(cohort.holds) != before
    lease = await asyncio.wait_for(waiter.future, 5)
    assert lease is not None
    await cohort.give_back(lease)


async def test_closing_the_client_releases_it(world: World) -> None:
    lock = await lingering(world)
    other = world.client().lock("x")
    await lock._cohort.client.aclose()
    assert await other.try_acquire()
    assert lock._cohort.idle is not None
    assert lock._cohort.idle._timer is None
    await other.release()


async def test_force_release_takes_it_and_nobody_hears_of_a_loss(world: World) -> None:
    losses: list[dsync.Lease] = []
    lock = await lingering(world, on_lost=losses.append)
    other = world.client().lock("x")
    before = (await lock.info()).fence
    assert await other.force_release()
    assert await other.try_acquire()
    await settled(lambda: not lock._cohort.holds, "it is told")
    assert not await lock.try_acquire()
    await other.release()
    async with lock:
        assert lock.fence > before
    assert not losses


async def test_a_lease_that_ended_is_not_taken_again(world: World) -> None:
    losses: list[dsync.Lease] = []
    lock = await lingering(world, on_lost=losses.append)
    (hold,) = lock._cohort.holds.values()
    other = world.client().lock("x")
    hold.deadline = 0.0  # as after a standstill
    await lock.acquire()
    assert lock._cohort.holds != {hold.token: hold}
    await lock.release()
    await world.expire("lock", "x")  # and as after a loss of data
    assert await other.try_acquire()
    lock._cohort.client.keeper.renew_now()
    await settled(lambda: not lock._cohort.holds, "it is told")
    assert not await lock.try_acquire()
    await other.release()
    assert not losses


async def test_nothing_lingers_while_we_could_not_be_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = world.client().lock("x", linger=LONG)
    monkeypatch.setattr(dsync.Client, "listening", lambda self: False)
    async with lock:
        pass
    assert not lock._cohort.holds
    assert await world.client().lock("x").try_acquire()


async def test_a_condition_over_it_works_as_over_any_other(world: World) -> None:
    one, two = world.client(), world.client()
    mine, theirs = one.lock("x", linger=LONG), two.lock("x", linger=LONG)
    here, there = one.condition("c", mine), two.condition("c", theirs)
    ready = 0

    async def sleep(condition: dsync.Condition) -> None:
        nonlocal ready
        async with condition:
            ready += 1
            await condition.wait()

    sleepers = [asyncio.create_task(sleep(condition)) for condition in (here, there, here)]
    await settled(lambda: ready == 3)
    async with asyncio.timeout(5), mine:
        pass
    assert not mine._cohort.idle  # for some sleep here
    sleepers[2].cancel()  # it takes the lock back before it ends
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sleepers[2], 5)
    for lock, condition in ((mine, here), (theirs, there)):
        async with asyncio.timeout(5), lock:
            condition.notify()
    await asyncio.wait_for(asyncio.gather(*sleepers[:2]), 5)


async def test_tasks_that_wait_here_are_served_before_it_lingers(world: World) -> None:
    lock = await lingering(world)
    order: list[int] = []

    async def work(number: int) -> None:
        async with lock:
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(i) for i in range(5)))
    assert order == list(range(5))
    assert not lock.locked()


async def test_permits_of_a_semaphore_linger(world: World) -> None:
    one, two = world.client(), world.client()
    mine, theirs = one.semaphore("x", 3, linger=LONG), two.semaphore("x", 3, linger=LONG)
    for _ in range(3):
        await mine.acquire()
    await settled(one.listening)
    for _ in range(3):
        mine.release()
    assert not mine.locked()
    assert not await theirs.try_acquire()
    for _ in range(3):
        await mine.acquire()
    assert mine.locked()
    mine.release()
    await theirs.acquire(timeout=5)  # who waits gets what is not in use ...
    waiting = asyncio.create_task(theirs.acquire())
    await settled(lambda: mine._cohort._contended is not None, "it is told")
    mine.release()  # ... and then what comes to be free
    await asyncio.wait_for(waiting, 5)
    assert (await mine.info()).value == 3


async def test_a_semaphore_that_shrinks_is_kept_to_it(world: World) -> None:
    one, two = world.client(), world.client()
    mine, theirs = one.semaphore("x", 3, linger=LONG), two.semaphore("x", 3)
    for _ in range(3):
        await mine.acquire()
    await settled(one.listening)
    for _ in range(2):
        mine.release()
    await theirs.resize(1)
    await settled(lambda: mine.value == 1)
    assert not await mine.try_acquire()
    assert len((await theirs.info()).holders) == 1
    mine.release()
    await theirs.acquire(timeout=5)


async def test_release_may_be_called_when_the_loop_does_not_run(world: World) -> None:
    lock = await lingering(world)
    await lock.acquire()
    await asyncio.to_thread(lock.release)  # no loop runs there
    assert not lock._cohort.holds
