"""An event loop that stood still for longer than a lease."""

import asyncio
import time
from typing import Any

import pytest

import dsync
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import Through

LEASE = 0.4


async def test_the_next_line_after_a_block_sees_that_the_lease_is_gone(real: World) -> None:
    lock = real.client().lock("x", lease=LEASE)
    went_on = False
    with pytest.raises(dsync.LeaseLost):
        async with lock as lease:
            assert lease.held
            time.sleep(LEASE)
            assert not lease.held
            assert lock.lease is lease
            assert lease.left == 0.0
            with pytest.raises(dsync.LeaseLost):
                _ = lock.fence
            await asyncio.sleep(10)
            went_on = True
    assert not went_on
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_body_that_blocked_and_ends_without_an_await_leaves_as_lease_lost(
    real: World,
) -> None:
    lock = real.client().lock("x", lease=LEASE)
    with pytest.raises(dsync.LeaseLost):
        async with lock:
            time.sleep(LEASE)
    await asyncio.sleep(0)  # no cancel is left that would hit something else
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert lock.lease is None


async def test_another_process_has_the_lock_while_the_blocked_one_still_thinks(
    real: World,
) -> None:
    blocked, other = real.client().lock("x", lease=LEASE), real.client().lock("x")
    await blocked.acquire()
    waiting = asyncio.create_task(other.acquire())
    await settled(lambda: "waiters:1" in repr(other))
    time.sleep(LEASE + 0.1)
    await asyncio.wait_for(waiting, 1)
    with pytest.raises(dsync.LeaseLost):
        blocked.release()
    assert other.lease is not None
    assert other.lease.held
    await other.release()


async def test_a_reply_that_was_read_after_the_lease_had_ended_is_no_grant(real: World) -> None:
    lock = real.client().lock("x", lease=LEASE)
    await lock.acquire()
    await lock.release()
    acquiring = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)  # it has asked
    time.sleep(LEASE + 0.1)
    await acquiring
    assert lock.lease is not None
    assert lock.lease.held
    await lock.release()


@pytest.mark.parametrize("enter", ["acquire", "async with"])
async def test_a_task_that_was_handed_the_lock_while_the_loop_stood_still_starts_on_a_live_lease(
    real: World, enter: str
) -> None:
    """Between the hand-over and the start of the waiter a lease can end, like anywhere else."""
    lock = real.client().lock("x", lease=LEASE)
    await lock.acquire()

    async def wait() -> bool:
        if enter == "acquire":
            await lock.acquire()
            assert lock.lease is not None
            held = lock.lease.held
            lock.release()
            return held
        async with lock as lease:
            return lease.held

    waiting = asyncio.create_task(wait())
    await settled(lambda: "waiters:1" in repr(lock))
    lock.release()  # to the waiting task, which has not run yet
    time.sleep(LEASE + 0.1)
    assert await waiting, "the body began on a lease that had run out"


async def test_a_lease_taken_away_before_its_body_begins_does_not_let_the_body_run(
    real: World, proxy: Proxy, through: Through, queued: Any
) -> None:
    """The grant and the force_release() that ends it, read from the socket in one go."""
    holder, lock = real.client().lock("x"), through().lock("x")
    began: list[bool] = []
    await holder.acquire()

    async def enter() -> None:
        async with lock as lease:
            began.append(lease.held)

    waiting = asyncio.create_task(enter())
    await queued(1)
    proxy.black_hole("replies")
    await holder.release()
    assert await holder.force_release()
    await settled(lambda: b"\nl " in proxy.held("replies"), "both messages are on their way")
    proxy.heal()
    await asyncio.gather(waiting, return_exceptions=True)
    assert began in ([], [True]), "the body ran on a lease that had been taken away"
