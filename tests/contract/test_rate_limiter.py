"""What a RateLimiter promises, on every store."""

import asyncio
import gc
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import dsync
from dsync.local.store import MemoryStore
from tests.conftest import World, settled

LONG = 1000.0  # seconds; longer than a test
RGX_REPR = re.compile(r"^<dsync\.rate_limiter\.RateLimiter object at 0x[0-9a-f]+ 'x' \[.*\]>\Z")


@pytest.fixture(autouse=True)
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What callbacks of the loop raised: nothing."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    yield errors
    assert not errors


@pytest.fixture
async def world(world: World) -> AsyncIterator[World]:
    """When nobody waits any more, nothing of the wait is left here."""
    yield world
    for client in world.clients:
        await settled(lambda: not client.homes, lambda: f"left: {client.homes}")  # noqa: B023
        for quota in client._quotas.values():
            assert not quota._lines
            assert not quota._spare


async def reserved(limiter: dsync.RateLimiter, count: int) -> dsync.RateLimiterInfo:
    """Until so many units are reserved in the store."""
    found: list[dsync.RateLimiterInfo] = []

    async def are() -> bool:
        found.append(await limiter.info())
        return found[-1].reserved == count

    await settled(are, lambda: f"{count} reserved, not {found[-1].reserved}")
    return found[-1]


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError)


def waits(limiter: dsync.RateLimiter, count: int) -> "list[asyncio.Task[Any]]":
    return [asyncio.create_task(limiter.acquire()) for _ in range(count)]


def worst(uses: list[float], rate: float, burst: int) -> float:
    """By how much the fullest window is over the rate and the burst."""
    uses = sorted(uses)
    return max(
        last - first + 1 - rate * (uses[last] - uses[first]) - burst
        for first in range(len(uses))
        for last in range(first, len(uses))
    )


class Hand:
    """A clock of the memory store that is moved by hand, µs."""

    def __init__(self, client: dsync.Client) -> None:
        assert isinstance(client.store, MemoryStore)
        self.us = 1_800_000_000_000_000
        client.store.memory.clock = lambda: self.us


@pytest.fixture
async def memory() -> AsyncIterator[tuple[dsync.Client, Hand]]:
    async with dsync.connect("memory://by-hand") as client:
        yield client, Hand(client)


# -- arithmetic -----------------------------------------------------------------------------------


async def test_a_burst_is_allowed_at_once_and_no_more(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=3)
    for remaining in (2, 1, 0):
        decision = await limiter.try_acquire()
        assert decision
        assert decision.allowed is True
        assert (decision.remaining, decision.retry_after) == (remaining, 0.0)
        assert 0 <= (3 - remaining) * LONG - decision.reset_after < 5
    decision = await limiter.try_acquire()
    assert not decision
    assert decision.allowed is False
    assert decision.remaining == 0
    assert LONG - 5 < decision.retry_after <= LONG
    assert 3 * LONG - 5 < decision.reset_after <= 3 * LONG


async def test_several_units_are_taken_together_or_not_at_all(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=10)
    assert (await limiter.try_acquire(4)).remaining == 6
    refused = await limiter.try_acquire(7)
    assert not refused
    assert refused.remaining == 6
    assert LONG - 5 < refused.retry_after <= LONG
    assert (await limiter.try_acquire(6)).remaining == 0
    refused = await limiter.try_acquire(10)
    assert 10 * LONG - 5 < refused.retry_after <= 10 * LONG


async def test_after_retry_after_it_is_allowed_and_not_before(world: World) -> None:
    client = world.client()
    limiter = client.rate_limiter("x", 20, burst=2)
    await limiter.try_acquire(2)
    refused = await limiter.try_acquire(2)
    told = time.monotonic()
    assert 0.05 < refused.retry_after <= 0.1
    await asyncio.sleep(refused.retry_after * 0.9 - (time.monotonic() - told))
    early = await limiter.try_acquire(2)
    if time.monotonic() - told < refused.retry_after * 0.98:
        assert not early
    await asyncio.sleep(early.retry_after)
    assert await limiter.try_acquire(2)


async def test_retry_after_and_reset_after_are_exact_to_the_microsecond(
    memory: tuple[dsync.Client, Hand],
) -> None:
    client, clock = memory
    dice = random.Random(5)
    for number in range(300):
        per, rate = dice.choice((0.001, 1, 1.5, 60, 3600)), dice.choice((0.5, 1, 3, 7.25, 600, 1e6))
        burst = dice.randint(1, 50)
        limiter = client.rate_limiter(f"x{number}", rate, per, burst)
        clock.us += 1
        await limiter.try_acquire(burst)
        clock.us += dice.randint(0, int(burst * per / rate * 1e6))
        amount = dice.randint(1, burst)
        decision = await limiter.try_acquire(amount)
        info = await limiter.info()
        assert (info.remaining, info.reset_after) == (decision.remaining, decision.reset_after)
        if not decision:
            assert decision.retry_after > 0
            assert decision.remaining < amount
            wait = round(decision.retry_after * 1e6)
            if rate / per < 1e4:  # else a unit drains in less than the clock shows
                early = int(wait * 1e-6) + 2
                clock.us += wait - early
                assert not await limiter.try_acquire(amount)
                clock.us += early
            else:
                clock.us += wait
            assert await limiter.try_acquire(amount)
        info = await limiter.info()
        reset = round(info.reset_after * 1e6)
        clock.us += reset
        assert (await limiter.info()).remaining == burst
        assert await limiter.try_acquire(burst)


@pytest.mark.parametrize("burst", [1, 7, 10**6, 10**9, 2**31])
async def test_large_numbers_are_exact_to_the_unit(world: World, burst: int) -> None:
    limiter = world.client().rate_limiter("x", 1, per=0.1, burst=burst)
    assert (await limiter.try_acquire(burst)).remaining == 0
    assert not await limiter.try_acquire()
    other = world.client().rate_limiter("y", 1, per=0.1, burst=burst)
    assert (await other.try_acquire()).remaining == burst - 1


async def test_a_billion_units_a_second_are_a_rate(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1e9)
    assert limiter.burst == 10**9
    for _ in range(3):
        assert await asyncio.wait_for(limiter.acquire(10**9), 3) is True


async def test_a_rate_may_be_a_fraction(world: World) -> None:
    limiter = world.client().rate_limiter("x", 0.5, per=0.1)
    assert limiter.burst == 1
    began = time.monotonic()
    for _ in range(3):
        await limiter.acquire()
    assert 0.4 <= time.monotonic() - began < 0.6


async def test_a_burst_of_one_spreads_them_evenly(world: World) -> None:
    limiter = world.client().rate_limiter("x", 50, burst=1)
    uses = []

    async def use() -> None:
        await limiter.acquire()
        uses.append(time.monotonic())

    began = time.monotonic()
    await asyncio.gather(*(use() for _ in range(21)))
    for number, at in enumerate(uses):
        assert -0.001 <= at - began - number / 50 < 0.1


# -- waiting --------------------------------------------------------------------------------------


async def test_acquire_returns_true_and_the_unit_is_taken(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=2)
    assert await limiter.acquire() is True
    async with limiter as entered:
        assert entered is None
    assert not await limiter.try_acquire()


async def test_waiters_of_several_processes_are_served_in_order_of_arrival(world: World) -> None:
    # Each process sleeps by its own clock: slots lie further apart than a busy machine is late.
    limiters = [world.client().rate_limiter("x", 20, burst=1) for _ in range(3)]
    assert await limiters[0].try_acquire()
    order: list[int] = []

    async def use(number: int, amount: int) -> None:
        await limiters[number % 3].acquire(amount)
        order.append(number)

    tasks = []
    for number in range(15):
        tasks.append(asyncio.create_task(use(number, 1)))
        await asyncio.sleep(0)
        await limiters[number % 3].info()  # answered behind it
    await asyncio.gather(*tasks)
    assert order == list(range(15))


async def test_waiters_for_mixed_amounts_are_served_in_order_of_arrival(world: World) -> None:
    limiter = world.client().rate_limiter("x", 20, burst=5)
    assert await limiter.try_acquire(5)
    order: list[int] = []

    async def use(number: int, amount: int) -> None:
        await limiter.acquire(amount)
        order.append(number)

    amounts = [1, 5, 1, 1, 3, 2, 5, 1, 4, 1]
    began = time.monotonic()
    await asyncio.gather(*(use(number, amount) for number, amount in enumerate(amounts)))
    assert order == list(range(len(amounts)))
    assert time.monotonic() - began >= sum(amounts) / 20 - 0.01


async def test_try_acquire_never_overtakes_who_waits(world: World) -> None:
    one, two = (world.client().rate_limiter("x", 20, burst=2) for _ in range(2))
    assert await one.try_acquire(2)
    waiting = waits(one, 4)
    await reserved(two, 4)
    allowed = []
    while not all(task.done() for task in waiting):
        left = sum(not task.done() for task in waiting)
        allowed += [left for _ in range(1) if await two.try_acquire()]
        await asyncio.sleep(0)
    assert not [left for left in allowed if left > 1]


async def test_info_says_what_is_free_and_what_is_reserved(world: World) -> None:
    client = world.client()
    limiter = client.rate_limiter("x", 2, per=LONG, burst=4)
    assert await limiter.info() == dsync.RateLimiterInfo("x", 2.0, LONG, 4, 4, 0, 0.0, 0.0)
    assert await world.keys() == {}
    await limiter.try_acquire(3)
    info = await world.client().rate_limiter("x", 2, per=LONG, burst=4).info()
    assert (info.remaining, info.reserved, info.wait) == (1, 0, 0.0)
    waiting = [asyncio.create_task(limiter.acquire(2)) for _ in range(2)]
    info = await reserved(limiter, 3)
    assert info.remaining == 0
    assert 2 * LONG - 5 < info.wait <= 2 * LONG
    assert 3.5 * LONG - 5 < info.reset_after <= 3.5 * LONG
    await cancelled(*waiting)
    info = await reserved(limiter, 0)
    assert info.remaining == 1


async def test_use_is_full_when_there_is_always_somebody_who_wants_it(world: World) -> None:
    limiters = [world.client().rate_limiter("x", 500, burst=10) for _ in range(3)]
    uses: list[float] = []
    began = time.monotonic()

    async def use(limiter: dsync.RateLimiter) -> None:
        while time.monotonic() < began + 1:
            await limiter.acquire()
            uses.append(time.monotonic())
            await asyncio.sleep(0)

    await asyncio.gather(*(use(limiter) for limiter in limiters for _ in range(4)))
    within = [at for at in uses if at < began + 1]
    assert len(within) <= 510
    assert len(within) >= 0.95 * 500
    # Each may be late by what the loop was busy for, so a window may look shorter by as much.
    assert worst(uses, 500, 10) < 500 * 0.03


# -- timeouts -------------------------------------------------------------------------------------


async def test_what_would_come_too_late_raises_at_once_and_takes_nothing(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    for timeout in (0, 0.001, LONG / 2):
        began = time.monotonic()
        with pytest.raises(dsync.AcquireTimeout, match=r"rate limiter 'x'.*nothing was taken"):
            await limiter.acquire(timeout=timeout)
        assert time.monotonic() - began < 0.5
    assert (await limiter.info()).reserved == 0


async def test_a_timeout_behind_others_is_told_at_once(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    waiting = waits(limiter, 2)
    await reserved(limiter, 2)
    with pytest.raises(dsync.AcquireTimeout):
        async with asyncio.timeout(1):
            await limiter.acquire(timeout=1.5 * LONG)
    await reserved(limiter, 2)
    await cancelled(*waiting)
    await reserved(limiter, 0)


@pytest.mark.parametrize("timeout", [0, 0.2, LONG / 2])
@pytest.mark.parametrize("ticks", range(4))
async def test_a_timeout_behind_one_that_is_cancelled_is_told_at_once(
    world: World, timeout: float, ticks: int
) -> None:
    """The answer to the other's question, which knew no timeout, would do for it."""
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    (task,) = waits(limiter, 1)
    await asyncio.sleep(0)
    task.cancel()
    for _ in range(ticks):
        await asyncio.sleep(0)
    began = time.monotonic()
    with pytest.raises(dsync.AcquireTimeout):
        async with asyncio.timeout(1):
            await limiter.acquire(timeout=timeout)
    assert time.monotonic() - began < 0.15
    await reserved(limiter, 0)


async def test_a_timeout_that_is_long_enough_is_no_timeout(world: World) -> None:
    limiter = world.client().rate_limiter("x", 20, burst=1)
    for timeout in (0, 1, 1, 1e9, None):
        assert await limiter.acquire(timeout=timeout) is True


@pytest.mark.parametrize("timeout", [1e12, 1e300, 1.7e308])
async def test_a_timeout_may_be_as_long_as_a_float_can_be(world: World, timeout: float) -> None:
    limiter = world.client().rate_limiter("x", 20, burst=1)
    for _ in range(2):
        assert await limiter.acquire(timeout=timeout) is True
    assert await asyncio.wait_for(limiter.acquire(), 1) is True


async def test_more_than_the_burst_raises_at_once_and_names_both(world: World) -> None:
    limiter = world.client().rate_limiter("x", 5, burst=10)
    for attempt in (limiter.acquire, limiter.try_acquire):
        with pytest.raises(ValueError, match=r"rate limiter 'x': amount 11 .* burst of 10"):
            await attempt(11)
    assert await world.keys() == {}
    await limiter.acquire(10)


async def test_more_than_the_burst_of_a_newer_process_raises_and_names_that(world: World) -> None:
    old = world.client().rate_limiter("x", 5, per=LONG, burst=10)
    await old.acquire()
    new = world.client().rate_limiter("x", 5, per=LONG, burst=3)
    await new.acquire()
    for attempt in (old.acquire, old.try_acquire):
        with pytest.raises(ValueError, match=r"amount 7 .* burst of 3\b"):
            await attempt(7)
    info = await new.info()
    assert (info.burst, info.remaining, info.reserved) == (3, 1, 0)


# -- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["acquire", "try_acquire"])
@pytest.mark.parametrize("again", [False, True], ids=["", "twice"])
async def test_who_is_cancelled_at_any_moment_has_taken_nothing(
    world: World, kind: str, again: bool
) -> None:
    """Before the answer, when it has come, and when the task has yet to hear of it."""
    client = world.client()
    limiter = client.rate_limiter("x", 1, per=LONG, burst=100)
    await limiter.try_acquire()
    left = 99
    for ticks in range(12):
        task = asyncio.create_task(getattr(limiter, kind)())
        await asyncio.sleep(0)
        if world.real:
            time.sleep(0.005)  # the answer is there, and the loop has not seen it
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        if again:
            asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            left -= 1

        async def as_before() -> bool:
            return (await limiter.info()).remaining == left  # noqa: B023

        await settled(as_before, f"{left} are left after {ticks} ticks", 1)


async def test_who_is_cancelled_when_its_time_comes_makes_way_for_the_next(world: World) -> None:
    limiter = world.client().rate_limiter("x", 20, burst=1)
    for ticks in range(4):
        await limiter.acquire()
        first, second = waits(limiter, 2)
        await reserved(limiter, 2)
        quota = limiter._quota
        (line,) = quota._lines.values()
        waiter = next(iter(line.waiters))
        await settled(waiter.future.done)  # served; whether its task has run yet
        for _ in range(ticks):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await asyncio.wait_for(second, 1) is True


async def test_who_is_cancelled_the_moment_it_is_served_gives_its_turn_to_the_next(
    world: World,
) -> None:
    limiter = world.client().rate_limiter("x", 10, burst=1)
    await limiter.acquire()
    first, second = waits(limiter, 2)
    await reserved(limiter, 2)
    (line,) = limiter._quota._lines.values()
    waiter = next(iter(line.waiters))
    while not waiter.future.done():
        await asyncio.sleep(0)
    assert not first.done()
    first.cancel()
    served = time.monotonic()
    await second
    assert first.cancelled()
    assert time.monotonic() - served < 0.05, "it waited for its own turn, not for the first's"
    await reserved(limiter, 0)


async def test_a_thousand_that_are_cancelled_at_once_give_back_everything(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    tasks = waits(limiter, 1000)
    await reserved(limiter, 1000)
    await cancelled(*tasks)
    await reserved(limiter, 0)


@pytest.mark.parametrize("newest_first", [False, True], ids=["oldest first", "newest first"])
async def test_those_that_are_cancelled_one_after_the_other_give_back_everything(
    world: World, newest_first: bool
) -> None:
    """As timeouts come and callers hang up."""
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    tasks = waits(limiter, 60)
    await reserved(limiter, 60)
    for task in tasks[::-1] if newest_first else tasks:
        await cancelled(task)
        await limiter.info()
    await reserved(limiter, 0)


async def test_those_of_mixed_amounts_that_are_cancelled_give_back_everything(
    world: World,
) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=5)
    await limiter.acquire(5)
    tasks = [asyncio.create_task(limiter.acquire(1 + number % 5)) for number in range(50)]
    await reserved(limiter, 150)
    await cancelled(*tasks)
    await reserved(limiter, 0)


async def test_a_wait_that_timed_out_gives_back_its_unit(world: World) -> None:
    """The slot is due in time by what the store says; the link takes longer."""
    limiter = world.client().rate_limiter("x", 10, burst=1)
    await limiter.acquire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await limiter.acquire()
    await reserved(limiter, 0)


async def test_one_cancelled_in_the_middle_lets_the_later_ones_of_its_process_move_up(
    world: World,
) -> None:
    one, two = (world.client().rate_limiter("x", 20, burst=1) for _ in range(2))
    await one.acquire()
    began = time.monotonic()
    tasks = waits(one, 5)
    await reserved(one, 5)
    other = asyncio.create_task(two.acquire())
    await reserved(two, 6)
    await cancelled(tasks[1])
    await asyncio.gather(*tasks[:1], *tasks[2:])
    assert time.monotonic() - began < 0.05 * 4 + 0.045, "the last was served in the place before it"
    await other
    assert time.monotonic() - began >= 0.05 * 6 - 0.01, "nobody else has moved"


async def test_what_could_not_be_handed_back_serves_who_comes_next_here(world: World) -> None:
    one, two = (world.client().rate_limiter("x", 5, burst=1) for _ in range(2))
    await one.acquire()
    (task,) = waits(one, 1)
    await reserved(one, 1)
    (other,) = waits(two, 1)
    await reserved(two, 2)
    began = time.monotonic()
    await cancelled(task)
    assert (await one.info()).reserved == 2
    await one.acquire()
    assert time.monotonic() - began < 0.25, "in the place that was free"
    await other
    assert (await one.info()).reserved == 0


async def test_a_question_that_was_cancelled_before_it_was_answered_takes_nothing(
    world: World,
) -> None:
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    tasks = waits(limiter, 10)
    await asyncio.sleep(0)
    await cancelled(*tasks)
    await reserved(limiter, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_under_cancellation_at_random_no_window_is_overfull_and_nothing_is_left(
    world: World, seed: int
) -> None:
    dice = random.Random(seed)
    limiters = [world.client().rate_limiter("x", 400, burst=5) for _ in range(3)]
    uses: list[float] = []

    async def use(limiter: dsync.RateLimiter, amount: int, timeout: float | None) -> None:
        await limiter.acquire(amount, timeout)
        uses.extend([time.monotonic()] * amount)

    tasks = []
    for _ in range(150):
        wanted = dice.choice((1, 1, 2, 5)), dice.choice((None, None, 0, 0.1))
        task = asyncio.create_task(use(dice.choice(limiters), *wanted))
        tasks.append(task)
        if dice.random() < 0.4:
            asyncio.get_running_loop().call_later(dice.uniform(0, 0.3), task.cancel)
        if dice.random() < 0.5:
            await asyncio.sleep(dice.uniform(0, 0.004))
    async with asyncio.timeout(10):
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, None | asyncio.CancelledError | dsync.AcquireTimeout)
    assert len(uses) > 50
    assert worst(uses, 400, 5) < 400 * 0.03  # late by what the loop was busy for
    for limiter in limiters:
        quota = limiter._quota
        await settled(lambda: not quota._lines)  # noqa: B023


# -- what is kept ---------------------------------------------------------------------------------


async def test_the_record_lives_until_it_has_drained_and_a_minute(world: World) -> None:
    if world.kind == "memory":
        pytest.skip("what is kept in memory expires by the twins' own time")
    limiter = world.client().rate_limiter("x", 1, per=LONG, burst=3)
    await limiter.try_acquire(2)
    ((key, ttl),) = (await world.keys()).items()
    assert key == world.key("rate", "x", "state")
    assert 2 * LONG + 60 - 5 < ttl / 1000 <= 2 * LONG + 60.1
    tasks = waits(limiter, 2)
    await reserved(limiter, 1)
    ((_, ttl),) = (await world.keys()).items()
    assert 4 * LONG + 60 - 5 < ttl / 1000 <= 4 * LONG + 60.1
    await cancelled(*(task for task in tasks if not task.done()))
    await reserved(limiter, 0)
    ((_, ttl),) = (await world.keys()).items()
    assert 3 * LONG + 60 - 5 < ttl / 1000 <= 3 * LONG + 60.1


async def test_a_record_that_expired_is_a_full_burst_for_all(world: World) -> None:
    one, two = (world.client().rate_limiter("x", 1, per=LONG, burst=2) for _ in range(2))
    await one.try_acquire(2)
    if world.admin is None:
        store = world.clients[0].store
        assert isinstance(store, MemoryStore)
        later = store.memory.clock() + int((2 * LONG + 61) * 1e6)
        store.memory.clock = lambda: later
    else:
        await world.admin.delete(*await world.keys())
    assert (await two.try_acquire(2)).remaining == 0
    assert not await one.try_acquire()


async def test_a_clock_that_steps_back_gives_nobody_anything(
    memory: tuple[dsync.Client, Hand],
) -> None:
    client, clock = memory
    limiter = client.rate_limiter("x", 1, burst=3)
    assert await limiter.try_acquire(3)
    for _ in range(5):
        clock.us -= 10_000_000
        assert not await limiter.try_acquire()
    clock.us += 999_999
    assert not await limiter.try_acquire()
    clock.us += 1
    assert await limiter.try_acquire()


async def test_a_clock_that_steps_forward_gives_one_burst_at_most(
    memory: tuple[dsync.Client, Hand],
) -> None:
    client, clock = memory
    limiter = client.rate_limiter("x", 1, burst=3)
    assert await limiter.try_acquire(3)
    clock.us += 86_400_000_000
    assert (await limiter.try_acquire(3)).remaining == 0
    assert not await limiter.try_acquire()


@pytest.mark.parametrize("question", ["try_acquire", "acquire", "info"])
async def test_a_call_leaves_nothing_for_the_garbage_collector(world: World, question: str) -> None:
    limiter = world.client().rate_limiter("x", 1e6)
    await getattr(limiter, question)()
    left = []
    gc.disable()
    try:
        for _ in range(3):  # what others leave comes once: of a test before, of a thread
            gc.collect()
            for _ in range(50):
                await getattr(limiter, question)()
            left.append(gc.collect())
        if world.kind != "fakeredis":  # which makes its own
            assert min(left) < 50, left
    finally:
        gc.enable()


async def test_many_who_wait_cost_no_more_each_than_few(world: World) -> None:
    """Ten times as many take about ten times as long, not a hundred times."""
    if world.kind == "fakeredis":
        pytest.skip("it is too slow for so many")
    client = world.client()
    took = []
    for count in (800, 8000):
        limiter = client.rate_limiter(f"x{count}", 1, per=LONG, burst=1)
        began = time.process_time()
        tasks = waits(limiter, count)
        await reserved(limiter, count - 1)
        await cancelled(*(task for task in reversed(tasks) if not task.done()))
        await settled(lambda: not client.homes)
        took.append(time.process_time() - began)
    assert took[1] < 50 * took[0], took


# -- when processes disagree ----------------------------------------------------------------------


async def test_the_newest_process_declares_and_the_others_follow(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    old = world.client().rate_limiter("x", 1, per=LONG, burst=10)
    await old.acquire(6)
    new = world.client().rate_limiter("x", 2, per=LONG, burst=20)
    with caplog.at_level(logging.WARNING, "dsync"):
        assert (await new.try_acquire()).remaining == 13, "what was taken stays taken, in units"
        assert not caplog.records
        assert (await old.try_acquire()).remaining == 12
        for _ in range(3):
            await old.acquire()
    (record,) = caplog.records
    text = record.getMessage()
    assert "rate limiter 'x'" in text
    for number in (f"2 per {LONG:g} s", "20 at once", f"1 per {LONG:g} s", "10 at once"):
        assert number in text
    for limiter in (old, new):
        info = await limiter.info()
        assert (info.rate, info.per, info.burst) == (2.0, LONG, 20)
        assert info.remaining == 9


async def test_a_smaller_burst_holds_at_once(world: World) -> None:
    old = world.client().rate_limiter("x", 1, per=LONG, burst=10)
    await old.acquire(6)
    new = world.client().rate_limiter("x", 1, per=LONG, burst=4)
    refused = await new.try_acquire()
    assert not refused
    assert 3 * LONG - 5 < refused.retry_after <= 3 * LONG
    assert not await old.try_acquire()


async def test_the_same_client_may_declare_anew(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    client = world.client()
    first = client.rate_limiter("x", 1, per=LONG, burst=5)
    assert (await first.try_acquire()).remaining == 4
    second = client.rate_limiter("x", 1, per=LONG, burst=9)
    assert (await second.try_acquire()).remaining == 7
    assert (await first.try_acquire()).remaining == 6
    client.rate_limiter("x", 1, per=LONG, burst=5)
    assert (await second.try_acquire()).remaining == 1
    assert not caplog.records


async def test_an_older_process_never_sets_it_back_however_often_it_makes_its_object(
    world: World,
) -> None:
    """As one does who asks for the limiter in each request."""
    old = world.client()
    await old.rate_limiter("x", 1, per=LONG, burst=10).acquire()
    new = world.client().rate_limiter("x", 2, per=LONG, burst=20)
    await new.acquire()
    gc.collect()
    for _ in range(100_000):
        old.rate_limiter("x", 1, per=LONG, burst=10)
    await old.rate_limiter("x", 1, per=LONG, burst=10).acquire()
    assert (await new.info()).burst == 20


@pytest.mark.parametrize("factor", [2, 100])
async def test_a_higher_rate_does_not_come_on_top_of_what_was_reserved(
    world: World, factor: int
) -> None:
    """From the declaration on no window has more than the higher rate allows."""
    rate = 20 * factor
    uses: list[float] = []

    async def use(limiter: dsync.RateLimiter) -> None:
        await limiter.acquire()
        uses.append(time.monotonic())

    old = world.client().rate_limiter("x", 20, burst=1)
    tasks = [asyncio.create_task(use(old)) for _ in range(30)]
    await settled(lambda: len(uses) == 1)
    await asyncio.sleep(0)
    new = world.client().rate_limiter("x", rate, burst=1)
    tasks += [asyncio.create_task(use(new)) for _ in range(min(50, 15 * factor))]
    await asyncio.gather(*tasks)
    assert worst(uses, rate, 1) < max(2, rate * 0.05)


# -- lifetime -------------------------------------------------------------------------------------


def test_one_can_be_made_where_no_loop_runs(server_url: str) -> None:
    for url in ("memory://import-time", server_url):
        client = dsync.connect(url, namespace=f"t-import-{time.time_ns()}")
        limiter = client.rate_limiter("x", 5, per=LONG)

        async def use(
            client: dsync.Client = client, limiter: dsync.RateLimiter = limiter
        ) -> dsync.Decision:
            async with client:
                await limiter.acquire()
                return await limiter.try_acquire()

        assert asyncio.run(use()).remaining == 3


def test_it_belongs_to_one_loop() -> None:
    client = dsync.connect("memory://")
    limiter = client.rate_limiter("x", 5)
    asyncio.run(limiter.acquire())
    for attempt in (limiter.acquire, limiter.try_acquire, limiter.info):
        with pytest.raises(RuntimeError, match="different event loop"):
            asyncio.run(attempt())


async def test_closing_the_client_fails_who_waits_and_gives_back_what_it_had(world: World) -> None:
    one, two = world.client(), world.client().rate_limiter("x", 1, per=LONG, burst=1)
    limiter = one.rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    waiting = waits(limiter, 20)
    await reserved(two, 20)
    await one.aclose()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, dsync.ClientClosed)
        assert "rate limiter 'x'" in str(outcome)
    await reserved(two, 0)
    for attempt in (limiter.acquire, limiter.try_acquire, limiter.info):
        with pytest.raises(dsync.ClientClosed):
            await attempt()


@pytest.mark.parametrize("ticks", range(5))
async def test_closing_the_client_gives_back_what_was_not_answered_yet(
    world: World, ticks: int
) -> None:
    one, two = world.client(), world.client().rate_limiter("x", 1, per=LONG, burst=1)
    limiter = one.rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    waiting = waits(limiter, 20)
    for _ in range(ticks):
        await asyncio.sleep(0)
    await one.aclose()
    await asyncio.gather(*waiting, return_exceptions=True)
    await reserved(two, 0)


async def test_a_limiter_nobody_refers_to_is_forgotten(world: World) -> None:
    client = world.client()
    limiter = client.rate_limiter("x", 1, per=LONG, burst=2)
    await limiter.acquire()
    await limiter.try_acquire()
    await client.check()
    del limiter
    await settled(lambda: gc.collect() >= 0 and not client._quotas)


async def test_who_waits_is_served_even_if_nobody_else_refers_to_the_limiter(world: World) -> None:
    client = world.client()
    await client.rate_limiter("x", 20, burst=1).acquire()
    task = asyncio.create_task(client.rate_limiter("x", 20, burst=1).acquire())
    await asyncio.sleep(0)
    gc.collect()
    assert await asyncio.wait_for(task, 1) is True


async def test_kinds_of_the_same_name_share_nothing(world: World) -> None:
    client = world.client()
    limiter = client.rate_limiter("x", 1, per=LONG, burst=1)
    async with client.lock("x"), client.semaphore("x", 1), limiter:
        assert not await limiter.try_acquire()


def test_repr_says_what_it_was_made_with() -> None:
    client = dsync.connect("memory://")
    limiter = client.rate_limiter("x", 600, per=60)
    assert RGX_REPR.match(repr(limiter))
    assert "[600 per 60 s, burst:600]" in repr(limiter)
    assert (limiter.name, limiter.rate, limiter.per, limiter.burst) == ("x", 600.0, 60.0, 600)


# -- parse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate", "per"),
    [
        ("600/minute", 600, 60), ("10/s", 10, 1), ("5/30s", 5, 30), ("1/day", 1, 86400),
        ("0.5/second", 0.5, 1), ("100 / 2 hours", 100, 7200), (" 7/Min ", 7, 60),
        ("3/1.5h", 3, 5400), ("10/secs", 10, 1), ("10/days", 10, 86400),
    ],
)  # fmt: skip
def test_a_rate_can_be_written_as_text(text: str, rate: float, per: float) -> None:
    parsed = dsync.RateLimiter.parse(text)
    assert parsed == (rate, per)
    assert [type(number) for number in parsed] == [float, float]
    dsync.connect("memory://").rate_limiter("x", *parsed)


@pytest.mark.parametrize(
    "text",
    ["", "600", "600/", "/s", "600/fortnight", "-1/s", "1e3/s", "10/s/s", "x/s", "10 s", "nan/s",
     "0/s", "5/0s", "10/ms", "5/500ms", "10/ss", "10/us"],
)  # fmt: skip
def test_text_that_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        dsync.RateLimiter.parse(text)
    assert "rate" in str(raised.value) or "per" in str(raised.value)


@pytest.mark.parametrize("value", [None, 5, b"5/s"])
def test_only_text_is_parsed(value: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(repr(value))):
        dsync.RateLimiter.parse(value)


# -- cost -----------------------------------------------------------------------------------------


async def test_a_call_is_one_command_and_a_wait_that_is_cancelled_two(real: World) -> None:
    client = real.client()
    limiter = client.rate_limiter("x", 1, per=LONG, burst=20)
    await limiter.acquire()
    (task,) = [asyncio.create_task(limiter.acquire(20))]
    await reserved(limiter, 1)
    await cancelled(task)
    await reserved(limiter, 0)

    async def commands(action: Callable[[], Any]) -> list[str]:
        sent: list[str] = []
        link: Any = client.store
        call = link.link.call

        def noted(command: Any, done: Any) -> Any:
            text = command if isinstance(command, bytes) else b" ".join(
                str(word).encode() for word in command
            )  # fmt: skip
            sent.append(text.decode())
            return call(command, done)

        link.link.call = noted
        limiter._quota._bound.clear()  # it has the link's call, as it was
        try:
            await action()
        finally:
            del link.link.call
            limiter._quota._bound.clear()
        return sent

    assert len(await commands(limiter.acquire)) == 1
    assert len(await commands(lambda: limiter.acquire(timeout=1))) == 1
    assert len(await commands(limiter.try_acquire)) == 1

    async def refused() -> None:
        with pytest.raises(dsync.AcquireTimeout):
            await limiter.acquire(20, timeout=0)

    assert len(await commands(refused)) == 1

    async def give_up() -> None:
        tasks = [asyncio.create_task(limiter.acquire(20)) for _ in range(5)]
        (line,) = await lines(limiter)
        await settled(lambda: len(line.slots) == 5)
        await cancelled(*tasks)
        await settled(lambda: not client.homes)

    assert len(await commands(give_up)) == 6, "one for each, and one to hand back all"


async def lines(limiter: dsync.RateLimiter) -> list[Any]:
    await settled(lambda: bool(limiter._quota._lines))
    return list(limiter._quota._lines.values())


async def test_a_closed_limiter_has_nothing_left_to_do(real: World) -> None:
    troubles: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: troubles.append(context))
    first, second = real.client(), real.client()
    one, other = (client.rate_limiter("x", 10, burst=1) for client in (first, second))
    await one.acquire()
    waiting = asyncio.create_task(one.acquire())

    async def reserved(count: int) -> bool:
        return (await other.info()).reserved == count

    while not await reserved(1):
        pass
    behind = asyncio.create_task(other.acquire())  # so what the first hands back is refused
    while not await reserved(2):
        pass
    waiting.cancel()
    await asyncio.wait([waiting])
    await first.aclose()
    await behind  # due after what the first had reserved
    assert troubles == []
