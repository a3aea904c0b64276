"""All that asyncio's Lock, Event, Condition and Semaphores do, done by ours, on every store.

Written along the tests of CPython 3.13 (test_asyncio/test_locks.py), where a tick of the loop is a
state that is waited for.  What other files here prove already is not repeated.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import dsync
from tests.conftest import World, settled

PAIRS = [
    (asyncio.Lock, dsync.Lock),
    (asyncio.Event, dsync.Event),
    (asyncio.Condition, dsync.Condition),
    (asyncio.Semaphore, dsync.Semaphore),
    (asyncio.BoundedSemaphore, dsync.BoundedSemaphore),
]
METHODS = [
    pytest.param(theirs, ours, name, id=f"{ours.__name__}.{name}")
    for theirs, ours in PAIRS
    for name in dir(theirs)
    if callable(getattr(theirs, name)) and (name[0] != "_" or name in ("__aenter__", "__aexit__"))
]


def everything(client: dsync.Client) -> list[Any]:
    """One of each."""
    return [
        client.lock("x"), client.event("x"), client.condition("x"), client.semaphore("x"),
        client.bounded_semaphore("y"),
    ]  # fmt: skip


def holding(client: dsync.Client) -> list[Any]:
    """Those that `async with` takes."""
    return [thing for thing in everything(client) if hasattr(thing, "acquire")]


async def waiting(count: int, thing: Any) -> None:
    """Until so many tasks wait for a lock or semaphore, and the store knows as much as it will."""
    cohort = thing._cohort

    def there() -> bool:
        return cohort.waiting() == count and not any(r.asking for r in cohort.requests.values())

    await settled(there, f"{count} wait for {thing!r}")


async def asleep(count: int, condition: dsync.Condition) -> None:
    cohort: Any = condition.lock._cohort
    sleeping = cohort.asleep

    def there() -> bool:
        return len(sleeping) == count and not any(r.asking for r in sleeping.values())

    await settled(there, f"{count} sleep in {condition!r}")


async def queued(count: int, lock: dsync.Lock) -> None:
    async def there() -> bool:
        return len((await lock.info()).waiters) == count

    await settled(there, f"{count} in the queue of {lock!r}")


# -- what a caller sees first ----------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "ours", "name"), METHODS)
def test_every_method_of_asyncios_is_called_in_the_same_way(
    theirs: type, ours: type, name: str
) -> None:
    expected = list(inspect.signature(getattr(theirs, name)).parameters.values())
    found = list(inspect.signature(getattr(ours, name)).parameters.values())
    if name == "__aexit__":
        assert len(found) == len(expected)
        return
    for one, other in zip(expected, found, strict=False):
        assert (one.name, one.default) == (other.name, other.default)
        assert one.kind == other.kind
    assert len(found) >= len(expected)
    for extra in found[len(expected) :]:
        assert extra.default is not extra.empty, f"{extra.name} has no default"
    is_coroutine = inspect.iscoroutinefunction(getattr(theirs, name))
    assert inspect.iscoroutinefunction(getattr(ours, name)) == is_coroutine


async def test_none_of_them_can_be_awaited_itself(world: World) -> None:
    for thing in everything(world.client()):
        with pytest.raises(TypeError, match=r"can't be used in 'await' expression"):
            await thing
        if hasattr(thing, "locked"):
            with pytest.raises(TypeError), thing:
                pass
            assert not thing.locked()


def test_none_of_them_takes_a_loop() -> None:
    client = dsync.connect("memory://")
    makers: list[Callable[..., object]] = [
        client.lock, client.event, client.condition, client.semaphore, client.bounded_semaphore
    ]  # fmt: skip
    for make in makers:
        with pytest.raises(TypeError, match="unexpected keyword argument 'loop'"):
            make("x", loop=None)


def test_a_client_of_another_loop_is_asyncios_error() -> None:
    client = dsync.connect("memory://")
    things = everything(client)

    async def use() -> None:
        for thing in things:
            if hasattr(thing, "acquire"):
                await thing.acquire()
                await thing.release()
            else:
                await thing.set()
                await thing.clear()

    asyncio.run(use())

    async def misuse() -> None:
        for thing in things:
            with pytest.raises(RuntimeError, match="is bound to a different event loop"):
                await (thing.acquire() if hasattr(thing, "acquire") else thing.wait())

    asyncio.run(misuse())


async def test_what_calls_return(world: World) -> None:
    client = world.client()
    for thing in holding(client):
        assert thing.locked() is not None
        assert not thing.locked()
        assert await thing.acquire() is True
        assert thing.locked()
        assert await thing.release() is None
        assert not thing.locked()
        async with thing:
            assert thing.locked()
        assert not thing.locked()
    event = client.event("e")
    assert await event.set() is None  # type: ignore[func-returns-value]
    assert await event.wait() is True
    assert await event.clear() is None  # type: ignore[func-returns-value]
    condition = client.condition("c")
    async with condition:
        assert await condition.notify() is None  # type: ignore[func-returns-value]
        assert await condition.notify_all() is None  # type: ignore[func-returns-value]


async def test_release_of_what_is_not_held_has_asyncios_type_and_text(world: World) -> None:
    client = world.client()
    for mine, theirs in (
        (client.lock("x"), asyncio.Lock()),
        (client.condition("x"), asyncio.Condition()),
        (client.bounded_semaphore("x"), asyncio.BoundedSemaphore()),
    ):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            theirs.release()
        with pytest.raises(type(expected.value)) as raised:
            mine.release()
        assert str(expected.value) in str(raised.value)


async def test_notify_and_wait_without_the_lock_have_asyncios_type_and_text(world: World) -> None:
    mine, theirs = world.client().condition("x"), asyncio.Condition()
    for name in ("notify", "notify_all"):
        with pytest.raises(RuntimeError) as expected:
            getattr(theirs, name)()
        with pytest.raises(RuntimeError) as raised:
            getattr(mine, name)()
        assert str(expected.value).removesuffix(".") in str(raised.value)
    with pytest.raises(RuntimeError) as expected:
        await theirs.wait()
    with pytest.raises(RuntimeError) as raised:
        await mine.wait()
    assert str(expected.value) in str(raised.value)


def test_a_negative_value_is_asyncios_error() -> None:
    client = dsync.connect("memory://")
    for make in (client.semaphore, client.bounded_semaphore):
        with pytest.raises(ValueError):
            make("x", -1)


async def test_plain_calls_followed_by_anything(world: World) -> None:
    client = world.client()
    for thing in holding(client):
        for _ in range(5):
            await thing.acquire()
            thing.release()
        other = next(t for t in holding(world.client()) if type(t) is type(thing))
        await thing.acquire()
        thing.release()
        await asyncio.wait_for(other.acquire(), 2)
        other.release()
    await client.aclose()
    for thing in holding(world.client()):
        assert await thing.locked() is False


# -- Lock ------------------------------------------------------------------------------------------


async def test_lock_acquire(world: World) -> None:
    lock = world.client().lock("x")
    result: list[int] = []
    assert await lock.acquire()

    async def take(number: int) -> bool:
        if await lock.acquire():
            result.append(number)
        return True

    first, second = (asyncio.create_task(take(i)) for i in (1, 2))
    await waiting(2, lock)
    assert result == []
    lock.release()
    await settled(lambda: result == [1])
    third = asyncio.create_task(take(3))
    await waiting(2, lock)
    assert result == [1]
    lock.release()
    await settled(lambda: result == [1, 2])
    assert not third.done()
    lock.release()
    assert list(await asyncio.gather(first, second, third)) == [True] * 3
    assert result == [1, 2, 3]
    await lock.release()


async def test_lock_cancel_race(world: World) -> None:
    """One releases as the next is cancelled: the one behind it gets the lock."""
    lock = world.client().lock("x")
    blocker = asyncio.get_running_loop().create_future()

    async def use(until: "asyncio.Future[None] | None") -> None:
        await lock.acquire()
        try:
            if until is not None:
                await until
        finally:
            lock.release()

    first = asyncio.create_task(use(blocker))
    await settled(lambda: lock.lease is not None)
    second = asyncio.create_task(use(None))
    await waiting(1, lock)
    third = asyncio.create_task(use(None))
    await waiting(2, lock)
    blocker.set_result(None)
    second.cancel()
    await asyncio.wait_for(asyncio.wait([first, second, third]), 5)
    assert second.cancelled()
    assert not lock.locked()


async def test_lock_cancel_release_race(world: World) -> None:
    """bpo-32734: the second is cancelled as the first releases, and one lock is taken, not two."""
    lock = world.client().lock("x")
    taken = called = 0

    async def take() -> None:
        nonlocal taken, called
        called += 1
        await lock.acquire()
        taken += 1

    await lock.acquire()
    tasks = [asyncio.create_task(take()) for _ in range(3)]
    await waiting(3, lock)
    tasks[0].cancel()
    lock.release()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await asyncio.wait_for(tasks[1], 5)
    assert (taken, called) == (1, 3)
    tasks[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    await lock.release()


async def test_lock_finished_waiter_cancelled(world: World) -> None:
    """Cancelled, then the lock is released, all in one tick: the next in line is woken."""
    lock = world.client().lock("x")
    await lock.acquire()
    first = asyncio.create_task(lock.acquire())
    await waiting(1, lock)
    second = asyncio.create_task(lock.acquire())
    first.cancel()
    lock.release()
    await asyncio.wait_for(second, 5)
    assert lock.locked()
    assert first.cancelled()
    await lock.release()


# -- Event -----------------------------------------------------------------------------------------


async def test_event_wait(world: World) -> None:
    event = world.client().event("x")
    assert not event.is_set()
    result: list[int] = []

    async def work(number: int) -> None:
        if await event.wait():
            result.append(number)

    tasks = [asyncio.create_task(work(i)) for i in (1, 2)]
    await settled(lambda: event._waiting() == 2)
    assert result == []
    third = asyncio.create_task(work(3))
    event.set()
    assert await asyncio.gather(*tasks, third) == [None] * 3
    assert sorted(result) == [1, 2, 3]
    event.clear()


async def test_event_clear_with_waiters(world: World) -> None:
    event = world.client().event("x")
    task = asyncio.create_task(event.wait())
    await settled(lambda: event._waiting() == 1)
    event.set()
    event.clear()
    assert not event.is_set()
    event.set()
    event.set()
    assert event._waiting() == 1  # it has not run yet
    assert await task is True
    assert event._waiting() == 0
    assert await event.is_set() is True
    await event.clear()


# -- Condition -------------------------------------------------------------------------------------


async def test_condition_wait(world: World) -> None:
    condition = world.client().condition("x")
    result: list[int] = []

    async def work(number: int) -> bool:
        await condition.acquire()
        if await condition.wait():
            result.append(number)
        return True

    tasks = []
    for number in (1, 2, 3):
        tasks.append(asyncio.create_task(work(number)))
        await asleep(number, condition)
    assert result == []
    assert not condition.locked()
    assert await condition.acquire()
    condition.notify()
    assert result == []
    assert condition.locked()
    condition.release()
    await settled(lambda: result == [1])
    assert condition.locked()
    condition.notify(2)
    assert condition.locked()
    condition.release()
    await settled(lambda: result == [1, 2])
    assert condition.locked()
    condition.release()
    await settled(lambda: result == [1, 2, 3])
    assert condition.locked()
    assert await asyncio.gather(*tasks) == [True] * 3
    await condition.release()


async def test_condition_wait_cancel(world: World) -> None:
    condition = world.client().condition("x")
    await condition.acquire()
    task = asyncio.create_task(condition.wait())
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not condition._waiting()
    assert condition.locked()
    await condition.release()


async def test_condition_wait_cancel_contested(world: World) -> None:
    condition = world.client().condition("x")
    await condition.acquire()
    task = asyncio.create_task(condition.wait())
    await asleep(1, condition)
    assert not condition.locked()
    await condition.acquire()
    condition.notify()
    asyncio.get_running_loop().call_soon(task.cancel)
    asyncio.get_running_loop().call_soon(condition.release)
    await asyncio.wait_for(asyncio.wait([task]), 5)
    assert condition.locked()
    await condition.release()


@pytest.mark.parametrize("notify_all", [False, True])
async def test_condition_notify(world: World, notify_all: bool) -> None:
    condition = world.client().condition("x")
    result: list[int] = []

    async def work(number: int) -> bool:
        await condition.acquire()
        if await condition.wait():
            result.append(number)
            condition.release()
        return True

    tasks = []
    for number in (1, 2, 3):
        tasks.append(asyncio.create_task(work(number)))
        await asleep(number, condition)
    if notify_all:
        await condition.acquire()
        condition.notify_all()
        condition.release()
    else:
        await condition.acquire()
        condition.notify(1)
        condition.release()
        await settled(lambda: result == [1])
        await condition.acquire()
        condition.notify(1)
        condition.notify(2048)
        condition.release()
    assert await asyncio.gather(*tasks) == [True] * 3
    assert result == [1, 2, 3]


@pytest.mark.parametrize("where", ["asleep", "at the lock"])
async def test_condition_a_cancelled_error_is_raised_unmodified(world: World, where: str) -> None:
    condition = world.client().condition("x")
    wake = False
    raised: BaseException | None = None

    async def work() -> None:
        nonlocal raised
        async with condition:
            with pytest.raises(asyncio.CancelledError) as caught:
                await condition.wait_for(lambda: wake)
            raised = caught.value
            raise raised

    task = asyncio.create_task(work())
    await asleep(1, condition)
    if where == "at the lock":
        await condition.acquire()
        wake = True
        condition.notify()
    task.cancel(msg="foo")
    if where == "at the lock":
        condition.release()
    with pytest.raises(asyncio.CancelledError) as error:
        await task
    assert error.value.args == ("foo",)
    assert error.value is raised


@pytest.mark.parametrize("when", ["with the notification", "at the lock"])
async def test_condition_a_cancelled_wakeup_is_not_lost(world: World, when: str) -> None:
    client, holder = world.client(), world.client().condition("x")
    condition, producer = client.condition("x"), client.condition("x")
    items: list[int] = []

    async def consume() -> None:
        async with condition:
            while True:
                await condition.wait_for(lambda: items)
                if items.pop() < 0:
                    return

    consumers = []
    for i in range(2):
        consumers.append(asyncio.create_task(consume()))
        await asleep(i + 1, condition)
    await producer.acquire()
    held = asyncio.create_task(holder.acquire())
    await queued(1, condition.lock)
    items.append(1)
    producer.notify(1)
    if when == "with the notification":
        consumers[0].cancel()
    producer.release()
    await held
    if when == "at the lock":
        consumers[0].cancel()
        await asyncio.sleep(0)
    await holder.release()
    await settled(lambda: not items, "the other one takes it")
    await asyncio.wait_for(asyncio.wait(consumers[:1]), 5)
    assert consumers[0].cancelled()
    async with producer:
        items.append(-1)
        producer.notify_all()
    await asyncio.wait_for(consumers[1], 5)


# -- Semaphore -------------------------------------------------------------------------------------


async def test_semaphore_acquire(world: World) -> None:
    semaphore = world.client().semaphore("x", 3)
    result: list[int] = []
    assert await semaphore.acquire()
    assert await semaphore.acquire()
    assert not semaphore.locked()

    async def take(number: int) -> bool:
        await semaphore.acquire()
        result.append(number)
        return True

    tasks = [asyncio.create_task(take(i)) for i in (1, 2, 3)]
    await settled(lambda: result == [1])
    await waiting(2, semaphore)
    assert semaphore.locked()
    tasks.append(asyncio.create_task(take(4)))
    semaphore.release()
    semaphore.release()
    await settled(lambda: result == [1, 2, 3])
    await waiting(1, semaphore)
    assert semaphore.locked()
    semaphore.release()
    assert await asyncio.gather(*tasks) == [True] * 4
    for _ in range(3):
        await semaphore.release()


async def test_semaphore_acquire_cancel(world: World) -> None:
    semaphore = world.client().semaphore("x")
    await semaphore.acquire()
    task = asyncio.create_task(semaphore.acquire())
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    await waiting(0, semaphore)
    await semaphore.release()


async def test_semaphore_cancelled_before_awoken(world: World) -> None:
    semaphore = world.client().semaphore("x", 0)
    tasks = [asyncio.create_task(semaphore.acquire()) for _ in range(4)]
    await waiting(4, semaphore)
    tasks[0].cancel()
    tasks[1].cancel()
    semaphore.release()
    await asyncio.wait_for(tasks[2], 5)
    await waiting(1, semaphore)
    assert not tasks[3].done()
    tasks[3].cancel()
    await asyncio.wait(tasks)
    await semaphore.release()


async def test_semaphore_acquire_hang(world: World) -> None:
    semaphore = world.client().semaphore("x", 0)
    first, second = (asyncio.create_task(semaphore.acquire()) for _ in range(2))
    await waiting(2, semaphore)
    first.cancel()
    semaphore.release()
    await asyncio.wait_for(second, 5)
    assert semaphore.locked()
    await semaphore.release()


async def test_semaphore_acquire_no_hang(world: World) -> None:
    semaphore = world.client().semaphore("x", 1)
    entered = asyncio.Event()

    async def first() -> None:
        async with semaphore:
            entered.set()
            await waiting(1, semaphore)
        second_task.cancel()

    async def second() -> None:
        await entered.wait()
        async with semaphore:
            await asyncio.sleep(30)

    first_task, second_task = asyncio.create_task(first()), asyncio.create_task(second())
    one, two = await asyncio.gather(first_task, second_task, return_exceptions=True)
    assert one is None
    assert isinstance(two, asyncio.CancelledError)
    await asyncio.wait_for(semaphore.acquire(), 1)
    await semaphore.release()


async def test_semaphore_fifo_order(world: World) -> None:
    semaphore = world.client().semaphore("x", 1)
    result: list[str] = []

    async def work(name: str) -> None:
        for i in (1, 2):
            await semaphore.acquire()
            result.append(f"{name}_{i}")
            await asyncio.sleep(0.003)
            semaphore.release()

    async with asyncio.TaskGroup() as group:
        for name in ("c1", "c2", "c3"):
            group.create_task(work(name))
    assert result == ["c1_1", "c2_1", "c3_1", "c1_2", "c2_2", "c3_2"]


async def test_semaphore_fifo_order_of_who_releases_and_acquires_again(world: World) -> None:
    semaphore = world.client().semaphore("x", 1)
    result: list[int] = []

    async def take(number: int) -> None:
        await semaphore.acquire()
        result.append(number)

    async def take_twice() -> None:
        await take(2)
        semaphore.release()
        await take(4)

    tasks = [asyncio.create_task(job) for job in (take(1), take_twice(), take(3))]
    await settled(lambda: result == [1])
    await waiting(2, semaphore)
    semaphore.release()
    await asyncio.wait_for(tasks[2], 5)
    await waiting(1, semaphore)
    assert result == [1, 2, 3]
    semaphore.release()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert result == [1, 2, 3, 4]
    await semaphore.release()


async def test_semaphore_fifo_order_after_a_cancel(world: World) -> None:
    semaphore = world.client().semaphore("x", 0)
    result: list[int] = []

    async def take(number: int) -> None:
        await semaphore.acquire()
        result.append(number)

    tasks = [asyncio.create_task(take(i)) for i in (1, 2, 3)]
    await waiting(3, semaphore)
    tasks[0].cancel()
    await waiting(2, semaphore)
    semaphore.release()
    semaphore.release()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert result == [2, 3]
    await semaphore.release()
    await semaphore.release()


async def test_semaphore_releases_wake_as_many_waiters(world: World) -> None:
    semaphore = world.client().semaphore("x", 0)
    result: list[int] = []

    async def take(number: int) -> None:
        await semaphore.acquire()
        result.append(number)

    first = asyncio.create_task(take(1))
    await waiting(1, semaphore)
    for _ in range(3):
        semaphore.release()
    tasks = [first, *(asyncio.create_task(take(i)) for i in (2, 3))]
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert result == [1, 2, 3]
    for _ in range(3):
        await semaphore.release()
