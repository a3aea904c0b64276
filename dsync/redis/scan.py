"""What there is in a namespace: found by SCAN, which hinders nobody, and looked at in one batch."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from redis.crc import key_slot

from dsync.names import tag
from dsync.redis.link import text_of
from dsync.redis.store import RedisRecord, RedisStore
from dsync.store import Arg, Call

__all__ = ["Found", "find", "kinds_of", "look"]

PAGE = 1000  # keys looked through by one SCAN


@dataclass(frozen=True, order=True, slots=True)
class Found:
    """A primitive that has a record in the store."""

    kind: str
    name: str  # as it was written, or what is left of a long one
    key: str  # `{namespace:kind:name}`


async def find(store: RedisStore) -> list[Found]:
    """All there are, sorted.  What comes or goes meanwhile may be missing.

    Raises:
        StoreUnavailable: the store could not be asked.
    """
    prefix = tag(store.namespace, "", "")[: -len(":}")]  # '{namespace:'
    pattern = re.sub(r"([*?\\[\]])", r"\\\1", prefix) + "*"
    nodes: list[Any] = [None]
    if store.cluster is not None:
        await store.check()  # which finds them
        nodes = list(store.cluster.primaries())
    found: set[Found] = set()
    for node in nodes:
        cursor: bytes | str = "0"
        while cursor != b"0":
            cursor, keys = await store.ask("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE, at=node)
            found |= {each for key in keys if (each := _parsed(text_of(key), prefix)) is not None}
    return sorted(found)


def _parsed(key: str, prefix: str) -> Found | None:
    name, closing, _ = key.rpartition("}:")
    kind, colon, quoted = name[len(prefix) :].partition(":")
    return Found(kind, unquote(quoted), name + "}") if closing and colon and kind else None


async def kinds_of(store: RedisStore, name: str, kinds: tuple[str, ...]) -> list[Found]:
    """Those of the kinds that have a record of this name."""
    keys = [tag(store.namespace, kind, name) for kind in kinds]
    there = await asyncio.gather(*(_exists(store, f"{key}:state") for key in keys))
    both = zip(kinds, keys, there, strict=True)
    return [Found(kind, name, key) for kind, key, exists in both if exists]


async def _exists(store: RedisStore, key: str) -> bool:
    node = None if store.cluster is None else store.cluster.links[key_slot(key.encode())]
    return bool(await store.ask("EXISTS", key, at=node))


async def look(store: RedisStore, key: str, transition: str, **args: Arg) -> Any:
    """The reply of a transition on the record with this key."""
    future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()

    def answered(call: Call) -> None:
        if not future.done():
            future.set_result(call)

    cluster = store.cluster
    record = RedisRecord(store, key) if cluster is None else cluster.record(store, key)
    record.run(transition, answered, **args)
    reply = (await future).reply
    if isinstance(reply, BaseException):
        raise reply
    return reply
