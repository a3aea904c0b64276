"""Connections on which nothing arrives any more, and nobody says so."""

import asyncio
import time
from typing import Any

import pytest

import dsync
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import Through

WAYS = pytest.mark.parametrize("ways", [(), ("requests",), ("replies",)], ids=["both", "to", "fro"])


async def server_ms(real: World) -> float:
    seconds, micros = await real.admin.time()
    return float(seconds * 1000 + micros / 1000)


@WAYS
async def test_an_acquire_with_a_timeout_returns_in_time(
    real: World, proxy: Proxy, through: Through, ways: Any
) -> None:
    client = through()
    await client.check()
    proxy.black_hole(*ways)
    lock = client.lock("x")
    began = time.monotonic()
    with pytest.raises(dsync.AcquireTimeout):
        await lock.acquire(timeout=0.3)
    assert 0.29 < time.monotonic() - began < 0.5
    proxy.heal()
    await client.check()
    async with asyncio.timeout(2):
        assert await lock.acquire()  # nothing of the first one is in the way
    await lock.release()


@WAYS
async def test_the_holder_learns_of_the_loss_before_the_server_gives_the_lock_away(
    real: World, proxy: Proxy, through: Through, ways: Any
) -> None:
    client = through()
    lock = client.lock("x", lease=1.0)
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    proxy.black_hole(*ways)
    await asyncio.wait_for(lease.lost.wait(), 2)
    (ends,) = (await real.admin.zrange(real.key("lock", "x", "holders"), 0, -1, withscores=True))[
        0
    ][1:]
    assert await server_ms(real) < ends
    with pytest.raises(dsync.LeaseLost):
        lock.release()
    proxy.heal()
    async with asyncio.timeout(3):
        async with lock as again:
            assert again.fence is not None
            assert lease.fence is not None
            assert again.fence > lease.fence


async def test_a_body_cut_off_from_the_server_is_cancelled_and_another_process_goes_on(
    real: World, proxy: Proxy, through: Through
) -> None:
    cut_off, other = through().lock("x", lease=1.0), real.client().lock("x")
    with pytest.raises(dsync.LeaseLost):
        async with cut_off:
            proxy.black_hole()
            await asyncio.sleep(10)
    left = time.monotonic()
    await asyncio.wait_for(other.acquire(), 1)
    assert time.monotonic() > left
    proxy.heal()  # the renewals and the release that were held back arrive now
    await real.clients[0].check()
    assert other.lease is not None
    assert other.lease.held
    await other.release()


async def test_an_acquire_without_a_timeout_fails_after_the_outage_timeout(
    real: World, proxy: Proxy, through: Through, held: Any
) -> None:
    client = through(outage_timeout=1.0)
    await client.check()
    proxy.black_hole()
    lock = client.lock("x", lease=2.0)
    began = time.monotonic()
    with pytest.raises(dsync.StoreUnavailable, match="could not be asked for 1 s"):
        await lock.acquire()
    assert 0.9 < time.monotonic() - began < 1.6
    proxy.heal()
    async with asyncio.timeout(4):
        async with lock:
            assert await held() == 1


async def test_a_connection_that_does_not_answer_is_given_up_long_before_the_outage_timeout(
    proxy: Proxy, through: Through, real: World
) -> None:
    """From the first command on, and again after each reconnect: the server itself is well."""
    client = through(outage_timeout=3.0)
    for attempt in range(2):
        await client.check()
        proxy.strand()
        began = time.monotonic()
        await client.lock(f"x{attempt}").acquire()
        assert time.monotonic() - began < 1.0 + 0.5  # a third of the timeout, and a new connection
    proxy.heal()


async def test_waiters_on_a_connection_that_went_silent_are_served_by_the_next_one(
    real: World, proxy: Proxy, through: Through, queued: Any
) -> None:
    """The server thinks it has told us; nothing came.  The beat finds out."""
    client, other = through(outage_timeout=3.0), real.client().lock("x")
    await other.acquire()
    lock = client.lock("x")
    waiting = asyncio.create_task(lock.acquire())
    await queued(1)
    proxy.black_hole()
    await other.release()
    connections = proxy.connections
    await settled(lambda: proxy.connections > connections, "it hangs up and dials again", 5)
    proxy.heal()
    await asyncio.wait_for(waiting, 3)
    assert lock.lease is not None
    assert lock.lease.held
    await lock.release()


async def test_a_holder_with_a_long_lease_survives_a_short_outage(
    proxy: Proxy, through: Through
) -> None:
    client = through(outage_timeout=1.0)
    async with client.lock("x", lease=4.0) as lease:
        await client.check()
        proxy.black_hole()
        left = lease.left
        with pytest.raises(dsync.StoreUnavailable):
            await client.check()
        proxy.heal()
        await settled(lambda: lease.left > left - 0.1, "the lease is renewed again")
        assert lease.held


async def test_closing_a_client_that_is_cut_off_takes_no_longer_than_the_outage_timeout(
    proxy: Proxy, through: Through
) -> None:
    client = through(outage_timeout=0.5)
    lock = client.lock("x", lease=1.0)
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    proxy.black_hole()
    began = time.monotonic()
    await client.aclose()
    assert time.monotonic() - began < 0.8
    assert lease.lost.is_set()
