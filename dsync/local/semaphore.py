"""Semaphore and BoundedSemaphore: asyncio's, in one process."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Literal

from dsync.arguments import checked_count, checked_seconds
from dsync.errors import AcquireTimeout
from dsync.info import SemaphoreInfo
from dsync.lease import Lease
from dsync.line import DONE
from dsync.local.waiting import NO, YES, Waiter, Waiting, current_task, wake
from dsync.reply import Reply
from dsync.semaphore import BoundedSemaphore as _BoundedSemaphore
from dsync.semaphore import Semaphore as _Semaphore

__all__ = ["BoundedSemaphore", "Semaphore"]


class Semaphore(Waiting, _Semaphore):
    """asyncio.Semaphore, with `timeout=`, `try_acquire()`, and calls that may be awaited."""

    # A permit is given to the first waiter itself: it counts as held before the waiter has run.
    # _value > 0 while somebody waits implies that a waiter is about to run, which gives the rest
    # to those behind it; until then a newcomer waits as well.

    name = ""

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("Semaphore initial value must be >= 0")
        self._waiters: deque[Waiter] | None = None
        self._value = value  # permits that are free; below 0 after resize() took away held ones
        self._bound_value = value  # permits in all
        # Of the innermost `async with` body of each task.
        self._bodies: dict[asyncio.Task[Any] | None, Lease] = {}

    def _extra(self) -> str:
        state = "locked" if self.locked() else f"unlocked, value:{self._value}"
        return f"{state}, waiters:{len(self._waiters)}" if self._waiters else state

    def locked(self) -> Reply[bool]:
        return NO if self._free() else YES

    def _free(self) -> bool:
        # Those that are cancelled, and have yet to leave, keep nobody from overtaking them.
        waiters = self._waiters
        return self._value > 0 and (not waiters or all(waiter.cancelled() for waiter in waiters))

    async def acquire(self, timeout: float | None = None) -> Literal[True]:
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        if self._free():
            self._value -= 1
        else:
            await self._wait_turn(timeout)
        return True

    async def try_acquire(self) -> bool:
        if not self._free():
            return False
        self._value -= 1
        return True

    def release(self) -> Reply[None]:
        self._value += 1
        if self._value > self._bound_value:
            self._bound_value = self._value
        if self._waiters and self._value > 0:
            self._wake_up_next()
        return DONE

    async def _wait_turn(self, timeout: float | None) -> None:
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
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self._value += 1  # it was given a permit, and will not use it
            raise
        finally:
            # Those who came while it was about to run had to wait behind it.
            self._wake_up_all()
        if not in_time:
            assert timeout is not None
            raise self._too_late(timeout)

    def _wake_up_next(self) -> bool:
        """Give a permit to the first waiter that has none.  -> whether there is one."""
        for waiter in self._waiters or ():
            if wake(waiter):
                self._value -= 1
                return True
        return False

    def _wake_up_all(self) -> None:
        """Give what is free to those who wait."""
        while self._value > 0 and self._wake_up_next():
            pass

    def _too_late(self, timeout: float) -> AcquireTimeout:
        return AcquireTimeout(
            f"the semaphore was not free within {timeout:g} s "
            f"({self._bound_value - self._value} of {self._bound_value} held, "
            f"{len(self._waiters or ())} waiting); nothing is held"
        )

    @property
    def value(self) -> int:
        return self._bound_value

    async def resize(self, value: int) -> None:
        wanted = checked_count("value", value)
        self._value += wanted - self._bound_value
        self._bound_value = wanted
        self._wake_up_all()

    async def info(self) -> SemaphoreInfo:
        """The value, and how many hold and wait; who they are is not kept."""
        held, waiting = self._bound_value - self._value, len(self._waiters or ())
        return SemaphoreInfo("", self._bound_value, False, held, waiting, (), ())

    async def __aenter__(self) -> Lease:
        await self.acquire()
        lease = Lease("the semaphore", None, None)
        task = current_task()
        lease.outer = self._bodies.get(task)
        self._bodies[task] = lease
        return lease

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task = current_task()
        if task not in self._bodies:  # left by another task than entered: an exit stack, a fixture
            task = next(iter(self._bodies), None)
        if lease := self._bodies.pop(task, None):
            lease.released = True
            if lease.outer is not None:
                self._bodies[task] = lease.outer
        self.release()


class BoundedSemaphore(Semaphore, _BoundedSemaphore):
    """asyncio.BoundedSemaphore: ValueError on releasing more often than acquiring."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)

    def release(self) -> Reply[None]:
        if self._value >= self._bound_value:
            raise ValueError("BoundedSemaphore released too many times")
        return super().release()
