"""Backlog: what a bus has heard and holds back, because a subscriber with overflow="block" is full.

It holds up the other subscribers of the same process, too: all get everything in one order.
"""

import asyncio
from collections import deque
from typing import Protocol, TypeAlias

from dsync.subscription import Gap, Parcel, drop_oldest

__all__ = ["Backlog"]

MOST = 100_000  # messages; better a gap than no memory left
SLICE = 64  # of them that are delivered in one go
Item: TypeAlias = Parcel | Gap


class Deliverer(Protocol):
    """Who brings items to subscribers; the hub.  Given with each call, so that neither keeps it."""

    def must_wait(self, parcel: Parcel) -> bool:
        """Whether a subscriber that wants it, and blocks, has no room."""
        ...

    def deliver(self, item: Item) -> None: ...


class Backlog:
    """What waits, in order of arrival."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._resuming = False  # they are being delivered

    def __len__(self) -> int:
        return len(self._items)

    def pass_on(self, item: Item, to: Deliverer) -> None:
        """Deliver it, behind what waits already."""
        if not self._items and not (isinstance(item, Parcel) and to.must_wait(item)):
            to.deliver(item)
            return
        last = self._items[-1] if self._items else None
        if isinstance(last, Gap) and isinstance(item, Gap):
            self._items[-1] = last + item
            return
        if len(self._items) >= MOST:
            drop_oldest(self._items)
        self._items.append(item)

    def clear(self) -> None:
        """Nobody wants any of it."""
        self._items.clear()

    def resume(self, to: Deliverer) -> None:
        """A subscriber that held up the others has room again.

        Some at a time: there may be very many.
        """
        if self._items and not self._resuming:
            self._resuming = True
            self._resume(to)

    def _resume(self, to: Deliverer) -> None:
        for _ in range(SLICE):
            if not self._items:
                break
            item = self._items[0]
            if isinstance(item, Parcel) and to.must_wait(item):
                break
            self._items.popleft()
            to.deliver(item)
        else:
            asyncio.get_running_loop().call_soon(self._resume, to)
            return
        self._resuming = False
