"""Beat: the sign of life of what waits in this process, and the moment at which it asks again."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakMethod

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["BEAT", "SILENCE_MS", "Beat"]

BEAT = 2.0  # seconds between two signs of life of a process that waits
SILENCE_MS = 6000  # a process silent for three beats has lost its places


class Beat:
    """A timer on the client's grid: the beats of all that waits leave in one write.

    `action(missed)` is called once after `start()`, however often that was called, and whether or
    not somebody still waits: a timer started and stopped for every wait would cost more.
    `missed`: messages may not have reached us, or the store may have taken us for dead, so
    everything has to be asked for.
    """

    def __init__(self, client: "Client", action: Callable[[bool], None]) -> None:
        self._client = client
        # Whoever beats may be collected: it is kept by what waits.
        self._action = WeakMethod(action)
        self._timer: asyncio.TimerHandle | None = None
        self._expected = 0.0  # when the timer should fire, time.monotonic()

    def start(self, ms: int = 0) -> None:
        """Fire at the next beat, or in so many ms (if > 0) where that is earlier."""
        now = time.monotonic()
        beat = BEAT if self._client.listening() else BEAT / 2
        delay = beat - (now - self._client.phase) % beat
        if ms > 0:
            delay = min(delay, ms / 1000 + 0.002)
        if self._timer is not None:
            if self._expected <= now + delay:
                return  # soon enough
            self._timer.cancel()
        self._expected = now + delay
        self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def stop(self) -> None:
        """Do not fire."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        stood_still = time.monotonic() - self._expected > SILENCE_MS / 2000
        action = self._action()
        if action is not None:
            action(stood_still or not self._client.listening())
