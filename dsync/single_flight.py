"""single_flight: one process computes a value, all others wait for it."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from dsync.arguments import checked_lease, checked_seconds
from dsync.codec import codec_of
from dsync.flight import Ask, Flight
from dsync.lease import Terms
from dsync.names import checked_name

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["single_flight"]

T = TypeVar("T")

LONGEST_TTL = 366 * 24 * 3600.0


async def single_flight(
    client: "Client",
    key: str,
    compute: Callable[[], Awaitable[T]],
    *,
    ttl: float | Callable[[T], float],
    codec: Any,
    timeout: float | None,
    lease: float,
) -> T:
    """What `Client.single_flight()` does; see there."""
    checked_name(key, "key")
    if not callable(compute):
        raise TypeError(
            f"compute must be an async function without arguments, got {type(compute).__name__}: "
            f"{compute!r}"
        )
    if callable(ttl):
        tell = ttl

        def milliseconds(value: T) -> int:
            return checked_ttl(f"single_flight {key!r}: what ttl() returned", tell(value))
    else:
        kept = checked_ttl("ttl", ttl)

        def milliseconds(value: T) -> int:
            return kept

    if timeout is not None:
        timeout = checked_seconds("timeout", timeout)
    ask = Ask(
        compute=compute,
        milliseconds=milliseconds,
        codec=codec_of(codec),
        terms=Terms(lease=checked_lease("lease", lease), on_lost="flag"),
        timeout=timeout,
        ends=math.inf if timeout is None else time.monotonic() + timeout,
    )
    client.enter()
    flight = client._flights.get(key)  # one that lives while somebody asks for its key
    if flight is None:
        flight = client._flights[key] = Flight(client, key)
    return await flight.value(ask)


def checked_ttl(what: str, value: object) -> int:
    """`value`, seconds, as the ms for which a value is kept."""
    seconds = checked_seconds(what, value, zero=False)
    if seconds > LONGEST_TTL:
        raise ValueError(f"{what} must be at most {LONGEST_TTL:.0f} seconds, got {value!r}")
    return math.ceil(seconds * 1000)
