"""Primitives that are broken on purpose: what looks for faults has to find theirs.

Each public function stands in for `dsync.connect()`: `python -m chaos --broken no_exclusion`.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import redis.asyncio

import dsync
import dsync.local
from dsync.leader import Election, Leader

__all__ = [
    "backward_observer",
    "check_then_act",
    "early_barrier",
    "forgetful_event",
    "late_release",
    "leaky_bus",
    "lost_notify",
    "no_exclusion",
    "private_limiter",
    "tokenless_release",
    "wide_notify",
]

LEASE_MS = 100  # that is not renewed
LATE = 0.05  # seconds by which a loss is noticed before the server does, and a release comes after


class Lease:
    """What a body gets."""

    held = True

    def __init__(self, fence: int | None) -> None:
        self.fence = fence


class NoExclusion:
    """A lock that excludes nobody; its fences grow."""

    def __init__(self, redis: Any, name: str) -> None:
        self.name = name

    async def __aenter__(self) -> Lease:
        return Lease(time.monotonic_ns())

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.sleep(0)


class CheckThenAct:
    """A semaphore that looks first and takes then, in two round trips."""

    def __init__(self, redis: Any, name: str, value: int) -> None:
        self.name = name
        self._redis = redis
        self._value = value

    async def __aenter__(self) -> Lease:
        while True:
            if int(await self._redis.get(self.name) or 0) < self._value:
                await self._redis.incr(self.name)
                return Lease(None)
            await asyncio.sleep(0.005)

    async def __aexit__(self, *exc_info: object) -> None:
        await self._redis.decr(self.name)


class Expiring:
    """A lock that ends its body in time, and releases late: deletes whatever is there by then.

    With `token` it deletes only what is its own, and nothing is wrong with it.
    """

    DELETE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
    _numbers = itertools.count()

    def __init__(self, redis: Any, name: str, on_lost: Callable[[Lease], object], token: bool):
        self.name = name
        self._redis = redis
        self._on_lost = on_lost
        self._token = token
        self._bodies: dict[Any, tuple[str, asyncio.Timeout, Lease]] = {}

    async def __aenter__(self) -> Lease:
        token = f"{id(self)}.{time.monotonic_ns()}.{next(self._numbers)}"
        asked = time.monotonic()
        while not await self._redis.set(self.name, token, nx=True, px=LEASE_MS):
            await asyncio.sleep(0.005)
            asked = time.monotonic()
        fence = await self._redis.incr(f"{self.name}:fence")
        loop = asyncio.get_running_loop()
        left = LEASE_MS / 1000 - LATE - (time.monotonic() - asked)
        body = asyncio.timeout_at(loop.time() + max(left, 0))
        await body.__aenter__()
        lease = Lease(fence)
        self._bodies[asyncio.current_task()] = token, body, lease
        return lease

    async def __aexit__(self, *exc_info: Any) -> None:
        token, body, lease = self._bodies.pop(asyncio.current_task())
        late = False
        try:
            await body.__aexit__(*exc_info)
        except TimeoutError:
            late = True
            self._on_lost(lease)
            await asyncio.sleep(2 * LATE)
        if self._token:
            await self._redis.eval(self.DELETE, 1, self.name, token)
        else:
            await self._redis.delete(self.name)
        if late:
            raise dsync.LeaseLost("it ran out")


class Client:
    """Makes them, where a program asks for a lock or a semaphore."""

    def __init__(self, redis: Any, kind: str, on_lost: Callable[[Lease], object]) -> None:
        self._redis = redis
        self._kind = kind
        self._on_lost = on_lost

    def lock(self, name: str, **terms: Any) -> Any:
        if self._kind == "no exclusion":
            return NoExclusion(self._redis, name)
        token = self._kind == "late release"
        return Expiring(self._redis, name, self._on_lost, token)

    def semaphore(self, name: str, value: int, **terms: Any) -> CheckThenAct:
        return CheckThenAct(self._redis, name, value)


Connected = AbstractAsyncContextManager[Client]


@asynccontextmanager
async def _connect(url: str, kind: str, on_lost: Any) -> AsyncIterator[Client]:
    async with redis.asyncio.Redis.from_url(url) as server:
        yield Client(server, kind, on_lost)


def no_exclusion(url: str, *, on_lost: Any, **settings: Any) -> Connected:
    """A lock that excludes nobody."""
    return _connect(url, "no exclusion", on_lost)


def check_then_act(url: str, *, on_lost: Any, **settings: Any) -> Connected:
    """A semaphore that checks, then acts."""
    return _connect(url, "check then act", on_lost)


def tokenless_release(url: str, *, on_lost: Any, **settings: Any) -> Connected:
    """A lock whose late release deletes its successor's."""
    return _connect(url, "tokenless release", on_lost)


def late_release(url: str, *, on_lost: Any, **settings: Any) -> Connected:
    """The same with a token: right, but for the leases that it loses."""
    return _connect(url, "late release", on_lost)


# -- what is right but for one thing: the rest of it is dsync's ------------------------------------

SELDOM = 0.1  # of all times it goes wrong, where it does not always
OFTEN = 0.3


class Instead:
    """Something of dsync's, and what stands in for some of it."""

    def __init__(self, real: Any, **parts: Any) -> None:
        self._real = real
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return self._parts[name] if name in self._parts else getattr(self._real, name)

    async def __aenter__(self) -> Any:
        return await self._real.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._real.__aexit__(*exc_info)


@asynccontextmanager
async def _dsync(
    url: str, settings: dict[str, Any], kind: str, spoil: Callable[..., Any]
) -> AsyncIterator[Instead]:
    client: dsync.Client
    async with dsync.connect(url, **settings) as client:

        def make(*args: Any, **terms: Any) -> Any:
            return spoil(getattr(client, kind)(*args, **terms), *args)

        yield Instead(client, **{kind: make})


def forgetful_event(url: str, **settings: Any) -> AbstractAsyncContextManager[Instead]:
    """An event that forgets at times who waits for it, until it comes again."""

    def spoil(event: dsync.Event, name: str) -> Instead:
        async def wait() -> bool:
            if random.random() < SELDOM:
                await event.wait()
            return await event.wait()

        return Instead(event, wait=wait)

    return _dsync(url, settings, "event", spoil)


def wide_notify(url: str, **settings: Any) -> AbstractAsyncContextManager[Instead]:
    """A condition whose `notify(n)` wakes one more at times."""

    def spoil(condition: dsync.Condition, *args: Any) -> Instead:
        def notify(n: int = 1) -> object:
            return condition.notify(n + (random.random() < OFTEN))

        return Instead(condition, notify=notify)

    return _dsync(url, settings, "condition", spoil)


def lost_notify(url: str, **settings: Any) -> AbstractAsyncContextManager[Instead]:
    """A condition whose `notify(n)` wakes one less at times."""

    def spoil(condition: dsync.Condition, *args: Any) -> Instead:
        def notify(n: int = 1) -> object:
            return condition.notify(n - (random.random() < OFTEN))

        return Instead(condition, notify=notify)

    return _dsync(url, settings, "condition", spoil)


def early_barrier(url: str, **settings: Any) -> AbstractAsyncContextManager[Instead]:
    """A barrier that lets one pass at times before the others have come."""

    def spoil(barrier: dsync.Barrier, name: str, parties: int) -> Instead:
        async def wait() -> int:
            early = random.random() < SELDOM
            return random.randrange(parties) if early else await barrier.wait()

        return Instead(barrier, wait=wait)

    return _dsync(url, settings, "barrier", spoil)


class Leaky:
    """A stream that loses a message at times, and says nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[Any]:
        messages = await self._stream.__aenter__()
        return (message async for message in messages if random.random() > SELDOM)

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stream.__aexit__(*exc_info)


def leaky_bus(url: str, **settings: Any) -> AbstractAsyncContextManager[Instead]:
    """A bus that drops silently."""

    def spoil(bus: dsync.EventBus, name: str) -> Instead:
        return Instead(bus, subscribe=lambda: Leaky(bus.subscribe()))

    return _dsync(url, settings, "event_bus", spoil)


def private_limiter(url: str, **settings: Any) -> AbstractAsyncContextManager[Instead]:
    """A rate limiter with which each process counts alone."""

    def spoil(limiter: dsync.RateLimiter, *args: Any) -> Instead:
        alone = dsync.local.RateLimiter(limiter.rate, limiter.per, limiter.burst)
        return Instead(limiter, acquire=alone.acquire)

    return _dsync(url, settings, "rate_limiter", spoil)


def backward_observer(url: str, **settings: Any) -> AbstractAsyncContextManager[Instead]:
    """An election whose observers see the one who led before once more, at times."""

    def spoil(election: Election, name: str) -> Instead:
        async def observe() -> AsyncGenerator[Leader | None, None]:
            before: Leader | None = None
            async for leader in election.observe():
                yield leader
                if random.random() < SELDOM:
                    yield before
                before = leader or before

        return Instead(election, observe=observe)

    return _dsync(url, settings, "leader", spoil)
