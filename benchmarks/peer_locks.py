"""Locks of other packages in one shape: url, namespace and lease in, locks by name out.

Each is used as its documentation says, with its own defaults, a lease, and a pool that lets as many
tasks in as there are.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from logging import ERROR, getLogger
from typing import Any

import redis
import redis.asyncio

from benchmarks.peers import load

__all__ = ["BLOCKING", "COREDIS", "FIFO", "PEER_LOCKS"]

THREADS = 64
CONNECTIONS = 2000

COREDIS = "coredis, Lock"
FIFO = "redis-fifo-lock, FifoLock"
BLOCKING = "python-redis-lock, in threads"
POTTERY = "pottery, AIORedlock"
MUTEX = "py-redis-semaphore, Mutex"


class Pair:
    """A lock of two functions."""

    def __init__(
        self, acquire: Callable[[], Awaitable[object]], release: Callable[[], Awaitable[object]]
    ) -> None:
        self.acquire, self.release = acquire, release


@asynccontextmanager
async def coredis_lock(url: str, namespace: str, lease: float = 30.0) -> AsyncIterator[Any]:
    client = load("coredis").Redis.from_url(url, max_connections=CONNECTIONS)
    async with client:
        yield lambda name: client.lock(f"{namespace}:{name}", timeout=lease)


@asynccontextmanager
async def fifo_lock(url: str, namespace: str, lease: float = 30.0) -> AsyncIterator[Any]:
    # It warns for each lock whose server it could not ask for its settings at once.
    getLogger("redis_fifo_lock").setLevel(ERROR)
    FifoLock = load("redis_fifo_lock").FifoLock

    async with redis.asyncio.Redis.from_url(url, max_connections=CONNECTIONS) as client:

        def make(name: str) -> Pair:
            lock = FifoLock(client, f"{namespace}:{name}", lease_ms=int(1000 * lease))
            held: list[Any] = []

            async def acquire() -> None:
                held.append(await lock.acquire())

            return Pair(acquire, lambda: lock.release(held.pop()))

        yield make


@asynccontextmanager
async def threaded_lock(url: str, namespace: str, lease: float = 30.0) -> AsyncIterator[Any]:
    """It blocks, so an asyncio program has to call it in threads."""
    Lock = load("redis_lock").Lock

    client = redis.Redis.from_url(url, max_connections=CONNECTIONS)
    threads = ThreadPoolExecutor(THREADS)
    loop = asyncio.get_running_loop()

    def make(name: str) -> Pair:
        lock = Lock(client, f"{namespace}:{name}", expire=max(1, int(lease)))
        return Pair(
            lambda: loop.run_in_executor(threads, lock.acquire),
            lambda: loop.run_in_executor(threads, lock.release),
        )

    try:
        yield make
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        client.close()


@asynccontextmanager
async def pottery_lock(url: str, namespace: str, lease: float = 30.0) -> AsyncIterator[Any]:
    AIORedlock = load("pottery").AIORedlock

    async with redis.asyncio.Redis.from_url(url, max_connections=CONNECTIONS) as client:
        yield lambda name: AIORedlock(
            key=f"{namespace}:{name}", masters={client}, auto_release_time=lease
        )


@asynccontextmanager
async def mutex(url: str, namespace: str, lease: float = 30.0) -> AsyncIterator[Any]:
    Mutex = load("redis_semaphore").Mutex

    async with redis.asyncio.Redis.from_url(url, max_connections=CONNECTIONS) as client:

        def make(name: str) -> Pair:
            lock = Mutex(client, name, lock_timeout=lease, namespace=namespace)
            return Pair(lock.aacquire, lock.arelease)

        yield make


PEER_LOCKS = {
    COREDIS: coredis_lock,
    FIFO: fifo_lock,
    BLOCKING: threaded_lock,
    POTTERY: pottery_lock,
    MUTEX: mutex,
}
