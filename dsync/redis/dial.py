"""From a URL or a client of redis-py's to a connection: how, where, and what is wrong with it."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from dsync.errors import StoreUnavailable
from dsync.redis.tls import hint, no_tls

__all__ = ["SCHEMES", "Dialler", "dialler_for", "pool_for"]

SCHEMES = ("redis", "rediss", "unix", "valkey", "valkeys")

Dialler = Callable[[], Awaitable[Any]]


class Pool(Protocol):
    """What is used of a redis-py pool: how to make a connection."""

    @property
    def connection_class(self) -> Any: ...

    @property
    def connection_kwargs(self) -> Mapping[str, Any]: ...


def pool_for(url: str) -> Any:
    """A redis-py pool for `url`; ValueError names what is wrong with it."""
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ValueError(f"cannot use {redacted(url)!r}: {exc}") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(
            f"cannot connect to {redacted(url)!r}: unknown scheme {parts.scheme!r}; use memory://, "
            "embedded://, redis://host:6379/0, rediss:// (TLS), unix:///path/to/socket, "
            "redis+cluster://host1,host2 or redis+sentinel://host1,host2/service"
        )
    if not url[len(parts.scheme) :].startswith("://"):
        raise ValueError(
            f"cannot use {redacted(url)!r}: two slashes go after the scheme, as in "
            f"{parts.scheme}://{'/path/to/socket' if parts.scheme == 'unix' else 'localhost:6379'}"
        )
    database = parts.path.strip("/")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError(f"{redacted(url)!r} names no socket: use unix:///path/to/socket")
    elif database and not database.isdigit():
        raise ValueError(
            f"{redacted(url)!r}: the database must be a number, got {redacted(database)!r}"
        )
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"{redacted(url)!r}: the port must be a number up to 65535") from None
    known = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
    try:
        pool = redis.asyncio.ConnectionPool.from_url(known)
        pool.connection_class(**pool.connection_kwargs)  # takes no unknown option
    except (ValueError, TypeError, redis.exceptions.RedisError) as exc:
        raise ValueError(f"cannot use {redacted(url)!r}: {exc}") from exc
    return pool


def redacted(url: str) -> str:
    """The URL without what may be a password, for messages."""
    # Up to the last @ anything may be one: a slash may not be escaped, the scheme forgotten.
    credentials, at, rest = url.rpartition("@")
    scheme, separator, _ = credentials.partition("://")
    hidden = re.sub(r"(?i)(pass\w*=)[^&#]*", r"\1***", rest)
    return f"{scheme + separator if separator else ''}{'***' if at else ''}{at}{hidden}"


def address(pool: Pool) -> str:
    """Where the pool's connections go, for messages."""
    kwargs = pool.connection_kwargs
    if "path" in kwargs:
        return str(kwargs["path"])
    tls = " over TLS" if issubclass(pool.connection_class, redis.asyncio.SSLConnection) else ""
    return f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}{tls}"


def dialler_for(pool: Pool, client_name: str, timeout: float, where: str | None = None) -> Dialler:
    """Makes connected connections as the pool would, but with our protocol and our patience.

    `where` they go, for messages, if the pool does not say.
    """
    kwargs = {
        **pool.connection_kwargs,
        "protocol": 3,
        "decode_responses": False,
        "client_name": client_name[:200],
        "socket_timeout": timeout,
        "socket_connect_timeout": 0.9 * timeout,  # it tells more than who gives up on the dialling
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "health_check_interval": 0,
    }
    if "path" not in kwargs:
        kwargs.setdefault("socket_keepalive", True)
    tls = issubclass(pool.connection_class, redis.asyncio.SSLConnection)

    async def dial() -> Any:
        connection = pool.connection_class(**kwargs)
        try:
            await connection.connect()
        except StoreUnavailable:
            raise
        except Exception as exc:
            there = where or address(pool)
            verdict = hopeless(exc, there) or (no_tls(exc, there, kwargs) if tls else None)
            if verdict is not None:
                raise verdict from exc
            if perhaps := hint(exc, tls, kwargs):
                raise ConnectionError(f"{exc}; {perhaps}") from exc
            raise
        return connection

    return dial


def hopeless(exc: BaseException, where: str) -> StoreUnavailable | None:
    """What to tell a person where trying again cannot help; None where it may."""
    text = str(exc)
    if "NOAUTH" in text or "already authenticated" in text or "Authentication required" in text:
        return StoreUnavailable(
            f"Redis at {where} wants a password ({text}); use redis://:password@host:6379"
        )
    # redis-py wraps what the server says on a unix socket.
    if "WRONGPASS" in text or any(
        isinstance(each, redis.exceptions.AuthenticationError) for each in (exc, exc.__cause__)
    ):
        return StoreUnavailable(
            f"Redis at {where} refused the user name or password ({text}); "
            "put them into the URL: redis://user:password@host:6379"
        )
    if (
        isinstance(exc, redis.exceptions.NoPermissionError)
        or "NOPERM" in text
        or "no permissions" in text
    ):
        return StoreUnavailable(f"Redis at {where} does not let this user connect: {text}")
    if "'SENTINEL'" in text:  # an unknown command there, as RESP3's HELLO is to others
        return StoreUnavailable(
            f"Redis at {where}: what answers there is no sentinel ({text}); a sentinel's port is "
            "26379, usually; use redis:// for a server that has none"
        )
    if "DB index" in text or "invalid DB" in text or "SELECT is not allowed" in text:
        return StoreUnavailable(f"Redis at {where} has no such database: {text}")
    if "unknown command" in text or "NOPROTO" in text:
        return StoreUnavailable(
            f"Redis at {where} does not speak RESP3 ({text}); it must be version 6 or newer,"
            " or asked for RESP2: ?protocol=2 in the URL"
        )
    return None
