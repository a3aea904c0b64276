"""Locks of each make, in one shape: who competes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import redis.asyncio

import dsync
from benchmarks.measure import Slice
from benchmarks.peer_locks import PEER_LOCKS
from benchmarks.raw import COMPARE_AND_DELETE, RawLock, ask, bare_link, raw_link

__all__ = [
    "BARE", "DSYNC", "FAIR", "FLOOR", "LINGER", "LOCKS", "PEER", "PLAIN", "QUICK_PEER", "Lock",
    "Make", "dismiss", "each_of",
]  # fmt: skip

DSYNC = "dsync"
FAIR = "dsync fair=True"
PLAIN = "dsync, release() not awaited"
LINGER = "dsync linger=0.005"
FLOOR = "floor: SET NX PX + compare-and-delete"
BARE = "the same over a Protocol and hiredis alone"
PEER = "redis.asyncio.Lock"
QUICK_PEER = "redis.asyncio.Lock sleep=0.01"


class Lock(Protocol):
    """What all of them can do."""

    def acquire(self) -> Awaitable[object]: ...

    def release(self) -> Awaitable[object]: ...


Make = Callable[[str], Lock]  # name -> a lock
Opened = AbstractAsyncContextManager[Make]


async def dismiss(waiting: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel those who wait, until they have ended: on Python 3.11 redis-py loses cancellations."""
    pending = set(waiting)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)


@asynccontextmanager
async def _dsync(
    url: str, namespace: str, lease: float = 30.0, **terms: Any
) -> AsyncIterator[Make]:
    async with dsync.connect(url, namespace=namespace) as client:
        yield lambda name: client.lock(name, lease=lease, **terms)


class Plain:
    """A lock released by asyncio's plain call: what comes next does not wait for the answer."""

    def __init__(self, lock: dsync.Lock) -> None:
        self.acquire = lock.acquire
        self._release = lock.release

    async def release(self) -> None:
        self._release()


@asynccontextmanager
async def _plain(url: str, namespace: str) -> AsyncIterator[Make]:
    async with _dsync(url, namespace) as make:
        yield lambda name: Plain(make(name))  # type: ignore[arg-type]


@asynccontextmanager
async def _raw(url: str, namespace: str, lease: float = 30.0) -> AsyncIterator[Make]:
    async with raw_link(url, namespace, "raw") as link:
        sha = (await ask(link, "SCRIPT", "LOAD", COMPARE_AND_DELETE)).decode()
        send = partial(ask, link)
        yield lambda name: RawLock(send, f"{namespace}:{name}", int(lease * 1000), sha)


@asynccontextmanager
async def _bare(url: str, namespace: str, lease: float = 30.0) -> AsyncIterator[Make]:
    async with bare_link(url) as send:
        sha = (await send("SCRIPT", "LOAD", COMPARE_AND_DELETE)).decode()
        yield lambda name: RawLock(send, f"{namespace}:{name}", int(lease * 1000), sha)


@asynccontextmanager
async def _redis_py(
    url: str, namespace: str, lease: float = 30.0, sleep: float = 0.1
) -> AsyncIterator[Make]:
    # The pool's default of 100 connections makes 200 tasks fail.
    client = redis.asyncio.Redis.from_url(url, max_connections=2000)

    def make(name: str) -> Any:
        return client.lock(f"{namespace}:{name}", timeout=lease, sleep=sleep)

    async with client:
        yield make


# (url, namespace, lease=30.0) -> locks by name.
LOCKS: Mapping[str, Callable[..., Opened]] = {
    DSYNC: _dsync,
    FAIR: partial(_dsync, fair=True),
    PLAIN: _plain,
    LINGER: partial(_dsync, linger=0.005),
    FLOOR: _raw,
    BARE: _bare,
    PEER: _redis_py,
    QUICK_PEER: partial(_redis_py, sleep=0.01),
    **PEER_LOCKS,
}


def each_of(
    names: Iterable[str], run: Callable[..., Any], *args: object, without: Iterable[str] = ()
) -> dict[str, Slice | None]:
    """Contenders: `run(name, *args, rig)` for some, and for all peers except those that cannot."""
    able: dict[str, Slice | None] = {who: partial(run, who, *args) for who in names}
    for who in PEER_LOCKS:
        able[who] = None if who in without else partial(run, who, *args)
    return able
