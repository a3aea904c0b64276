"""Lock: asyncio's, in one process."""

import asyncio
import math
import os
import socket
from collections import deque
from types import TracebackType
from typing import Any, Literal

from dsync.arguments import checked_seconds
from dsync.errors import AcquireTimeout, NotHeld
from dsync.info import Holder, LockInfo, Queued
from dsync.lease import Lease
from dsync.line import DONE
from dsync.local.waiting import NO, YES, Waiter, Waiting, current_task, wake
from dsync.lock import Lock as _Lock
from dsync.reply import Reply

__all__ = ["Lock"]

Owner = asyncio.Task[Any] | None


class Lock(Waiting, _Lock):
    """asyncio.Lock, with `timeout=`, `try_acquire()`, `fence`, and calls that may be awaited."""

    # If the lock is not locked and somebody waits, then the first waiter is about to run (or to
    # leave, and it wakes the next one as it does).  Nobody else takes the lock before that.

    name = ""

    def __init__(self) -> None:
        self._waiters: deque[Waiter] | None = None
        self._locked = False
        self._owner: Owner = None  # of the hold: the task that acquired it
        self._fence = 0  # of the hold, or of the last one
        self._lease: Lease | None = None  # of the hold, once somebody has asked for it
        # What force_release() has taken away from whom, until they hear of it.
        self._lost: dict[Owner, Lease] | None = None

    def _extra(self) -> str:
        state = "locked" if self._locked else "unlocked"
        return f"{state}, waiters:{len(self._waiters)}" if self._waiters else state

    def locked(self) -> Reply[bool]:
        return YES if self._locked else NO

    async def acquire(self, timeout: float | None = None) -> Literal[True]:
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        if self._locked or self._waiters:
            await self._wait_turn(timeout)
        self._locked = True
        self._fence += 1
        self._owner = current_task()
        return True

    async def try_acquire(self) -> bool:
        return bool(self._free() and await self.acquire())

    def release(self) -> Reply[None]:
        if self._lost and (lost := self._loss()):
            if lost.owner is None:  # else the end of its `async with` tells, too
                del self._lost[current_task()]
            raise lost.error()
        if not self._locked:
            raise NotHeld("Lock is not acquired.")
        self._locked = False
        self._owner = None
        if self._lease is not None:
            self._lease.released = True
            self._lease = None
        if self._waiters:
            self._wake_up_first()
        return DONE

    def _free(self) -> bool:
        # Those that are cancelled, and have yet to leave, keep nobody from overtaking them.
        waiters = self._waiters
        return not self._locked and (not waiters or all(waiter.cancelled() for waiter in waiters))

    async def _wait_turn(self, timeout: float | None) -> None:
        if self._free():
            return
        if timeout == 0:
            raise self._too_late(0)
        waiter = self._waiter(timeout)
        if self._waiters is None:
            self._waiters = deque()
        self._waiters.append(waiter)
        try:
            try:
                in_time = await waiter
            finally:
                self._waiters.remove(waiter)
        except asyncio.CancelledError:
            self._wake_up_first()
            raise
        if not in_time:
            self._wake_up_first()
            assert timeout is not None
            raise self._too_late(timeout)

    def _wake_up_first(self) -> None:
        """Ensure that the first waiter will run, if the lock is free for it."""
        if self._waiters and not self._locked:
            wake(self._waiters[0])

    def _too_late(self, timeout: float) -> AcquireTimeout:
        return AcquireTimeout(
            f"the lock was not free within {timeout:g} s "
            f"({len(self._waiters or ())} waiting); nothing is held"
        )

    # -- the lease --------------------------------------------------------------------------------

    @property
    def lease(self) -> Lease | None:
        if lost := self._loss():
            return lost
        if self._locked and self._lease is None:
            self._lease = Lease("the lock", None, self._fence)
        return self._lease

    @property
    def fence(self) -> int:
        if lost := self._loss():
            raise lost.error()
        if not self._locked:
            raise NotHeld("Lock is not acquired: it has no fence.")
        return self._fence

    async def __aenter__(self) -> Lease:
        await self.acquire()
        lease = self._lease = Lease("the lock", None, self._fence)
        if (task := self._owner) is not None:
            lease.owner = task
            lease.guard(task)
        return lease

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lost = self._lost.pop(current_task(), None) if self._lost else None
        if lost is None:
            self.release()
            return
        task = lost.owner
        our_cancel = task is not None and lost.unguard() and await lost.lift(task, exc)
        if exc is None or our_cancel:
            raise lost.error() from exc
        exc.add_note(f"dsync: {lost.error()}")  # never mask what the body raised

    async def info(self) -> LockInfo:
        """Who holds the lock: the task's name is the label, and no times are kept (NaN)."""
        host, pid = socket.gethostname(), os.getpid()
        queued = Queued("", host, pid, math.nan, "")
        waiters = (queued,) * len(self._waiters or ())
        if not self._locked:
            return LockInfo("", None, waiters, 0)
        label = "" if self._owner is None else self._owner.get_name()
        holder = Holder(label, host, pid, math.nan, math.inf, "")
        return LockInfo("", holder, waiters, self._fence)

    # -- force_release ----------------------------------------------------------------------------

    async def force_release(self) -> bool:
        if not self._locked:
            return False
        lease = self._lease = self._lease or Lease("the lock", None, self._fence)
        # Whose task is over is not going to hear of it.
        before = (self._lost or {}).items()
        lost: dict[Owner, Lease] = {task: old for task, old in before if task and not task.done()}
        lost[self._owner] = lease
        self._lost = None
        Lock.release(self)
        self._lost = lost
        lease.lose("it was taken away by force_release()")
        return True

    def _loss(self) -> Lease | None:
        """What was taken away from this task, and neither its release nor its body has told it."""
        return self._lost.get(current_task()) if self._lost else None
