"""VirtualClock: what takes time takes none, and in the same order."""

import asyncio
import gc
import threading
import time
import weakref
from random import Random

import pytest

import dsync
from dsync import local
from dsync.testing import VirtualClock, assert_free, assert_held, cut, kill_process
from tests.conftest import LOOP

pytestmark = pytest.mark.skipif(LOOP != "asyncio", reason="uvloop keeps its own time")


async def test_sleeping_takes_as_long_by_the_clock_and_no_time(dsync_clock: VirtualClock) -> None:
    began, really = dsync_clock.time(), time.perf_counter()
    await asyncio.sleep(3600)
    assert dsync_clock.time() - began == pytest.approx(3600)
    assert asyncio.get_running_loop().time() == time.monotonic() == dsync_clock.time()
    assert time.perf_counter() - really < 5


async def test_the_clock_stands_still_while_anything_runs(dsync_clock: VirtualClock) -> None:
    asyncio.get_running_loop().call_later(0.001, lambda: None)
    began = time.monotonic()
    for _ in range(1000):
        await asyncio.sleep(0)
    assert time.monotonic() == began


async def test_timers_go_off_in_their_order_and_at_their_time(dsync_clock: VirtualClock) -> None:
    began = time.monotonic()
    seen: list[float] = []

    async def note(after: float) -> None:
        await asyncio.sleep(after)
        seen.append(time.monotonic() - began)

    tasks = [asyncio.create_task(note(after)) for after in (5, 0.5, 3, 4.25)]
    await dsync_clock.advance(4.25)
    assert seen == pytest.approx([0.5, 3, 4.25], abs=1e-5)
    assert time.monotonic() - began == pytest.approx(4.25)
    await asyncio.gather(*tasks)
    assert seen == pytest.approx([0.5, 3, 4.25, 5], abs=1e-5)


async def test_what_becomes_due_is_done_when_advance_returns(dsync_clock: VirtualClock) -> None:
    done: list[float] = []

    async def work() -> None:
        await asyncio.sleep(10)
        for _ in range(50):
            await asyncio.sleep(0)
        done.append(time.monotonic())

    began = time.monotonic()
    task = asyncio.create_task(work())
    await dsync_clock.advance(0)
    assert not done
    await dsync_clock.advance(10)
    assert done == [pytest.approx(began + 10)]
    await task


async def test_advancing_with_nothing_under_way_moves_the_clock(dsync_clock: VirtualClock) -> None:
    began = dsync_clock.time()
    for _ in range(10):
        await dsync_clock.advance(0.1)
    assert dsync_clock.time() - began == pytest.approx(1)


async def test_advance_goes_over_days(dsync_clock: VirtualClock) -> None:
    began = dsync_clock.time()
    asyncio.get_running_loop().call_later(10 * 86_400, lambda: None)
    await dsync_clock.advance(7 * 86_400)
    assert dsync_clock.time() - began == pytest.approx(7 * 86_400)


async def test_what_looks_whether_its_time_has_come_finds_that_it_has(
    dsync_clock: VirtualClock,
) -> None:
    """Timers are a little late, as real ones are.

    Else rounding lets some come too early, and set themselves again for the same moment, for ever.
    """
    loop = asyncio.get_running_loop()
    ticks: list[float] = []

    def tick(phase: float) -> None:
        ticks.append(time.monotonic())
        assert len(ticks) < 10_000
        if len(ticks) % 100:
            loop.call_later(2 - (time.monotonic() - phase) % 2, tick, phase)

    phases = Random(7)
    for _ in range(50):
        # From here on a float has one digit less for the fractions of a second.
        dsync_clock._now = began = 2.0**16 - 100
        tick(phases.uniform(0, 2))
        await dsync_clock.advance(200)
        assert 196 < ticks[-1] - began <= 200
    assert len(ticks) == 5_000


async def test_only_one_task_advances_the_clock(dsync_clock: VirtualClock) -> None:
    first = asyncio.create_task(dsync_clock.advance(5))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task is advancing"):
        await dsync_clock.advance(1)
    await first


async def test_an_advance_that_is_cancelled_leaves_the_clock_usable(
    dsync_clock: VirtualClock,
) -> None:
    began = dsync_clock.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await dsync_clock.advance(5)
    assert dsync_clock.time() - began == pytest.approx(3)
    await dsync_clock.advance(1)
    assert dsync_clock.time() - began == pytest.approx(4)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
async def test_advance_refuses_what_is_no_time(dsync_clock: VirtualClock, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"seconds must be >= 0, got"):
        await dsync_clock.advance(seconds)


async def test_a_thread_that_works_for_the_loop_stops_the_clock(dsync_clock: VirtualClock) -> None:
    """Else a call to a database would seem to take as long as the longest timeout around it."""
    finish = threading.Event()
    async with asyncio.timeout(1):
        work = asyncio.create_task(asyncio.to_thread(finish.wait, 20))
        for _ in range(100):
            await asyncio.sleep(0)
        threading.Timer(0.05, finish.set).start()
        assert await work


def test_a_loop_that_has_used_threads_closes_without_warnings() -> None:
    with VirtualClock() as clock:

        async def main() -> None:
            assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
            await clock.advance(5)

        asyncio.run(main())


async def test_other_threads_keep_the_real_time(dsync_clock: VirtualClock) -> None:
    await dsync_clock.advance(10_000)
    elsewhere = await asyncio.to_thread(time.monotonic)
    assert elsewhere < time.monotonic() - 9_000


def test_waiting_for_what_never_comes_ends_with_a_reason() -> None:
    async def main() -> None:
        async with dsync.connect("memory://") as client, client.lock("x"):
            await asyncio.create_task(client.lock("x").acquire())

    reason = r"has jumped 100 s ahead.*has not come"
    with VirtualClock(patience=100), pytest.raises(RuntimeError, match=reason):
        asyncio.run(main())


async def test_time_is_real_again_afterwards() -> None:
    real = time.monotonic
    loop = asyncio.get_running_loop()
    own = set(vars(loop))
    with VirtualClock() as clock:
        await clock.advance(50)
        with pytest.raises(RuntimeError, match="another VirtualClock is open"), VirtualClock():
            pass
    assert time.monotonic is real
    assert set(vars(loop)) == own
    began = time.perf_counter()
    await asyncio.sleep(0.02)
    assert time.perf_counter() - began > 0.015
    with pytest.raises(RuntimeError, match="is not open"):
        await clock.advance(1)


def test_what_was_imported_under_one_clock_follows_the_next() -> None:
    with VirtualClock():
        from time import monotonic
    assert monotonic() == pytest.approx(time.monotonic(), abs=5)
    with VirtualClock() as clock:
        asyncio.run(clock.advance(1000))
        assert monotonic() == clock.time()


def test_a_clock_that_was_closed_keeps_no_loop_alive() -> None:
    async def main() -> "weakref.ref[asyncio.AbstractEventLoop]":
        await asyncio.sleep(5)
        return weakref.ref(asyncio.get_running_loop())

    clock = VirtualClock()
    with clock:
        loop = asyncio.run(main())
    gc.collect()
    assert loop() is None


def test_a_loop_with_a_time_of_its_own_is_refused() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main(clock: VirtualClock) -> None:
        with pytest.raises(RuntimeError, match="moves asyncio's own loops"):
            await clock.advance(1)

    with VirtualClock() as clock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(clock))


# -- dsync by this clock --------------------------------------------------------------------------


async def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    dsync_client: dsync.Client, dsync_clock: VirtualClock
) -> None:
    async with dsync_client.lock("x", lease=10) as lease:
        await dsync_clock.advance(3600)
        assert lease.held
        await assert_held(dsync_client.lock("x"), by=dsync_client)


async def test_a_lease_that_is_not_renewed_runs_out_to_the_moment(
    dsync_client: dsync.Client, dsync_clock: VirtualClock
) -> None:
    lock = dsync_client.lock("x", lease=30, renew=False, on_lost="flag")
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    assert lease.left == pytest.approx(27)  # a tenth of it is the margin
    await dsync_clock.advance(26.9)
    assert lease.held
    await dsync_clock.advance(0.1)
    assert not lease.held
    assert lease.lost.is_set()
    await assert_held(lock)  # the store gives it to nobody else before its own end
    await dsync_clock.advance(3.001)
    await assert_free(lock)
    with pytest.raises(dsync.LeaseLost):
        lock.release()


async def test_a_timeout_ends_when_it_should(
    dsync_client: dsync.Client, dsync_memory: str, dsync_clock: VirtualClock
) -> None:
    async with dsync.connect(dsync_memory) as other, other.lock("x"):
        began = dsync_clock.time()
        with pytest.raises(dsync.AcquireTimeout):
            await dsync_client.lock("x").acquire(timeout=60)
        assert dsync_clock.time() - began == pytest.approx(60, abs=0.01)


async def test_slots_of_a_rate_come_at_their_time(
    dsync_client: dsync.Client, dsync_clock: VirtualClock
) -> None:
    limiter = dsync_client.rate_limiter("api", rate=1, per=60, burst=1)
    began = dsync_clock.time()
    for _ in range(5):
        await limiter.acquire()
    assert dsync_clock.time() - began == pytest.approx(240, abs=0.1)


async def test_a_waiter_gets_what_a_dead_process_held_when_its_lease_ends(
    dsync_client: dsync.Client, dsync_memory: str, dsync_clock: VirtualClock
) -> None:
    dead = dsync.connect(dsync_memory)
    await dead.lock("x", lease=30).acquire()
    kill_process(dead)
    began = dsync_clock.time()
    async with dsync_client.lock("x"):
        assert dsync_clock.time() - began == pytest.approx(30, abs=1.1)


async def test_a_client_that_is_cut_off_loses_what_it_holds(
    dsync_client: dsync.Client, dsync_clock: VirtualClock
) -> None:
    with pytest.raises(dsync.LeaseLost, match="ran out"):
        async with dsync_client.lock("x", lease=30) as lease:
            await dsync_clock.advance(100)
            cut(dsync_client)
            await asyncio.sleep(15)
            assert lease.held
            await asyncio.sleep(15)
            pytest.fail("it was lost and the body went on")


async def test_a_semaphore_of_this_process_alone_waits_by_the_clock(
    dsync_clock: VirtualClock,
) -> None:
    semaphore = local.Semaphore(1)
    began = dsync_clock.time()
    async with semaphore:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await semaphore.acquire()
    assert dsync_clock.time() - began == pytest.approx(30)


async def test_a_rate_of_this_process_alone_is_kept_by_the_clock(dsync_clock: VirtualClock) -> None:
    limiter = local.RateLimiter(1, 60, burst=1)
    began = dsync_clock.time()
    for _ in range(5):
        await limiter.acquire()
    assert dsync_clock.time() - began == pytest.approx(240, abs=0.1)
