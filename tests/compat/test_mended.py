"""What asyncio got right only in later versions: `dsync.local` has it on every Python.

The numbers are CPython's issues.  Some of these fail on the asyncio of Python 3.11 or 3.12.
"""

import asyncio

import pytest

from dsync import local


async def turn(times: int = 1) -> None:
    """Let everything that is ready run."""
    for _ in range(times):
        await asyncio.sleep(0)


async def test_27585_a_lock_passes_over_a_waiter_that_is_cancelled_as_it_is_woken():
    lock = local.Lock()
    await lock.acquire()
    first, second = (asyncio.create_task(lock.acquire()) for _ in range(2))
    await turn()
    lock.release()  # wakes the first
    first.cancel()
    await turn(2)
    assert first.cancelled()
    assert second.done()
    assert lock.locked()


async def test_90155_a_semaphore_works_on_after_a_cancelled_acquire():
    semaphore = local.Semaphore(0)
    first, second, third = (asyncio.create_task(semaphore.acquire()) for _ in range(3))
    await turn()
    semaphore.release()  # gives it to the first
    first.cancel()
    await turn(2)
    assert first.cancelled()
    assert second.done()
    assert not third.done()
    semaphore.release()
    await turn()
    assert third.done()
    semaphore.release()
    assert not semaphore.locked()


async def test_90155_nobody_overtakes_a_waiter_that_has_been_given_a_permit():
    semaphore = local.Semaphore(1)
    await semaphore.acquire()
    waiting = asyncio.create_task(semaphore.acquire())
    await turn()
    semaphore.release()
    assert semaphore.locked()
    assert not await semaphore.try_acquire()
    late = asyncio.create_task(semaphore.acquire())
    await turn(2)
    assert waiting.done()
    assert not late.done()
    semaphore.release()
    await late


async def test_111693_whoever_gets_through_a_semaphore_lets_those_behind_through_as_well():
    semaphore = local.Semaphore(0)
    order = []

    async def acquire(number: int) -> None:
        await semaphore.acquire()
        order.append(number)

    first = asyncio.create_task(acquire(1))
    await turn()
    for _ in range(3):
        semaphore.release()
    others = [asyncio.create_task(acquire(number)) for number in (2, 3)]
    await turn(2)
    after = asyncio.create_task(acquire(4))
    await turn()
    assert order == [1, 2, 3]
    semaphore.release()
    await asyncio.gather(first, after, *others)


async def test_111693_a_cancelled_acquire_leaves_no_permit_that_nobody_is_given():
    semaphore = local.Semaphore(0)
    first = asyncio.create_task(semaphore.acquire())
    await turn()
    semaphore.release()
    semaphore.release()  # nobody is there for this one
    second, third = (asyncio.create_task(semaphore.acquire()) for _ in range(2))
    first.cancel()
    await turn(3)
    assert first.cancelled()
    assert second.done()
    assert third.done()
    assert semaphore.locked()


@pytest.mark.parametrize("notified", [False, True], ids=["asleep", "getting the lock back"])
async def test_111693_a_condition_raises_the_very_error_it_was_cancelled_with(notified: bool):
    condition = local.Condition()
    seen: list[BaseException] = []

    async def wait() -> None:
        async with condition:
            try:
                await condition.wait()
            except asyncio.CancelledError as error:
                assert condition.locked()
                seen.append(error)
                raise

    task = asyncio.create_task(wait())
    await turn()
    await condition.acquire()
    if notified:
        condition.notify()
        await turn()  # now it is in the queue of the lock
    task.cancel("why")
    await turn()
    condition.release()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("why",)
    assert caught.value is seen[0]


async def test_86766_a_wait_that_is_cancelled_again_and_again_comes_back_with_the_lock():
    condition = local.Condition()

    async def wait() -> str:
        async with condition:
            try:
                await condition.wait()
            except asyncio.CancelledError as error:
                assert condition.locked()
                return str(error)
        raise AssertionError

    task = asyncio.create_task(wait())
    await turn()
    await condition.acquire()
    for number in range(5):
        task.cancel(f"cancel {number}")
        await turn(2)
        assert not task.done()
    condition.release()
    assert await task == "cancel 4"
    assert not condition.locked()


@pytest.mark.parametrize("turns", [0, 1], ids=["as it is woken", "getting the lock back"])
async def test_112202_a_notified_waiter_that_is_cancelled_notifies_another(turns: int):
    condition = local.Condition()
    items: list[str] = []
    taken: list[str] = []

    async def consume() -> None:
        async with condition:
            await condition.wait_for(lambda: items)
            taken.append(items.pop())

    first, second = (asyncio.create_task(consume()) for _ in range(2))
    await turn()
    async with condition:
        items.append("item")
        condition.notify()
        await turn(turns)
        first.cancel()
    await asyncio.wait_for(second, 1)
    assert first.cancelled()
    assert taken == ["item"]


async def test_112202_so_does_one_that_cannot_get_its_lock_back():
    class Broken(local.Lock):
        broken = False

        async def acquire(self, timeout: float | None = None):
            if self.broken:
                raise OSError("no lock today")
            return await super().acquire(timeout)

    lock = Broken()
    condition = local.Condition(lock)

    async def wait() -> None:
        await condition.acquire()
        await condition.wait()

    first, second = (asyncio.create_task(wait()) for _ in range(2))
    await turn()
    await condition.acquire()
    condition.notify()
    condition.release()
    lock.broken = True
    await turn()
    lock.broken = False
    with pytest.raises(OSError, match="no lock today"):
        await first
    await asyncio.wait_for(second, 1)


async def test_a_barrier_that_one_has_left_gives_each_of_the_others_an_index_of_its_own():
    """asyncio gives an index twice."""
    barrier = local.Barrier(3)
    leaving, staying = (asyncio.create_task(barrier.wait()) for _ in range(2))
    await turn()
    leaving.cancel()
    await turn()
    others = [asyncio.create_task(barrier.wait()) for _ in range(2)]
    assert sorted(await asyncio.gather(staying, *others)) == [0, 1, 2]
    assert leaving.cancelled()


async def test_a_cancelled_party_that_was_let_through_keeps_nobody_else_back():
    barrier = local.Barrier(3)
    parties = [asyncio.create_task(barrier.wait()) for _ in range(3)]
    await turn()
    assert "draining" in repr(barrier)
    parties[0].cancel()
    done = await asyncio.gather(*parties, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert done[1:] == [1, 2]
    assert "filling" in repr(barrier)


async def test_a_barrier_that_is_aborted_and_reset_at_once_breaks_those_who_wait_and_works_again():
    barrier = local.Barrier(2)
    waiting = asyncio.create_task(barrier.wait())
    await turn()
    await barrier.abort()
    await barrier.reset()
    late = [asyncio.create_task(barrier.wait()) for _ in range(2)]
    with pytest.raises(asyncio.BrokenBarrierError):
        await waiting
    assert sorted(await asyncio.gather(*late)) == [0, 1]


async def test_who_comes_while_a_barrier_drains_waits_for_the_next_time():
    barrier = local.Barrier(2)
    order: list[str] = []

    async def party(name: str) -> None:
        await barrier.wait()
        order.append(name)

    first = [asyncio.create_task(party(name)) for name in ("a", "b")]
    await turn()
    second = [asyncio.create_task(party(name)) for name in ("c", "d")]
    await asyncio.gather(*first, *second)
    assert set(order[:2]) == {"a", "b"}
    assert barrier.n_waiting == 0
