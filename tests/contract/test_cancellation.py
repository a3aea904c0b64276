"""Cancelled at any await point, nothing stays behind: no key, no place in the queue, no permit.

Each coroutine is driven step by step and cancelled at its n-th suspension, for every n it has; once
before what it waits for has come (the future is cancelled, as Task.cancel() does it), and once
just after (the result is there, and the cancel arrives all the same).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

import pytest

import dsync
from tests.conftest import World, settled


class CancelledAt:
    """Runs a coroutine and cancels it at its n-th suspension."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], step: int, late: bool) -> None:
        self.coroutine = coroutine
        self.step = step
        self.late = late
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        steps = 0
        error: BaseException | None = None
        while True:
            try:
                send, throw = self.coroutine.send, self.coroutine.throw
                waited = send(None) if error is None else throw(error)
            except StopIteration as done:
                return done.value
            error = None
            steps += 1
            try:
                if steps == self.step and not self.cancelled:
                    self.cancelled = True
                    if self.late:
                        yield waited
                    elif waited is not None:
                        waited._asyncio_future_blocking = False
                        waited.cancel()
                        yield
                    raise asyncio.CancelledError
                yield waited
            except BaseException as exc:
                error = exc


async def at_every_step(
    make: Callable[[], Coroutine[Any, Any, Any]], after: Callable[[], Awaitable[None]], late: bool
) -> int:
    """Cancel at step 1, 2, … until the coroutine ends before it; look `after` each.  -> steps"""
    step = 0
    while True:
        step += 1
        driver = CancelledAt(make(), step, late)
        try:
            await driver
        except asyncio.CancelledError:
            pass
        await after()
        if not driver.cancelled:
            return step - 1
        assert step < 50


@pytest.fixture(params=[False, True], ids=["before", "just after"])
def late(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def nothing_left(world: World, lock: dsync.Lock) -> Callable[[], Awaitable[None]]:
    """Nobody holds and nobody waits; another process gets it at once."""
    probe = world.client().lock("x")

    async def look() -> None:
        async def empty() -> bool:
            info = await probe.info()
            return info.holder is None and not info.waiters

        await settled(empty, "nobody holds, nobody waits")
        assert await probe.try_acquire()
        await probe.release()
        lock._held.clear()  # the coroutine may have been cancelled between acquire and release

    return look


@pytest.mark.parametrize("fair", [False, True])
async def test_acquiring_a_free_lock(world: World, late: bool, fair: bool) -> None:
    lock = world.client().lock("x", fair=fair)

    async def acquire_and_release() -> None:
        try:
            await lock.acquire()
        except asyncio.CancelledError:
            assert lock.lease is None
            raise
        await lock.release()

    steps = await at_every_step(acquire_and_release, nothing_left(world, lock), late)
    assert steps >= (2 if world.kind != "memory" else 0)


@pytest.mark.parametrize("fair", [False, True])
async def test_the_context_manager(world: World, late: bool, fair: bool) -> None:
    lock = world.client().lock("x", fair=fair)

    async def use() -> None:
        async with lock:
            await asyncio.sleep(0)

    await at_every_step(use, nothing_left(world, lock), late)


@pytest.mark.parametrize("fair", [False, True])
async def test_waiting_for_a_lock_that_another_process_holds(
    world: World, late: bool, fair: bool
) -> None:
    holder = world.client().lock("x")
    waiter = world.client().lock("x", fair=fair)
    probe = world.client().lock("x")

    async def contend() -> None:
        async with waiter:
            pass

    async def look() -> None:
        await holder.release()
        await nothing_left(world, waiter)()

    step = 0
    while True:
        step += 1
        await holder.acquire()
        driver = CancelledAt(contend(), step, late)
        task = asyncio.create_task(drive(driver))
        # If it waits, let it through; what it is cancelled at then is a later step.
        await settled(partial(underway, driver, task, waiter))
        if not task.done() and not (driver.cancelled and not late):
            await holder.release()
            await task
            await nothing_left(world, waiter)()
        else:
            await task
            await look()
        if not driver.cancelled:
            break
        assert step < 50
    assert await probe.try_acquire()
    await probe.release()


def underway(driver: CancelledAt, task: asyncio.Task[None], waiter: dsync.Lock) -> bool:
    return driver.cancelled or task.done() or waiter._cohort.waiting() > 0


async def drive(driver: CancelledAt) -> None:
    try:
        await driver
    except asyncio.CancelledError:
        pass


async def test_trying_to_acquire(world: World, late: bool) -> None:
    lock = world.client().lock("x")

    async def attempt() -> None:
        if await lock.try_acquire():
            await lock.release()

    await at_every_step(attempt, nothing_left(world, lock), late)


async def test_a_semaphore(world: World, late: bool) -> None:
    semaphore = world.client().semaphore("s", 2)
    probe = world.client().semaphore("s", 2)

    async def use() -> None:
        async with semaphore, semaphore:
            await asyncio.sleep(0)

    async def look() -> None:
        async def empty() -> bool:
            info = await probe.info()
            return info.held == 0 and info.waiting == 0

        await settled(empty, "no permit held, nobody waits")

    await at_every_step(use, look, late)


async def test_a_storm_of_cancels_leaks_no_permit(world: World) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    clients = [world.client() for _ in range(3)]

    async def use(client: dsync.Client) -> None:
        async with client.semaphore("s", 2, fair=rng.random() < 0.3):
            await asyncio.sleep(rng.random() * 0.005)

    for _ in range(4):
        tasks = [asyncio.create_task(use(rng.choice(clients))) for _ in range(20)]
        for task in tasks:
            if rng.random() < 0.6:
                asyncio.get_running_loop().call_later(rng.random() * 0.02, task.cancel)
        await asyncio.wait(tasks, timeout=20)
        assert all(task.done() for task in tasks), "somebody was forgotten"

    async def empty() -> bool:
        info = await clients[0].semaphore("s", 2).info()
        return info.held == 0 and info.waiting == 0

    await settled(empty, "both permits are free and nobody waits")


# -- Event and Condition ---------------------------------------------------------------------------


async def test_waiting_for_an_event(world: World, late: bool) -> None:
    event, other = world.client().event("x"), world.client().event("x")
    flag = event._flag

    async def noted() -> None:
        await settled(lambda: any(w.noted is not None for w in flag.waiters))
        await other.set()

    step = 0
    while True:
        step += 1
        setting = asyncio.create_task(noted())
        driver = CancelledAt(event.wait(timeout=20), step, late)
        await asyncio.wait([asyncio.create_task(drive(driver))])
        setting.cancel()
        await asyncio.wait([setting])
        assert not flag.waiters
        await other.clear()
        await event.clear()
        with pytest.raises(dsync.WaitTimeout):
            await event.wait(timeout=0)
        if not driver.cancelled:
            break
        assert step < 50
    assert step >= 2


async def fast_asleep(count: int, *conditions: dsync.Condition) -> None:
    cohorts: set[Any] = {condition.lock._cohort for condition in conditions}

    def there() -> bool:
        sleeping = [r for cohort in cohorts for r in cohort.asleep.values()]
        return len(sleeping) == count and not any(r.asking for r in sleeping)

    await settled(there, f"{count} sleep")


@pytest.mark.parametrize("how", ["wait", "wait_for", "with a timeout"])
async def test_waiting_for_a_condition(world: World, late: bool, how: str) -> None:
    """One notification, two who wait for it: exactly one of them gets it, wherever the first is
    cancelled.
    """
    one, two, notifier = (world.client().condition("x") for _ in range(3))
    used: list[str] = []
    ready = False

    async def wait() -> None:
        async with one:
            if how == "wait_for":
                await one.wait_for(lambda: ready)
            else:
                await one.wait(timeout=None if how == "wait" else 20)
            used.append("one")

    async def stand_by() -> None:
        async with two:
            await two.wait()
            used.append("two")

    def underway(driver: CancelledAt, task: "asyncio.Task[None]") -> bool:
        cohort: Any = one.lock._cohort
        sleeping = list(cohort.asleep.values())
        return task.done() or bool(sleeping and not any(r.asking for r in sleeping))

    step = 0
    while True:
        step += 1
        used.clear()
        ready = False
        driver = CancelledAt(wait(), step, late)
        task = asyncio.create_task(drive(driver))
        await settled(partial(underway, driver, task), "it sleeps, or has gone")
        other = asyncio.create_task(stand_by())
        await settled(lambda: two._waiting() == 1)
        await fast_asleep(1, two)
        async with notifier:
            ready = True
            notifier.notify()
        await asyncio.wait([task], timeout=5)
        assert task.done(), f"step {step} never ended"
        one.lock._held.clear()  # it may have been cancelled between acquire and release
        one.lock._inside.clear()
        await settled(lambda: bool(used), f"step {step}: somebody gets the notification")
        async with notifier:
            notifier.notify_all()
        await asyncio.wait_for(other, 5)
        assert used in (["one", "two"], ["two"]), step
        await nothing_left_of(world, notifier.lock)
        if not driver.cancelled:
            break
        assert step < 50
    assert step >= 2


async def nothing_left_of(world: World, lock: dsync.Lock) -> None:
    async def empty() -> bool:
        info = await lock.info()
        return info.holder is None and not info.waiters

    await settled(empty, "nobody holds, nobody waits")
    for client in world.clients:
        assert not client.homes, client.homes


async def test_a_storm_of_cancels_loses_no_item_and_wakes_everyone(world: World) -> None:
    """A bounded queue as people write it, over three processes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    total, room = 150, 5
    items: list[int] = []
    taken: list[int] = []
    made = inside = 0

    def kit() -> tuple[dsync.Lock, dsync.Condition, dsync.Condition]:
        client = world.client()
        lock = client.lock("x")
        return lock, client.condition("not empty", lock), client.condition("not full", lock)

    kits = [kit() for _ in range(3)]

    def alone(change: int) -> None:
        nonlocal inside
        inside += change
        assert inside in (0, 1), "two are inside"

    async def consume(number: int) -> None:
        lock, not_empty, not_full = kits[number % 3]
        while len(taken) < total:
            async with lock:
                await not_empty.wait_for(lambda: items or len(taken) == total)
                alone(+1)
                if items:
                    taken.append(items.pop(0))
                alone(-1)
                not_full.notify()
                if len(taken) == total:
                    not_empty.notify_all()

    def room_left() -> bool:
        return len(items) < room or made == total

    async def produce(number: int) -> None:
        nonlocal made
        lock, not_empty, not_full = kits[number % 3]
        while made < total:
            async with lock:
                await not_full.wait_for(room_left)
                alone(+1)
                if made < total:
                    items.append(made)
                    made += 1
                alone(-1)
                assert len(items) <= room
                not_empty.notify()
                if made == total:
                    not_full.notify_all()
            await asyncio.sleep(0)

    jobs = [partial(consume, i) for i in range(20)] + [partial(produce, i) for i in range(6)]
    tasks = [asyncio.create_task(job()) for job in jobs]

    async def storm() -> None:
        while len(taken) < total * 2 // 3:
            await asyncio.sleep(rng.random() * 0.006)
            for _ in range(rng.randrange(1, 5)):
                victim = rng.randrange(len(tasks))
                if not tasks[victim].done():
                    tasks[victim].cancel()
                    await asyncio.wait([tasks[victim]])
                    tasks[victim] = asyncio.create_task(jobs[victim]())

    async with asyncio.timeout(20):
        await storm()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [result for result in results if result is not None]
    assert taken == list(range(total)), "in order, each of them once"
    assert not items
    await nothing_left_of(world, kits[0][0])
