"""How a body ends whose lease was lost: its own outcome is never replaced."""

import asyncio
import time
from typing import Any

import pytest

import dsync
from tests.conftest import World, settled

LEASE = 0.2


def notes(exc: BaseException | None) -> str:
    return " ".join(getattr(exc, "__notes__", ()))


@pytest.fixture(params=["blocks", "is cancelled and goes on", "is only flagged"])
async def lose(request: pytest.FixtureRequest, real: World) -> Any:
    """A lock, and a way to be in its body when its lease is gone and the body may still choose."""
    how = request.param
    on_lost: Any = "flag" if how == "is only flagged" else "cancel"
    lock = real.client().lock("x", lease=LEASE, renew=False, on_lost=on_lost)

    async def gone() -> None:
        if how == "blocks":
            time.sleep(LEASE)
            return
        try:
            lease = lock.lease
            assert lease is not None
            await asyncio.wait_for(lease.lost.wait(), 2)
        except asyncio.CancelledError:
            assert how == "is cancelled and goes on"

    return lock, gone


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_an_exception_of_the_body_stays_and_a_note_names_the_loss(lose: Any) -> None:
    lock, gone = lose
    with pytest.raises(ValueError, match="of the body") as caught:
        async with lock:
            await gone()
            raise ValueError("of the body")
    assert "lock 'x' was lost" in notes(caught.value)
    assert cancelling() == 0
    await asyncio.sleep(0)


async def test_a_clean_end_after_a_loss_raises_lease_lost(lose: Any) -> None:
    lock, gone = lose
    with pytest.raises(dsync.LeaseLost, match="lock 'x' was lost"):
        async with lock:
            await gone()
    assert cancelling() == 0
    assert lock.lease is None
    await asyncio.sleep(0)


async def test_a_cancel_from_outside_stays_a_cancel(lose: Any) -> None:
    lock, gone = lose
    at_rest = asyncio.Event()
    ends: list[BaseException] = []

    async def work() -> None:
        try:
            async with lock:
                await gone()
                at_rest.set()
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError as exc:
                    if task.cancelling() and not stop.is_set():
                        # Ours, of the loss: go on, so that the one from outside comes second.
                        await stop.wait()
                        await asyncio.sleep(10)
                    raise exc
        except BaseException as exc:
            ends.append(exc)
            raise

    stop = asyncio.Event()
    task = asyncio.create_task(work())
    await at_rest.wait()
    assert lock.lease is not None
    await settled(lock.lease.lost.is_set)
    await asyncio.sleep(0)
    stop.set()
    task.cancel("from outside")
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert isinstance(ends[0], asyncio.CancelledError)
    assert "lock 'x' was lost" in notes(ends[0])


async def test_a_timeout_around_the_lock_stays_a_timeout(lose: Any) -> None:
    lock, gone = lose
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.5):
            async with lock:
                await gone()
                while True:  # deaf to our cancel, as bad code is, but not to the timeout's
                    try:
                        await asyncio.sleep(10)
                    except asyncio.CancelledError:
                        if cancelling() > 1 or lock._terms.on_lost == "flag":
                            raise
    assert not isinstance(caught.value, dsync.DsyncError)
    assert "lock 'x' was lost" in notes(caught.value.__cause__)
    assert cancelling() == 0


async def test_a_timeout_in_the_body_that_expires_stays_a_timeout(lose: Any) -> None:
    lock, gone = lose
    with pytest.raises(TimeoutError) as caught:
        async with lock:
            await gone()
            try:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
    assert not isinstance(caught.value, dsync.DsyncError)
    assert "lock 'x' was lost" in notes(caught.value)
    assert cancelling() == 0


async def test_our_cancel_passes_through_a_timeout_in_the_body_as_lease_lost(real: World) -> None:
    lock = real.client().lock("x", lease=LEASE, renew=False)
    with pytest.raises(dsync.LeaseLost):
        async with lock:
            async with asyncio.timeout(5):
                await asyncio.sleep(10)
    assert cancelling() == 0


async def test_our_cancel_leaves_no_trace_in_a_task_that_goes_on(real: World) -> None:
    lock = real.client().lock("x", lease=LEASE, renew=False)
    for _ in range(2):
        with pytest.raises(dsync.LeaseLost):
            async with lock:
                await asyncio.sleep(10)
        assert cancelling() == 0
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.001))


async def test_a_task_group_sees_lease_lost_as_the_failure_of_one_of_its_tasks(
    real: World,
) -> None:
    lock = real.client().lock("x", lease=LEASE, renew=False)
    sibling_cancelled = False

    async def body() -> None:
        try:
            async with lock:
                await asyncio.sleep(10)
        finally:
            assert cancelling() == 0  # (a TaskGroup leaves its parent's count at 1 before 3.13)

    async def sibling() -> None:
        nonlocal sibling_cancelled
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            sibling_cancelled = True
            raise

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(body())
            group.create_task(sibling())
    assert caught.group_contains(dsync.LeaseLost)
    assert sibling_cancelled


async def test_a_task_group_inside_the_body_is_ended_by_the_loss(real: World) -> None:
    lock = real.client().lock("x", lease=LEASE, renew=False)
    children: list[asyncio.Task[None]] = []
    with pytest.raises(dsync.LeaseLost):
        async with lock, asyncio.TaskGroup() as group:
            children.append(group.create_task(asyncio.sleep(10)))
    assert children[0].cancelled()
    assert cancelling() == 0


async def test_two_locks_lost_at_once_leave_as_lease_lost(real: World) -> None:
    client = real.client()
    outer = client.lock("outer", lease=LEASE, renew=False)
    inner = client.lock("inner", lease=LEASE, renew=False)
    with pytest.raises(dsync.LeaseLost):
        async with outer, inner:
            await asyncio.sleep(10)
    assert cancelling() == 0
    await asyncio.sleep(0)


async def test_on_a_shared_lock_the_one_that_lost_it_does_not_release_the_other(
    real: World,
) -> None:
    """The shared-instance recipe: one Lock object, two tasks."""
    lock = real.client().lock("x", lease=LEASE, renew=False, on_lost="flag")
    other_holds, first_left = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with lock as lease:
            await lease.lost.wait()
            await other_holds.wait()

    async def second() -> bool:
        async with lock as lease:
            other_holds.set()
            await first_left.wait()
            return lease.held and bool(await lock.locked())

    one = asyncio.create_task(first())
    await settled(lambda: lock.lease is not None)
    two = asyncio.create_task(second())
    with pytest.raises(dsync.LeaseLost):
        await one
    first_left.set()
    assert await two


async def test_on_a_shared_lock_a_plain_release_after_a_loss_does_not_release_the_other(
    real: World,
) -> None:
    lock = real.client().lock("x", lease=LEASE, renew=False)
    other_holds, first_left = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        await lock.acquire()
        await other_holds.wait()
        lock.release()

    async def second() -> bool:
        await lock.acquire()
        other_holds.set()
        await first_left.wait()
        assert lock.lease is not None
        held = lock.lease.held
        await lock.release()
        return held

    one = asyncio.create_task(first())
    await settled(lambda: lock.lease is not None)
    two = asyncio.create_task(second())
    with pytest.raises(dsync.LeaseLost):
        await one
    first_left.set()
    assert await two
