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
