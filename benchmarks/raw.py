"""The floors: our own link to Redis with nothing on top, and a protocol with nothing around it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

from dsync.redis.link import Link
from dsync.redis.store import RedisStore
from dsync.store import Call

__all__ = ["RawLock", "Send", "ask", "bare_link", "raw_link"]

Send = Callable[..., Awaitable[Any]]  # a command; awaited, its reply

COMPARE_AND_DELETE = """\
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class Pushes:
    """Hands on what is published to us."""

    def __init__(self, on_push: Callable[[list[bytes]], None]) -> None:
        self._on_push = on_push

    def pushed(self, message: list[bytes], evidence: float) -> None:
        self._on_push(message)

    def news(self, channel: str, payload: bytes) -> None:
        self._on_push(payload.split(b" "))

    def tuned(self, channel: str, refused: BaseException | None) -> None:
        pass

    def gap(self) -> None:
        raise ConnectionError("the connection broke during a measurement")


@asynccontextmanager
async def raw_link(
    url: str,
    namespace: str,
    process: str,
    on_push: Callable[[list[bytes]], None] = lambda message: None,
) -> AsyncIterator[Link]:
    """The link of a process that dsync would use, connected; `process` is where pushes reach it."""
    store = RedisStore(process, Pushes(on_push), namespace, url, None, 10.0)
    await store.check()
    assert isinstance(store.link, Link)  # one server, no cluster
    try:
        yield store.link
    finally:
        await store.aclose()


def ask(link: Link, *command: Any) -> "asyncio.Future[Any]":
    """Send a command; the future gets its reply."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answered(call: Call) -> None:
        if not future.done():
            future.set_result(call.reply)

    link.call(command, answered)
    return future


class Bare(asyncio.Protocol):
    """The least that can talk to Redis in Python: no reconnects, no pushes, no deadlines."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._outbox: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, *command: Any) -> "asyncio.Future[Any]":
        """Alone in its tick it leaves at the tick's end, with others together with them."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(hiredis.pack_command(command))
        answer = self._loop.create_future()
        self._answers.append(answer)
        return answer

    def _flush(self) -> None:
        self._transport.write(b"".join(self._outbox))
        self._outbox.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._answers.popleft().set_result(reply)


@asynccontextmanager
async def bare_link(url: str) -> AsyncIterator[Send]:
    """A connection of that kind; without TLS."""
    where = urlsplit(url)
    loop = asyncio.get_running_loop()
    if where.scheme == "unix":
        transport, protocol = await loop.create_unix_connection(Bare, where.path)
    elif where.scheme in ("redis", "valkey"):
        host, port = where.hostname or "localhost", where.port or 6379
        transport, protocol = await loop.create_connection(Bare, host, port)
    else:
        raise ValueError(f"a bare link speaks to redis:// and unix:// only, got {where.scheme}://")
    try:
        if where.password:
            user = unquote(where.username or "default")
            await protocol.send("AUTH", user, unquote(where.password))
        yield protocol.send
    finally:
        transport.close()


class RawLock:
    """The least a lock with a lease can be: SET NX PX, and compare-and-delete.  It cannot wait."""

    def __init__(self, send: Send, key: str, lease: int, release_sha: str) -> None:
        self._send = send
        self._key = key
        self._lease = lease  # ms
        self._release_sha = release_sha
        self._taken = 0

    async def acquire(self) -> None:
        self._taken += 1
        reply = await self._send("SET", self._key, self._taken, "NX", "PX", self._lease)
        if reply != b"OK":
            raise RuntimeError(f"SET {self._key} NX PX answered {reply!r}; expected OK")

    async def release(self) -> None:
        reply = await self._send("EVALSHA", self._release_sha, 1, self._key, self._taken)
        if reply != 1:
            raise RuntimeError(f"compare-and-delete of {self._key} answered {reply!r}; expected 1")
