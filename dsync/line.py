"""Line: the tasks of this process that wait for one thing, in order of arrival."""

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from dsync.errors import AcquireTimeout, DsyncError
from dsync.lease import Lease, Terms
from dsync.reply import Reply
from dsync.telemetry import Acquired, Lost, Refused, Released, TimedOut, Watch

if TYPE_CHECKING:
    from dsync.request import Request

__all__ = ["DONE", "Line", "Sleeper", "Waiter"]

DONE: Reply[None] = Reply(None)
NOBODY: Watch = Watch()  # of what has no client


class Waiter:
    """A task that waits: its future gets a Lease, None (it would have to wait), or an error."""

    __slots__ = ("future", "request", "since", "task", "terms", "warned")

    def __init__(self, future: "asyncio.Future[Lease | None]", terms: Terms) -> None:
        self.future: asyncio.Future[Lease | None] = future
        self.terms: Terms = terms
        self.request: Request | None = None  # its own in the store, where it shares none
        # Of those that wait for a store.
        self.since: float = 0.0  # time.monotonic()
        self.task: asyncio.Task[object] | None = None
        self.warned: bool = False  # that it waits for long

    @property
    def gone(self) -> bool:
        """Whether it wants nothing any more."""
        return self.future.done()

    def give(self, lease: Lease) -> None:
        """Wake it as the owner of this lease."""
        self.future.set_result(lease)

    def fail(self, error: BaseException) -> None:
        """Wake it with an error, unless it is on its way already."""
        if not self.future.done():
            self.future.set_exception(error)


class Sleeper(Waiter):
    """A task in `Condition.wait()`: whatever happens to it, it takes the lock back.

    So what it gets is kept here, not in a future, which dies when the task is cancelled.
    """

    __slots__ = ("error", "lease", "notified", "roused", "timed_out")

    future: "asyncio.Future[Lease | None]"

    def __init__(self, future: "asyncio.Future[Lease | None]", terms: Terms) -> None:
        super().__init__(future, terms)
        self.lease: Lease | None = None
        self.error: BaseException | None = None
        self.notified: bool = False  # a notification was spent on it
        self.roused: bool = False  # it waits for no notification any more
        self.timed_out: bool = False

    @property
    def gone(self) -> bool:
        return self.lease is not None or self.error is not None

    def give(self, lease: Lease) -> None:
        self.lease = lease
        self._wake()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self._wake()

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    async def woken(self) -> None:
        """Return when it has been given something; a cancellation is raised, and loses nothing."""
        if self.lease is None and self.error is None:
            if self.future.done():
                self.future = self.future.get_loop().create_future()
            await self.future


class Line:
    """Waiting, timeouts and cancellation, written once.

    Subclasses say how a waiter gets in (`_join`), what happens when it goes (`_left`), and how a
    lease ends (`give_back`).
    """

    def __init__(self, what: str) -> None:
        self.what = what  # for messages: "lock 'invoices'"
        # In order of arrival.  A waiter whose future is done is on its way out, and is skipped.
        self.waiters: deque[Waiter] = deque()
        self.kind = self.name = ""
        self.watch: Watch = NOBODY

    async def acquire(self, terms: Terms, timeout: float | None) -> Lease:
        """Wait for a lease that is ours when this returns.  Nothing stays behind if it raises."""
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            loop = self._enter()
            lease = self.take(terms)
            if lease is not None:
                return lease
            if timeout == 0:
                lease = await self.try_acquire(terms)
                if lease is None:
                    raise self._too_late(timeout)
                return lease
            waiter = Waiter(loop.create_future(), terms)
            self._join(waiter)
            timer = None
            if timeout is not None:
                timer = loop.call_later(timeout, self._time_out, waiter, timeout)
            try:
                lease = await waiter.future
            except BaseException:
                self._abandon(waiter)
                raise
            finally:
                waiter.task = None  # else its exception, with this frame, would keep the task
                if timer is not None:
                    timer.cancel()
            assert lease is not None
            if lease.held:
                return lease
            # It ended between the moment it was granted and the moment this task ran: the loop
            # stood still.  A body must not begin on it.
            self.put_away(lease)
            timeout = None if ends is None else max(ends - time.monotonic(), 0)

    async def try_acquire(self, terms: Terms) -> Lease | None:
        """A lease if that needs no waiting, else None."""
        raise NotImplementedError

    # -- what is told ---------------------------------------------------------------------------

    def tell_timed_out(self, waited: float) -> None:
        """The task that runs has waited in vain."""
        self.watch.tell(TimedOut(self.kind, self.name, waited))

    def tell_refused(self) -> None:
        """The task that runs has tried in vain."""
        self.watch.tell(Refused(self.kind, self.name, None))

    def tell_acquired(self, lease: Lease, waited: float) -> None:
        """The task that runs holds the lease."""
        lease.told = "acquired"
        task = asyncio.current_task()
        name = "" if task is None else task.get_name()
        self.watch.tell(Acquired(self.kind, self.name, waited, name, lease.fence))

    def tell_released(self, lease: Lease) -> None:
        """It has given it back; hooks that have not heard of the lease hear nothing."""
        if lease.told == "acquired":
            lease.told = "released"
            held, name = self._facts(lease)
            self.watch.tell(Released(self.kind, self.name, held, name, lease.fence))

    def tell_lost(self, lease: Lease) -> None:
        """It was lost; late, if it had been given back before that was known."""
        if lease.told:
            late, lease.told = lease.told == "released", ""
            held, name = self._facts(lease)
            reason = lease.reason
            self.watch.tell(Lost(self.kind, self.name, held, name, lease.fence, reason, late))

    def _facts(self, lease: Lease) -> tuple[float, str]:
        name = "" if lease.owner is None else lease.owner.get_name()
        return time.monotonic() - lease.since, name

    def take(self, terms: Terms) -> Lease | None:
        """A lease at once, where this process has one to spare."""
        raise NotImplementedError

    def give_back(self, lease: Lease) -> Reply[None]:
        """End a lease and serve whoever is next.  Raises LeaseLost."""
        raise NotImplementedError

    def waiting(self) -> int:
        """How many tasks of this process wait."""
        return len(self.waiters)

    def describe(self) -> str:
        """How things stand, for the message of a timeout."""
        raise NotImplementedError

    def _enter(self) -> asyncio.AbstractEventLoop:
        """The running loop; raises what stands against waiting here at all."""
        return asyncio.get_running_loop()

    def _join(self, waiter: Waiter) -> None:
        raise NotImplementedError

    def _left(self, waiter: Waiter) -> None:
        raise NotImplementedError

    def _next_waiter(self) -> Waiter | None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.future.done():
                return waiter
        return None

    def _abandon(self, waiter: Waiter) -> None:
        """It waits no more: cancelled, timed out, or failed."""
        future = waiter.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            try:
                self.waiters.remove(waiter)
            except ValueError:
                pass  # it had a request of its own, or was skipped
            self._left(waiter)
            return
        # Granted and cancelled at once: the cancel wins, the lease goes to the next.
        lease = future.result()
        if lease is not None:
            self.put_away(lease)

    def put_away(self, lease: Lease) -> None:
        """Give back what nobody will use."""
        try:
            self.give_back(lease)
        except DsyncError:
            pass  # lost: there is nothing to give back

    def _time_out(self, waiter: Waiter, timeout: float) -> None:
        if not waiter.future.done():
            waiter.future.set_exception(self._too_late(timeout))

    def _too_late(self, timeout: float) -> AcquireTimeout:
        return AcquireTimeout(
            f"{self.what} was not free within {timeout:g} s ({self.describe()}); nothing is held"
        )
