"""Event: asyncio's, across processes."""

from typing import TYPE_CHECKING, Literal

from dsync.arguments import checked_seconds
from dsync.reply import Reply

if TYPE_CHECKING:
    from dsync.flag import Flag

__all__ = ["Event"]


class Event:
    """A flag that tasks of all processes wait for, made by `client.event(name)`.

    `set()` wakes everyone who waits, and nobody is missed: a `set(); clear()` pulse wakes all who
    waited at the time, even if the connection was down when it came.  A set event stays set when
    every client is gone, unless this object was made with a `ttl` (seconds).

    Usage::

        ready = client.event("migrated")
        await ready.wait()      # in the workers
        ready.set()             # in whoever has migrated the database
    """

    def __init__(self, flag: "Flag", name: str, ttl: float | None, max_waiters: int | None) -> None:
        self._flag = flag
        self._ttl = ttl
        self._max_waiters = max_waiters
        self.name = name

    def is_set(self) -> Reply[bool]:
        """Whether it is set: at once, as far as this process knows.

        The first call, or a wait, begins to keep this process informed; from then on what is known
        is as old as a message takes.  Awaited, the store's answer.

        Raises:
            StoreUnavailable: awaited, the store could not be asked.
        """
        return Reply(known=self._flag.is_set(), ask=self._flag.ask_is_set)

    def set(self) -> Reply[None]:
        """Set it and wake everyone who waits, in all processes; awaited, that is confirmed.

        For the tasks of this process it is set at once.

        Raises:
            StoreUnavailable: awaited, it was not confirmed; it may have been set, or not.
        """
        return self._flag.change(True, self._ttl)

    def clear(self) -> Reply[None]:
        """Unset it: from now on `wait()` waits; awaited, that is confirmed.

        Raises:
            StoreUnavailable: awaited, it was not confirmed; it may have been unset, or not.
        """
        return self._flag.change(False, None)

    async def wait(self, timeout: float | None = None) -> Literal[True]:
        """Wait until it is set, and return True.

        Returns at once if it is, and also if it was set and cleared while this call waited.

        Args:
            timeout: seconds to wait; None waits for ever, 0 asks once.

        Raises:
            WaitTimeout: it was not set in time.
            TooManyWaiters: `max_waiters` tasks of this process wait already.
            StoreUnavailable: the store could not be asked.
        """
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        wait, watch = self._flag.wait(timeout, self._max_waiters), self._flag.client.watch
        await (watch.waking("event", self.name, wait) if watch.hooks else wait)
        return True

    def _waiting(self) -> int:
        return len(self._flag.waiters)

    def __repr__(self) -> str:
        state = "set" if self.is_set() else "unset"
        waiting = self._waiting()
        extra = f", waiters:{waiting}" if waiting else ""
        name = f" {self.name!r}" if self.name else ""
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x}{name} [{state}{extra}]>"
        )
