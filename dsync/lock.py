"""Lock: asyncio's, across processes."""

from typing import Literal

from dsync.errors import NotHeld
from dsync.holding import Holding
from dsync.info import LockInfo, holders_of, waiters_of
from dsync.lease import Lease
from dsync.reply import Reply

__all__ = ["Lock"]


class Lock(Holding):
    """A mutual exclusion lock, made by `client.lock(name)`.

    Held by one task at a time, of all processes that use the same name.  Not reentrant, as in
    asyncio.  Waiters are served in order of arrival; tasks of one process may be served before an
    earlier one elsewhere, within bounds that `fair=True` reduces to none.

    Usage::

        async with client.lock("invoices") as lease:
            await database.write(..., fence=lease.fence)

    If the lease is lost, the body is cancelled and leaves as LeaseLost.
    """

    async def acquire(self, timeout: float | None = None) -> Literal[True]:
        """Wait until the lock is held by this object, and return True.

        A cancelled or timed-out wait leaves nothing behind.

        Args:
            timeout: seconds to wait; None waits for ever, 0 asks once.

        Raises:
            AcquireTimeout: it was not free in time; nothing is held.
            TooManyWaiters: `max_waiters` tasks of this process wait already.
            StoreUnavailable: Redis could not be asked; nothing is held past its lease.
        """
        await self._acquire(timeout)
        return True

    def release(self) -> Reply[None]:
        """Give the lock to the next waiter, or to nobody; awaited, that is confirmed.

        With `linger` and nobody waiting, this process keeps it for a moment, and nothing is sent.

        Any task of the process may call it.  What this task acquired goes first.

        Raises:
            NotHeld: this object does not hold the lock (a RuntimeError, as in asyncio).
            LeaseLost: it was ours and is not any more; nobody else's hold is touched.
            StoreUnavailable: awaited, it was not confirmed; it ends with its lease at the latest.
        """
        return self._give_back(self._held_by_anyone())

    @property
    def lease(self) -> Lease | None:
        """The lease this object holds (this task's first), or None."""
        return self._pick()

    @property
    def fence(self) -> int:
        """The fencing token of the current hold: greater than that of any earlier holder.

        Raises:
            NotHeld: the lock is not held by this object.
            LeaseLost: it was, and is not any more.
        """
        lease = self._pick()
        if lease is None or lease.fence is None:
            raise NotHeld(self._named("Lock is not acquired: it has no fence."))
        if not lease.held:
            raise lease.error()
        return lease.fence

    async def info(self) -> LockInfo:
        """Who holds the lock and who waits for it, over all processes.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        _, _, _, _, holding, waiting, fence = await self._cohort.answer("permit_info")
        holders = holders_of(holding)
        return LockInfo(
            self.name,
            holders[0] if holders else None,
            waiters_of(waiting),
            fence if holders else 0,
        )

    async def force_release(self) -> bool:
        """Take the lock away from whoever holds it now, who sees LeaseLost.

        True when this returns and it was held; the next waiter owns it then.

        Raises:
            StoreUnavailable: it was not confirmed; the holder may have lost it, or not.
        """
        *_, holding, _, _ = await self._cohort.answer("permit_info")
        if not holding:
            return False
        token = holders_of(holding)[0].token
        return await self._cohort.revoke(token)
