"""Where the primitives of a namespace are found, and the processes that can be asked about them."""

from typing import TYPE_CHECKING, Any, Protocol

from dsync.store import Record, Store

if TYPE_CHECKING:
    from dsync.local.store import MemoryStore
    from dsync.redis.scan import Found

__all__ = ["Places", "places_of"]


class Places(Protocol):
    """What a store can say of a namespace as a whole."""

    async def find(self) -> "tuple[set[Found], bool]":
        """Some of the primitives; True with those that end a round through all of them."""
        ...

    async def look(self, found: "Found", transition: str) -> Any:
        """The reply of a transition that looks at it."""
        ...

    def found(self, key: str) -> "Found | None":
        """The primitive with this key, whether it has a record or not."""
        ...

    def room(self, found: "Found") -> Record | None:
        """The record of which those that hold it or wait for it hear; None: of any."""
        ...

    async def processes(self) -> dict[str, Record | None]:
        """Client ids of those that listen, and of each a record of which it hears; None: of any."""
        ...


def places_of(store: Store) -> Places:
    """The places of this store."""
    if store.distant:
        from dsync.redis.scan import OnServer
        from dsync.redis.store import RedisStore

        assert isinstance(store, RedisStore)
        return OnServer(store)
    from dsync.local.store import MemoryStore

    assert isinstance(store, MemoryStore)
    return InMemory(store)


class InMemory:
    """In this process."""

    def __init__(self, store: "MemoryStore") -> None:
        self._store = store

    async def find(self) -> "tuple[set[Found], bool]":
        found = {self.found(key) for key in self._store.memory.records}
        return {each for each in found if each is not None}, True

    async def look(self, found: "Found", transition: str) -> Any:
        return self._store.memory.apply(found.key, transition, {})

    def found(self, key: str) -> "Found | None":
        from dsync.redis.scan import found_in

        return found_in(f"{key}:", self._store.namespace)

    def room(self, found: "Found") -> Record | None:
        return None

    async def processes(self) -> dict[str, Record | None]:
        # Of clients; each has a namespace, and the memory may be that of several.
        mine, inboxes = self._store.namespace, self._store.memory.inboxes.items()
        return dict.fromkeys(
            who for who, inbox in inboxes if getattr(inbox, "namespace", mine) == mine
        )
