"""The transitions of RateLimiter in this process: twins of lua/rate_*."""

import math
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = ["TRANSITIONS", "Bucket"]

REMEMBERED = 400  # bytes of text about the last reservations
KEEP_MS = 60_000  # for which an empty bucket is remembered


class Declared(NamedTuple):
    """What a limiter was made with: `rate` units per so many µs, at most `burst` at once."""

    rate: str = ""
    per: str = ""
    burst: int = 0

    @property
    def tiny(self) -> float:
        """What rounding may add up to."""
        return 1e-9 + 1e-12 * self.burst

    @property
    def pace(self) -> float:
        """µs in which a unit drains."""
        return int(self.per) / float(self.rate)

    def drained(self, units: float) -> int:
        """How long until so many units have drained, µs."""
        return math.ceil(units * self.pace) if units > self.tiny else 0

    def room(self, level: float) -> list[int]:
        """Units that are free, µs until all are."""
        free = math.floor(self.burst - level + self.tiny)
        return [max(0, free), self.drained(level)]

    def told(self) -> list[str]:
        return [self.rate, self.per, str(self.burst)]


class Bucket:
    """The state of one rate limiter."""

    __slots__ = (
        "clock", "declared", "ends", "epoch", "fence", "level", "recent", "stamp", "taken",
    )  # fmt: skip

    def __init__(self) -> None:
        self.clock: int = 0  # µs, when the level was what is noted
        self.level: float = 0.0  # units that have not drained yet
        self.taken: int = 0  # all that ever were
        self.declared: Declared = Declared()
        self.stamp: int = 0  # of the declaration, µs
        self.epoch: int = 0  # when the record was made, µs; 0: it was not
        self.ends: int = 0  # when it is forgotten, ms
        # ";token position at" of each, the newest first: what `taken` was then, when to use it, µs.
        self.recent: str = ";"
        self.fence: int = 0  # a rate limiter has none

    def sweep(self, now: int) -> bool:
        return self.ends <= now

    def empty(self) -> bool:
        return not self.epoch

    def level_at(self, us: int) -> float:
        if not self.epoch:
            return 0.0
        return max(0.0, self.level - max(0, us - self.clock) / self.declared.pace)

    def write(self, us: int, level: float) -> None:
        """Write it down, for as long as it takes to drain, and a minute."""
        self.epoch = self.epoch or us
        self.clock, self.level = us, level
        self.ends = us // 1000 + math.ceil(self.declared.drained(level) / 1000) + KEEP_MS


def rate_look(bucket: Bucket, us: int) -> list[Any]:
    if not bucket.epoch:
        return [0, 0, 0, 0, 0, "", "", ""]
    level, declared = bucket.level_at(us), bucket.declared
    wait = declared.drained(level + 1 - declared.burst)
    reserved = max(0, math.ceil(level - declared.burst - declared.tiny))
    return [wait, *declared.room(level), reserved, bucket.epoch, *declared.told()]


def rate_take(
    bucket: Bucket, us: int, *, token: str, amount: int, patience: int, declared: str, period: int,
    capacity: int, born: int | str,
) -> list[Any]:  # fmt: skip
    level = bucket.level_at(us)
    mine, own = int(born or us), Declared(declared, str(period), capacity)
    newer = mine > bucket.stamp
    held = own if newer else bucket.declared
    if newer and bucket.epoch:
        # Who comes now is due behind those who sleep, whatever the new rate.
        ahead = (level - bucket.declared.burst) * bucket.declared.pace
        if ahead > 0:
            level = max(level, held.burst + ahead / held.pace)

    def reply(code: int, wait: int, position: int) -> list[Any]:
        told = [] if held == own else held.told()
        return [code, wait, *held.room(level), position, bucket.epoch, us, *told]

    def write() -> None:
        bucket.stamp, bucket.declared = max(mine, bucket.stamp), held
        bucket.write(us, level)

    known = re.search(rf";{re.escape(token)} (\d+) (\d+);", bucket.recent)
    if known:
        return reply(1, max(0, int(known[2]) - us), int(known[1]))
    wait = held.drained(level + amount - held.burst)
    if amount > held.burst or 0 <= patience < wait:
        if newer or us < bucket.clock:
            write()
        return reply(-1, 0, 0) if amount > held.burst else reply(0, wait, 0)
    level += amount
    bucket.taken += amount
    bucket.recent = f";{token} {bucket.taken} {us + wait}{bucket.recent}"[:REMEMBERED]
    write()
    return reply(1, wait, bucket.taken)


def rate_return(bucket: Bucket, us: int, *, token: str, position: int, amount: int) -> list[int]:
    last = re.match(r";(\S+) ", bucket.recent)
    if not amount <= bucket.taken == position or (last and last[1] != token):
        return [0]
    level = max(0.0, bucket.level_at(us) - amount)
    bucket.taken -= amount
    entries = re.findall(r"([^; ]+ (\d+) \d+;)", bucket.recent)
    bucket.recent = ";" + "".join(text for text, at in entries if int(at) <= bucket.taken)
    bucket.write(us, level)
    return [1]


TRANSITIONS: Final[dict[str, Callable[..., list[Any]]]] = {
    transition.__name__: transition for transition in (rate_look, rate_take, rate_return)
}
