"""The transitions of single_flight in this process: twins of lua/flight_*."""

from collections.abc import Callable
from typing import Any, Final

__all__ = ["TRANSITIONS", "Value"]

# What a transition tells on a channel: -> how many listen.
Publish = Callable[[str, bytes], int]


class Value:
    """The value of one key, as long as it is kept."""

    __slots__ = ("ends", "fence", "publish", "stored", "value")

    def __init__(self, publish: Publish) -> None:
        self.publish: Publish = publish
        self.stored: int = 0  # the fence of whoever stored it; 0: there is none
        self.value: bytes = b""
        self.ends: int = 0  # ms
        self.fence: int = 0  # the value gives out none

    def sweep(self, now: int) -> bool:
        if self.stored and self.ends < now:
            self.stored, self.value, self.ends = 0, b"", 0
        return False

    def empty(self) -> bool:
        return not self.stored


def flight_look(state: Value, us: int) -> list[Any]:
    state.sweep(us // 1000)
    return [int(state.stored > 0), state.value]


def flight_land(
    state: Value, us: int, *, fence: int, value: bytes, ttl: int, channel: str, most: int
) -> list[Any]:
    now = us // 1000
    state.sweep(now)
    stored = state.stored
    if fence > stored:
        state.stored, state.value, state.ends = fence, value, now + ttl
        state.publish(channel, b"look" if len(value) > most else b"v" + value)
    return [int(fence >= stored)]


TRANSITIONS: Final[dict[str, Callable[..., list[Any]]]] = {
    transition.__name__: transition for transition in (flight_look, flight_land)
}
