"""RateLimiter: so many units per time, in one process."""

import asyncio
import math
import time
from collections import deque
from typing import Literal

from dsync.arguments import checked_count, checked_seconds
from dsync.errors import AcquireTimeout
from dsync.local.waiting import Waiter, Waiting, wake
from dsync.rate_limiter import Decision, RateLimiterInfo, checked_rate
from dsync.rate_limiter import RateLimiter as _RateLimiter

__all__ = ["RateLimiter"]

# Seconds.  Loops' timers are no finer, and uvloop's end so much too early: asked for less, they
# would be asked for again and again.
GRAIN = 0.001


class RateLimiter(Waiting, _RateLimiter):
    """At most `rate` units per `per` seconds, and `burst` at once, in one process.

    A leaky bucket as a meter.  Waiters are served in order of arrival, also where one that wants
    little could go before one that wants much.  They take their units when they run on, not before:
    a wait that ends otherwise has taken nothing, and after a standstill nobody gets more than the
    burst.

    Args:
        rate: units per `per`; RateLimiter.parse() reads both from "600/minute".
        per: seconds.
        burst: units that may be taken at once, after a pause; by default what one period brings.
            1 spreads them evenly, each a little late: what a timer is late by is not made up for.
    """

    # level now + _promised <= burst.  Nobody is in _waiters whose turn has come, unless the timer
    # that wakes the first is due, or the first is about to leave, and sees to the next as it does.

    name = ""
    rate: float
    per: float
    burst: int

    def __init__(self, rate: float, per: float = 1.0, burst: int | None = None) -> None:
        self.rate, self.per, self.burst = checked_rate(rate, per, burst)
        self._speed = self.rate / self.per  # units that drain in a second
        self._brim = self.burst * (1 + 1e-9)  # the burst, and what rounding may add up to
        self._level = 0.0  # units that had not drained when the last ones were taken ...
        self._taken_at = time.monotonic()  # ... which was then
        self._waiters: deque[tuple[Waiter, int]] | None = None  # who wants how many units
        self._queued = 0  # units that _waiters want
        self._promised = 0  # units of those that were woken, and have yet to run
        self._timer: asyncio.TimerHandle | None = None  # while somebody waits

    def _extra(self) -> str:
        state = f"{self.rate:g} per {self.per:g} s, burst:{self.burst}"
        return f"{state}, waiters:{len(self._waiters)}" if self._waiters else state

    async def acquire(self, amount: int = 1, timeout: float | None = None) -> Literal[True]:
        if type(amount) is not int or not 0 < amount <= self.burst:
            self._check(amount)
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        now = time.monotonic()
        level = self._level_at(now)
        if self._ahead() or level + amount > self._brim:
            await self._wait_turn(amount, timeout)
            now = time.monotonic()
            level = self._level_at(now)
        self._level, self._taken_at = level + amount, now
        return True

    async def try_acquire(self, amount: int = 1) -> Decision:
        self._check(amount)
        now = time.monotonic()
        level = self._level_at(now)
        ahead = self._ahead()
        wait = self._until(level + ahead + amount)
        if not wait:
            level += amount
            self._level, self._taken_at = level, now
        remaining = max(0, math.floor(self._brim - level - ahead))
        return Decision(not wait, remaining, wait, (level + ahead) / self._speed)

    async def info(self) -> RateLimiterInfo:
        """What is free, and how many units those want who wait."""
        ahead = self._ahead()
        level = self._level_at(time.monotonic()) + ahead
        return RateLimiterInfo(
            "", self.rate, self.per, self.burst, max(0, math.floor(self._brim - level)),
            ahead - self._promised, self._until(level + 1), level / self._speed,
        )  # fmt: skip

    def _check(self, amount: int) -> None:
        checked_count("amount", amount, least=1)
        if amount > self.burst:
            raise ValueError(
                f"the rate limiter: amount {amount} is more than the burst of {self.burst}: "
                "it could never be granted"
            )

    # -- the bucket -------------------------------------------------------------------------------

    # Looking at it changes nothing: what drains between two looks may be less than rounding.

    def _level_at(self, now: float) -> float:
        """Units that have not drained yet."""
        level = self._level - (now - self._taken_at) * self._speed
        return level if level > 0.0 else 0.0

    def _until(self, level: float) -> float:
        """How long until such a level has sunk to the burst, seconds."""
        return (level - self.burst) / self._speed if level > self._brim else 0.0

    def _ahead(self) -> int:
        """Units that those who came before have yet to take."""
        # Those that are about to leave keep nobody from overtaking them.
        if self._queued and all(waiter.done() for waiter, _ in self._waiters or ()):
            return self._promised
        return self._promised + self._queued

    # -- waiting ----------------------------------------------------------------------------------

    async def _wait_turn(self, amount: int, timeout: float | None) -> None:
        """Return when so many units may be taken, and have yet to be."""
        if timeout is not None:
            wait = self._until(self._level_at(time.monotonic()) + self._ahead() + amount)
            if wait > timeout:
                raise self._too_late(amount, f"that would be in {wait:.3g} s")
        waiter = self._waiter(timeout)
        if self._waiters is None:
            self._waiters = deque()
        self._waiters.append((waiter, amount))
        self._queued += amount
        if len(self._waiters) == 1:
            self._wake_up()
        try:
            try:
                if waiter.done():  # there is enough for all, and those who came before run first
                    await asyncio.sleep(0)
                in_time = await waiter
            finally:
                self._forget(waiter, amount)
        except asyncio.CancelledError:
            self._wake_up()
            raise
        if not in_time:
            self._wake_up()
            raise self._too_late(amount, "it was not in time")

    def _forget(self, waiter: Waiter, amount: int) -> None:
        """It takes its units now, or never."""
        if waiter.done() and not waiter.cancelled() and waiter.result():
            self._promised -= amount
        elif self._waiters is not None:
            self._waiters.remove((waiter, amount))
            self._queued -= amount

    def _wake_up(self) -> None:
        """Wake those whose turn has come, and be there when that of the next does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        level = self._level_at(time.monotonic())
        while self._waiters:
            waiter, amount = self._waiters[0]
            if waiter.done():
                return  # it is about to leave, and will call this again
            wait = self._until(level + self._promised + amount)
            if wait:
                self._timer = self._get_loop().call_later(max(wait, GRAIN), self._wake_up)
                return
            self._waiters.popleft()
            self._queued -= amount
            self._promised += amount
            wake(waiter)

    def _too_late(self, amount: int, when: str) -> AcquireTimeout:
        units = "a unit" if amount == 1 else f"{amount} units"
        return AcquireTimeout(
            f"the rate limiter: {units} could not be had within the timeout ({when}); "
            "nothing was taken"
        )
