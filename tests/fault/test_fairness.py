"""In what order those who wait are served."""

import asyncio
from typing import Any

from tests.conftest import World, settled
from tests.fault.workers import Workers


async def test_clients_are_served_in_order_of_arrival_with_fair(real: World, queued: Any) -> None:
    first = real.client().lock("x", fair=True)
    await first.acquire()
    served: list[int] = []

    async def come(number: int) -> None:
        async with real.client().lock("x", fair=True):
            served.append(number)
            await asyncio.sleep(0.003)

    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(come(number)))
        await queued(number + 1)
    await first.release()
    await asyncio.gather(*tasks)
    assert served == list(range(10))


async def test_processes_are_served_in_order_of_arrival_with_fair(
    real: World, workers: Workers, queued: Any
) -> None:
    first = real.client().lock("x", fair=True)
    await first.acquire()
    arrived = []
    for place in range(1, 6):
        arrived.append(workers.spawn("--fair", "--rounds", "1", "--lease", "30").pid)
        await queued(place)
    await first.release()
    await settled(lambda: len(workers.log.events("done")) == 5, "five workers done")
    assert [event["pid"] for event in workers.log.events("held")] == arrived


async def test_tasks_of_two_clients_take_turns_in_order_of_arrival_with_fair(
    real: World, queued: Any
) -> None:
    locks = [real.client().lock("x", fair=True) for _ in range(2)]
    await locks[0].acquire()
    served: list[int] = []

    async def come(number: int) -> None:
        async with locks[number % 2]:
            served.append(number)

    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(come(number)))
        await queued(number + 1)
    await locks[0].release()
    await asyncio.gather(*tasks)
    assert served == list(range(10))


async def test_permits_go_in_order_of_arrival_with_fair(real: World, queued: Any) -> None:
    first = real.client().semaphore("x", 2, fair=True)
    await first.acquire()
    await first.acquire()
    served: list[int] = []

    async def come(number: int) -> None:
        async with real.client().semaphore("x", 2, fair=True):
            served.append(number)
            await asyncio.sleep(0.003)

    tasks = []
    for number in range(8):
        tasks.append(asyncio.create_task(come(number)))
        await queued(number + 1, kind="semaphore")
    await first.release()
    await first.release()
    await asyncio.gather(*tasks)
    # Two messages leave the server in order, but on two connections.
    assert all(abs(number - place) <= 1 for place, number in enumerate(served)), served


async def test_tasks_of_one_process_are_served_first_come_first_served(real: World) -> None:
    lock = real.client().lock("x")
    await lock.acquire()
    served: list[int] = []

    async def come(number: int) -> None:
        async with lock:
            served.append(number)
            await asyncio.sleep(0)

    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(come(number)))
        await settled(lambda: f"waiters:{number + 1}]" in repr(lock))  # noqa: B023
    await lock.release()
    await asyncio.gather(*tasks)
    assert served == list(range(10))


async def test_a_process_that_passes_the_lock_among_its_tasks_does_not_starve_another(
    real: World, queued: Any
) -> None:
    busy, other = real.client().lock("x"), real.client().lock("x")
    ended = asyncio.Event()
    rounds = 0

    async def churn() -> None:
        nonlocal rounds
        while not ended.is_set():
            async with busy:
                rounds += 1
                await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(churn()) for _ in range(4)]
    await settled(lambda: rounds > 4)
    for _ in range(5):
        before = rounds
        async with asyncio.timeout(1), other:
            assert rounds - before < 64 + 8
    ended.set()
    await asyncio.gather(*tasks)
