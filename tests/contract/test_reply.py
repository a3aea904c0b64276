"""Call it as asyncio; await the result to hear the store's answer."""

import asyncio
import gc
import logging

import pytest

import dsync
from tests.conftest import World, settled


async def test_a_write_may_be_awaited_twice_and_by_several(world: World) -> None:
    lock = world.client().lock("x")
    await lock.acquire()
    reply = lock.release()
    await asyncio.gather(wait_for(reply), wait_for(reply), wait_for(reply))
    await reply


async def wait_for(reply: dsync.Reply[None]) -> None:
    await reply


async def test_a_cancelled_await_cancels_the_waiting_and_not_the_release(world: World) -> None:
    one, two = world.client().lock("x"), world.client().lock("x")
    await one.acquire()
    reply = one.release()
    task = asyncio.create_task(wait_for(reply))
    task.cancel()
    await asyncio.wait([task])
    await reply
    assert await two.try_acquire()
    await two.release()


async def test_a_failed_write_that_nobody_awaited_is_reported(world: World) -> None:
    heard: list[BaseException] = []
    client = world.client(on_error=heard.append)
    lock = client.lock("x", on_lost="flag")
    await lock.acquire()
    await world.expire("lock", "x")
    await world.clients[0].lock("warm up").info()
    other = world.client().lock("x")
    await other.acquire(timeout=5)
    lock.release()
    await settled(lambda: gc.collect() >= 0 and bool(heard))
    assert isinstance(heard[0], dsync.LeaseLost)
    await other.release()


async def test_a_failed_write_that_somebody_awaited_is_raised_there(world: World) -> None:
    lock = world.client().lock("x", on_lost="flag")
    await lock.acquire()
    await world.expire("lock", "x")
    other = world.client().lock("x")
    await other.acquire(timeout=5)
    with pytest.raises(dsync.LeaseLost):
        await lock.release()
    assert await other.locked() is True
    await other.release()


async def test_a_failing_hook_is_logged_and_harmless(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="dsync")

    def hook(lease: dsync.Lease) -> None:
        raise ZeroDivisionError

    client = world.client(on_lost=hook)
    with pytest.raises(dsync.LeaseLost):
        async with client.lock("x", lease=0.2, renew=False):
            await asyncio.sleep(30)
    assert "the on_lost hook failed" in caplog.text


async def test_a_read_has_a_truth_value_and_asks_only_when_awaited(world: World) -> None:
    one, two = world.client().lock("x"), world.client().lock("x")
    await one.acquire()
    reply = two.locked()
    assert not reply  # this process knows of nobody
    assert await reply is True
    assert repr(one.locked()) == "<dsync.Reply [True, pending]>"
    await one.release()


async def test_closing_confirms_what_was_sent(world: World) -> None:
    one, two = world.client(), world.client().lock("x")
    lock = one.lock("x")
    await lock.acquire()
    lock.release()
    await one.aclose()
    assert await two.try_acquire()
    await two.release()


async def test_a_failure_after_a_cancelled_await_is_reported(world: World) -> None:
    heard: list[BaseException] = []
    reply: dsync.Reply[None] = dsync.Reply(report=heard.append)
    task = asyncio.create_task(wait_for(reply))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    failure = dsync.StoreUnavailable("gone")
    reply.settle(failure)
    del reply, task
    gc.collect()
    assert heard == [failure]


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_driven_as_a_coroutine_and_left_it_may_be_driven_again(how: str) -> None:
    reply: dsync.Reply[int] = dsync.Reply()
    if how == "cancelled":
        task = asyncio.create_task(reply)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    else:
        reply.send(None)
        reply.close()
    again = asyncio.create_task(reply)
    await asyncio.sleep(0)
    assert not again.done(), "nobody has answered yet"
    reply.settle(5)
    assert await again == 5


async def test_writes_of_events_and_conditions_may_be_awaited_twice_and_by_several(
    world: World,
) -> None:
    client = world.client()
    event, condition = client.event("x"), client.condition("x")
    replies = [event.set(), event.clear()]
    await condition.acquire()
    replies += [condition.notify(), condition.notify_all(), condition.release()]
    for reply in replies:
        await asyncio.gather(wait_for(reply), wait_for(reply))
        assert await reply is None  # type: ignore[func-returns-value]


async def test_writes_take_effect_in_the_order_of_calls_whichever_is_awaited(world: World) -> None:
    client, other = world.client(), world.client().event("x")
    event = client.event("x")
    replies = [event.set(), event.clear(), event.set(), event.clear(), event.set()]
    await replies[-1]
    assert await other.is_set() is True
    for reply in reversed(replies):
        await reply
    assert await event.is_set() is True
    await event.clear()


async def test_a_cancelled_await_of_a_set_sets_it_all_the_same(world: World) -> None:
    event, other = world.client().event("x"), world.client().event("x")
    task = asyncio.create_task(wait_for(event.set()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await other.wait(timeout=5) is True
    await other.clear()


async def test_a_read_of_an_event_says_what_is_known_and_asks_when_awaited(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    await one.set()
    known = two.is_set()
    two_lies = bool(known)
    assert await known is True
    assert bool(known) is two_lies  # what was known then stays what was known then
    assert repr(one.is_set()) == "<dsync.Reply [True, pending]>"
    await one.clear()


async def test_a_release_with_notifications_that_fails_is_reported_or_raised(
    world: World,
) -> None:
    heard: list[BaseException] = []
    client, other = world.client(on_error=heard.append), world.client().condition("x")
    condition = client.condition("x", on_lost="flag")
    for awaited in (True, False):
        await condition.acquire()
        condition.notify_all()
        await world.clients[0].lock("warm up").info()
        await world.expire("condition", "x")
        await other.acquire(timeout=5)
        if awaited:
            with pytest.raises(dsync.LeaseLost):
                await condition.release()
            assert not heard
        else:
            condition.release()
            await settled(lambda: gc.collect() >= 0 and bool(heard))
            assert isinstance(heard[0], dsync.LeaseLost)
        assert other.lock.lease is not None
        assert other.lock.lease.held
        await other.release()
