"""What a Condition promises, on every store."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

import dsync
from dsync import local
from tests.conftest import World, settled

RGX_REPR = re.compile(
    r"^<(?P<class>.*?) object at (?P<address>.*?)"
    r"\[(?P<extras>(locked|unlocked)(, waiters:\d+)?)\]>\Z"
)


@pytest.fixture(autouse=True)
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What callbacks of the loop raised: nothing."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    yield errors
    assert not errors


def cohorts(conditions: tuple[dsync.Condition, ...]) -> set[Any]:
    return {condition.lock._cohort for condition in conditions}


async def asleep(count: int, *conditions: dsync.Condition) -> None:
    """Until so many tasks sleep in these conditions, of their processes, and the store has them."""

    def there() -> bool:
        sleeping = [r for cohort in cohorts(conditions) for r in cohort.asleep.values()]
        return len(sleeping) == count and not any(r.asking for r in sleeping)

    await settled(there, f"{count} sleep in {conditions[0]!r}")


async def queued(count: int, lock: dsync.Lock) -> None:
    """Until so many requests stand in the store's queue of the lock."""

    async def there() -> bool:
        return len((await lock.info()).waiters) == count

    await settled(there, f"{count} in the queue of {lock!r}")


async def sleep_in(condition: dsync.Condition) -> None:
    async with condition:
        await condition.wait()


async def notify(condition: dsync.Condition, n: int = 1) -> None:
    async with condition:
        condition.notify(n)


async def ends(task: "asyncio.Task[Any]") -> None:
    """It does, instead of waiting for ever."""
    await asyncio.wait([task], timeout=5)
    assert task.done(), f"{task!r} waits for ever"


async def commands(world: World) -> int:
    """How many scripts the server was asked for."""
    stats = await world.admin.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def silence(world: World, condition: dsync.Condition, client: dsync.Client) -> None:
    """The store has not heard of this client for long."""
    cohort: Any = condition.lock._cohort
    kind = cohort.what.partition(" ")[0]
    if world.admin is None:
        cohort.permits._record.store.memory.records[cohort.permits._record.key].alive[
            client.client_id
        ] = 1
    else:
        key = world.key(kind, condition.lock.name, "alive")
        await world.admin.zadd(key, {client.client_id: 1})


async def die(world: World, client: dsync.Client, *conditions: dsync.Condition) -> None:
    """The process of this client is gone: it asks nothing and hears nothing any more."""
    world.leftovers_allowed = True
    client.keeper.close()
    for cohort in cohorts(conditions):
        cohort.beat.stop()
    if world.admin is None:
        client.store.memory.inboxes.pop(client.client_id)  # type: ignore[attr-defined]
    else:
        await client.store.aclose()


class Ledger:
    """Who is inside, one at a time, with what fence."""

    def __init__(self) -> None:
        self.inside = 0
        self.entries: list[tuple[int, int]] = []

    def note(self, who: int, condition: dsync.Condition) -> None:
        """Called where the lock is held: with no await in between, nobody else can be here."""
        lease = condition.lock.lease
        assert lease is not None
        assert lease.held
        assert lease.fence is not None
        self.entries.append((who, lease.fence))

    async def stay(self) -> None:
        self.inside += 1
        assert self.inside == 1, "two hold the lock"
        await asyncio.sleep(0.001)
        self.inside -= 1

    @property
    def order(self) -> list[int]:
        return [who for who, _ in self.entries]

    def check(self) -> None:
        fences = [fence for _, fence in self.entries]
        assert all(a < b for a, b in pairwise(fences)), fences


async def crowd(
    world: World, count: int, processes: int, ledger: Ledger
) -> tuple[list[dsync.Condition], list["asyncio.Task[None]"]]:
    """So many sleepers, in the order of their numbers, over some processes."""
    conditions = [world.client().condition("x") for _ in range(processes)]
    tasks = []

    async def work(number: int) -> None:
        condition = conditions[number % processes]
        async with condition:
            assert await condition.wait() is True
            ledger.note(number, condition)
            await ledger.stay()

    for i in range(count):
        tasks.append(asyncio.create_task(work(i)))
        await asleep(i + 1, *conditions)
    return conditions, tasks


# -- notify ----------------------------------------------------------------------------------------


async def test_notified_waiters_return_in_order_of_arrival_one_at_a_time(world: World) -> None:
    ledger = Ledger()
    conditions, tasks = await crowd(world, 9, 3, ledger)
    await notify(conditions[0], 4)
    await settled(lambda: len(ledger.entries) == 4)
    await asleep(5, *conditions)
    assert ledger.order == [0, 1, 2, 3]
    await notify(world.client().condition("x"), 5)
    await asyncio.gather(*tasks)
    assert ledger.order == list(range(9))
    ledger.check()


@pytest.mark.parametrize("n", [1, 2, 3])
async def test_exactly_n_return(world: World, n: int) -> None:
    ledger = Ledger()
    conditions, tasks = await crowd(world, 4, 2, ledger)
    await notify(conditions[1], n)
    await settled(lambda: sum(task.done() for task in tasks) == n)
    await asleep(4 - n, *conditions)
    async with conditions[0]:  # behind all that was notified
        assert ledger.order == list(range(n))
        conditions[0].notify_all()
    await asyncio.gather(*tasks)


async def test_each_is_the_owner_before_anybody_else_can_ask(world: World) -> None:
    ledger = Ledger()
    conditions, tasks = await crowd(world, 3, 3, ledger)
    newcomer = world.client().condition("x")
    async with conditions[0]:
        conditions[0].notify_all()
        outside = asyncio.create_task(newcomer.acquire())
        conditions[0].notify(0)
    assert not await world.client().condition("x").lock.try_acquire()
    await asyncio.gather(*tasks)
    await outside
    ledger.check()
    await newcomer.release()


async def test_a_notification_does_nothing_before_the_release(world: World) -> None:
    ledger = Ledger()
    conditions, tasks = await crowd(world, 2, 2, ledger)
    notifier = world.client().condition("x")
    await notifier.acquire()
    reply = notifier.notify(2)
    assert await reply is None  # type: ignore[func-returns-value]
    assert (await notifier.lock.info()).waiters == ()
    await asleep(2, *conditions)
    await notifier.release()
    await asyncio.gather(*tasks)


async def test_a_notification_rides_on_a_wait(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    first = asyncio.create_task(sleep_in(one))
    await asleep(1, one)

    async def swap() -> None:
        async with two:
            two.notify()
            await two.wait()

    second = asyncio.create_task(swap())
    await asyncio.wait_for(first, 2)  # woken by the wait of the other, which goes on
    await asleep(1, two)
    await notify(one)
    await second


async def test_who_notifies_and_waits_does_not_notify_itself(world: World) -> None:
    condition = world.client().condition("x")
    async with condition:
        condition.notify_all()
        with pytest.raises(dsync.WaitTimeout):
            await condition.wait(timeout=0.05)


async def test_nobody_is_notified_by_nothing(world: World) -> None:
    ledger = Ledger()
    conditions, tasks = await crowd(world, 2, 1, ledger)
    async with conditions[0]:
        conditions[0].notify(0)
        conditions[0].notify(-1)
    async with conditions[0]:
        pass
    await asleep(2, *conditions)
    await notify(conditions[0], 2048)
    await asyncio.gather(*tasks)


async def test_notifications_are_not_kept_for_who_comes_later(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    await notify(one, 5)
    async with two:
        with pytest.raises(dsync.WaitTimeout):
            await two.wait(timeout=0.05)


async def test_notifications_of_one_hold_add_up(world: World) -> None:
    ledger = Ledger()
    conditions, tasks = await crowd(world, 4, 2, ledger)
    async with conditions[0]:
        conditions[0].notify()
        conditions[0].notify(2)
    await settled(lambda: sum(task.done() for task in tasks) == 3)
    await asleep(1, *conditions)
    async with conditions[0]:
        conditions[0].notify_all()
        conditions[0].notify_all()
    await asyncio.gather(*tasks)
    assert ledger.order == [0, 1, 2, 3]


async def test_notify_costs_no_command_and_a_trip_at_most_three(real: World) -> None:
    one, two = real.client().condition("x"), real.client().condition("x")
    turn, trips = 0, 100

    async def play(condition: dsync.Condition, me: int) -> None:
        nonlocal turn
        async with condition:
            for _ in range(trips // 2):
                while turn != me:
                    await condition.wait()
                turn = 1 - me
                condition.notify()

    await play_once(one, two)  # the scripts are on the server
    before = await commands(real)
    await asyncio.gather(play(one, 0), play(two, 1))
    assert await commands(real) - before <= 3 * trips
    async with one:
        before = await commands(real)
        for _ in range(10):
            await one.notify()
            await one.notify_all()
        assert await commands(real) == before


async def play_once(one: dsync.Condition, two: dsync.Condition) -> None:
    task = asyncio.create_task(sleep_in(one))
    await asleep(1, one)
    await notify(two)
    await task


async def test_a_task_may_notify_while_another_of_its_process_holds(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    task = asyncio.create_task(sleep_in(two))
    await asleep(1, two)
    await one.acquire()

    async def from_elsewhere() -> None:
        one.notify()

    await asyncio.create_task(from_elsewhere())
    await one.release()
    await asyncio.wait_for(task, 2)


async def test_a_notification_that_nobody_awaits_is_followed_by_closing(world: World) -> None:
    client, other = world.client(), world.client().condition("x")
    tasks = [asyncio.create_task(sleep_in(other)) for _ in range(3)]
    await asleep(3, other)
    condition = client.condition("x")
    await condition.acquire()
    condition.notify_all()
    condition.release()
    await client.aclose()
    await asyncio.wait_for(asyncio.gather(*tasks), 2)


async def test_tasks_of_one_process_meet_as_those_of_many_do(world: World) -> None:
    condition = world.client().condition("x")
    items: list[int] = []
    taken: list[int] = []

    async def consume() -> None:
        for _ in range(10):
            async with condition:
                await condition.wait_for(lambda: items)
                taken.append(items.pop(0))

    async def produce() -> None:
        for i in range(30):
            async with condition:
                items.append(i)
                condition.notify()

    await asyncio.gather(*(consume() for _ in range(3)), produce())
    assert taken == list(range(30))


# -- the lock --------------------------------------------------------------------------------------


async def test_it_has_a_lock_of_its_own_or_shares_one(world: World) -> None:
    client = world.client()
    lock = client.lock("x")
    shared, own = client.condition("c", lock), client.condition("x")
    assert shared.lock is lock
    async with lock:
        assert shared.locked()
        assert await shared.locked() is True
        assert await own.lock.try_acquire()  # condition x's lock is not lock x
        assert own.locked()
        own.release()
        assert not own.locked()
    async with shared as lease:
        assert lock.locked()
        assert lock.lease is lease
    assert not lock.locked()


@pytest.mark.parametrize("lock", ["x", 5, object(), asyncio.Lock()])
def test_its_lock_is_a_lock(lock: Any) -> None:
    client = dsync.connect("memory://")
    with pytest.raises(TypeError, match="lock must be a Lock of this client"):
        client.condition("x", lock)
    assert not client._cohorts


def test_its_lock_is_not_a_semaphore_nor_of_another_client_nor_local() -> None:
    client, other = dsync.connect("memory://"), dsync.connect("memory://")
    semaphore: Any = client.semaphore("x")
    with pytest.raises(TypeError, match="lock must be a Lock of this client"):
        client.condition("x", semaphore)
    with pytest.raises(ValueError, match="lock must be a Lock of this client, got another's"):
        client.condition("x", other.lock("x"))
    mine: Any = local.Lock()
    with pytest.raises((ValueError, TypeError), match="lock must be a Lock of this client"):
        client.condition("x", mine)
    with pytest.raises(TypeError, match="give lease and the like to the lock"):
        client.condition("x", client.lock("x"), lease=5)


async def test_a_condition_is_known_by_its_name_and_its_lock(world: World) -> None:
    one, two = world.client(), world.client()
    over_a, over_b = one.condition("c", one.lock("a")), one.condition("c", one.lock("b"))
    tasks = [asyncio.create_task(sleep_in(condition)) for condition in (over_a, over_b)]
    await asleep(2, over_a, over_b)
    await notify(two.condition("c", two.lock("a")))
    await asyncio.wait_for(tasks[0], 2)
    await asleep(1, over_b)
    assert not tasks[1].done()
    await notify(two.condition("c", two.lock("b")))
    await tasks[1]


async def test_several_conditions_over_one_lock_are_notified_in_one_hold(world: World) -> None:
    one, two = world.client(), world.client()
    lock = two.lock("x")
    names = ("full", "empty", "a/b. c%")
    sleeping = [two.condition(name, lock) for name in names]
    tasks = [asyncio.create_task(sleep_in(c)) for c in sleeping for _ in range(2)]
    await asleep(6, *sleeping)
    mine = one.lock("x")
    conditions = [one.condition(name, mine) for name in names]
    async with mine:
        conditions[0].notify()
        conditions[1].notify_all()
    await settled(lambda: sum(task.done() for task in tasks) == 3)
    await asleep(3, *sleeping)
    assert [task.done() for task in tasks] == [True, False, True, True, False, False]
    async with conditions[2]:
        conditions[0].notify()
        conditions[2].notify(2)
    await asyncio.gather(*tasks)


async def test_a_wait_on_one_condition_carries_the_notifications_of_the_others(
    world: World,
) -> None:
    one, two = world.client(), world.client()
    lock = two.lock("x")
    full, empty = two.condition("full", lock), two.condition("empty", lock)
    tasks = [asyncio.create_task(sleep_in(c)) for c in (full, empty, empty)]
    await asleep(3, full, empty)
    mine = one.lock("x")
    my_full, my_empty = one.condition("full", mine), one.condition("empty", mine)

    async def swap() -> None:
        async with mine:
            my_empty.notify(2)
            my_full.notify()
            await my_full.wait()

    task = asyncio.create_task(swap())
    await asyncio.wait_for(asyncio.gather(*tasks), 2)
    await asleep(1, my_full)
    await notify(full)
    await task


async def test_without_the_lock_it_is_asyncios_error(world: World) -> None:
    client = world.client()
    condition, other = client.condition("x"), client.condition("x")
    await other.acquire()  # held by this process, and not by this object
    for call in (condition.notify, condition.notify_all):
        with pytest.raises(RuntimeError, match="cannot notify on un-acquired lock") as raised:
            call()
        assert isinstance(raised.value, dsync.NotHeld)
    with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock") as raised:
        await condition.wait()
    assert isinstance(raised.value, dsync.NotHeld)
    with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
        await condition.wait_for(lambda: False)
    with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
        await condition.wait_for(lambda: False, timeout=0)
    assert await condition.wait_for(lambda: [1, 2]) == [1, 2]
    with pytest.raises(RuntimeError, match="Lock is not acquired"):
        condition.release()
    await other.release()


async def test_sleepers_do_not_count_as_waiting_for_the_lock(world: World) -> None:
    one, other = world.client(), world.client().lock("x")
    lock = one.lock("x", max_waiters=1)
    condition = one.condition("c", lock)
    tasks = []
    for i in range(3):
        tasks.append(asyncio.create_task(sleep_in(condition)))
        await asleep(i + 1, condition)
    info = await lock.info()
    assert (info.holder, info.waiters) == (None, ())
    assert repr(lock).endswith(" 'x' [unlocked]>")
    assert repr(condition).endswith(" 'c' [unlocked, waiters:3]>")
    assert await other.try_acquire()  # they do not stand in anybody's way
    waiting = asyncio.create_task(lock.acquire())  # nor count for max_waiters
    await queued(1, lock)
    await other.release()
    await waiting
    condition.notify_all()
    await lock.release()
    await asyncio.gather(*tasks)


async def release_all(client: dsync.Client) -> None:
    """Release what its locks hold, whichever object holds it."""
    for hold in client.keeper.holds():
        assert hold.lease is not None
        await hold.cohort.give_back(hold.lease)


async def test_fences_grow_over_waits(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    fences: list[int] = []

    async def play(condition: dsync.Condition, other: Callable[[], bool]) -> None:
        async with condition:
            for _ in range(5):
                fences.append(condition.lock.fence)
                condition.notify()
                if not other():
                    await condition.wait()
                    fences.append(condition.lock.fence)
            condition.notify()

    done: set[int] = set()

    async def player(number: int) -> None:
        await play((one, two)[number], lambda: 1 - number in done)
        done.add(number)

    await asyncio.wait_for(asyncio.gather(player(0), player(1)), 10)
    assert len(fences) > 10
    assert all(a <= b for a, b in pairwise(fences))
    assert len(set(fences)) > 5


# -- the lease -------------------------------------------------------------------------------------


async def test_a_holder_whose_lease_is_lost_notifies_nobody(world: World) -> None:
    sleeping = world.client().condition("x")
    task = asyncio.create_task(sleep_in(sleeping))
    await asleep(1, sleeping)
    client = world.client()
    condition = client.condition("x", lease=0.3, renew=False, on_lost="flag")
    await condition.acquire()
    condition.notify_all()
    lease = condition.lock.lease
    assert lease is not None
    await lease.lost.wait()
    for call in (condition.notify, condition.notify_all):
        with pytest.raises(dsync.LeaseLost):
            call()
    with pytest.raises(dsync.LeaseLost):
        await condition.wait()
    with pytest.raises(dsync.LeaseLost):
        condition.release()
    with pytest.raises(dsync.NotHeld):
        condition.notify()
    await world.client().condition("x").acquire(timeout=5)
    await release_all(world.clients[-1])
    await asleep(1, sleeping)
    assert not task.done(), "what it had notified is void"
    await notify(world.client().condition("x"))
    await task


async def test_a_wait_whose_lock_the_store_gave_away_is_a_loss(world: World) -> None:
    lost: list[dsync.Lease] = []
    client, other = world.client(on_lost=lost.append), world.client().condition("x")
    condition = client.condition("x")
    sleeping = world.client().condition("x")
    asleep_too = asyncio.create_task(sleep_in(sleeping))
    await asleep(1, sleeping)
    await condition.acquire()
    lease = condition.lock.lease
    condition.notify_all()
    await world.clients[0].lock("warm up").info()
    await world.expire("condition", "x")
    await other.acquire(timeout=5)
    with pytest.raises(dsync.LeaseLost, match="it was lost before the wait began"):
        await condition.wait()
    assert lost == [lease]
    assert not condition._waiting()
    with pytest.raises(dsync.LeaseLost):
        condition.release()
    assert other.lock.lease is not None
    assert other.lock.lease.held
    await asleep(1, sleeping)
    assert not asleep_too.done()
    other.notify()
    await other.release()
    await asleep_too


async def test_a_body_whose_wait_finds_the_lease_lost_leaves_as_lease_lost(world: World) -> None:
    condition, other = world.client().condition("x"), world.client().condition("x")
    task = asyncio.current_task()
    assert task is not None
    await world.clients[0].lock("warm up").info()
    with pytest.raises(dsync.LeaseLost):
        async with condition:
            await world.expire("condition", "x")
            await other.acquire(timeout=5)
            with pytest.raises(dsync.LeaseLost):
                await condition.wait()
            assert task.cancelling() == 0, "the wait has said it; nobody is cancelled"
    assert task.cancelling() == 0
    await other.release()


async def test_after_a_wait_the_body_is_guarded_by_the_new_lease(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    task = asyncio.current_task()
    assert task is not None
    reached = False

    async def body() -> None:
        nonlocal reached
        async with one as old:
            await one.wait()
            assert not old.held
            reached = True
            await asyncio.sleep(30)
            pytest.fail("it went on without the lock")

    running = asyncio.create_task(body())
    await asleep(1, one)
    await notify(two)
    await settled(lambda: reached)
    assert await two.lock.force_release() is True
    with pytest.raises(dsync.LeaseLost, match="released by force") as raised:
        await running
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert running.cancelling() == 0
    assert await two.lock.try_acquire()
    await two.lock.release()


async def test_after_a_wait_the_end_of_the_new_lease_ends_the_body(world: World) -> None:
    one, two = world.client().condition("x", lease=0.6), world.client().condition("x")

    async def body() -> None:
        async with one:
            await one.wait()
            await world.expire("condition", "x")
            await asyncio.sleep(30)

    running = asyncio.create_task(body())
    await asleep(1, one)
    await notify(two)
    with pytest.raises(dsync.LeaseLost):
        await asyncio.wait_for(running, 5)


@pytest.mark.parametrize("renew", [True, False])
async def test_the_end_of_the_old_lease_does_not_disturb_a_sleeper(
    world: World, renew: bool
) -> None:
    one, two = world.client().condition("x", lease=0.15, renew=renew), world.client().condition("x")
    leases: list[dsync.Lease] = []

    async def body() -> None:
        async with one as lease:
            leases.append(lease)
            await one.wait()
            lease_now = one.lock.lease
            assert lease_now is not None
            assert lease_now is not lease
            assert lease_now.held
            leases.append(lease_now)

    running = asyncio.create_task(body())
    await asleep(1, one)
    ends = time.monotonic() + 0.3  # twice the lease
    while time.monotonic() < ends:
        assert await two.lock.force_release() is False
        await asyncio.sleep(0.02)
    assert not running.done()
    assert not leases[0].lost.is_set()
    await notify(two)
    await asyncio.wait_for(running, 2)
    assert not leases[1].lost.is_set()


async def test_a_body_that_has_ended_is_not_cancelled_for_what_a_wait_of_another_task_got(
    world: World,
) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    waits: list[asyncio.Task[Any]] = []
    outside, over = asyncio.Event(), asyncio.Event()

    async def body() -> None:
        with pytest.raises(dsync.NotHeld):
            async with one:
                waits.append(asyncio.create_task(one.wait()))
                await asleep(1, one)
        outside.set()
        await over.wait()

    running = asyncio.create_task(body())
    await outside.wait()
    await notify(two)
    assert await asyncio.wait_for(waits[0], 2) is True
    lease = one.lock.lease
    assert lease is not None
    assert await two.lock.force_release() is True
    await asyncio.wait_for(lease.lost.wait(), 2)
    assert running.cancelling() == 0
    over.set()
    await running
    with pytest.raises(dsync.LeaseLost):
        one.release()


async def test_nested_bodies_keep_their_own_leases(world: World) -> None:
    client, other = world.client(), world.client()
    outer, inner = client.condition("a"), client.condition("b")
    there_a, there_b = other.condition("a"), other.condition("b")

    async def body() -> None:
        async with outer as before_a:
            async with inner as before_b:
                await outer.wait()  # the outer one, from within the inner body
                assert inner.lock.lease is before_b
                assert outer.lock.lease is not before_a
                await inner.wait()
                assert inner.lock.lease is not before_b
            assert not inner.locked()
            assert outer.lock.lease is not None
            assert outer.lock.lease.held
        assert not outer.locked()

    running = asyncio.create_task(body())
    await asleep(1, outer)
    assert not await there_b.lock.try_acquire()
    await notify(there_a)
    await asleep(1, inner)
    assert not await there_a.lock.try_acquire()
    await notify(there_b)
    await running


async def test_two_objects_nested_in_one_task_and_lost_in_between(world: World) -> None:
    client, other = world.client(), world.client()
    outer, inner = client.condition("a"), client.condition("b")
    there = other.condition("a")
    caught: list[BaseException] = []

    async def body() -> None:
        async with outer:
            await outer.wait()
            try:
                async with inner:
                    await asyncio.sleep(30)
            except BaseException as exc:
                caught.append(exc)
                raise

    running = asyncio.create_task(body())
    await asleep(1, outer)
    await notify(there)
    await settled(lambda: bool(inner.locked()))
    assert await there.lock.force_release()
    with pytest.raises(dsync.LeaseLost, match="condition 'a' was lost"):
        await running
    assert isinstance(caught[0], asyncio.CancelledError)


async def test_a_waiter_that_is_notified_holds_as_long_as_it_needs(world: World) -> None:
    """What a grant by message is good for is renewed like any other lease."""
    one, two = world.client().condition("x", lease=0.3), world.client().condition("x")
    running = True

    async def body() -> None:
        async with one:
            await one.wait()
            while running:
                assert one.lock.lease is not None
                assert one.lock.lease.held
                await asyncio.sleep(0.005)

    task = asyncio.create_task(body())
    await asleep(1, one)
    await notify(two)
    await settled(lambda: bool(one.locked()))
    ends = time.monotonic() + 0.7
    while time.monotonic() < ends:
        assert not await two.lock.try_acquire()
        await asyncio.sleep(0.02)
    running = False
    await task


# -- cancelled -------------------------------------------------------------------------------------


async def wait_and_tell(
    condition: dsync.Condition, ended: list[tuple[BaseException | None, bool]]
) -> None:
    """Note how the wait ended, and whether the lock was held then."""
    error: BaseException | None = None
    async with condition:
        try:
            await condition.wait()
        except BaseException as exc:
            error = exc
            raise
        finally:
            lease = condition.lock.lease
            ended.append((error, lease is not None and lease.held))


async def test_cancelled_before_it_is_notified_it_takes_no_notification_along(
    world: World,
) -> None:
    one, two, three = (world.client().condition("x") for _ in range(3))
    ended: list[tuple[BaseException | None, bool]] = []
    first = asyncio.create_task(wait_and_tell(one, ended))
    await asleep(1, one)
    second = asyncio.create_task(sleep_in(two))
    await asleep(2, one, two)
    first.cancel("enough")
    with pytest.raises(asyncio.CancelledError) as raised:
        await first
    assert raised.value.args == ("enough",)
    assert ended == [(raised.value, True)]
    assert not one._waiting()
    await notify(three)
    await asyncio.wait_for(second, 2)


async def test_cancelled_while_another_holds_the_lock_it_gets_it_back_first(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    ended: list[tuple[BaseException | None, bool]] = []
    task = asyncio.create_task(wait_and_tell(one, ended))
    await asleep(1, one)
    await two.acquire()
    task.cancel()
    await queued(1, two.lock)
    assert not task.done()
    await two.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended[0][1]


async def test_cancelled_after_it_was_notified_it_passes_the_notification_on(
    world: World,
) -> None:
    one, two, holder, notifier = (world.client().condition("x") for _ in range(4))
    ended: list[tuple[BaseException | None, bool]] = []
    first = asyncio.create_task(wait_and_tell(one, ended))
    await asleep(1, one)
    others = []
    for i in range(2):
        others.append(asyncio.create_task(sleep_in(two)))
        await asleep(i + 2, one, two)
    await notifier.acquire()
    held = asyncio.create_task(holder.acquire())
    await queued(1, notifier.lock)
    notifier.notify()
    await notifier.release()
    await held  # and `first` waits for the lock behind it, notified
    await queued(1, holder.lock)
    first.cancel()
    await asyncio.sleep(0)
    assert not first.done()
    await holder.release()
    await ends(first)
    assert first.cancelled()
    assert ended[0][1]
    await asyncio.wait_for(others[0], 2)  # exactly once
    await asleep(1, one, two)
    assert not others[1].done()
    await notify(notifier)
    await others[1]


async def test_cancelled_at_the_moment_of_the_grant_it_passes_the_notification_on(
    world: World,
) -> None:
    client = world.client()
    one, two, notifier = client.condition("x"), *(world.client().condition("x") for _ in range(2))
    ended: list[tuple[BaseException | None, bool]] = []
    first = asyncio.create_task(wait_and_tell(one, ended))
    await asleep(1, one)
    second = asyncio.create_task(sleep_in(two))
    await asleep(2, one, two)
    pushed = client.pushed

    def cancelling(message: list[bytes], evidence: float) -> None:
        pushed(message, evidence)
        if message[0] == b"g":
            first.cancel()

    client.pushed = cancelling  # type: ignore[method-assign]
    await notify(notifier)
    await settled(lambda: first.done())
    assert first.cancelled()
    assert ended[0][1]
    await asyncio.wait_for(second, 2)


async def test_cancelled_just_before_the_grant_it_passes_the_notification_on(
    world: World,
) -> None:
    client = world.client()
    one, two, notifier = client.condition("x"), *(world.client().condition("x") for _ in range(2))
    ended: list[tuple[BaseException | None, bool]] = []
    first = asyncio.create_task(wait_and_tell(one, ended))
    await asleep(1, one)
    second = asyncio.create_task(sleep_in(two))
    await asleep(2, one, two)
    pushed = client.pushed

    def cancelling(message: list[bytes], evidence: float) -> None:
        if message[0] == b"g":
            first.cancel()
        pushed(message, evidence)

    client.pushed = cancelling  # type: ignore[method-assign]
    await notify(notifier)
    await settled(lambda: first.done())
    assert first.cancelled()
    assert ended[0][1]
    await asyncio.wait_for(second, 2)


@pytest.mark.parametrize("notified", [False, True])
async def test_cancelled_again_and_again_the_last_is_raised_with_the_lock_held(
    world: World, notified: bool
) -> None:
    one, holder, notifier = (world.client().condition("x") for _ in range(3))
    ended: list[tuple[BaseException | None, bool]] = []
    first = asyncio.create_task(wait_and_tell(one, ended))
    await asleep(1, one)
    await notifier.acquire()
    held = asyncio.create_task(holder.acquire())
    await queued(1, notifier.lock)
    if notified:
        notifier.notify()
    await notifier.release()
    await held
    for word in ("one", "two", "three"):
        first.cancel(word)
        for _ in range(3):
            await asyncio.sleep(0)
    await queued(1, holder.lock)
    assert not first.done()
    await holder.release()
    await ends(first)
    with pytest.raises(asyncio.CancelledError) as raised:
        await first
    assert raised.value.args == ("three",)
    assert ended == [(raised.value, True)]


async def test_a_process_that_cancels_all_its_waits_leaves_nothing(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    tasks = [asyncio.create_task(sleep_in(one)) for _ in range(20)]
    await asleep(20, one)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert not one._waiting()
    cohort: Any = one.lock._cohort
    assert not cohort.requests
    assert not cohort.client.homes
    await asyncio.wait_for(notify(two), 2)


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_a_waiter_that_gives_up_once_notified_gets_the_lock_though_the_message_is_lost(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    client = world.client()
    one, holder, notifier = client.condition("x"), *(world.client().condition("x") for _ in "ab")
    ended: list[BaseException | None] = []

    async def body() -> None:
        async with one:
            try:
                await one.wait(timeout=0.1 if how == "timed out" else None)
            except asyncio.CancelledError as exc:
                ended.append(exc)
                raise
            ended.append(None)

    task = asyncio.create_task(body())
    await asleep(1, one)
    cohort: Any = one.lock._cohort
    sleeper = next(iter(cohort.asleep.values())).waiter
    await notifier.acquire()
    held = asyncio.create_task(holder.acquire())
    await queued(1, notifier.lock)
    notifier.notify()
    await notifier.release()
    await held
    if how == "cancelled":
        task.cancel()
    else:
        await settled(lambda: sleeper.timed_out)
    await settled(lambda: sleeper.notified, "it has heard that it was notified")
    client.pushed = lambda message, evidence: None  # type: ignore[method-assign]
    await holder.release()
    await asyncio.wait([task], timeout=3)
    assert ended, "it waits for ever, and so does everybody else"
    assert task.cancelled() == (how == "cancelled")


@pytest.mark.parametrize("when", ["asleep", "in the queue", "granted"])
async def test_a_wait_whose_coroutine_is_closed_keeps_nothing(world: World, when: str) -> None:
    one, two, holder = (world.client().condition("x") for _ in range(3))
    await one.acquire()
    waiting = one.wait()
    waiting.send(None)
    await asleep(1, one)
    if when == "asleep":
        waiting.close()
    await two.acquire()
    acquiring = asyncio.create_task(holder.acquire())
    await queued(1, two.lock)
    two.notify()
    await two.release()
    await acquiring
    if when == "in the queue":
        await queued(1, two.lock)
        waiting.close()
    await holder.release()
    if when == "granted":
        await settled(lambda: bool(one.locked()))
        waiting.close()
    await two.acquire(timeout=3)
    await two.release()
    assert not one._waiting()


# -- timeouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.03])
async def test_a_timeout_is_raised_with_the_lock_held(world: World, timeout: float) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    async with one as before:
        with pytest.raises(
            TimeoutError,
            match=rf"condition 'x' was not notified within {timeout:g} s; its lock is held",
        ) as raised:
            await one.wait(timeout=timeout)
        assert isinstance(raised.value, dsync.WaitTimeout)
        lease = one.lock.lease
        assert lease is not None
        assert lease.held
        assert (lease.fence or 0) > (before.fence or 0)
        assert not await two.lock.try_acquire()
    assert not one._waiting()
    await asyncio.wait_for(notify(two), 2)


async def test_a_timeout_waits_for_the_lock_as_long_as_it_takes(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    raised: list[float] = []

    async def body() -> None:
        async with one:
            with pytest.raises(dsync.WaitTimeout):
                await one.wait(timeout=0.03)
            raised.append(time.monotonic())

    task = asyncio.create_task(body())
    await asleep(1, one)
    await two.acquire()
    await queued(1, two.lock)  # it has timed out, and waits for the lock
    assert not raised
    released = time.monotonic()
    await two.release()
    await task
    assert raised[0] >= released


async def test_a_wait_that_was_notified_in_time_and_got_the_lock_late_returns_true(
    world: World,
) -> None:
    one, holder, notifier = (world.client().condition("x") for _ in range(3))
    answers: list[bool] = []

    async def body() -> None:
        async with one:
            answers.append(await one.wait(timeout=0.2))

    task = asyncio.create_task(body())
    await asleep(1, one)
    cohort: Any = one.lock._cohort
    sleeper = next(iter(cohort.asleep.values())).waiter
    await notifier.acquire()
    held = asyncio.create_task(holder.acquire())
    await queued(1, notifier.lock)
    notifier.notify()
    await notifier.release()
    await held
    await settled(lambda: sleeper.timed_out, "its time is over")
    assert not task.done()
    await holder.release()
    await ends(task)
    assert answers == [True]


async def test_wait_for_returns_what_the_predicate_says(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    value: list[int] = []
    looked = 0

    def predicate() -> list[int]:
        nonlocal looked
        looked += 1
        assert one.lock.lease is not None, "looked at without the lock"
        assert one.lock.lease.held
        return value

    async def body() -> list[int]:
        async with one:
            return await one.wait_for(predicate)

    task = asyncio.create_task(body())
    await asleep(1, one)
    await notify(two)
    await settled(lambda: looked == 2)
    await asleep(1, one)
    async with two:
        value.append(5)
        two.notify()
    assert await task is value
    assert looked == 3


async def test_wait_for_has_one_timeout_over_all_its_waits(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    stop = False

    async def keep_notifying() -> None:
        while not stop:
            await notify(two)
            await asyncio.sleep(0.005)

    noise = asyncio.create_task(keep_notifying())
    began = time.monotonic()
    async with one:
        with pytest.raises(dsync.WaitTimeout):
            await one.wait_for(lambda: False, timeout=0.15)
        assert one.lock.lease is not None
        assert one.lock.lease.held
    assert 0.14 < time.monotonic() - began < 1
    stop = True
    await noise
    async with one:
        assert await one.wait_for(lambda: True, timeout=0) is True
        with pytest.raises(dsync.WaitTimeout):
            await one.wait_for(lambda: False, timeout=0)


async def test_a_predicate_that_raises_does_so_with_the_lock_held(world: World) -> None:
    one = world.client().condition("x")
    async with one:
        with pytest.raises(ZeroDivisionError):
            await one.wait_for(lambda: 1 // 0)
        assert one.locked()


@pytest.mark.parametrize("how", ["wait_for", "timeout"])
async def test_asyncios_timeouts_work_around_a_wait(world: World, how: str) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    async with one:
        with pytest.raises(TimeoutError) as raised:
            if how == "wait_for":
                await asyncio.wait_for(one.wait(), 0.03)
            else:
                async with asyncio.timeout(0.03):
                    await one.wait()
        assert not isinstance(raised.value, dsync.DsyncError)
        assert one.lock.lease is not None
        assert one.lock.lease.held
        one.notify()
    assert not one._waiting()
    await asyncio.wait_for(notify(two), 2)


@pytest.mark.parametrize("how", ["wait_for", "timeout"])
async def test_asyncios_timeouts_around_a_wait_that_is_notified(world: World, how: str) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")

    async def body() -> bool:
        async with one:
            if how == "wait_for":
                answer = await asyncio.wait_for(one.wait(), 10)
            else:
                async with asyncio.timeout(10):
                    answer = await one.wait()
            assert one.lock.lease is not None
            assert one.lock.lease.held
            return answer

    task = asyncio.create_task(body())
    await asleep(1, one)
    await notify(two)
    assert await task is True


async def test_acquire_has_a_timeout(world: World) -> None:
    one, two = world.client().condition("x"), world.client().condition("x")
    async with one:
        with pytest.raises(dsync.AcquireTimeout, match="condition 'x' was not free within"):
            await two.acquire(timeout=0.02)
    assert await two.acquire(timeout=0) is True
    await two.release()


# -- processes that end ----------------------------------------------------------------------------


async def test_a_closing_client_fails_who_waits_in_it(world: World) -> None:
    client, other = world.client(), world.client().condition("x")
    condition = client.condition("x")
    tasks = [asyncio.create_task(sleep_in(condition)) for _ in range(3)]
    await asleep(3, condition)
    second = asyncio.create_task(sleep_in(other))
    await asleep(4, condition, other)
    await client.aclose()
    for task in tasks:
        with pytest.raises(dsync.ClientClosed, match="condition 'x'"):
            await task
    assert not client.homes
    await notify(world.client().condition("x"))
    await asyncio.wait_for(second, 2)
    with pytest.raises(dsync.ClientClosed):
        await condition.acquire()


async def test_what_a_closing_client_was_notified_of_goes_to_another(world: World) -> None:
    client, holder, notifier = (world.client() for _ in range(3))
    condition, other = client.condition("x"), world.client().condition("x")
    first = asyncio.create_task(sleep_in(condition))
    await asleep(1, condition)
    second = asyncio.create_task(sleep_in(other))
    await asleep(2, condition, other)
    held, notifying = holder.condition("x"), notifier.condition("x")
    await notifying.acquire()
    waiting = asyncio.create_task(held.acquire())
    await queued(1, notifying.lock)
    notifying.notify()
    await notifying.release()
    await waiting
    await client.aclose()  # its sleeper waits for the lock by now
    with pytest.raises(dsync.ClientClosed):
        await first
    await held.release()
    await asyncio.wait_for(second, 2)


async def test_a_client_that_closes_as_its_waiter_is_granted_the_lock_loses_no_notification(
    world: World,
) -> None:
    client = world.client()
    condition, other = client.condition("x"), world.client().condition("x")
    first = asyncio.create_task(sleep_in(condition))
    await asleep(1, condition)
    second = asyncio.create_task(sleep_in(other))
    await asleep(2, condition, other)
    pushed = client.pushed
    closing: list[asyncio.Task[None]] = []

    def close_first(message: list[bytes], evidence: float) -> None:
        if message[0] == b"g":  # before the task that this wakes has run
            closing.append(asyncio.create_task(client.aclose()))
        pushed(message, evidence)

    client.pushed = close_first  # type: ignore[method-assign]
    await notify(world.client().condition("x"))
    with pytest.raises(dsync.ClientClosed):
        await first
    await closing[0]
    await asyncio.wait_for(second, 2)


@pytest.mark.parametrize("also", ["nobody", "another task", "another process"])
async def test_what_the_holder_has_notified_when_its_client_closes_is_notified(
    world: World, also: str
) -> None:
    client, other = world.client(), world.client().condition("x")
    condition, third = client.condition("x"), world.client().condition("x")
    tasks = [asyncio.create_task(sleep_in(other)) for _ in range(2)]
    await asleep(2, other)
    await condition.acquire()
    acquiring = None
    if also == "another task":
        acquiring = asyncio.create_task(condition.acquire())
        await settled(lambda: bool(condition.lock._cohort.waiters))
    elif also == "another process":
        acquiring = asyncio.create_task(third.acquire())
        await queued(1, third.lock)
    condition.notify_all()
    await client.aclose()
    if also == "another process":
        assert acquiring is not None
        await asyncio.wait_for(acquiring, 2)
        await third.release()
    elif acquiring is not None:
        with pytest.raises(dsync.ClientClosed):
            await acquiring
    await asyncio.wait_for(asyncio.gather(*tasks), 2)


async def test_sleepers_of_a_process_that_died_are_skipped(world: World) -> None:
    dead = world.client()
    condition, other = dead.condition("x"), world.client().condition("x")
    first = asyncio.create_task(sleep_in(condition))
    await asleep(1, condition)
    second = asyncio.create_task(sleep_in(other))
    await asleep(2, condition, other)
    await die(world, dead, condition)
    await silence(world, condition, dead)
    await notify(world.client().condition("x"))
    await asyncio.wait_for(second, 1)
    first.cancel()
    await asyncio.wait([first])


async def test_a_notification_of_a_process_that_died_goes_on_within_its_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has heard of it a moment ago: it is granted the lock, and its lease runs out."""
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    dead = world.client()
    condition, other = dead.condition("x", lease=0.3), world.client().condition("x")
    first = asyncio.create_task(sleep_in(condition))
    await asleep(1, condition)
    second = asyncio.create_task(sleep_in(other))
    await asleep(2, condition, other)
    await die(world, dead, condition)
    await notify(world.client().condition("x"))
    began = time.monotonic()
    await asyncio.wait_for(second, 2)
    assert time.monotonic() - began < 0.3 + 0.5
    first.cancel()
    await asyncio.wait([first])


async def test_a_holder_that_died_is_followed_by_those_who_wait_and_sleep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom it had notified is not told; the sleeper that it was passes on what woke it."""
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    dead = world.client()
    condition, other = dead.condition("x", lease=0.3), world.client().condition("x")
    inside = asyncio.Event()

    async def body() -> None:
        async with condition:
            await condition.wait()
            inside.set()
            await asyncio.sleep(30)

    first = asyncio.create_task(body())
    await asleep(1, condition)
    await notify(world.client().condition("x"))
    await inside.wait()
    second = asyncio.create_task(other.acquire())
    await queued(1, other.lock)
    await die(world, dead, condition)
    await asyncio.wait_for(second, 2)
    await other.release()
    first.cancel()
    await asyncio.wait([first])


async def test_a_reconnect_keeps_the_sleepers(real: World) -> None:
    client = real.client()
    one, two = client.condition("x"), real.client().condition("x")
    tasks = [asyncio.create_task(sleep_in(one)) for _ in range(3)]
    await asleep(3, one)
    for each in await real.admin.client_list():
        if client.client_id in each["name"]:
            await real.admin.client_kill_filter(_id=each["id"])
    await notify(two, 3)
    await asyncio.wait_for(asyncio.gather(*tasks), 3)


async def test_a_sleeper_that_the_server_has_forgotten_returns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    one = world.client().condition("x")
    task = asyncio.create_task(sleep_in(one))
    await asleep(1, one)
    if world.admin is None:
        world.clients[0].store.memory.records.clear()  # type: ignore[attr-defined]
    else:
        for key in await world.keys():
            await world.admin.delete(key)
    await asyncio.wait_for(task, 2)


# -- repr ------------------------------------------------------------------------------------------


async def test_repr_tells_the_state(world: World) -> None:
    condition = world.client().condition("x")
    assert repr(condition).endswith(" 'x' [unlocked]>")
    tasks = [asyncio.create_task(sleep_in(condition)) for _ in range(2)]
    await asleep(2, condition)
    assert repr(condition).endswith(" 'x' [unlocked, waiters:2]>")
    async with condition:
        assert repr(condition).endswith(" 'x' [locked, waiters:2]>")
        assert RGX_REPR.match(repr(condition))
        condition.notify_all()
    await asyncio.gather(*tasks)
    assert repr(condition).endswith(" 'x' [unlocked]>")
    assert RGX_REPR.match(repr(condition))
