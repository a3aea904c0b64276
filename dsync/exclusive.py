"""exclusive: an async function of which one call runs at a time, in all processes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from dsync.arguments import checked_seconds
from dsync.calls import SKIPPED, Busy, Turn, checked_busy, each_call
from dsync.errors import AcquireTimeout
from dsync.holding import checked_terms
from dsync.lock import Lock
from dsync.rate_limiter import LONGEST_REFILL

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["exclusive"]


def exclusive(
    client: "Client",
    name: str,
    *,
    every: float | None,
    busy: Busy | None,
    timeout: float | None,
    lease: float,
    max_hold: float | None,
) -> Any:
    """The decorator, its arguments checked; see `Client.exclusive()`."""
    if every is not None:
        every = checked_seconds("every", every, zero=False)
        if not 0.001 <= every <= LONGEST_REFILL:
            raise ValueError(f"every must be between 0.001 s and ten years, got {every!r}")
    if busy is None:
        busy = "wait" if every is None else "skip"
    patience = checked_busy(busy, timeout)
    checked_terms(lease, True, max_hold, "cancel", False, None)

    async def run(name: str, body: Callable[[], Awaitable[Any]]) -> Any:
        ends = None if patience is None else time.monotonic() + patience
        lock = client.lock(name, lease=lease, max_hold=max_hold)
        async with Turn(lock, busy, patience) as ours:
            if not ours:
                return SKIPPED
            if every is not None:
                pace = Pace(client, lock, every, max_hold)
                if busy == "skip":
                    if not await pace.due():
                        return SKIPPED
                else:
                    await pace.wait(ends)
            return await body()

    return each_call(name, run)


class Pace:
    """When the next call of this name may begin.  Asked by who holds the lock.

    A call's time is taken when it begins, in one step with the question whether it may; so what
    waits for its time and dies has taken none.
    """

    def __init__(self, client: "Client", lock: Lock, every: float, max_hold: float | None) -> None:
        self._ticks = client._rate_limiter("every", lock.name, rate=1, per=every, burst=1)
        self._lock = lock
        self._every = every
        self._max_hold = max_hold

    async def due(self) -> bool:
        """Whether the call begins now."""
        return bool(await self._ticks.try_acquire())

    async def wait(self, ends: float | None) -> None:
        """Return when the call begins; `ends` is when it has to, by time.monotonic().

        Raises:
            AcquireTimeout: it could not by then, which is said at once.
        """
        slept = False
        while not (decision := await self._ticks.try_acquire()):
            wait = decision.retry_after
            if ends is not None and time.monotonic() + wait > ends:
                raise AcquireTimeout(
                    f"lock {self._lock.name!r}: the next call may begin in {wait:.3f} s, one every "
                    f"{self._every:g} s; nothing is held"
                )
            if not slept:
                self._allow(None)
                slept = True
            await asyncio.sleep(wait)
        if slept:
            self._allow(self._max_hold)

    def _allow(self, seconds: float | None) -> None:
        """Hold the lock for so long from now on: `max_hold` is for the function alone."""
        lease = self._lock.lease
        if self._max_hold is None or lease is None or not lease.held:
            return
        hold = lease.hold
        assert hold is not None
        hold.cap = float("inf") if seconds is None else time.monotonic() + seconds
        hold.cohort.renew(hold)
