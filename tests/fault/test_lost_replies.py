"""The server did it, and its answer was lost."""

import asyncio
from typing import Any

import pytest

import dsync
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import Through


async def warmed(client: dsync.Client) -> None:
    """The scripts are on the server: the next request is the one that counts."""
    async with client.lock("warm"), client.semaphore("warm", 2):
        pass
    await client.semaphore("warm", 2).release()


async def test_an_acquire_whose_reply_was_lost_holds_exactly_once(
    proxy: Proxy, through: Through, held: Any
) -> None:
    client = through()
    await warmed(client)
    cut = proxy.swallow_replies_then_cut()
    lock = client.lock("x")
    assert await lock.acquire()
    assert cut.done()
    assert lock.lease is not None
    assert lock.lease.held
    assert await held() == 1
    await lock.release()
    assert await held() == 0


async def test_a_try_acquire_whose_reply_was_lost_holds_exactly_once(
    proxy: Proxy, through: Through, held: Any
) -> None:
    client = through()
    await warmed(client)
    cut = proxy.swallow_replies_then_cut()
    lock = client.lock("x")
    assert await lock.try_acquire()
    assert cut.done()
    assert await held() == 1
    await lock.release()
    assert await held() == 0


async def test_a_release_whose_reply_was_lost_is_no_loss_and_frees_the_lock(
    proxy: Proxy, through: Through, held: Any
) -> None:
    client = through()
    await warmed(client)
    async with client.lock("x"):
        cut = proxy.swallow_replies_then_cut()
    assert cut.done()
    assert await held() == 0


async def test_a_release_asked_twice_does_not_touch_the_next_holder(
    real: World, proxy: Proxy, through: Through, queued: Any, held: Any
) -> None:
    client, next_one = through(), real.client().lock("x")
    await warmed(client)
    lock = client.lock("x")
    await lock.acquire()
    waiting = asyncio.create_task(next_one.acquire())
    await queued(1)
    cut = proxy.swallow_replies_then_cut()
    await lock.release()
    assert cut.done()
    await waiting
    assert next_one.lease is not None
    assert next_one.lease.held
    assert await held() == 1
    await next_one.release()


async def test_a_permit_whose_reply_was_lost_is_held_once_and_freed_once(
    proxy: Proxy, through: Through, held: Any
) -> None:
    client = through()
    await warmed(client)
    semaphore = client.semaphore("x", 2)
    cut = proxy.swallow_replies_then_cut()
    await semaphore.acquire()
    assert cut.done()
    assert (await semaphore.info()).held == 1
    assert await held(kind="semaphore") == 1
    cut = proxy.swallow_replies_then_cut()
    await semaphore.release()
    assert cut.done()
    info = await semaphore.info()
    assert (info.held, info.value) == (0, 2)


async def test_a_signal_whose_reply_was_lost_counts_once(proxy: Proxy, through: Through) -> None:
    client = through()
    await warmed(client)
    semaphore = client.semaphore("x", 2)
    cut = proxy.swallow_replies_then_cut()
    await semaphore.release()
    assert cut.done()
    assert (await semaphore.info()).value == 3


async def test_an_answer_lost_in_the_queue_costs_neither_the_place_nor_the_grant(
    real: World, proxy: Proxy, through: Through, queued: Any, held: Any
) -> None:
    client, other = through(), real.client().lock("x")
    await warmed(client)
    await other.acquire()
    lock = client.lock("x")
    cut = proxy.swallow_replies_then_cut()
    waiting = asyncio.create_task(lock.acquire())
    await cut
    await queued(1)
    proxy.cut()  # and the message of the grant is lost as well
    await other.release()
    await asyncio.wait_for(waiting, 2)
    assert await held() == 1
    await lock.release()


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_a_broken_connection_is_replaced_unnoticed_and_the_holder_keeps_its_lease(
    proxy: Proxy, through: Through, how: str
) -> None:
    client = through()
    lock = client.lock("x", lease=2.0)
    async with lock as lease:
        for _ in range(3):
            before = proxy.connections
            getattr(proxy, how)()
            await settled(lambda: proxy.connections > before)  # noqa: B023
            await client.check()
            assert lease.held


async def late_copy_arrives(real: World, proxy: Proxy) -> None:
    """What a stranded connection still had to say reaches the server, and is carried out."""
    before = len(await real.admin.client_list())
    proxy.heal()

    async def gone() -> bool:
        return len(await real.admin.client_list()) < before

    await settled(gone, "the server has read it to its end")


async def test_a_copy_of_an_acquire_that_arrives_after_the_release_gets_nothing(
    real: World, proxy: Proxy, through: Through, held: Any
) -> None:
    client = through(outage_timeout=1.5)
    await warmed(client)
    proxy.strand()
    lock = client.lock("x")
    await lock.acquire()  # on a second connection, after the first one was given up
    await lock.release()
    await late_copy_arrives(real, proxy)
    assert await held() == 0
    assert await real.client().lock("x").try_acquire()


async def test_a_copy_of_a_try_that_arrives_after_its_refusal_gets_nothing(
    real: World, proxy: Proxy, through: Through, held: Any
) -> None:
    client, holder = through(outage_timeout=1.5), real.client().lock("x")
    await warmed(client)
    await holder.acquire()
    proxy.strand()
    assert not await client.lock("x").try_acquire()  # by way of a second connection
    await client.check()
    await holder.release()
    await late_copy_arrives(real, proxy)
    assert await held() == 0


async def test_a_copy_of_an_acquire_that_arrives_after_its_cancellation_gets_nothing(
    real: World, proxy: Proxy, through: Through, held: Any, queued: Any
) -> None:
    client, holder = through(outage_timeout=1.5), real.client().lock("x")
    await warmed(client)
    await holder.acquire()
    proxy.strand()
    waiting = asyncio.create_task(client.lock("x").acquire())
    await queued(1)  # by way of a second connection
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await queued(0)
    await holder.release()
    await late_copy_arrives(real, proxy)
    assert await held() == 0
    await queued(0)


async def test_a_cancelled_acquire_leaves_nothing_behind_whenever_the_cancel_comes(
    real: World, proxy: Proxy, through: Through, held: Any
) -> None:
    """The orphan recipe: the reply is under way when the caller gives up."""
    client = through()
    await warmed(client)
    proxy.delay = 0.02
    lock = client.lock("x")
    for attempt in range(20):
        acquiring = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0.020 + 0.001 * attempt)
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=True)
        if not acquiring.cancelled():
            lock.release()

        async def gone() -> bool:
            waiting = await real.admin.zcard(real.key("lock", "x", "waiters"))
            return (await held(), waiting) == (0, 0)

        # Once the compensation has had the time to arrive there is nothing, and it stays so.
        await client.check()
        assert await gone()
        assert lock.lease is None
    proxy.delay = 0
    assert await real.client().lock("x").try_acquire()
