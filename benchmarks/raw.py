"""What our own link to Redis can do with nothing on top: the floor."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from dsync.redis.link import Link
from dsync.redis.store import RedisStore
from dsync.store import Call

__all__ = ["RawLock", "ask", "raw_link"]

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


class RawLock:
    """The least a lock with a lease can be: SET NX PX, and compare-and-delete.  It cannot wait."""

    def __init__(self, link: Link, key: str, lease: int, release_sha: str) -> None:
        self._link = link
        self._key = key
        self._lease = lease  # ms
        self._release_sha = release_sha
        self._taken = 0

    async def acquire(self) -> None:
        self._taken += 1
        reply = await ask(self._link, "SET", self._key, self._taken, "NX", "PX", self._lease)
        if reply != b"OK":
            raise RuntimeError(f"SET {self._key} NX PX answered {reply!r}; expected OK")

    async def release(self) -> None:
        reply = await ask(self._link, "EVALSHA", self._release_sha, 1, self._key, self._taken)
        if reply != 1:
            raise RuntimeError(f"compare-and-delete of {self._key} answered {reply!r}; expected 1")
