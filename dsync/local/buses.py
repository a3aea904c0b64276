"""The transitions of EventBus in this process: twins of lua/bus_*."""

from collections.abc import Callable
from typing import Final

__all__ = ["TRANSITIONS", "Sequence"]

# What a transition tells on a channel: -> how many listen.
Publish = Callable[[str, bytes], int]


class Sequence:
    """The state of one bus."""

    __slots__ = ("epoch", "fence", "last", "number", "publish")

    def __init__(self, publish: Publish) -> None:
        self.publish: Publish = publish
        self.epoch: int = 0  # µs, when the first message was published; 0: none was
        self.number: int = 0  # of the last message
        self.last: dict[
            str, tuple[int, int]
        ] = {}  # publisher -> its last batch, ms until when known
        self.fence: int = 0  # a bus has none

    def sweep(self, now: int) -> bool:
        self.last = {who: known for who, known in self.last.items() if known[1] >= now}
        return False

    def empty(self) -> bool:
        return not self.epoch


def bus_look(bus: Sequence, us: int) -> list[int]:
    return [bus.epoch, bus.number]


def bus_publish(
    bus: Sequence, us: int, *, publisher: str, batch: int, sizes: str, messages: bytes,
    channel: str, remember: int,
) -> list[int]:  # fmt: skip
    last, known = bus.last.get(publisher, (0, 0))
    if last >= batch and known >= us // 1000:
        return [bus.epoch, bus.number]
    bus.epoch = bus.epoch or us
    bus.last[publisher] = batch, us // 1000 + remember
    start = 0
    for size in map(int, sizes.split()):
        bus.number += 1
        message = messages[start : start + size]
        start += size
        bus.publish(channel, b"%d %d %s %s" % (bus.epoch, bus.number, publisher.encode(), message))
    return [bus.epoch, bus.number]


TRANSITIONS: Final[dict[str, Callable[..., list[int]]]] = {
    transition.__name__: transition for transition in (bus_look, bus_publish)
}
