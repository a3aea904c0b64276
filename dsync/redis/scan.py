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
from dsync.store import Arg, Call, Record

__all__ = ["Found", "OnServer", "Scan", "find", "found_in", "kinds_of", "look"]

PAGE = 1000  # keys looked through by one SCAN
PAGES = 20  # of them in one go
CHANNELS = 10_000  # that are looked through for processes


@dataclass(frozen=True, order=True, slots=True)
class Found:
    """A primitive that has a record in the store."""

    kind: str
    name: str  # as it was written, or what is left of a long one
    key: str  # `{namespace:kind:name}`


def _prefix(namespace: str) -> str:
    """What all its keys begin with: `{namespace:`."""
    return tag(namespace, "", "")[: -len(":}")]


def found_in(key: str, namespace: str) -> Found | None:
    """What a key is part of (`{namespace:kind:name}:part`), if it is one of this namespace."""
    prefix = _prefix(namespace)
    name, closing, _ = key.rpartition("}:")
    kind, colon, quoted = name[len(prefix) :].partition(":")
    if not (closing and colon and kind and key.startswith(prefix)):
        return None
    return Found(kind, unquote(quoted), name + "}")


class Scan:
    """Goes through all keys of the server, round after round, a few pages at a time."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._pattern = _pattern(_prefix(store.namespace)) + "*"
        # Where this round has got to: the nodes that are still to be asked, and the cursor there.
        self._nodes: list[Any] = []
        self._cursor: bytes | str = "0"

    async def pages(self, most: int) -> tuple[set[Found], bool]:
        """What up to so many pages have shown.  -> that, and whether they have ended a round

        Raises:
            StoreUnavailable: the store could not be asked; the round begins anew.
        """
        store, found = self._store, set[Found]()
        if not self._nodes:
            self._nodes = [None]
            if store.cluster is not None:
                await store.check()  # which finds them
                self._nodes = list(store.cluster.primaries())
        for _ in range(most):
            scan = ("SCAN", self._cursor, "MATCH", self._pattern, "COUNT", PAGE)
            try:
                self._cursor, keys = await store.ask(*scan, at=self._nodes[-1])
            except BaseException:
                self._nodes, self._cursor = [], "0"
                raise
            some = (found_in(text_of(key), store.namespace) for key in keys)
            found |= {each for each in some if each is not None}
            if text_of(self._cursor) == "0":
                self._nodes.pop()
                if not self._nodes:
                    return found, True
        return found, False


async def find(store: RedisStore) -> list[Found]:
    """All there are, sorted.  What comes or goes meanwhile may be missing.

    Raises:
        StoreUnavailable: the store could not be asked.
    """
    scan, found, ended = Scan(store), set[Found](), False
    while not ended:
        more, ended = await scan.pages(1)
        found |= more
    return sorted(found)


def _pattern(text: str) -> str:
    """The pattern that this text and no other matches."""
    return re.sub(r"([*?\\[\]])", r"\\\1", text)


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

    _record(store, key).run(transition, answered, **args)
    reply = (await future).reply
    if isinstance(reply, BaseException):
        raise reply
    return reply


def _record(store: RedisStore, key: str) -> RedisRecord:
    """The record with this key."""
    cluster = store.cluster
    return RedisRecord(store, key) if cluster is None else cluster.record(store, key)


class OnServer:
    """The places of a server, or of those of a cluster."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._scan = Scan(store)

    async def find(self) -> tuple[set[Found], bool]:
        return await self._scan.pages(PAGES)

    async def look(self, found: Found, transition: str) -> Any:
        return await look(self._store, found.key, transition)

    def found(self, key: str) -> Found | None:
        return found_in(f"{key}:", self._store.namespace)

    def room(self, found: Found) -> Record | None:
        return None if self._store.cluster is None else _record(self._store, found.key)

    async def processes(self) -> dict[str, Record | None]:
        store = self._store
        if store.cluster is None:
            pattern = _pattern(store.channel) + "*"
            channels = await store.ask("PUBSUB", "CHANNELS", pattern)
            names = (text_of(channel) for channel in channels[:CHANNELS])
            return {name.removeprefix(store.channel): None for name in names}
        pattern = _pattern(_prefix(store.namespace)) + "*}:c:*"
        keys: dict[str, str] = {}
        for node in store.cluster.primaries():
            channels = await store.ask("PUBSUB", "SHARDCHANNELS", pattern, at=node)
            for name in map(text_of, channels[:CHANNELS]):
                key, _, process = name.rpartition("}:c:")
                keys[process] = key + "}"
        return {process: _record(store, key) for process, key in keys.items()}
