"""Those who give up: nothing of them stays behind."""

import asyncio
import random
import time
from typing import Any

import pytest

import dsync
from tests.conftest import World, settled


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fair", [False, True], ids=["", "fair"])
async def test_permits_do_not_leak_when_most_users_are_cancelled(
    real: World, seed: int, fair: bool
) -> None:
    """The permit-leak recipe: 6 rounds, 20 users, 2 permits, 60 % cancelled at any point."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    clients = [real.client() for _ in range(4)]
    inside = most = 0

    async def use(client: dsync.Client, hold: float) -> None:
        nonlocal inside, most
        async with client.semaphore("x", 2, fair=fair):
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(hold)
            finally:
                inside -= 1

    for _ in range(6):
        users = [
            asyncio.create_task(use(dice.choice(clients), dice.uniform(0, 0.01))) for _ in range(20)
        ]
        for user in dice.sample(users, 12):
            asyncio.get_running_loop().call_later(dice.uniform(0, 0.05), user.cancel)
        async with asyncio.timeout(5):
            await asyncio.gather(*users, return_exceptions=True)
    assert most <= 2
    await settled(lambda: nothing_held_or_queued(real))
    free = real.client().semaphore("x", 2)
    assert await free.try_acquire()
    assert await free.try_acquire()
    assert not await free.try_acquire()
    free.release()
    await free.release()


async def nothing_held_or_queued(real: World) -> bool:
    info = await real.clients[0].semaphore("x", 2).info()
    return (info.held, info.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_a_lock_under_cancellation_neither_doubles_nor_gets_stuck(
    real: World, seed: int
) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    locks = [real.client().lock("x") for _ in range(3)]
    inside = most = served = 0

    async def use(lock: dsync.Lock) -> None:
        nonlocal inside, most, served
        if dice.random() < 0.3:
            if not await lock.try_acquire():
                return
        else:
            try:
                await lock.acquire(timeout=dice.choice((None, 0.005, 0.05)))
            except dsync.AcquireTimeout:
                return
        try:
            inside += 1
            served += 1
            most = max(most, inside)
            await asyncio.sleep(dice.uniform(0, 0.003))
        finally:
            inside -= 1
            lock.release()

    for _ in range(10):
        users = [asyncio.create_task(use(dice.choice(locks))) for _ in range(20)]
        for user in dice.sample(users, 12):
            asyncio.get_running_loop().call_later(dice.uniform(0, 0.02), user.cancel)
        async with asyncio.timeout(5):
            await asyncio.gather(*users, return_exceptions=True)
    assert most == 1
    assert served > 0
    async with asyncio.timeout(1):
        async with real.client().lock("x"):
            pass


@pytest.mark.parametrize("ticks", range(5))
@pytest.mark.parametrize("fair", [False, True], ids=["", "fair"])
async def test_a_waiter_cancelled_at_the_moment_of_its_grant_passes_the_lock_on(
    real: World, queued: Any, ticks: int, fair: bool
) -> None:
    """The grant is in the socket, in the future, or already the task's when the cancel comes."""
    holder = real.client().lock("x")
    first, second = real.client().lock("x", fair=fair), real.client().lock("x")
    await holder.acquire()
    waiting = asyncio.create_task(first.acquire())
    await queued(1)
    behind = asyncio.create_task(second.acquire())
    await queued(2)
    confirmed = holder.release()
    time.sleep(0.02)  # the grant is in the socket now; this tick has not read it

    def cancel_after(count: int) -> None:
        if count == 0:
            waiting.cancel()
        else:
            asyncio.get_running_loop().call_soon(cancel_after, count - 1)

    cancel_after(ticks)
    await asyncio.gather(waiting, return_exceptions=True)
    if not waiting.cancelled():
        first.release()
    await asyncio.wait_for(behind, 1)
    await second.release()
    await confirmed
