"""RateLimiter: so many units per time, for all processes together."""

import re
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from dsync.arguments import checked_count, checked_seconds
from dsync.telemetry import Refused, Taken

if TYPE_CHECKING:
    from dsync.quota import Quota

__all__ = ["Decision", "RateLimiter", "RateLimiterInfo", "checked_rate"]

LONGEST_REFILL = 10 * 366 * 24 * 3600.0  # seconds
_RATE = re.compile(
    r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)?\s*"
    r"(?:(s|secs?|seconds?)|(m|mins?|minutes?)|(h|hours?)|(d|days?))\s*",
    re.IGNORECASE,
)
_UNITS = (1.0, 60.0, 3600.0, 86400.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What `try_acquire()` has decided; true if it was allowed.  Times are seconds."""

    allowed: bool
    remaining: int  # units that could be taken now
    retry_after: float  # until as many could be taken as were asked for; 0.0 if they were
    reset_after: float  # until the whole burst could be

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True)
class RateLimiterInfo:
    """The state of a rate limiter at one moment.  Times are seconds."""

    name: str
    rate: float  # units per `per` seconds, as it is in force
    per: float
    burst: int
    remaining: int  # units that could be taken now
    reserved: int  # units that were taken in advance, by those who wait
    wait: float  # until one unit could be taken
    reset_after: float  # until the whole burst could be


class RateLimiter:
    """At most `rate` units per `per` seconds, and `burst` at once, made by `client.rate_limiter()`.

    All processes that use the same name share it.  In any time t they are given no more than
    `rate / per * t + burst` units.

    `acquire()` reserves its units and sleeps until they are due: in order of arrival over all
    processes, without polling.  `try_acquire()` takes them now or not at all.

    When processes disagree on the numbers, those of the newest client hold.

    Usage::

        openai = client.rate_limiter("openai", 600, per=60)
        async with openai:
            await call()
    """

    def __init__(self, quota: "Quota", name: str, rate: float, per: float, burst: int) -> None:
        self._quota = quota
        self.name = name
        self.rate = rate
        self.per = per
        self.burst = burst

    async def acquire(self, amount: int = 1, timeout: float | None = None) -> Literal[True]:
        """Wait until so many units are ours to use, and return True.

        A wait that is cancelled hands back what it had reserved, to those who wait in this process
        or, if nobody has reserved behind it, to all.

        Args:
            amount: units, at most `burst`.
            timeout: seconds to wait; None waits as long as it takes, 0 asks once.

        Raises:
            AcquireTimeout: it would take, or has taken, longer than the timeout: at once, if that
                can be told.  Nothing was taken.
            ValueError: the amount is more than the burst, and could never be had.
            StoreUnavailable: the store could not be asked.
        """
        self._check(amount)
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        acquire, watch = self._quota.acquire(amount, timeout), self._quota.client.watch
        if watch.hooks:
            acquire = watch.taking(self._quota.kind, self.name, amount, acquire)
        await acquire
        return True

    async def try_acquire(self, amount: int = 1) -> Decision:
        """Take so many units if they can be had now; never before those who wait already.

        Raises:
            ValueError: the amount is more than the burst, and could never be had.
            StoreUnavailable: the store could not be asked.
        """
        self._check(amount)
        allowed, wait, remaining, reset, *_ = await self._quota.try_acquire(amount)
        watch = self._quota.client.watch
        if watch.hooks:
            kind, name = self._quota.kind, self.name
            taken = Taken(kind, name, amount, 0.0)
            watch.tell(taken if allowed else Refused(kind, name, wait / 1e6))
        return Decision(bool(allowed), remaining, wait / 1e6, reset / 1e6)

    async def info(self) -> RateLimiterInfo:
        """What is in force and what is free, over all processes.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        wait, remaining, reset, reserved, epoch, rate, per, burst = await self._quota.look()
        if not epoch:  # nobody has used it of late
            return RateLimiterInfo(
                self.name, self.rate, self.per, self.burst, self.burst, 0, 0.0, 0.0
            )
        return RateLimiterInfo(
            self.name, float(rate), int(per) / 1e6, int(burst), remaining, reserved, wait / 1e6,
            reset / 1e6,
        )  # fmt: skip

    @staticmethod
    def parse(text: str) -> tuple[float, float]:
        """`rate` and `per` (seconds) from text such as "600/minute", "10/s" or "5/30s"."""
        if not isinstance(text, str):
            raise TypeError(f"a rate to parse must be a str, got {type(text).__name__}: {text!r}")
        match = _RATE.fullmatch(text)
        if match is None:
            raise ValueError(
                f'a rate is written as in "600/minute", "10/s" or "5/30s", got {text!r}'
            )
        unit = next(
            seconds for seconds, said in zip(_UNITS, match.groups()[2:], strict=True) if said
        )
        rate, per, _ = checked_rate(float(match[1]), float(match[2] or 1) * unit, 1)
        return rate, per

    def _check(self, amount: int) -> None:
        checked_count("amount", amount, least=1)
        if amount > self.burst:
            raise ValueError(
                f"{self._quota.what}: amount {amount} is more than the burst of {self.burst}: "
                "it could never be granted"
            )

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x}{name} "
            f"[{self.rate:g} per {self.per:g} s, burst:{self.burst}]>"
        )


def checked_rate(rate: object, per: object, burst: object) -> tuple[float, float, int]:
    """What a rate limiter is made with, checked; a burst of None is what one period brings."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rate must be a number, got {type(rate).__name__}: {rate!r}")
    if not 1e-9 <= rate <= 1e9:
        raise ValueError(f"rate must be between 1e-9 and 1e9 units, got {rate!r:.60}")
    per = checked_seconds("per", per, zero=False)
    if per < 1e-3:
        raise ValueError(f"per must be at least 0.001 seconds, got {per!r}")
    burst = max(1, int(rate)) if burst is None else checked_count("burst", burst, least=1)
    if burst * per / rate > LONGEST_REFILL:
        raise ValueError(
            f"{rate:g} per {per:g} s with a burst of {burst} takes more than ten years to refill"
        )
    return float(rate), per, burst
