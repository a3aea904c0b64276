"""Who serves which slots of a cluster, and how to reach any of its nodes."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis.asyncio
import redis.crc
import redis.exceptions

from dsync.errors import StoreUnavailable
from dsync.redis.dial import Dialler, dialler_for, pool_for, redacted

__all__ = [
    "CLUSTER_SCHEMES", "SLOTS", "Address", "Fleet", "Topology", "fleet_for", "fleet_of", "survey",
]  # fmt: skip

CLUSTER_SCHEMES = (
    *("redis+cluster", "rediss+cluster"),
    *("valkey+cluster", "valkeys+cluster"),
)
SLOTS: int = redis.crc.REDIS_CLUSTER_HASH_SLOTS


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class Topology:
    """What a node knows of its cluster."""

    ranges: list[tuple[int, int, Address]]  # first slot, last slot, their primary
    nodes: set[Address] = field(default_factory=set)  # replicas as well


@dataclass(slots=True)
class NodePool:
    """What is used of a redis-py pool: how to make a connection."""

    connection_class: Any
    connection_kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The nodes that may be asked first, and how any node is dialled."""

    seeds: tuple[Address, ...]
    pool: NodePool
    client_name: str
    timeout: float  # seconds, for connecting and for an answer during it
    # From what the cluster calls a node to where it is reached from here.
    remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None

    def __str__(self) -> str:
        return ",".join(map(str, self.seeds))

    def found(self, host: str, port: int) -> Address:
        """Where a node is reached from here."""
        return Address(*(self.remap((host, port)) if self.remap is not None else (host, port)))

    def dialler(self, address: Address) -> Dialler:
        """Makes connected connections to this node."""
        kwargs = {**self.pool.connection_kwargs, "host": address.host, "port": address.port}
        pool = NodePool(self.pool.connection_class, kwargs)
        return dialler_for(pool, self.client_name, self.timeout)


def fleet_for(url: str, client_name: str, timeout: float) -> Fleet:
    """The cluster at `redis+cluster://[user:password@]host[:port][,host[:port]…][?options]`.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ValueError(f"cannot use {redacted(url)!r}: {exc}") from None
    if parts.path not in ("", "/", "/0"):
        raise ValueError(
            f"{redacted(url)!r}: a cluster has database 0 only, got {redacted(parts.path[1:])!r}"
        )
    scheme = parts.scheme.removesuffix("+cluster")
    credentials, at, hosts = parts.netloc.rpartition("@")
    if "" in hosts.split(","):
        raise ValueError(f"{redacted(url)!r} names no host: use redis+cluster://host1,host2:6379")
    pools = []
    for host in hosts.split(","):
        one = parts._replace(scheme=scheme, netloc=credentials + at + host, path="")
        pools.append(pool_for(one.geturl()))
    kwargs = [pool.connection_kwargs for pool in pools]
    seeds = tuple(Address(str(each["host"]), int(each.get("port", 6379))) for each in kwargs)
    return Fleet(seeds, NodePool(pools[0].connection_class, kwargs[0]), client_name, timeout)


def fleet_of(client: redis.asyncio.RedisCluster, client_name: str, timeout: float) -> Fleet:
    """The cluster of a client of redis-py's, with its settings."""
    manager: Any = client.nodes_manager
    nodes = list(manager.startup_nodes.values())
    kwargs = dict(nodes[0].connection_kwargs)
    kwargs.pop("redis_connect_func", None)  # asks for replicas' leave to read, which we never do
    pool = NodePool(nodes[0].connection_class, kwargs)
    seeds = tuple(Address(node.host, node.port) for node in nodes)
    return Fleet(seeds, pool, client_name, timeout, manager.address_remap)


async def survey(fleet: Fleet, address: Address) -> Topology:
    """Ask a node what it knows.

    Raises:
        StoreUnavailable: it is none that we could work with; the message says why.
        OSError, redis.exceptions.RedisError: it could not be asked.
    """
    connection = await fleet.dialler(address)()
    try:
        await connection.send_command("PUBSUB", "SHARDNUMSUB")
        await connection.read_response()
        await connection.send_command("CLUSTER", "SLOTS")
        reply = await connection.read_response(disable_decoding=True)
    except redis.exceptions.ResponseError as exc:
        verdict = _hopeless(str(exc), address)
        if verdict is not None:
            raise verdict from exc
        raise
    finally:
        await connection.disconnect(nowait=True)
    return _read(reply, fleet, address)


def _hopeless(text: str, address: Address) -> StoreUnavailable | None:
    if "SHARDNUMSUB" in text or re.match("unknown command '?pubsub", text, re.IGNORECASE):
        return StoreUnavailable(
            f"Redis at {address} has no sharded publish/subscribe ({text}); a cluster must be of "
            "version 7 or newer, or Valkey"
        )
    if "cluster support disabled" in text:
        return StoreUnavailable(
            f"Redis at {address} is no cluster ({text}); use redis:// instead of redis+cluster://"
        )
    if "permissions" in text or "NOPERM" in text:
        return StoreUnavailable(
            f"Redis at {address} does not let this user ask who serves what ({text}); "
            "allow +cluster|slots +asking +@pubsub"
        )
    return None


def _read(reply: list[Any], fleet: Fleet, asked: Address) -> Topology:
    topology = Topology([])
    for first, last, *nodes in reply:
        found = [_address_of(node, fleet, asked) for node in nodes]
        topology.nodes.update(address for address in found if address is not None)
        if found and found[0] is not None:
            topology.ranges.append((int(first), int(last), found[0]))
    return topology


def _address_of(node: list[Any], fleet: Fleet, asked: Address) -> Address | None:
    host, port = node[0], int(node[1])
    if not host:  # it does not know its own address, or says that it is the one we have asked
        return Address(asked.host, port)
    host = host.decode() if isinstance(host, bytes) else str(host)
    # It is to be called by its name, and has none.
    return None if host == "?" else fleet.found(host, port)
