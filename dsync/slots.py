"""Slots of a rate limit, and the tasks that wait for them in line."""

import asyncio
import time
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from operator import attrgetter

__all__ = ["NEVER", "Line", "Slot", "Waiter"]

NEVER = float("inf")
_by_time = attrgetter("at")


class Slot:
    """Units that are ours to use at a time."""

    __slots__ = ("amount", "at", "epoch", "kept", "position", "token")

    def __init__(self, token: str, amount: int, position: int, epoch: int, at: float) -> None:
        self.token: str = token
        self.amount: int = amount
        self.position: int = position  # of its last unit, among all that were ever taken
        self.epoch: int = epoch  # of the store's record
        self.at: float = at  # time.monotonic()
        self.kept: bool = False  # it could not be handed back


class Waiter:
    """A task that waits."""

    __slots__ = ("deadline", "future", "late", "slot")

    def __init__(self, future: "asyncio.Future[None]", deadline: float) -> None:
        self.future: asyncio.Future[None] = future
        self.deadline: float = deadline  # time.monotonic()
        self.slot: Slot | None = None  # what it was served with
        self.late: bool = False  # its turn came too late once

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Line:
    """The tasks that want as many units, in order of arrival, and the slots they have for it."""

    __slots__ = ("amount", "asked", "due", "slots", "timer", "waiters")

    # Every waiter is covered, by a slot or by a question on its way: asked + slots >= waiters.

    def __init__(self, amount: int) -> None:
        self.amount: int = amount
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.slots: deque[Slot] = deque()  # in order of time
        self.asked: int = 0
        self.timer: asyncio.TimerHandle | None = None
        self.due: float = NEVER  # when it fires, time.monotonic()

    def surplus(self) -> int:
        return len(self.slots) + self.asked - len(self.waiters)

    def put(self, slot: Slot) -> None:
        if self.slots and self.slots[-1].at > slot.at:
            insort(self.slots, slot, key=_by_time)
        else:
            self.slots.append(slot)

    def first(self) -> Waiter | None:
        """Who is served next: those that were cancelled and have yet to run are passed over."""
        while self.waiters:
            waiter = next(iter(self.waiters))
            if not waiter.future.done():
                return waiter
            del self.waiters[waiter]
        return None

    def give(self, slot: Slot, waiter: Waiter) -> None:
        """Serve it."""
        del self.waiters[waiter]
        waiter.slot = slot
        waiter.future.set_result(None)

    def last(self, count: int) -> list[Waiter]:
        """Those that came last, in order of arrival."""
        return list(islice(reversed(self.waiters), count))[::-1] if count > 0 else []

    def wake(self, at: float, action: "Callable[[Line], None]") -> None:
        """Have the action called at this time, or earlier."""
        if at < self.due:
            self.stop()
            self.due = at
            delay = max(at - time.monotonic(), 0)
            self.timer = asyncio.get_running_loop().call_later(delay, action, self)

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.due = None, NEVER
