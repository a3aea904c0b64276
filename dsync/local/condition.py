"""Condition: asyncio's, in one process."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

from dsync.arguments import checked_seconds
from dsync.condition import Condition as _Condition
from dsync.errors import AcquireTimeout, NotHeld, WaitTimeout
from dsync.lease import Lease
from dsync.line import DONE
from dsync.local.lock import Lock
from dsync.local.waiting import NO, YES, Waiter, Waiting, wake
from dsync.lock import Lock as _Lock
from dsync.reply import Reply

__all__ = ["Condition"]

T = TypeVar("T")


class Condition(Waiting, _Condition):
    """asyncio.Condition, with `timeout=`, and calls that may be awaited.

    `lock` is a Lock, or whatever has its `acquire()`, `release()` and `locked()`: asyncio's, too.
    """

    # Nobody is lost: a waiter that was notified, and does not return from wait(), notifies another.

    name = ""

    def __init__(self, lock: Any = None) -> None:
        self._lock: Any = Lock() if lock is None else lock
        self._waiters: deque[Waiter] = deque()

    def _extra(self) -> str:
        state = "locked" if self._lock.locked() else "unlocked"
        return f"{state}, waiters:{len(self._waiters)}" if self._waiters else state

    # -- the lock's -------------------------------------------------------------------------------

    async def acquire(self, timeout: float | None = None) -> Literal[True]:
        if timeout is None:
            await self._lock.acquire()
        elif isinstance(self._lock, _Lock):
            await self._lock.acquire(timeout)
        else:
            await self._acquire_foreign(checked_seconds("timeout", timeout))
        return True

    def release(self) -> Reply[None]:
        reply = self._lock.release()
        return reply if isinstance(reply, Reply) else DONE

    def locked(self) -> Reply[bool]:
        locked = self._lock.locked()
        if isinstance(locked, Reply):
            return locked
        return YES if locked else NO

    async def _acquire_foreign(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._lock.acquire()
        except TimeoutError:
            raise AcquireTimeout(
                f"the lock was not free within {timeout:g} s; nothing is held"
            ) from None

    async def __aenter__(self) -> Lease:
        """Acquire the lock; a lock of another kind than ours has no lease to give (None)."""
        if isinstance(self._lock, _Lock):
            return await self._lock.__aenter__()
        await self._lock.acquire()
        return cast(Lease, None)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(self._lock, _Lock):
            await self._lock.__aexit__(exc_type, exc, traceback)
        else:
            self._lock.release()

    # -- the condition's --------------------------------------------------------------------------

    async def wait(self, timeout: float | None = None) -> Literal[True]:
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        self._check_held("cannot wait on un-acquired lock")
        waiter = self._waiter(timeout)
        self._lock.release()
        try:
            try:
                self._waiters.append(waiter)
                try:
                    in_time = await waiter
                finally:
                    self._waiters.remove(waiter)
            finally:
                await self._acquire_again()
        except BaseException:
            # It may have been notified already, and does nothing about it.  If it was not, this
            # is a notification too many, which those who wait have to expect.
            self._notify(1)
            raise
        if not in_time:
            raise WaitTimeout(f"no notification within {timeout:g} s; the lock is held")
        return True

    async def _acquire_again(self) -> None:
        """Get the lock back, whatever comes, and then raise the last cancellation."""
        cancelled = None
        while True:
            try:
                await self._lock.acquire()
                break
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                cancelled = None  # it refers to this frame, and this frame to it

    async def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        ends = None
        if timeout is not None:
            ends = time.monotonic() + checked_seconds("timeout", timeout)
        while not (result := predicate()):
            if ends is None:
                await self.wait()
                continue
            if (left := ends - time.monotonic()) <= 0:
                self._check_held("cannot wait on un-acquired lock")
                raise WaitTimeout(f"the predicate was not true within {timeout:g} s")
            try:
                await self.wait(left)
            except WaitTimeout:
                pass  # it may have become true, and nobody has notified this task
        return result

    def notify(self, n: int = 1) -> Reply[None]:
        self._check_held("cannot notify on un-acquired lock")
        self._notify(n)
        return DONE

    def notify_all(self) -> Reply[None]:
        return self.notify(len(self._waiters))

    def _notify(self, n: int) -> None:
        for waiter in self._waiters:
            if n <= 0:
                break
            if wake(waiter):
                n -= 1

    def _check_held(self, text: str) -> None:
        lock = self._lock
        if isinstance(lock, Lock) and (lost := lock._loss()):
            raise lost.error()
        if not lock.locked():
            raise NotHeld(text)
