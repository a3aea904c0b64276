"""From a URL or a client of redis-py's to the way there: which link, and how it dials."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from dsync.errors import StoreUnavailable
from dsync.redis.dial import Dialler, address, dialler_for, pool_for
from dsync.redis.sentinel import SENTINEL_SCHEMES, address_of, dialler_of, watched, watched_by
from dsync.redis.topology import CLUSTER_SCHEMES, Fleet, fleet_for, fleet_of

__all__ = ["Route", "route_for"]


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a server."""

    address: str  # for messages
    dial: Dialler | None  # None: through the `client`
    client: Any
    close: Callable[[], None]
    fleet: Fleet | None = None  # it is a cluster
    lent: bool = True  # the `client` is somebody else's: not ours to close


def route_for(url: str | None, client: Any, client_name: str, timeout: float) -> Route:
    """The way to the server of a URL, or of a client.

    Raises:
        ValueError: the URL cannot be used.
        TypeError: `client` is no client of redis.asyncio's.
    """
    if client is not None:
        return _route_of(client, client_name, timeout)
    assert url is not None
    if url.startswith("embedded://"):
        return _embedded(unquote(urlsplit(url).path) or None, client_name, timeout)
    if url.partition("://")[0] in SENTINEL_SCHEMES:
        return _watched(watched(url, timeout / 2), None, client_name, timeout)
    if url.partition("://")[0] in CLUSTER_SCHEMES:
        return _clustered(fleet_for(url, client_name, timeout), None)
    pool = pool_for(url)
    if _wants_resp2(pool):
        return _with_resp2(pool, client_name, timeout)
    return Route(address(pool), dialler_for(pool, client_name, timeout), None, _nothing)


def _route_of(client: Any, client_name: str, timeout: float) -> Route:
    if isinstance(client, redis.asyncio.RedisCluster):
        return _clustered(fleet_of(client, client_name, timeout), client)
    pool: Any = getattr(client, "connection_pool", None)
    connection_class = getattr(pool, "connection_class", None)
    if connection_class is None or not hasattr(connection_class, "connect"):
        raise TypeError(f"redis must be a redis.asyncio.Redis, got {type(client).__name__}")
    if not asyncio.iscoroutinefunction(connection_class.connect):
        raise TypeError("redis must be a client of redis.asyncio, this one is of the blocking kind")
    if isinstance(pool, SentinelConnectionPool):
        return _watched(watched_by(pool, timeout / 2), client, client_name, timeout)
    opener = getattr(connection_class, "_connect", None)
    if not _wants_resp2(pool) and getattr(opener, "__module__", "").partition(".")[0] == "redis":
        return Route(address(pool), dialler_for(pool, client_name, timeout), client, _nothing)
    # Its sockets are not redis-py's (fakeredis has none), or speak RESP2: nothing to take over.
    return Route(address(pool), None, client, _nothing)


def _wants_resp2(pool: Any) -> bool:
    """Whether RESP2 was asked for, as behind a proxy that has nothing else."""
    return str(pool.connection_kwargs.get("protocol")) == "2"


def _with_resp2(pool: Any, client_name: str, timeout: float) -> Route:
    """Through a client of our own: messages cannot come on the connection of the answers."""
    pool.connection_kwargs.update(
        client_name=client_name[:200],
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )
    client = redis.asyncio.Redis.from_pool(pool)
    return Route(address(pool), None, client, _nothing, lent=False)


def _clustered(fleet: Fleet, client: Any) -> Route:
    return Route(str(fleet), None, client, _nothing, fleet)


def _watched(pool: SentinelConnectionPool, client: Any, client_name: str, timeout: float) -> Route:
    return Route(address_of(pool), dialler_of(pool, client_name, timeout), client, _nothing)


def _embedded(directory: str | None, client_name: str, timeout: float) -> Route:
    from dsync.server import Server, ServerMissing, join_or_start

    joined: list[Server] = []

    async def dial() -> Any:
        if not joined or not joined[0].alive:
            leave()
            try:
                joined.append(await asyncio.to_thread(join_or_start, directory))
            except ServerMissing as missing:
                raise StoreUnavailable(str(missing)) from missing
        return await dialler_for(pool_for(joined[0].url), client_name, timeout)()

    def leave() -> None:
        while joined:
            joined.pop().stop()

    return Route("embedded://" + (directory or ""), dial, None, leave)


def _nothing() -> None:
    pass
