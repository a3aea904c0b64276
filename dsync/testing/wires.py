"""The same faults on a connection to one server."""

from typing import TYPE_CHECKING, Any

from dsync.client import Client

if TYPE_CHECKING:
    from dsync.redis.store import RedisStore
    from dsync.redis.wire import Wire

__all__ = ["admit", "hang_up", "refuse"]


class Refusing:
    """In place of what dials: nobody answers."""

    def __init__(self, dial: Any) -> None:
        self.dial = dial

    async def __call__(self) -> Any:
        raise ConnectionRefusedError("the test has cut the connection")


def wire_of(client: Client) -> "tuple[RedisStore, Wire]":
    """The store and link of a client.  Raises TypeError if that is not a wire to one server."""
    from dsync.redis.store import RedisStore
    from dsync.redis.wire import Wire

    store = client.store
    if isinstance(store, RedisStore) and isinstance(store.link, Wire):
        return store, store.link
    raise TypeError(
        f"{client!r} has no connection of its own to one server; put a dsync.testing.Proxy between"
    )


def refuse(client: Client) -> None:
    """Break the connection, and let no other come about."""
    _, wire = wire_of(client)
    if isinstance(wire._dial, Refusing):
        raise RuntimeError(f"{client!r} is cut off already")
    wire._dial = Refusing(wire._dial)
    wire._hang_up(ConnectionResetError("the test has cut the connection"))


def admit(client: Client) -> None:
    """Let connections come about again."""
    _, wire = wire_of(client)
    if not isinstance(wire._dial, Refusing):
        raise RuntimeError(f"{client!r} is not cut off")
    wire._dial = wire._dial.dial


def hang_up(client: Client) -> None:
    """Close the connection as the kernel does when a process has died."""
    store, wire = wire_of(client)
    wire.closed = True
    wire.listening = False
    if wire._dialling is not None:
        wire._dialling.cancel()
    if wire._connection is not None:
        connection, wire._connection = wire._connection, None
        connection.close()
    store._route.close()
