"""A primary that sentinels watch: found anew for every connection, and asked whether it is one."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff

from dsync.errors import StoreUnavailable
from dsync.redis.dial import Dialler, dialler_for, redacted

__all__ = ["SENTINEL_SCHEMES", "Sentinels", "address_of", "dialler_of", "watched", "watched_by"]

SENTINEL_SCHEMES = (
    *("redis+sentinel", "rediss+sentinel"),
    *("valkey+sentinel", "valkeys+sentinel"),
)
PORT = 26379  # where a sentinel listens, unless the URL says otherwise


class Sentinels(Sentinel):
    """The sentinels of one service, all asked at once, none of them waited for alone.

    redis-py believes the first that answers.  That may be the one which is cut off together with
    the old primary, and has not heard of the new one.
    """

    def __init__(
        self, nodes: Sequence[tuple[Any, Mapping[str, Any]]], timeout: float, **kwargs: Any
    ) -> None:
        """`nodes`: of each its connection class and arguments; `timeout`: seconds, for an answer"""
        super().__init__([], **kwargs)  # type: ignore[no-untyped-call]
        patience = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "decode_responses": False,
        }
        self.sentinels: list[Any] = [
            redis.asyncio.Redis.from_pool(
                redis.asyncio.ConnectionPool(connection_class=cls, **{**own, **patience})
            )
            for cls, own in nodes
        ]

    @property
    def where(self) -> str:
        """Their addresses, for messages."""
        found = [each.connection_pool.connection_kwargs for each in self.sentinels]
        return ", ".join(f"{each['host']}:{each['port']}" for each in found)

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The primary's address, of the newest configuration that more than half of them know.

        Where fewer answer in time, of the newest that those know.  No connection stays behind.

        Raises:
            StoreUnavailable: it cannot help to ask again.
            MasterNotFoundError: nobody knows of a primary that is up, for now.
        """
        asked = [asyncio.ensure_future(_masters(each)) for each in self.sentinels]
        known: list[Mapping[str, Any]] = []
        failed: list[Exception] = []
        try:
            for answer in asyncio.as_completed(asked):
                found = await answer
                if isinstance(found, Exception):
                    failed.append(found)
                else:
                    known.append(found)
                if 2 * len(known) > len(asked):
                    break
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            for each in self.sentinels:
                await each.aclose()
        states = [masters[service_name] for masters in known if service_name in masters]
        if not states:
            raise self._unknown(service_name, known, failed)
        newest = max(state["config-epoch"] for state in states)
        for state in states:
            if state["config-epoch"] == newest and self.check_master_state(state, service_name):
                forced = self._force_master_ip
                return (state["ip"] if forced is None else forced), state["port"]
        raise MasterNotFoundError(
            f"the sentinels say that {states[0]['ip']}:{states[0]['port']}, the primary, is down"
        )

    def _unknown(
        self, service_name: str, known: list[Mapping[str, Any]], failed: list[Exception]
    ) -> Exception:
        """What to say when none of them knows the service."""
        if not failed:
            names = ", ".join(sorted({repr(name) for masters in known for name in masters}))
            return StoreUnavailable(
                f"no sentinel of {self.where} watches a service {service_name!r}; "
                f"they watch {names or 'none'}"
            )
        refusals = (
            redis.exceptions.AuthenticationError,
            redis.exceptions.NoPermissionError,
        )
        if not known and all(isinstance(each, refusals) for each in failed):
            return StoreUnavailable(
                f"the sentinels {self.where} do not let us ask ({failed[0]}); they have a password "
                "of their own: ?sentinel_username=...&sentinel_password=..."
            )
        error = MasterNotFoundError(f"no sentinel of {self.where} could be asked: {failed[0]}")
        error.__cause__ = failed[0]
        return error


async def _masters(sentinel: Any) -> Mapping[str, Any] | Exception:
    """What one sentinel knows: the services that it watches, and how they are."""
    try:
        masters: Mapping[str, Any] = await sentinel.sentinel_masters()
    except (redis.exceptions.RedisError, OSError) as exc:
        return exc
    return masters


def watched(url: str, timeout: float) -> SentinelConnectionPool:
    """A pool for the primary of a `redis+sentinel://` URL; ValueError names what is wrong with it.

    The user, the database and the options are those of the servers; `sentinel_username` and
    `sentinel_password` are the sentinels', and with `rediss+sentinel://` they speak TLS as well.
    """
    try:
        parts = urlsplit(url)
        nodes = [_address(node) for node in parts.netloc.rpartition("@")[2].split(",")]
        service, _, database = parts.path.strip("/").partition("/")
        if not service:
            raise ValueError("it names no service: redis+sentinel://host1,host2/service")
        if database and not database.isdigit():
            raise ValueError("the database must be a number, after the service: /service/0")
        options, own = _options(parts)
        tls = issubclass(options.pop("connection_class"), redis.asyncio.SSLConnection)
        own |= {name: value for name, value in options.items() if name.startswith("ssl_")}
        cls = redis.asyncio.SSLConnection if tls else redis.asyncio.Connection
        each = [(cls, {**own, "host": host, "port": port}) for host, port in nodes]
        managed = SentinelManagedSSLConnection if tls else SentinelManagedConnection
        pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            unquote(service),
            Sentinels(each, timeout),
            connection_class=managed,
            **{**options, "db": int(database or options.get("db", 0))},
        )
        managed(**pool.connection_kwargs)  # type: ignore[no-untyped-call]  # no unknown option
    except (ValueError, TypeError, redis.exceptions.RedisError) as exc:
        raise ValueError(f"cannot use {redacted(url)!r}: {exc}") from None
    return pool


def _address(node: str) -> tuple[str, int]:
    parts = urlsplit(f"//{node}")
    if not parts.hostname:
        raise ValueError("it names no sentinel: redis+sentinel://host1,host2/service")
    try:
        return parts.hostname, parts.port or PORT
    except ValueError:  # its text may be a password's, where a slash in that is not escaped
        raise ValueError("a port must be a number up to 65535") from None


def _options(parts: SplitResult) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of the servers' connections, and what of the sentinels'."""
    query = parse_qsl(parts.query, keep_blank_values=True)
    own = {name[9:]: value for name, value in query if name.startswith("sentinel_")}
    if strange := sorted(set(own) - {"username", "password"}):
        raise ValueError(f"unknown option sentinel_{strange[0]}")
    rest = urlencode([(name, value) for name, value in query if not name.startswith("sentinel_")])
    credentials = "".join(parts.netloc.rpartition("@")[:2])
    scheme = parts.scheme.partition("+")[0].replace("valkey", "redis")
    plain = parts._replace(scheme=scheme, netloc=f"{credentials}localhost", path="", query=rest)
    pool = redis.asyncio.ConnectionPool.from_url(plain.geturl())
    options = {**pool.connection_kwargs, "connection_class": pool.connection_class}
    options.pop("host")
    return options, own


def watched_by(pool: SentinelConnectionPool, timeout: float) -> SentinelConnectionPool:
    """The same as a pool of a user's `Sentinel.master_for()`, with sockets of our own.

    Raises:
        ValueError: it is one of `slave_for()`.
    """
    if not pool.is_master:
        raise ValueError("a replica cannot keep what is held: use master_for(), not slave_for()")
    theirs = pool.sentinel_manager
    nodes = [
        (each.connection_pool.connection_class, each.connection_pool.connection_kwargs)
        for each in theirs.sentinels
    ]
    ours = Sentinels(
        nodes,
        timeout,
        min_other_sentinels=theirs.min_other_sentinels,
        force_master_ip=getattr(theirs, "_force_master_ip", None),
    )
    kwargs = {k: v for k, v in pool.connection_kwargs.items() if k != "connection_pool"}
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        pool.service_name, ours, connection_class=pool.connection_class, **kwargs
    )


def address_of(pool: SentinelConnectionPool) -> str:
    """Where the pool's connections go, for messages."""
    return f"{pool.service_name} (sentinels {pool.sentinel_manager.where})"


def dialler_of(pool: SentinelConnectionPool, client_name: str, timeout: float) -> Dialler:
    """Makes connections to what is the primary at that moment."""
    where = address_of(pool)
    dial = dialler_for(pool, client_name, timeout, where)

    async def dial_primary() -> Any:
        connection = await dial()
        try:
            await _check_role(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    return dial_primary


async def _check_role(connection: Any) -> None:
    """Raises unless a primary is at the other end: sentinels hear late of one that is demoted."""
    await connection.send_command("ROLE")
    try:
        role = await connection.read_response()
    except redis.exceptions.ResponseError:
        return  # we may not ask: READONLY will tell
    if role[0] != b"master":
        raise ConnectionError(
            f"{connection.host}:{connection.port} is no primary, though the sentinels say so"
        )
