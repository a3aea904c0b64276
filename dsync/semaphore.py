"""Semaphore and BoundedSemaphore: asyncio's, across processes."""

from typing import Literal

from dsync.arguments import checked_count
from dsync.holding import Holding
from dsync.info import SemaphoreInfo, holders_of, waiters_of
from dsync.lease import Lease
from dsync.reply import Reply

__all__ = ["BoundedSemaphore", "Semaphore"]


class Semaphore(Holding):
    """A number of permits, made by `client.semaphore(name, value)`.

    At most `value` are held at a time, by all processes that use the same name.  A permit is held
    on a lease: a process that dies gives its permits back when it ends.  Permits have no fences:
    with several holders at once the greatest fence seen says nothing about the others.

    When processes disagree on `value`, the one whose client is the newest wins, until `resize()`
    pins a value.
    """

    async def acquire(self, timeout: float | None = None) -> Literal[True]:
        """Wait until a permit is held by this object, and return True.

        A cancelled or timed-out wait leaves nothing behind.

        Args:
            timeout: seconds to wait; None waits for ever, 0 asks once.

        Raises:
            AcquireTimeout: no permit was free in time; none is held.
            TooManyWaiters: `max_waiters` tasks of this process wait already.
            StoreUnavailable: Redis could not be asked; nothing is held past its lease.
        """
        await self._acquire(timeout)
        return True

    def release(self) -> Reply[None]:
        """Give a permit back; awaited, that is confirmed.

        With `linger` and nobody waiting, this process keeps it for a moment, and nothing is sent.

        The permit this task has held longest, else the oldest of this object's.  With none held
        the value is raised by one, for everyone and for good, as asyncio's counter does.

        Raises:
            LeaseLost: the permit was ours and is not any more.
            StoreUnavailable: awaited, it was not confirmed; a permit that was held ends with its
                lease at the latest, and a value to be raised may have been, or not.
        """
        lease = self._pick()
        if lease is None:
            return self._raise_value()
        return self._give_back(lease)

    def _end_empty_handed(self, entered: Lease) -> Reply[None]:
        # Another task may have released it, to signal: asyncio counts both.  After a loss, though,
        # what is left belongs to others.
        if entered.lost.is_set():
            raise entered.error()
        return self.release()

    def _raise_value(self) -> Reply[None]:
        return self._cohort.add()

    @property
    def value(self) -> int:
        """How many permits there are in all, as far as this process knows."""
        return self._cohort.limit

    async def resize(self, value: int) -> None:
        """Set the value for everyone, and pin it: what processes were made with no longer counts.

        Growing serves those who wait; shrinking takes nobody's permit away.

        Raises:
            StoreUnavailable: it was not confirmed; the value may have been set, or not.
        """
        wanted = checked_count("value", value)
        await self._cohort.answer("permit_resize", wanted=wanted)

    async def info(self) -> SemaphoreInfo:
        """The value, who holds permits and who waits, over all processes.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        limit, pinned, held, waits, holding, waiting, _ = await self._cohort.answer("permit_info")
        if limit < 0:  # nobody has used it yet
            limit = self._cohort.declared
        return SemaphoreInfo(
            self.name, limit, bool(pinned), held, waits, holders_of(holding), waiters_of(waiting)
        )

    def _state(self) -> str:
        return "locked" if self._cohort.busy() else f"unlocked, value:{self._cohort.free()}"


class BoundedSemaphore(Semaphore):
    """A Semaphore that raises ValueError when it is released more often than acquired."""

    def _raise_value(self) -> Reply[None]:
        raise ValueError(self._named("BoundedSemaphore released too many times"))
