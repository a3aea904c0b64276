"""Older ways to speak with a server, through a client of one's own: RESP2, and without hiredis."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio
from redis._parsers import _AsyncRESP2Parser, _AsyncRESP3Parser

import dsync
from dsync.redis.pooled import PooledLink
from dsync.redis.wire import Wire
from dsync.server import Server
from tests.conftest import BINARY, World, left_running, settled
from tests.test_links import OwnConnection


@pytest.fixture(scope="module")
def resp2_only() -> Iterator[str]:
    """A server that speaks RESP2 and has no HELLO, as old ones and some proxies."""
    without = ("--rename-command", "HELLO", "")
    with Server.start(port=0, binary=BINARY, extra_args=without) as server:
        yield f"{server.url}?protocol=2"


class Ours(World):
    """A world whose clients go through clients of redis-py's, made as the test wants them."""

    restricted = False

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__("server", url)
        self.options = options
        self.lent: list[redis.asyncio.Redis] = []

    def client(self, **kwargs: Any) -> dsync.Client:
        pool = redis.asyncio.ConnectionPool.from_url(self.url, **self.options)
        self.lent.append(redis.asyncio.Redis.from_pool(pool))
        client = dsync.Client(
            redis=self.lent[-1], namespace=self.namespace, on_error=self.errors.append, **kwargs
        )
        self.clients.append(client)
        return client

    async def close(self) -> None:
        await super().close()
        for lent in self.lent:
            assert await lent.ping(), "it is not ours to close"
            await lent.aclose()


@pytest.fixture
async def ours(request: pytest.FixtureRequest) -> AsyncIterator[Ours]:
    before = asyncio.all_tasks()
    fixture, options = request.param
    made = Ours(request.getfixturevalue(fixture), **options)
    await made.open()
    yield made
    await made.close()
    await settled(lambda: not left_running(before), lambda: f"left running: {left_running(before)}")
    assert not made.errors, f"errors nobody awaited: {made.errors}"


RESP2 = {"connection_class": OwnConnection}
WAYS = {
    "RESP2 by a plain client": ("resp2_only", {}),
    "RESP2": ("resp2_only", RESP2),
    "RESP2 without hiredis": ("resp2_only", {**RESP2, "parser_class": _AsyncRESP2Parser}),
    "RESP2 with decoded replies": ("resp2_only", {**RESP2, "decode_responses": True}),
    "RESP3 without hiredis": (
        "server_url",
        {"connection_class": OwnConnection, "protocol": 3, "parser_class": _AsyncRESP3Parser},
    ),
    "RESP3 without hiredis, taken over": (
        "server_url",
        {"protocol": 3, "parser_class": _AsyncRESP3Parser},
    ),
}


async def test_a_url_that_asks_for_resp2_gets_it_and_its_connections_are_closed(
    resp2_only: str,
) -> None:
    world = World("server", resp2_only)
    await world.open()
    assert "protocol=2" in world.url
    one, two = world.client(), world.client()
    lock, other = one.lock("x"), two.lock("x")
    async with lock:
        waiting = asyncio.create_task(other.acquire())
        await settled(lambda: waits(lock), "it waits")
    async with asyncio.timeout(1):
        await waiting
    await other.release()
    await world.close()
    admin = redis.asyncio.Redis.from_url(resp2_only)

    async def nobody_is_left() -> bool:
        return len(await admin.client_list()) == 1

    await settled(nobody_is_left, "the connections are closed")
    await admin.aclose()


async def test_a_server_without_resp3_says_how_to_reach_it(resp2_only: str) -> None:
    client = dsync.Client(resp2_only.partition("?")[0], namespace="t-resp2")
    with pytest.raises(dsync.StoreUnavailable, match=r"RESP3.*\?protocol=2"):
        await client.check()
    await client.aclose()


EVERY_WAY = pytest.mark.parametrize("ours", WAYS.values(), ids=list(WAYS), indirect=True)


@EVERY_WAY
async def test_waiters_of_other_processes_are_told_and_do_not_poll(ours: Ours) -> None:
    one, two = ours.client(), ours.client()
    wire = not ours.options.keys() & {"connection_class"} and "protocol=2" not in ours.url
    link = Wire if wire else PooledLink
    assert type(one.store.link) is link  # type: ignore[attr-defined]
    lock, other = one.lock("x"), two.lock("x")
    await lock.acquire()
    waiting = asyncio.create_task(other.acquire())
    await settled(lambda: two.listening(), "it listens")
    await settled(lambda: waits(lock), "it waits")
    first, began = lock.fence, time.monotonic()
    await lock.release()
    await waiting
    assert time.monotonic() - began < 1, "a heartbeat is 2 s"
    assert first is not None
    assert other.fence is not None
    assert other.fence > first
    await other.release()


async def waits(lock: dsync.Lock) -> bool:
    return len((await lock.info()).waiters) == 1


@EVERY_WAY
async def test_every_primitive_works_between_two_processes(ours: Ours) -> None:
    one, two = ours.client(), ours.client()
    async with asyncio.timeout(20):
        async with one.semaphore("s", 2), two.semaphore("s", 2):
            assert not await two.semaphore("s", 2).try_acquire()
        waiting = asyncio.create_task(two.event("e").wait())
        await one.event("e").set()
        assert await waiting
        await one.event("e").clear()
        indexes = await asyncio.gather(one.barrier("b", 2).wait(), two.barrier("b", 2).wait())
        assert sorted(indexes) == [0, 1]
        assert (await one.rate_limiter("r", 5).try_acquire(5)).allowed
        assert not (await two.rate_limiter("r", 5).try_acquire(5)).allowed
        async with two.event_bus().subscribe("x") as messages:
            await one.event_bus().trigger("x", {"é": "✓"})
            message = await anext(messages)
        assert isinstance(message, dsync.Message)
        assert message.data == {"é": "✓"}
        condition, notifying = one.condition("c"), two.condition("c")
        async with condition:
            notified = asyncio.create_task(condition.wait())
            await asyncio.sleep(0)
            # Notified when it sleeps: the lock is free then.
            async with notifying:
                notifying.notify()
            await notified


@EVERY_WAY
async def test_who_is_cut_off_goes_on(ours: Ours) -> None:
    one, two = ours.client(), ours.client()
    lock, other = one.lock("x"), two.lock("x")
    async with lock as lease:
        waiting = asyncio.create_task(other.acquire())
        await settled(lambda: waits(lock), "it waits")
        for kind in ("normal", "pubsub"):
            await ours.admin.client_kill_filter(_type=kind, skipme=True)
        assert lease.held
    async with asyncio.timeout(5):
        await waiting
        await other.release()
