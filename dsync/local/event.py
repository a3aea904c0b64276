"""Event: asyncio's, in one process."""

from collections import deque
from typing import Literal

from dsync.arguments import checked_seconds
from dsync.errors import WaitTimeout
from dsync.event import Event as _Event
from dsync.line import DONE
from dsync.local.waiting import NO, YES, Waiter, Waiting, wake
from dsync.reply import Reply

__all__ = ["Event"]


class Event(Waiting, _Event):
    """asyncio.Event, with `timeout=`, and calls that may be awaited."""

    name = ""

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()
        self._value = False

    def _extra(self) -> str:
        state = "set" if self._value else "unset"
        return f"{state}, waiters:{len(self._waiters)}" if self._waiters else state

    def is_set(self) -> Reply[bool]:
        return YES if self._value else NO

    def set(self) -> Reply[None]:
        if not self._value:
            self._value = True
            for waiter in self._waiters:
                wake(waiter)
        return DONE

    def clear(self) -> Reply[None]:
        self._value = False
        return DONE

    async def wait(self, timeout: float | None = None) -> Literal[True]:
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        if self._value:
            return True
        if timeout == 0:
            raise WaitTimeout("the event is not set")
        waiter = self._waiter(timeout)
        self._waiters.append(waiter)
        try:
            if not await waiter and not self._value:
                raise WaitTimeout(f"the event was not set within {timeout:g} s")
        finally:
            self._waiters.remove(waiter)
        return True
