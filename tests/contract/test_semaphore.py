"""What Semaphore and BoundedSemaphore promise, on every store."""

import asyncio
import logging

import pytest

import dsync
from dsync import local
from tests.conftest import World, settled


async def queued(semaphore: dsync.Semaphore, count: int) -> None:
    async def there() -> bool:
        return (await semaphore.info()).waiting == count

    await settled(there, f"{count} in the queue of {semaphore!r}")


@pytest.mark.parametrize("fair", [False, True])
async def test_never_more_permits_than_the_value(world: World, fair: bool) -> None:
    clients = [world.client() for _ in range(3)]
    inside = most = 0

    async def work(client: dsync.Client) -> None:
        nonlocal inside, most
        for _ in range(15):
            async with client.semaphore("x", 3, fair=fair):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.gather(*(work(clients[i % 3]) for i in range(12)))
    assert most == 3


async def test_permits_are_counted_over_processes(world: World) -> None:
    one, two = (world.client().semaphore("x", 2) for _ in range(2))
    await one.acquire()
    await two.acquire()
    assert not await one.try_acquire()
    with pytest.raises(dsync.AcquireTimeout):
        await two.acquire(timeout=0.03)
    assert await one.locked() is True
    await one.release()
    assert await two.locked() is False
    assert await two.try_acquire()
    info = await one.info()
    assert (info.value, info.held, info.waiting, info.pinned) == (2, 2, 0, False)
    await two.release()
    await two.release()


async def test_waiters_are_served_in_order_of_arrival(world: World) -> None:
    clients = [world.client() for _ in range(3)]
    first = clients[0].semaphore("x", 1)
    await first.acquire()
    served: list[int] = []

    async def work(number: int) -> None:
        async with clients[number % 3].semaphore("x", 1, fair=True):
            served.append(number)

    tasks = []
    for i in range(6):
        tasks.append(asyncio.create_task(work(i)))
        await queued(first, i + 1)
    await first.release()
    await asyncio.gather(*tasks)
    assert served == list(range(6))


async def test_a_bounded_semaphore_refuses_a_release_too_many(world: World) -> None:
    semaphore = world.client().bounded_semaphore("pool", 2)
    with pytest.raises(ValueError, match="BoundedSemaphore released too many times"):
        semaphore.release()
    await semaphore.acquire()
    await semaphore.release()
    with pytest.raises(ValueError, match="'pool'"):
        semaphore.release()


async def test_releasing_without_a_hold_raises_the_value_as_asyncios_counter_does(
    world: World,
) -> None:
    one, two = (world.client().semaphore("x", 0) for _ in range(2))
    waiting = asyncio.create_task(two.acquire())
    await queued(one, 1)
    await one.release()
    await asyncio.wait_for(waiting, 5)
    assert (await one.info()).value == 1
    await two.release()


async def test_a_value_of_zero_lets_nobody_in(world: World) -> None:
    semaphore = world.client().semaphore("x", 0)
    assert semaphore.locked()
    assert not await semaphore.try_acquire()
    with pytest.raises(dsync.AcquireTimeout):
        await semaphore.acquire(timeout=0.03)


async def test_resizing_serves_those_who_wait_and_revokes_nobody(world: World) -> None:
    one, two = (world.client().semaphore("x", 1) for _ in range(2))
    await one.acquire()
    waiting = [asyncio.create_task(two.acquire()) for _ in range(2)]
    await queued(one, 1)
    await one.resize(3)
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    await one.resize(1)
    assert (await two.info()).held == 3
    assert (await two.info()).pinned
    await one.release()
    await two.release()
    assert not await one.try_acquire()
    await two.release()
    assert await one.try_acquire()
    await one.release()


async def test_a_process_whose_tasks_hold_everything_hears_of_growth(world: World) -> None:
    holders, other = world.client().semaphore("x", 1), world.client().semaphore("x", 1)
    await holders.acquire()
    waiting = asyncio.create_task(holders.acquire())
    await asyncio.sleep(0)
    await other.resize(2)
    await asyncio.wait_for(waiting, 5)
    await holders.release()
    await holders.release()


async def test_the_newest_client_decides_the_value_and_each_process_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="dsync")
    old = world.client()
    await old.semaphore("x", 2).acquire()
    new = world.client()
    await new.lock("warm up").try_acquire()  # so that both know when they were born
    await new.semaphore("x", 5).acquire()
    for _ in range(2):
        held = old.semaphore("x", 2)
        await held.acquire()
        assert (await held.info()).value == 5
        await held.release()
    said = [r.getMessage() for r in caplog.records if "permits in all" in r.getMessage()]
    assert len(said) == 1
    assert "5 permits in all; this process was made with 2" in said[0]


async def test_a_process_may_declare_another_value_later(world: World) -> None:
    client = world.client()
    async with client.semaphore("x", 2):  # sent before the client knows when it was born
        pass
    semaphore = client.semaphore("x", 5)
    async with semaphore:
        assert (await semaphore.info()).value == 5


async def test_a_pinned_value_outlives_new_declarations(world: World) -> None:
    first = world.client().semaphore("x", 2)
    await first.acquire()
    await first.resize(4)
    late = world.client().semaphore("x", 9)
    await late.acquire()
    assert (await late.info()).value == 4
    await late.release()
    await first.release()


async def test_release_frees_what_this_task_holds_first(world: World) -> None:
    semaphore = world.client().semaphore("x", 2)
    inside = asyncio.Event()
    leave = asyncio.Event()

    async def other() -> None:
        async with semaphore as lease:
            inside.set()
            await leave.wait()
            assert lease.held

    task = asyncio.create_task(other())
    await inside.wait()
    async with semaphore as mine:
        pass
    assert mine.hold is not None
    assert mine.hold.token not in semaphore._cohort.holds
    leave.set()
    await task


async def test_semaphores_have_no_fences(world: World) -> None:
    async with world.client().semaphore("x") as lease:
        assert lease.fence is None


async def test_repr_tells_the_state(world: World) -> None:
    semaphore = world.client().semaphore("x", 2)
    assert repr(semaphore).endswith(" 'x' [unlocked, value:2]>")
    await semaphore.acquire()
    assert repr(semaphore).endswith(" 'x' [unlocked, value:1]>")
    await semaphore.acquire()
    assert repr(semaphore).endswith(" 'x' [locked]>")
    await semaphore.release()
    await semaphore.release()


async def test_shrinking_takes_effect_while_tasks_pass_permits_among_themselves(
    world: World,
) -> None:
    client, other = world.client(), world.client()
    inside = 0
    stop = False

    async def work() -> None:
        nonlocal inside
        while not stop:
            async with client.semaphore("x", 5):
                inside += 1
                await asyncio.sleep(0.001)
                inside -= 1

    tasks = [asyncio.create_task(work()) for _ in range(12)]
    await settled(lambda: inside == 5)
    await other.semaphore("x", 5).resize(1)
    await settled(lambda: inside <= 1)
    most = 0
    for _ in range(50):
        most = max(most, inside)
        await asyncio.sleep(0.001)
    stop = True
    await asyncio.gather(*tasks)
    assert most == 1


async def test_a_greater_declaration_serves_those_who_wait(world: World) -> None:
    client = world.client()
    first = client.semaphore("x", 1)
    await first.acquire()
    waiting = asyncio.create_task(first.acquire())
    await queued(first, 0)
    later = client.semaphore("x", 3)
    await asyncio.wait_for(waiting, 5)
    assert await later.try_acquire()
    assert (await later.info()).value == 3
    for semaphore in (later, first, first):
        await semaphore.release()


async def test_info_of_a_semaphore_that_nobody_has_used_tells_its_value(world: World) -> None:
    assert (await world.client().semaphore("x", 5).info()).value == 5
    assert await world.client().semaphore("y", 5).locked() is False
    assert await world.client().semaphore("z", 0).locked() is True


async def test_resizing_is_no_disagreement_to_the_one_who_does_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="dsync")
    semaphore = world.client().semaphore("x", 2)
    async with semaphore:
        await semaphore.resize(4)
        assert semaphore.value == 4
    assert "permits in all" not in caplog.text


@pytest.mark.parametrize("kind", ["semaphore", "local"])
async def test_a_release_from_outside_a_body_and_its_end_both_count(
    world: World, kind: str
) -> None:
    semaphore = world.client().semaphore("x", 1) if kind == "semaphore" else local.Semaphore(1)
    async with semaphore:
        semaphore.release()  # a signal, as asyncio's counter takes it
    assert await semaphore.try_acquire()
    assert await semaphore.try_acquire()
    assert not await semaphore.try_acquire()


async def test_a_bounded_semaphore_refuses_the_end_of_a_body_that_released_itself(
    world: World,
) -> None:
    for semaphore in (world.client().bounded_semaphore("x", 1), local.BoundedSemaphore(1)):
        with pytest.raises(ValueError, match="released too many times"):
            async with semaphore:
                await semaphore.release()
