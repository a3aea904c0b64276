"""dsync.local: what its classes have beyond asyncio's, which CPython's own tests do not know."""

import asyncio
import gc
import math
import os
import random
import selectors
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

import dsync
from dsync import local
from dsync.barrier import Barrier
from dsync.condition import Condition
from dsync.errors import WaitTimeout
from dsync.event import Event
from dsync.local import rates

SOON = 0.01  # seconds, of waits that are to time out


async def turn(times: int = 1) -> None:
    """Let everything that is ready run."""
    for _ in range(times):
        await asyncio.sleep(0)


def test_they_are_what_application_code_annotates_with():
    assert isinstance(local.Lock(), dsync.Lock)
    assert isinstance(local.Semaphore(), dsync.Semaphore)
    assert isinstance(local.BoundedSemaphore(), dsync.BoundedSemaphore)
    assert isinstance(local.BoundedSemaphore(), local.Semaphore)
    assert isinstance(local.Event(), Event)
    assert isinstance(local.Condition(), Condition)
    assert isinstance(local.Barrier(1), Barrier)
    assert isinstance(local.RateLimiter(1), dsync.RateLimiter)


def test_they_override_everything_public():
    """What they inherit would look for a store."""
    harmless = {"wait_for", "lock", "parse", "__aenter__", "__aexit__"}
    for name in set(local.__all__) - {"EventBus"}:  # it brings a store of its own
        mine = getattr(local, name)
        for cls in mine.__mro__[1:]:
            if cls.__module__.startswith("dsync.") and "local" not in cls.__module__:
                for attribute in vars(cls):
                    if not attribute.startswith("_") and attribute not in harmless:
                        owner = next(c for c in mine.__mro__ if attribute in vars(c))
                        assert "local" in owner.__module__, f"{name}.{attribute}"


def test_they_have_no_name():
    for made in (local.Lock(), local.Semaphore(), local.Event(), local.Condition()):
        assert made.name == ""
    assert local.Barrier(1).name == ""
    assert local.RateLimiter(1).name == ""


# -- answers and confirmations --------------------------------------------------------------------


async def test_every_plain_call_may_be_awaited():
    lock, semaphore, event = local.Lock(), local.Semaphore(), local.Event()
    condition, barrier = local.Condition(), local.Barrier(2)
    await lock.acquire()
    await semaphore.acquire()
    await condition.acquire()
    calls: list[Callable[[], dsync.Reply[None]]] = [
        lock.release, semaphore.release, event.set, event.clear, condition.notify,
        condition.notify_all, condition.release, barrier.reset, barrier.abort,
    ]  # fmt: skip
    for call in calls:
        reply = call()
        assert isinstance(reply, dsync.Reply)
        assert await reply is None  # type: ignore[func-returns-value]
        assert await reply is None  # type: ignore[func-returns-value]


async def test_what_is_known_is_true_or_false_and_awaited_a_bool():
    lock, event, semaphore, condition = (
        local.Lock(), local.Event(), local.Semaphore(), local.Condition()
    )  # fmt: skip
    for look, change in (
        (lock.locked, lock.acquire),
        (semaphore.locked, semaphore.acquire),
        (condition.locked, condition.acquire),
        (event.is_set, event.set),
    ):
        for expected in (False, True):
            reply = look()
            assert isinstance(reply, dsync.Reply)
            assert bool(reply) is expected
            assert await reply is expected
            assert await asyncio.create_task(reply) is expected
            assert reply is look()
            if not expected:
                await change()


async def test_what_is_known_does_for_a_bool_where_programs_count_compare_or_print_them():
    events: list[Any] = [local.Event() for _ in range(3)]
    events[1].set()
    assert sum(event.is_set() for event in events) == 1
    assert events[1].is_set() == True  # noqa: E712
    assert events[0].is_set() == False  # noqa: E712
    assert events[0].is_set() in (False,)
    assert {True: "set"}[events[1].is_set()] == "set"
    assert f"{events[1].is_set()}" == "True"


async def test_a_change_takes_effect_without_being_awaited():
    event, barrier = local.Event(), local.Barrier(2)
    event.set()
    assert event.is_set()
    event.clear()
    assert not event.is_set()
    barrier.abort()
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken
    barrier.abort()
    with pytest.raises(asyncio.BrokenBarrierError):
        await barrier.wait()


async def test_a_barrier_hears_of_a_change_that_nobody_awaited_in_the_next_turn():
    barrier = local.Barrier(2)
    waiting = asyncio.create_task(barrier.wait())
    await turn()
    barrier.abort()
    with pytest.raises(asyncio.BrokenBarrierError):
        await asyncio.wait_for(waiting, 1)


def test_a_barrier_may_be_changed_where_no_loop_runs():
    barrier = local.Barrier(2)
    barrier.abort()
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


# -- timeouts -------------------------------------------------------------------------------------


async def test_a_lock_that_is_not_free_in_time_says_so():
    lock = local.Lock()
    await lock.acquire()
    with pytest.raises(dsync.AcquireTimeout, match=r"the lock was not free within 0\.01 s"):
        await lock.acquire(SOON)
    assert "waiters" not in repr(lock)
    lock.release()
    await lock.acquire(SOON)


async def test_a_semaphore_that_is_not_free_in_time_says_so():
    semaphore = local.Semaphore(2)
    await semaphore.acquire()
    await semaphore.acquire()
    with pytest.raises(dsync.AcquireTimeout, match=r"0\.01 s \(2 of 2 held, 0 waiting\)"):
        await semaphore.acquire(SOON)
    semaphore.release()
    await semaphore.acquire(SOON)


async def test_no_time_means_asking_once():
    lock, semaphore, event, barrier = (
        local.Lock(), local.Semaphore(1), local.Event(), local.Barrier(2)
    )  # fmt: skip
    assert await lock.acquire(0)
    assert await semaphore.acquire(0)
    for wait, error in (
        (lock.acquire(0), dsync.AcquireTimeout),
        (semaphore.acquire(0), dsync.AcquireTimeout),
        (event.wait(0), WaitTimeout),
        (barrier.wait(0), WaitTimeout),
    ):
        with pytest.raises(error):
            wait.send(None)  # it ends without having waited
    event.set()
    assert await event.wait(0)
    assert await local.Barrier(1).wait(0) == 0
    assert barrier.n_waiting == 0


async def test_an_event_that_is_not_set_in_time_says_so():
    event = local.Event()
    with pytest.raises(WaitTimeout, match=r"the event was not set within 0\.01 s"):
        await event.wait(SOON)
    assert "waiters" not in repr(event)
    asyncio.get_running_loop().call_soon(event.set)
    assert await event.wait(60)


async def test_an_event_that_is_pulsed_wakes_who_waits():
    event = local.Event()
    waiting = asyncio.create_task(event.wait(60))
    await turn()
    event.set()
    event.clear()
    assert await waiting is True


async def test_a_condition_that_is_not_notified_in_time_comes_back_with_the_lock():
    condition = local.Condition()
    async with condition:
        with pytest.raises(WaitTimeout):
            await condition.wait(SOON)
        assert condition.locked()
        with pytest.raises(WaitTimeout):
            await condition.wait(0)
        assert condition.locked()
        with pytest.raises(WaitTimeout, match="the predicate was not true within"):
            await condition.wait_for(lambda: False, timeout=SOON)
        assert condition.locked()
    assert "waiters" not in repr(condition)


async def test_a_notification_counts_even_if_the_lock_comes_too_late():
    condition = local.Condition()

    async def wait() -> bool:
        async with condition:
            return await condition.wait(SOON)

    task = asyncio.create_task(wait())
    await turn()
    async with condition:
        condition.notify()
        await asyncio.sleep(2 * SOON)
        assert not task.done()
    assert await task is True


async def test_a_notification_is_not_spent_on_one_whose_time_is_up():
    condition = local.Condition()

    async def wait(timeout: float | None) -> None:
        async with condition:
            await condition.wait(timeout)

    late, patient = asyncio.create_task(wait(SOON)), asyncio.create_task(wait(None))
    await turn()
    async with condition:
        await asyncio.sleep(2 * SOON)
        condition.notify()
    await asyncio.wait_for(patient, 1)
    with pytest.raises(WaitTimeout):
        await late


async def test_wait_for_looks_once_more_when_its_time_is_up():
    condition = local.Condition()
    found: list[str] = []
    asyncio.get_running_loop().call_soon(found.append, "something")
    async with condition:
        assert await condition.wait_for(lambda: found, timeout=SOON) == ["something"]


async def test_a_party_whose_time_is_up_leaves_and_breaks_nothing():
    barrier = local.Barrier(2)
    with pytest.raises(WaitTimeout, match="1 of 2"):
        await barrier.wait(SOON)
    assert barrier.n_waiting == 0
    assert not barrier.broken
    assert sorted(await asyncio.gather(barrier.wait(60), barrier.wait())) == [0, 1]


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf])
async def test_a_timeout_that_is_none_is_refused(timeout: float):
    condition = local.Condition()
    for wait in (
        local.Lock().acquire, local.Semaphore().acquire, local.Event().wait,
        condition.acquire, condition.wait, local.Barrier(1).wait,
        partial(local.RateLimiter(1).acquire, 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="timeout must be >= 0 seconds"):
            await wait(timeout)


async def test_a_timer_does_not_outlive_its_wait():
    event = local.Event()
    waiting = asyncio.create_task(event.wait(3600))
    await turn()
    event.set()
    await waiting
    await turn()
    scheduled: list[Any] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert all(timer.cancelled() for timer in scheduled)


async def test_asyncio_timeout_works_on_everything():
    lock, semaphore, event, condition = (
        local.Lock(), local.Semaphore(0), local.Event(), local.Condition()
    )  # fmt: skip
    await lock.acquire()
    await condition.acquire()
    limiter = local.RateLimiter(1)
    await limiter.acquire()
    waits: list[Coroutine[Any, Any, Any]] = [
        lock.acquire(), semaphore.acquire(), event.wait(), local.Barrier(2).wait(),
        condition.wait(), limiter.acquire(),
    ]  # fmt: skip
    for wait in waits:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await wait
    assert condition.locked()


# -- lock: trying, fences, leases -----------------------------------------------------------------


async def test_trying_takes_what_is_free_and_never_overtakes():
    lock = local.Lock()
    assert await lock.try_acquire()
    assert not await lock.try_acquire()
    waiting = asyncio.create_task(lock.acquire())
    await turn()
    lock.release()
    assert not await lock.try_acquire()  # it is the waiter's, who has yet to run
    assert await waiting


async def test_every_hold_has_a_greater_fence():
    lock = local.Lock()
    fences = []
    for _ in range(3):
        async with lock as lease:
            assert lease.fence == lock.fence
            fences.append(lock.fence)
    assert await lock.try_acquire()
    fences.append(lock.fence)
    assert fences == sorted(set(fences))
    assert fences[0] > 0
    lock.release()
    with pytest.raises(dsync.NotHeld, match="it has no fence"):
        _ = lock.fence


async def test_a_lease_lasts_as_long_as_its_hold():
    lock = local.Lock()
    assert lock.lease is None
    async with lock as lease:
        assert isinstance(lease, dsync.Lease)
        assert lock.lease is lease
        assert lease.held
        assert lease.left == math.inf
    assert not lease.held
    assert not lease.lost.is_set()
    await lock.acquire()
    later = lock.lease
    assert later is not None
    assert later is not lease
    assert later.held
    lock.release()
    assert not later.held


async def test_a_lease_of_a_permit_has_no_fence_and_lasts_as_long_as_its_body():
    semaphore = local.Semaphore(2)
    async with semaphore as outer:
        assert outer.fence is None
        async with semaphore as inner:
            assert inner.held
            assert semaphore.locked()
        assert outer.held
        assert not inner.held
    assert not outer.held
    assert not semaphore.locked()


async def test_any_task_may_release():
    lock = local.Lock()
    await asyncio.create_task(lock.acquire())
    lock.release()
    assert not lock.locked()
    with pytest.raises(dsync.NotHeld, match=r"^Lock is not acquired\.$"):
        lock.release()


def test_it_may_be_released_where_no_loop_runs():
    lock = local.Lock()
    asyncio.run(lock.acquire())
    lock.release()
    assert not lock.locked()


async def test_info_tells_who_holds_and_how_many_wait():
    lock, semaphore, barrier = local.Lock(), local.Semaphore(2), local.Barrier(3)
    assert await lock.info() == dsync.LockInfo("", None, (), 0)
    holding = asyncio.create_task(lock.acquire(), name="the holder")
    waiting = [asyncio.create_task(lock.acquire()), asyncio.create_task(barrier.wait())]
    await holding
    await semaphore.acquire()
    await turn()
    info = await lock.info()
    assert info.holder is not None
    assert (info.holder.label, info.holder.pid) == ("the holder", os.getpid())
    assert info.fence == lock.fence
    assert len(info.waiters) == 1
    assert await semaphore.info() == dsync.SemaphoreInfo("", 2, False, 1, 0, (), ())
    told = await barrier.info()
    assert (told.parties, told.waiting, told.state, told.generation) == (3, 1, "filling", 0)
    for task in waiting:
        task.cancel()


async def test_force_release_gives_it_to_the_next_and_the_holder_sees_that_it_was_lost():
    lock = local.Lock()
    assert not await lock.force_release()
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    waiting = asyncio.create_task(lock.acquire())
    await turn()
    assert await lock.force_release()
    assert await waiting
    assert lease.lost.is_set()
    assert not lease.held
    assert lock.lease is lease
    with pytest.raises(dsync.LeaseLost):
        _ = lock.fence
    with pytest.raises(dsync.LeaseLost, match="the lock was lost: it was taken away"):
        lock.release()
    assert lock.locked()  # nobody else's hold is touched
    lock.release()  # as any task may, now that this one has been told
    assert not lock.locked()


async def test_force_release_cancels_the_body_which_ends_as_lease_lost():
    lock = local.Lock()

    async def body() -> None:
        async with lock:
            await asyncio.sleep(3600)

    task = asyncio.create_task(body())
    await turn()
    assert await lock.force_release()
    with pytest.raises(dsync.LeaseLost):
        await task
    assert task.cancelling() == 0
    async with lock:
        pass


async def test_a_loss_never_masks_what_the_body_raised():
    lock = local.Lock()
    with pytest.raises(KeyError) as caught:
        async with lock:
            await lock.force_release()
            raise KeyError("mine")
    assert "the lock was lost" in caught.value.__notes__[0]
    await turn()  # the cancel does not come later
    with pytest.raises(dsync.LeaseLost):
        async with lock:
            await lock.force_release()


async def test_a_lock_that_was_lost_neither_waits_nor_notifies():
    condition = local.Condition()
    await condition.acquire()
    await condition.lock.force_release()
    other = asyncio.create_task(condition.acquire())
    await other
    for call in (condition.notify, condition.notify_all, condition.release):
        with pytest.raises(dsync.LeaseLost):
            await condition.wait()
        with pytest.raises(dsync.LeaseLost):
            call()
    condition.release()  # the other's
    assert not condition.locked()


# -- semaphore ------------------------------------------------------------------------------------


async def test_resizing_serves_who_waits_and_takes_nobodys_permit_away():
    semaphore = local.Semaphore(1)
    await semaphore.acquire()
    waiting = [asyncio.create_task(semaphore.acquire()) for _ in range(3)]
    await turn()
    await semaphore.resize(3)
    await turn()
    assert [task.done() for task in waiting] == [True, True, False]
    assert semaphore.value == 3
    await semaphore.resize(1)
    semaphore.release()
    semaphore.release()
    await turn()
    assert not waiting[2].done()
    assert semaphore.locked()
    semaphore.release()
    await asyncio.wait_for(waiting[2], 1)
    semaphore.release()
    assert await semaphore.try_acquire()
    assert not await semaphore.try_acquire()
    with pytest.raises(ValueError, match="value must be >= 0"):
        await semaphore.resize(-1)


async def test_a_bounded_semaphore_is_bounded_by_what_it_was_resized_to():
    semaphore = local.BoundedSemaphore(1)
    await semaphore.resize(2)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()
    await semaphore.acquire()
    await semaphore.acquire()
    semaphore.release()
    semaphore.release()
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()


async def test_a_release_without_a_hold_raises_the_value():
    semaphore = local.Semaphore(0)
    semaphore.release()
    assert semaphore.value == 1
    assert await semaphore.try_acquire()


# -- condition ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [asyncio.Lock, local.Lock])
async def test_a_condition_takes_any_lock(make: Callable[[], Any]):
    lock = make()
    condition = local.Condition(lock)
    items: list[int] = []

    async def consume() -> int:
        async with condition:
            await condition.wait_for(lambda: items)
            return items.pop()

    tasks = [asyncio.create_task(consume()) for _ in range(3)]
    await turn()
    for item in range(3):
        async with condition:
            items.append(item)
            condition.notify()
    assert sorted(await asyncio.gather(*tasks)) == [0, 1, 2]
    assert await condition.acquire(60)
    assert lock.locked()
    assert condition.locked()
    for timeout in (0, SOON):
        with pytest.raises(dsync.AcquireTimeout):
            await condition.acquire(timeout)
    await condition.release()
    assert not lock.locked()
    assert condition.lock is lock


async def test_a_condition_takes_a_lock_of_other_processes():
    async with dsync.connect("memory://") as client:
        condition = local.Condition(client.lock("x"))
        async with condition as lease:
            assert lease.held
            with pytest.raises(WaitTimeout):
                await condition.wait(SOON)
            assert condition.locked()
        assert not await client.lock("x").locked()


async def test_without_its_lock_a_condition_says_what_asyncio_says():
    condition = local.Condition()
    with pytest.raises(dsync.NotHeld, match=r"^cannot wait on un-acquired lock$"):
        await condition.wait()
    with pytest.raises(dsync.NotHeld, match=r"^cannot notify on un-acquired lock$"):
        condition.notify()
    with pytest.raises(dsync.NotHeld, match=r"^cannot notify on un-acquired lock$"):
        condition.notify_all()
    with pytest.raises(dsync.NotHeld, match=r"^cannot wait on un-acquired lock$"):
        await condition.wait_for(lambda: False, timeout=1)


# -- rate limiter ---------------------------------------------------------------------------------


class TimeLoop(asyncio.SelectorEventLoop):
    """A loop, and a clock of its own, that leaps to the next timer whenever nobody is ready."""

    def __init__(self, early: float = 0.0) -> None:
        self.now = 1000.0
        self.timers = 0
        self._early = early  # seconds by which its timers end too early
        super().__init__(Leaps(self))

    def time(self) -> float:
        return self.now

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_later(delay - self._early, callback, *args, context=context)


class Leaps(selectors.DefaultSelector):
    def __init__(self, loop: TimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and for nothing"
            self._loop.now += timeout
        self._loop.now += 1e-9  # a turn takes time
        return ready


def timed(main: Callable[[TimeLoop], Awaitable[None]], early: float = 0.0) -> None:
    """Run it on a clock of its own, which all but stands still while anybody is ready."""
    loop = TimeLoop(early)
    with (
        mock.patch("dsync.local.rate_limiter.time", SimpleNamespace(monotonic=loop.time)),
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):

        async def run() -> None:
            await main(loop)

        runner.run(run())


async def admissions(
    loop: TimeLoop, acquire: Callable[..., Awaitable[object]], amounts: list[int]
) -> list[tuple[Any, int]]:
    """-> when each was admitted that came in this order, seconds from now, and which it was."""
    began = loop.now
    found: list[tuple[Any, int]] = []

    async def one(index: int, amount: int) -> None:
        await acquire(amount)
        found.append((pytest.approx(loop.now - began, abs=1e-6), index))

    await asyncio.gather(*(one(index, amount) for index, amount in enumerate(amounts)))
    return found


def test_a_burst_passes_at_once_and_the_others_at_the_rate_in_order_of_arrival():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(5, 10.0, burst=3)
        found = await admissions(loop, limiter.acquire, [1] * 6)
        assert found == [(0, 0), (0, 1), (0, 2), (2, 3), (4, 4), (6, 5)]

    timed(main)


def test_one_who_wants_much_is_not_overtaken_by_those_who_want_little():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(1, burst=10)
        found = await admissions(loop, limiter.acquire, [5, 10, 1, 3])
        assert found == [(0, 0), (5, 1), (6, 2), (9, 3)]

    timed(main)


def test_what_one_period_brings_may_be_had_at_once_if_no_burst_is_given():
    assert local.RateLimiter(600, 60).burst == 600
    assert local.RateLimiter(2.5).burst == 2
    assert local.RateLimiter(0.1).burst == 1
    limiter = local.RateLimiter(*local.RateLimiter.parse("600/minute"))
    assert (limiter.rate, limiter.per) == (600.0, 60.0)


def test_a_decision_tells_what_is_left_and_when_there_is_more():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(2, burst=4)
        assert await limiter.try_acquire(3) == dsync.Decision(True, 1, 0.0, 1.5)
        refused = await limiter.try_acquire(2)
        assert not refused
        assert refused.remaining == 1
        assert refused.retry_after == pytest.approx(0.5)
        assert refused.reset_after == pytest.approx(1.5)
        loop.now += refused.retry_after
        assert await limiter.try_acquire(2)
        loop.now += 60
        assert await limiter.try_acquire(4)
        assert not await limiter.try_acquire()

    timed(main)


def test_who_comes_back_when_told_is_admitted():
    async def main(loop: TimeLoop) -> None:
        for rate, per, burst in ((3, 1.0, 7), (0.7, 1.1, 3), (1000, 60.0, 1), (1e6, 7.0, 1000)):
            limiter = local.RateLimiter(rate, per, burst)
            for _ in range(1000):
                decision = await limiter.try_acquire(burst // 2 + 1)
                if not decision:
                    loop.now += decision.retry_after
                    assert await limiter.try_acquire(burst // 2 + 1)

    timed(main)


def test_a_wait_that_is_over_leaves_no_timer():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(0.1)
        await limiter.acquire()
        waiting = [asyncio.create_task(limiter.acquire(1, timeout)) for timeout in (None, 60)]
        await turn()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        scheduled: list[Any] = loop._scheduled  # type: ignore[attr-defined]
        assert all(timer.cancelled() for timer in scheduled)
        assert loop.now == pytest.approx(1000)

    timed(main)


def test_trying_never_comes_before_those_who_wait():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(1, burst=3)
        await limiter.acquire(2)
        waiting = asyncio.create_task(limiter.acquire(3))
        await turn()
        refused = await limiter.try_acquire()
        assert not refused
        assert refused.remaining == 0
        assert refused.retry_after == pytest.approx(3)
        assert refused.reset_after == pytest.approx(5)
        waiting.cancel()
        assert await limiter.try_acquire()  # who is about to leave stands in nobody's way
        await asyncio.wait([waiting])

    timed(main)


def test_info_tells_what_is_free_and_what_those_want_who_wait():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(2, burst=4)
        assert await limiter.info() == dsync.RateLimiterInfo("", 2.0, 1.0, 4, 4, 0, 0.0, 0.0)
        await limiter.acquire(3)
        info = await limiter.info()
        assert (info.remaining, info.reserved, info.wait) == (1, 0, 0.0)
        assert info.reset_after == pytest.approx(1.5)
        waiting = [asyncio.create_task(limiter.acquire(amount)) for amount in (4, 1)]
        await turn()
        info = await limiter.info()
        assert (info.remaining, info.reserved) == (0, 5)
        assert info.wait == pytest.approx(2.5)
        assert info.reset_after == pytest.approx(4)
        assert "[2 per 1 s, burst:4, waiters:2]" in repr(limiter)
        await waiting[0]
        assert (await limiter.info()).reserved == 1
        await waiting[1]
        info = await limiter.info()
        assert (info.remaining, info.reserved) == (0, 0)
        assert "[2 per 1 s, burst:4]" in repr(limiter)

    timed(main)


def test_a_wait_that_is_too_long_ends_before_it_begins():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(1, burst=2)
        assert await limiter.acquire(2, timeout=0)
        waiting = asyncio.create_task(limiter.acquire(2, timeout=2))
        await turn()
        late: Any = limiter.acquire(timeout=2.9)
        with pytest.raises(dsync.AcquireTimeout, match=r"a unit could not .* in 3 s\); nothing"):
            late.send(None)
        assert await limiter.acquire(timeout=3.1)
        assert waiting.done()
        assert loop.now == pytest.approx(1003)

    timed(main)


def test_who_comes_too_late_because_the_loop_stood_still_has_taken_nothing():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(1, burst=2)
        await limiter.acquire(2)
        first = asyncio.create_task(limiter.acquire(2, timeout=2.5))
        second = asyncio.create_task(limiter.acquire(2, timeout=4.5))
        third = asyncio.create_task(limiter.acquire(2))
        await turn()
        loop.now += 10
        await asyncio.wait([first, second])
        assert first.result() is True
        with pytest.raises(dsync.AcquireTimeout, match=r"2 units .* not in time"):
            second.result()
        await third
        assert loop.now == pytest.approx(1012)
        assert (await limiter.info()).reset_after == pytest.approx(2)

    timed(main)


def test_after_a_standstill_nobody_gets_more_than_the_burst():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(10, burst=3)
        await limiter.acquire(3)
        asyncio.get_running_loop().call_soon(setattr, loop, "now", loop.now + 60)
        found = await admissions(loop, limiter.acquire, [1] * 6)
        assert [when for when, _ in found] == [60, 60, 60, 60.1, 60.2, 60.3]

    timed(main)


def test_a_wait_that_is_cancelled_lets_the_others_move_up():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(1, burst=4)
        await limiter.acquire(4)
        tasks = [asyncio.create_task(limiter.acquire(amount)) for amount in (4, 1, 2)]
        await turn()
        tasks[0].cancel()
        await turn()
        assert (await limiter.info()).reserved == 3
        await tasks[1]
        assert loop.now == pytest.approx(1001)
        await tasks[2]
        assert loop.now == pytest.approx(1003)
        assert (await limiter.info()).reserved == 0

    timed(main)


def test_who_is_cancelled_at_the_moment_it_is_served_has_taken_nothing():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(1, burst=2)
        await limiter.acquire(2)
        served, other = (asyncio.create_task(limiter.acquire(2)) for _ in range(2))
        await turn()
        loop.call_later(2.5, served.cancel)
        loop.now += 3  # both timers are due, and the one that serves comes first
        with pytest.raises(asyncio.CancelledError):
            await served
        assert await other
        assert loop.now == pytest.approx(1003)
        assert (await limiter.info()).reset_after == pytest.approx(2)

    timed(main)


def test_who_was_served_is_not_overtaken_before_it_runs():
    async def main(loop: TimeLoop) -> None:
        limiter, order = local.RateLimiter(1, burst=2), []

        async def take(who: str) -> None:
            await limiter.acquire()
            order.append(who)

        async def late() -> None:
            loop.now += 5
            await turn(2)  # the timer has woken the other
            gone.cancel()
            assert (await limiter.info()).reserved == 0
            assert (await limiter.info()).remaining == 1
            refused = await limiter.try_acquire(2)
            assert (refused.allowed, refused.remaining) == (False, 1)
            await take("late")

        await limiter.acquire(2)
        waiting = asyncio.create_task(take("early"))
        gone = asyncio.create_task(limiter.acquire(2))
        await turn()
        await late()
        await waiting
        assert order == ["early", "late"]
        assert loop.now == pytest.approx(1005)

    timed(main)


@pytest.mark.parametrize("timeout", [None, 0])
def test_who_was_served_runs_first_even_if_there_is_enough_for_all(timeout: float | None):
    async def main(loop: TimeLoop) -> None:
        limiter, order = local.RateLimiter(1, burst=3), []

        async def take(who: str, timeout: float | None = None) -> None:
            await limiter.acquire(1, timeout)
            order.append(who)

        await limiter.acquire(3)
        waiting = asyncio.create_task(take("early"))
        await turn()
        loop.now += 10
        await turn(2)  # the timer has woken the other
        await take("late", timeout)
        assert order == ["early", "late"]
        await waiting

    timed(main)


def test_a_timer_that_ends_too_early_is_set_again_and_not_again_and_again():
    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(10, burst=1)
        await limiter.acquire()
        began = loop.now
        for _ in range(10):
            await limiter.acquire()
        assert 1.0 - 1e-6 <= loop.now - began <= 1.0 + 10 * 0.001
        assert loop.timers <= 20

    timed(main, early=0.0004)


def test_however_often_it_is_tried_the_bucket_drains_as_fast():
    """What drains between two looks is less than what a float of this size can tell."""

    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(0.001, burst=1000)
        await limiter.acquire(1000)
        began = loop.now
        for _ in range(100_000):
            loop.now += 2.0**-30
            assert not (await limiter.try_acquire()).allowed
        loop.now = began + 999.9
        assert not await limiter.try_acquire()
        loop.now = began + 1000
        assert await limiter.try_acquire()

    timed(main)


@pytest.mark.parametrize("amount", [0, -1, 11, 1.5, True, "1", None])
async def test_an_amount_that_never_could_be_had_is_refused(amount: Any):
    limiter = local.RateLimiter(10)
    for acquire in (limiter.acquire, limiter.try_acquire):
        with pytest.raises((TypeError, ValueError), match="amount"):
            await acquire(amount)
    assert (await limiter.info()).remaining == 10


@pytest.mark.parametrize(
    "numbers",
    [(0,), (-1,), (math.nan,), ("1",), (True,), (1, 0), (1, math.inf), (1, 1, 0), (1, 1, 1.5)],
)
def test_numbers_that_make_no_rate_are_refused(numbers: Any):
    with pytest.raises((TypeError, ValueError), match=r"rate|per|burst"):
        local.RateLimiter(*numbers)


async def test_a_rate_limiter_keeps_time_by_the_clock_of_the_machine():
    limiter, loop = local.RateLimiter(100, burst=1), asyncio.get_running_loop()
    began = loop.time()
    for _ in range(6):
        async with limiter:
            pass
    assert 0.05 - 1e-6 <= loop.time() - began < 5


@pytest.mark.parametrize("seed", range(10))
def test_it_decides_as_one_that_is_shared_does(seed: int):
    dice = random.Random(seed)
    rate, per, burst = dice.choice([(4, 1.0, 7), (600, 60.0, 600), (0.5, 2.0, 1), (1000, 1.0, 10)])
    shared = rates.Bucket()

    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(rate, per, burst)
        for step in range(300):
            loop.now += dice.choice([0, 0, 1e-6, 0.001, per / rate, 3 * per / rate])
            amount = dice.randint(1, burst)
            decision = await limiter.try_acquire(amount)
            allowed, wait, remaining, reset, *_ = rates.rate_take(
                shared, round(loop.now * 1e6), token=f"t.{step}", amount=amount, patience=0,
                declared=repr(float(rate)), period=round(per * 1e6), capacity=burst, born=1,
            )  # fmt: skip
            assert (decision.allowed, decision.remaining) == (bool(allowed), remaining)
            assert decision.retry_after * 1e6 == pytest.approx(wait, abs=2)
            assert decision.reset_after * 1e6 == pytest.approx(reset, abs=2)

    timed(main)


@pytest.mark.parametrize("seed", range(5))
def test_it_admits_as_aiolimiter_does(seed: int):
    aiolimiter = pytest.importorskip("aiolimiter", reason="it is not installed (the dev extra)")
    dice = random.Random(seed)
    rate, per = dice.choice([(1, 1.0), (4, 1.0), (10, 2.0), (20, 60.0)])
    pauses = [dice.choice([0, 0, 0.01, 0.1, 1.0, 10.0]) for _ in range(60)]

    def found(make: Callable[[], Any]) -> list[tuple[float, int]]:
        result: list[tuple[float, int]] = []

        async def main(loop: TimeLoop) -> None:
            limiter = make()

            async def one(index: int) -> None:
                async with limiter:
                    result.append((loop.now, index))

            async with asyncio.TaskGroup() as group:
                for index, pause in enumerate(pauses):
                    await asyncio.sleep(pause)
                    group.create_task(one(index))

        timed(main)
        return result

    ours = found(lambda: local.RateLimiter(rate, per))
    theirs = found(lambda: aiolimiter.AsyncLimiter(rate, per))
    assert [index for _, index in ours] == [index for _, index in theirs]
    assert [when for when, _ in ours] == pytest.approx([when for when, _ in theirs], abs=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_no_cancellation_takes_a_unit_and_no_standstill_makes_one(seed: int):
    dice = random.Random(seed)
    burst, speed = dice.choice([(1, 10), (3, 10), (10, 4)])
    admitted: list[tuple[float, int, int]] = []  # when, units, which task; -1: none

    async def main(loop: TimeLoop) -> None:
        limiter = local.RateLimiter(speed, burst=burst)

        async def work(index: int) -> None:
            amount = dice.randint(1, burst)
            try:
                await limiter.acquire(amount, dice.choice([None, None, 0, 0.1, 1, 5]))
            except dsync.AcquireTimeout:
                return
            admitted.append((loop.now, amount, index))

        tasks = []
        for index in range(150):
            tasks.append(asyncio.create_task(work(index)))
            chance = dice.random()
            if chance < 0.3:
                dice.choice(tasks).cancel()
            elif chance < 0.4:
                loop.now += dice.choice([0.05, 0.3, 3])  # nobody runs meanwhile
            elif chance < 0.5:
                await asyncio.sleep(dice.choice([0.05, 0.3, 3]))
            if dice.random() < 0.3:
                await turn()
            if dice.random() < 0.1 and await limiter.try_acquire():
                admitted.append((loop.now, 1, -1))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        info = await limiter.info()
        assert info.reserved == 0
        assert "waiters" not in repr(limiter)
        level, before = 0.0, 0.0
        for when, amount, _ in admitted:
            level, before = max(0.0, level - (when - before) * speed) + amount, when
        left = max(0.0, level / speed - (loop.now - before))
        assert info.reset_after == pytest.approx(left, abs=1e-6)

    timed(main)
    for first in range(len(admitted)):
        units = 0
        for when, amount, _ in admitted[first:]:
            units += amount
            assert units <= burst + speed * (when - admitted[first][0]) + 1e-6
    arrived = [index for *_, index in admitted if index >= 0]
    assert arrived == sorted(arrived)
    assert len(arrived) > 20  # or it has shown nothing


# -- loops and threads ----------------------------------------------------------------------------


def test_an_object_that_has_had_to_wait_belongs_to_its_loop():
    lock, event, semaphore, condition, barrier = (
        local.Lock(), local.Event(), local.Semaphore(0), local.Condition(), local.Barrier(2)
    )  # fmt: skip
    limiter = local.RateLimiter(0.01)

    async def wait() -> None:
        async with lock:
            with pytest.raises(dsync.AcquireTimeout):
                await lock.acquire(SOON)
        with pytest.raises(dsync.AcquireTimeout):
            await semaphore.acquire(SOON)
        with pytest.raises(WaitTimeout):
            await event.wait(SOON)
        async with condition:
            with pytest.raises(WaitTimeout):
                await condition.wait(SOON)
        with pytest.raises(WaitTimeout):
            await barrier.wait(SOON)
        await limiter.acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await limiter.acquire()

    asyncio.run(wait())
    with pytest.raises(RuntimeError, match=r"Lock object at .* is bound to a different event loop"):
        asyncio.run(wait())
    for again in (semaphore.acquire, event.wait, barrier.wait, limiter.acquire):
        with pytest.raises(RuntimeError, match="is bound to a different event loop"):
            asyncio.run(again())


def test_an_object_that_has_not_had_to_wait_goes_from_loop_to_loop():
    lock, limiter = local.Lock(), local.RateLimiter(2)

    async def use() -> None:
        async with lock, limiter:
            pass

    asyncio.run(use())
    asyncio.run(use())


def test_two_loops_in_two_threads_do_not_both_get_it():
    event = local.Event()
    refused: list[RuntimeError] = []
    start = threading.Barrier(2)

    def run() -> None:
        start.wait()
        try:
            asyncio.run(event.wait(0.2))
        except WaitTimeout:
            pass
        except RuntimeError as error:
            refused.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


# -- many tasks, and cancellations ----------------------------------------------------------------


async def test_one_object_is_shared_by_many_tasks():
    lock, semaphore = local.Lock(), local.Semaphore(3)
    inside = 0

    async def work() -> None:
        nonlocal inside
        for _ in range(20):
            async with semaphore, lock:
                inside += 1
                assert inside == 1
                await turn()
                inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert not lock.locked()
    assert not semaphore.locked()
    assert semaphore.value == 3


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("permits", [0, 1, 3], ids=["lock", "semaphore 1", "semaphore 3"])
async def test_no_cancellation_loses_or_makes_a_permit(permits: int, seed: int):
    dice = random.Random(seed)
    primitive = local.Semaphore(permits) if permits else local.Lock()
    most = max(permits, 1)
    inside = 0

    async def work() -> None:
        nonlocal inside
        patience = dice.choice([None, 0, 0.0001, 0.001])
        try:
            await primitive.acquire(patience)
        except dsync.AcquireTimeout:
            return
        try:
            inside += 1
            assert inside <= most
            await turn(dice.randrange(3))
        finally:
            inside -= 1
            primitive.release()

    tasks = []
    for _ in range(150):
        tasks.append(asyncio.create_task(work()))
        if dice.random() < 0.5:
            dice.choice(tasks).cancel()
        if dice.random() < 0.3:
            await turn()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError)
    for _ in range(most):
        assert await primitive.try_acquire()
    assert not await primitive.try_acquire()
    assert "waiters" not in repr(primitive)


@pytest.mark.parametrize("seed", range(20))
async def test_no_cancellation_loses_a_notification(seed: int):
    dice = random.Random(seed)
    condition = local.Condition()
    items = 0

    async def consume() -> None:
        nonlocal items
        async with condition:
            while not items:
                await condition.wait()
            items -= 1

    consumers = [asyncio.create_task(consume()) for _ in range(60)]
    await turn()
    made = 20
    for _ in range(made):
        async with condition:
            items += 1
            condition.notify()
            await turn(dice.randrange(2))
        for _ in range(dice.randrange(3)):
            dice.choice(consumers[:30]).cancel()  # the others are enough for all items
        await turn(dice.randrange(2))
    async with asyncio.timeout(5):
        while items:
            await turn()
    for consumer in consumers:
        consumer.cancel()
    outcomes = await asyncio.gather(*consumers, return_exceptions=True)
    assert outcomes.count(None) == made
    assert not condition.locked()
    assert "waiters" not in repr(condition)


@pytest.mark.parametrize("seed", range(20))
async def test_no_cancellation_lets_a_barrier_hang(seed: int):
    dice = random.Random(seed)
    barrier = local.Barrier(3)
    tasks: list[asyncio.Task[Any]] = []
    for _ in range(60):
        tasks.append(asyncio.create_task(barrier.wait(dice.choice([None, 0.0001, 0.001]))))
        chance = dice.random()
        if chance < 0.2:
            dice.choice(tasks).cancel()
        elif chance < 0.3:
            barrier.reset()
        elif chance < 0.35:
            barrier.abort()
        elif chance < 0.6:
            await turn()
    await barrier.reset()
    for task in tasks:
        task.cancel()
    expected = (int, asyncio.CancelledError, asyncio.BrokenBarrierError, WaitTimeout)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, expected)
    assert barrier.n_waiting == 0
    await barrier.reset()
    async with asyncio.timeout(5):
        assert sorted(await asyncio.gather(*(barrier.wait() for _ in range(3)))) == [0, 1, 2]


async def test_a_waiting_task_that_is_dropped_leaves_no_trace():
    """asyncio.run() ends, and the coroutine with it."""
    lock = local.Lock()
    await lock.acquire()
    waiting: Any = lock.acquire()
    waiting.send(None)
    waiting.close()
    del waiting
    gc.collect()
    assert "waiters" not in repr(lock)
    lock.release()
    assert await lock.try_acquire()


def test_tasks_that_wait_for_a_rate_limiter_may_be_dropped_with_their_loop():
    limiter, loop = local.RateLimiter(1), asyncio.new_event_loop()
    loop.run_until_complete(limiter.acquire())
    waiting: list[Any] = [limiter.acquire() for _ in range(3)]
    for coroutine in waiting:
        loop.create_task(coroutine)
    loop.run_until_complete(turn())
    assert "waiters:3" in repr(limiter)
    loop.close()
    with mock.patch.object(loop, "call_exception_handler"):  # it says that they were pending
        for coroutine in waiting:
            coroutine.close()
        del waiting, coroutine
        gc.collect()
    assert "waiters" not in repr(limiter)
    assert asyncio.run(limiter.info()).reserved == 0
