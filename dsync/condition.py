"""Condition: asyncio's, across processes."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NoReturn, TypeVar

from dsync.arguments import checked_seconds
from dsync.errors import LeaseLost, NotHeld, WaitTimeout
from dsync.lease import Lease
from dsync.line import DONE, Sleeper
from dsync.lock import Lock
from dsync.names import plain
from dsync.reply import Reply
from dsync.sleepers import LOST
from dsync.telemetry import TimedOut, Woken

__all__ = ["Condition"]

T = TypeVar("T")
ALL = 2**31  # more than can wait


class Condition:
    """A lock, and a place to wait until a holder of it notifies, made by `client.condition(name)`.

    It is known by its name *and* its lock: two processes mean the same condition if they give both
    the same.  Without a lock it has one of its own.

    Usage::

        condition = client.condition("orders")
        async with condition:                              # a consumer
            await condition.wait_for(lambda: orders)
        async with condition:                              # a producer
            condition.notify()

    `notify()` costs nothing by itself: nobody could see its effect before the lock is released, so
    it travels with the release, which moves those notified from the condition's queue to the
    lock's.  Each of them is woken once, as the owner of the lock (wait morphing).
    """

    def __init__(self, lock: Lock, name: str) -> None:
        self._sleepers = lock._cohort.sleepers
        self._plain = plain(name)  # as its queue is called in the store
        self._lock = lock
        self.name = name

    @property
    def lock(self) -> Lock:
        """The lock it is bound to."""
        return self._lock

    async def acquire(self, timeout: float | None = None) -> Literal[True]:
        """Acquire the lock, within `timeout` seconds if given; see `Lock.acquire`."""
        return await self._lock.acquire(timeout)

    def release(self) -> Reply[None]:
        """Release the lock, to those notified among others; see `Lock.release`."""
        return self._lock.release()

    def locked(self) -> Reply[bool]:
        """Whether the lock is held; see `Lock.locked`."""
        return self._lock.locked()

    async def wait(self, timeout: float | None = None) -> Literal[True]:
        """Release the lock, wait until notified, and return True holding the lock again.

        The lock is also held again when this raises because of a cancellation or the timeout; if
        it had been notified by then, the notification goes to another waiter.

        It may return without a notification after a fault (a waiter or the server died and its
        notification may have been lost), so wait in a loop or use `wait_for`.

        Args:
            timeout: seconds to wait for a notification; getting the lock back is not limited.

        Raises:
            NotHeld: this object does not hold the lock (a RuntimeError, as in asyncio).
            WaitTimeout: no notification in time; the lock is held.
            LeaseLost: the lock had been lost before the wait began; it is not held.
            StoreUnavailable: the store could not be asked; the lock is not held.
        """
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        lock, sleepers = self._lock, self._sleepers
        before = self._lease("cannot wait on un-acquired lock")
        began = time.monotonic()
        sleeper = sleepers.sleep(before, self._plain, lock._terms)
        lock._forget(before)
        lock._cohort.tell_released(before)
        timer = None
        if timeout is not None:
            timer = asyncio.get_running_loop().call_later(timeout, self._time_out, sleeper)
        try:
            cancelled = await sleepers.woken(sleeper)
        except BaseException:  # not a cancellation: the coroutine was closed
            sleepers.leave(sleeper)
            raise
        finally:
            sleeper.task = None
            if timer is not None:
                timer.cancel()
        if sleeper.lease is None:
            assert sleeper.error is not None
            await self._without(before, sleeper.error, cancelled)
        lock._exchange(before, sleeper.lease)
        line = lock._cohort
        if line.watch.hooks:
            line.tell_acquired(sleeper.lease, 0.0)
            in_time = sleeper.notified or not sleeper.timed_out
            if cancelled is None:
                outcome = Woken if in_time else TimedOut
                line.watch.tell(outcome("condition", self.name, time.monotonic() - began))
        if cancelled is not None:
            if sleeper.notified:
                self._add_notice(sleeper.lease, 1)
            raise cancelled
        if sleeper.timed_out and not sleeper.notified:
            raise self._too_late(timeout)
        return True

    async def _without(
        self, before: Lease, error: BaseException, cancelled: BaseException | None
    ) -> NoReturn:
        """A wait could not get the lock back: end the body as any other loss does."""
        self._lock._keep(before)  # a release says so
        if cancelled is not None:
            # A timeout may take this cancel for its own and let the body go on: ours goes on top.
            before.resume()
        if isinstance(error, LeaseLost):
            before.lose(LOST)
        else:
            before.lose(f"condition {self.name!r} could not get it back: {error}")
        if cancelled is not None:
            await asyncio.sleep(0)  # where ours arrives, if this is the task of the body
            raise cancelled
        raise error

    async def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true, looked at with the lock held; return its value.

        Args:
            predicate: called without arguments, first of all before any waiting.
            timeout: seconds to wait in all.

        Raises:
            What `wait()` raises; WaitTimeout with the lock held.
        """
        ends = None if timeout is None else time.monotonic() + checked_seconds("timeout", timeout)
        left = None
        while not (result := predicate()):
            if ends is not None:
                left = ends - time.monotonic()
                if left <= 0:
                    self._lease("cannot wait on un-acquired lock")
                    raise self._too_late(timeout)
            try:
                await self.wait(left)
            except WaitTimeout:
                pass  # a last look
        return result

    def notify(self, n: int = 1) -> Reply[None]:
        """Let the `n` tasks that have waited longest, of all processes, return from `wait()`.

        They do so one after the other, each holding the lock, once it has been released.  There is
        nothing to be confirmed before that: awaiting the release confirms the notification.  If the
        lock is lost before it is released, nobody is notified, and the release raises LeaseLost.

        Raises:
            NotHeld: this object does not hold the lock (a RuntimeError, as in asyncio).
            LeaseLost: it did, and does not any more; nobody is notified.
        """
        lease = self._lease("cannot notify on un-acquired lock")
        if not isinstance(n, int):
            raise TypeError(f"n must be an int, got {type(n).__name__}: {n!r}")
        if n > 0:
            self._add_notice(lease, n)
        return DONE

    def notify_all(self) -> Reply[None]:
        """Let all tasks that wait now, of all processes, return from `wait()`; see `notify`."""
        return self.notify(ALL)

    def _add_notice(self, lease: Lease, n: int) -> None:
        assert lease.hold is not None
        notices = lease.hold.notices
        notices[self._plain] = min(notices.get(self._plain, 0) + n, ALL)

    def _lease(self, text: str) -> Lease:
        """The lease that this object holds; raises what asyncio does where there is none."""
        lease = self._lock._pick()
        if lease is None:
            raise NotHeld(self._lock._named(text))
        if not lease.held:
            raise lease.error()
        return lease

    def _time_out(self, sleeper: Sleeper) -> None:
        sleeper.timed_out = True
        self._sleepers.rouse(sleeper)

    def _too_late(self, timeout: float | None) -> WaitTimeout:
        return WaitTimeout(
            f"condition {self.name!r} was not notified within {timeout:g} s; its lock is held"
        )

    async def __aenter__(self) -> Lease:
        return await self._lock.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._lock.__aexit__(exc_type, exc, traceback)

    def _waiting(self) -> int:
        return self._sleepers.asleep(self._plain)

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        waiting = self._waiting()
        extra = f", waiters:{waiting}" if waiting else ""
        name = f" {self.name!r}" if self.name else ""
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x}{name} [{state}{extra}]>"
        )
