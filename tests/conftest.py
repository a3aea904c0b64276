"""`world`: one store of each kind under the same tests; a test must leave nothing behind in it."""

import asyncio
import importlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import fakeredis
import pytest
import redis.asyncio

import dsync
from dsync.local.permits import Permits
from dsync.local.store import MemoryStore
from dsync.names import tag
from dsync.server import Server
from tests.cluster.rig import Admin, Cluster

STORES = ("memory", "fakeredis", "server", "cluster")
# "all": the whole contract on a cluster as well, in minutes; else these, in seconds.
CLUSTER = os.environ.get("DSYNC_TEST_CLUSTER", "some")
ON_A_CLUSTER = ("test_lock.py", "test_semaphore.py", "test_event.py")
# The server that the tests start, such as /usr/bin/redis-server; None: the embedded Valkey.
BINARY = os.environ.get("DSYNC_TEST_SERVER")
# "2": it speaks RESP2 and nothing else, as some proxies do.
PROTOCOL = os.environ.get("DSYNC_TEST_PROTOCOL", "3")
LOOP = os.environ.get("DSYNC_TEST_LOOP", "asyncio")  # or uvloop
ONE_CONNECTION = pytest.mark.skipif(
    PROTOCOL == "2", reason="it looks into the one connection, and RESP2 takes two"
)
# What the guarantees say that a user needs.
RIGHTS = ("+@read", "+@write", "+@scripting", "+@pubsub", "+time", "+ping", "+client|setname")
CLUSTER_RIGHTS = ("+cluster|slots", "+asking")
# The parts of a record that are empty when nobody holds or waits.
LIVELY = ("holders", "waiters", "sleepers", "arrivals", "draining")


if LOOP != "asyncio":

    def pytest_asyncio_loop_factories(
        config: pytest.Config, item: pytest.Item
    ) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Run every test in a loop of $DSYNC_TEST_LOOP's."""
        return {LOOP: importlib.import_module(LOOP).new_event_loop}


def start_server(port: int = 0) -> Server:
    """A server of the kind that is tested, for one's own."""
    without = ("--rename-command", "HELLO", "") if PROTOCOL == "2" else ()
    return Server.start(port=port, binary=BINARY, extra_args=without)


def url_of(server: Server) -> str:
    """Where clients find it, and how they speak to it."""
    return server.url + ("?protocol=2" if PROTOCOL == "2" else "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what need not run on a cluster each time."""
    for item in list(items):
        params = getattr(getattr(item, "callspec", None), "params", {})
        chosen = CLUSTER == "all" or item.path.name in ON_A_CLUSTER
        if params.get("world") == "cluster" and not chosen:
            items.remove(item)
            config.hook.pytest_deselected(items=[item])


class World:
    """A store to test against.  Each client made here stands for a process of its own."""

    restricted = True  # clients of a server have the rights that are documented and no others

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.namespace = f"t-{uuid.uuid4().hex[:12]}"
        self.clients: list[dsync.Client] = []
        self.errors: list[BaseException] = []  # what `on_error` was called with
        self.admin: Any = None  # a redis client of the test's own, where there is a server
        self.fake = fakeredis.FakeServer() if kind == "fakeredis" else None
        self.leftovers_allowed = False  # a test that kills or cuts clients off sets this
        self._direct = url

    @property
    def real(self) -> bool:
        """Whether this is a server with sockets: timing and cancellation are proved here only."""
        return self.kind in ("server", "cluster")

    def client(self, **kwargs: Any) -> dsync.Client:
        """Another process."""
        kwargs.setdefault("namespace", self.namespace)
        kwargs.setdefault("on_error", self.errors.append)
        if self.kind == "fakeredis":
            own = fakeredis.FakeAsyncRedis(server=self.fake)
            client = dsync.Client(redis=own, **kwargs)
        else:
            client = dsync.Client(self.url, **kwargs)
        self.clients.append(client)
        return client

    async def open(self) -> None:
        if self.real:
            clustered = self.kind == "cluster"
            self.admin = (Admin if clustered else redis.asyncio.Redis.from_url)(self._direct)
            if self.restricted:
                self.url = await self._restricted_user()
        elif self.kind == "fakeredis":
            self.admin = fakeredis.FakeAsyncRedis(server=self.fake)

    async def _restricted_user(self) -> str:
        """-> the URL of a user of this test"""
        password = uuid.uuid4().hex
        one = self.kind == "server"
        await self.admin.execute_command(
            "ACL", "SETUSER", self.namespace, "reset", "on", f">{password}", *RIGHTS,
            *(() if one else CLUSTER_RIGHTS),
            f"~{{{self.namespace}*", f"&{'' if one else '{'}{self.namespace}*",
        )  # fmt: skip
        return self.url_of(self.namespace, password)

    def url_of(self, user: str, password: str) -> str:
        """The server's URL for another user."""
        parts = urlsplit(self._direct)
        netloc = f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"
        return parts._replace(netloc=netloc).geturl()

    async def keys(self) -> dict[str, int]:
        """Every key of this test's namespace, with its time to live in ms (-1: none)."""
        if self.admin is None:
            return {}
        found: dict[str, int] = {}
        async for key in self.admin.scan_iter(match=f"{{{self.namespace}:*"):
            found[key.decode()] = await self.admin.pttl(key)
        return found

    def key(self, kind: str, name: str, part: str) -> str:
        return f"{tag(self.namespace, kind, name)}:{part}"

    async def expire(self, kind: str, name: str) -> None:
        """End every lease of this record now, as the server sees it."""
        if self.admin is None:
            store = self.clients[0].store
            assert isinstance(store, MemoryStore)
            permits = store.memory.records[tag(self.namespace, kind, name)]
            assert isinstance(permits, Permits)
            for token in permits.holders:
                permits.holders[token] = 1
            return
        key = self.key(kind, name, "holders")
        for token in await self.admin.zrange(key, 0, -1):
            await self.admin.zadd(key, {token: 1})

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()
        try:
            for key, ttl in (await self.keys()).items():
                if f"{{{self.namespace}:event:" not in key:  # one that is set outlives everybody
                    assert ttl != -1, f"{key} was left without a time to live"
                part = key.partition("}:")[2].partition(":")[0]
                if not self.leftovers_allowed:
                    assert part not in LIVELY, f"{key} was left behind"
            if self.kind == "memory":
                for client in self.clients:
                    store = client.store
                    if isinstance(store, MemoryStore) and store._memory is not None:
                        for key, state in store._memory.records.items():
                            if f"{{{self.namespace}:" in key and not self.leftovers_allowed:
                                for part in LIVELY:
                                    assert not getattr(state, part, None), f"{part} of {key}"
        finally:
            if self.url != self._direct:
                await self.admin.execute_command("ACL", "DELUSER", self.namespace)
            if self.admin is not None:
                await self.admin.aclose()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for the whole session."""
    with start_server() as started:
        yield started


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """Where it is, or what $DSYNC_TEST_URL names."""
    url = os.environ.get("DSYNC_TEST_URL")
    if url:
        return url
    return url_of(request.getfixturevalue("server"))


@pytest.fixture(scope="session")
def cluster_url() -> Iterator[str]:
    """A cluster of three servers for the whole session."""
    with Cluster(3, node_timeout=15_000) as started:
        yield started.url


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The same test against every store."""
    before = asyncio.all_tasks()
    kind: str = request.param
    url = f"memory://{uuid.uuid4()}"
    if kind in ("server", "cluster"):
        url = request.getfixturevalue(f"{kind}_url")
    made = World(kind, url)
    await made.open()
    yield made
    await made.close()
    await settled(lambda: not left_running(before), lambda: f"left running: {left_running(before)}")
    assert not made.errors, f"errors nobody awaited: {made.errors}"


@pytest.fixture
async def real(server_url: str) -> AsyncIterator[World]:
    """A real server only: for what the others cannot show."""
    before = asyncio.all_tasks()
    made = World("server", server_url)
    await made.open()
    yield made
    await made.close()
    await settled(lambda: not left_running(before), lambda: f"left running: {left_running(before)}")
    assert not made.errors, f"errors nobody awaited: {made.errors}"


def left_running(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() - before if task is not current}


async def settled(
    condition: Callable[[], bool | Awaitable[bool]],
    what: str | Callable[[], str] = "the condition",
    within: float = 5.0,
) -> None:
    """Wait until the condition holds; it is a state that is waited for, never a time."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(
                f"not within {within} s: {what if isinstance(what, str) else what()}"
            )
        await asyncio.sleep(0.002)
