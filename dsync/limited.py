"""limited: an async function of which so many calls run at a time, in all processes."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from dsync.arguments import checked_count
from dsync.calls import SKIPPED, Busy, Turn, checked_busy, each_call
from dsync.holding import checked_terms

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["limited"]


def limited(
    client: "Client",
    name: str,
    value: int,
    *,
    busy: Busy,
    timeout: float | None,
    lease: float,
    max_hold: float | None,
) -> Any:
    """The decorator, its arguments checked; see `Client.limited()`."""
    checked_count("value", value, least=1)
    patience = checked_busy(busy, timeout)
    checked_terms(lease, True, max_hold, "cancel", False, None)

    async def run(name: str, body: Callable[[], Awaitable[Any]]) -> Any:
        permits = client.semaphore(name, value, lease=lease, max_hold=max_hold)
        async with Turn(permits, busy, patience) as ours:
            return await body() if ours else SKIPPED

    return each_call(name, run)
