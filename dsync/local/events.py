"""The transitions of Event in this process: twins of lua/event_*."""

from collections.abc import Callable
from typing import Final

__all__ = ["TRANSITIONS", "Signal"]

# What a transition tells on a channel: -> how many listen.
Publish = Callable[[str, bytes], int]
KEEP_MS = 7 * 24 * 3600 * 1000  # for which an unset event is remembered


class Signal:
    """The state of one event."""

    __slots__ = ("clock", "ends", "fence", "flag", "generation", "left", "publish")

    def __init__(self, publish: Publish) -> None:
        self.publish: Publish = publish
        self.clock: int = 0  # ms; time as this record knows it, which never goes back
        self.flag: bool = False
        self.generation: int = 0  # moves with every change, never back
        self.ends: int = 0  # ms, when it is unset by itself; 0: never
        self.left: dict[str, int] = {}  # token that has changed it -> ms
        self.fence: int = 0  # an event has none

    def sweep(self, now: int) -> bool:
        self.left = {token: until for token, until in self.left.items() if until > now}
        return not self.is_set(now) and not self.left and now - self.clock > KEEP_MS

    def empty(self) -> bool:
        return not self.generation and not self.left

    def at(self, us: int) -> int:
        """Now, ms."""
        return max(us // 1000, self.clock)

    def is_set(self, now: int) -> bool:
        """An event whose time is over is unset."""
        return self.flag and (self.ends == 0 or self.ends > now)

    def repeated(self, token: str, now: int, tombstone: int) -> bool:
        if self.left.get(token, 0) > now:
            return True
        self.left = {t: until for t, until in self.left.items() if until > now}
        self.left[token] = now + tombstone
        return False

    def change(self, wanted: bool, ends: int, us: int, now: int, channel: str) -> None:
        if wanted != self.is_set(now):
            self.generation = max(self.generation + 1, us)
        self.flag, self.ends, self.clock = wanted, ends, now
        self.publish(channel, b"%d %d %d" % tuple(self.reply(now)))

    def reply(self, now: int) -> list[int]:
        flag = self.is_set(now)
        return [int(flag), self.generation, self.ends - now if flag and self.ends else -1]


def event_look(signal: Signal, us: int) -> list[int]:
    return signal.reply(signal.at(us))


def event_set(
    signal: Signal, us: int, *, token: str, ttl: int, channel: str, tombstone: int
) -> list[int]:
    now = signal.at(us)
    for_good = signal.is_set(now) and signal.ends == 0
    if not signal.repeated(token, now, tombstone) and not for_good:
        signal.change(True, max(now + ttl, signal.ends) if ttl else 0, us, now, channel)
    return signal.reply(now)


def event_clear(signal: Signal, us: int, *, token: str, channel: str, tombstone: int) -> list[int]:
    now = signal.at(us)
    if not signal.repeated(token, now, tombstone) and signal.is_set(now):
        signal.change(False, 0, us, now, channel)
    return signal.reply(now)


TRANSITIONS: Final[dict[str, Callable[..., list[int]]]] = {
    transition.__name__: transition for transition in (event_look, event_set, event_clear)
}
