"""The records of a namespace that a command is about."""

from typing import TYPE_CHECKING, Any

from dsync.cli.options import Failure
from dsync.facts import HELD, KINDS, facts_of, lasting, state, who

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.redis.scan import Found
    from dsync.redis.store import RedisStore

__all__ = [
    "HELD",
    "KINDS",
    "add_tasks",
    "choose",
    "facts",
    "lasting",
    "state",
    "store_of",
    "there",
    "who",
]

PATIENCE = 0.3  # seconds in which a process tells which of its tasks holds


def store_of(client: "Client") -> "RedisStore":
    """The client's store."""
    from dsync.redis.store import RedisStore

    assert isinstance(client.store, RedisStore)  # address() has refused the others
    return client.store


async def there(client: "Client", name: str, kind: str | None) -> "list[Found]":
    """The records of this name, at least one, and of this kind if one is given."""
    from dsync.redis.scan import kinds_of

    found = await kinds_of(store_of(client), name, tuple(KINDS))
    kinds = ", ".join(each.kind for each in found)
    if kind is not None:
        found = [each for each in found if each.kind == kind]
    if not found:
        other = f"; there is: {kinds}" if kinds else "; `dsync ls` lists what there is"
        raise Failure(f"no {kind or 'primitive'} {name!r} in namespace {client.namespace!r}{other}")
    return found


async def choose(client: "Client", name: str, kind: str | None) -> "Found":
    """The record of this name that can be held, if it is but one."""
    found = [each for each in await there(client, name, kind) if each.kind in HELD]
    if not found:
        raise Failure(f"{name!r} is nothing that is held")
    if len(found) > 1:
        kinds = " and a ".join(each.kind for each in found)
        raise Failure(f"{name!r} is a {kinds}: choose one with --kind")
    return found[0]


async def facts(client: "Client", found: "Found") -> dict[str, Any]:
    """What is known of it; times are seconds."""
    from dsync.redis.scan import look

    reply = await look(store_of(client), found.key, KINDS[found.kind])
    return facts_of(found.kind, found.name, reply)


async def add_tasks(client: "Client", known: "dict[Found, dict[str, Any]]") -> None:
    """Put into the facts which tasks hold, where their processes tell that at once."""
    from dsync.overview import add_tasks

    await add_tasks(client, known, PATIENCE)
