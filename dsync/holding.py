"""What Lock and Semaphore share: an object that holds leases, one for each acquire."""

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING

from dsync.arguments import checked_count, checked_lease, checked_seconds
from dsync.errors import AcquireTimeout, DsyncError, NotHeld
from dsync.lease import Lease, Terms
from dsync.line import DONE
from dsync.reply import Reply
from dsync.store import Call

if TYPE_CHECKING:
    from dsync.cohort import Cohort

__all__ = ["Holding", "checked_terms"]


def checked_terms(
    lease: float,
    renew: bool,
    max_hold: float | None,
    on_lost: str,
    fair: bool,
    max_waiters: int | None,
    linger: float = 0.0,
) -> Terms:
    """The keyword arguments of everything that holds, checked."""
    for what, flag in (("renew", renew), ("fair", fair)):
        if not isinstance(flag, bool):
            raise TypeError(f"{what} must be True or False, got {flag!r}")
    if on_lost not in ("cancel", "flag"):
        raise ValueError(f"on_lost must be 'cancel' or 'flag', got {on_lost!r}")
    linger = checked_seconds("linger", linger)
    if linger and (fair or not renew or max_hold is not None):
        raise ValueError(
            f"linger={linger:g} keeps a permit for the next task of this process, which fair=True, "
            "renew=False and max_hold= rule out: give one or the other"
        )
    return Terms(
        lease=checked_lease("lease", lease),
        renew=renew,
        max_hold=None if max_hold is None else checked_lease("max_hold", max_hold),
        on_lost="cancel" if on_lost == "cancel" else "flag",
        fair=fair,
        max_waiters=None if max_waiters is None else checked_count("max_waiters", max_waiters),
        linger=linger,
    )


class Holding:
    """Acquires, holds and gives back leases of one name.

    One object may be shared by all tasks of a process, as in asyncio.
    """

    def __init__(self, cohort: "Cohort", name: str, terms: Terms) -> None:
        self._cohort = cohort
        self._terms = terms
        self.name = name
        # What this object holds, by the task that acquired it, the oldest first; leases that were
        # lost stay until they are released.  No list is empty.
        self._held: dict[object, list[Lease]] = {}
        # The lease that the innermost `async with` body of each task began with.
        self._inside: dict[asyncio.Task[object], Lease] = {}

    async def _acquire(self, timeout: float | None) -> Lease:
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        line = self._cohort
        began = time.monotonic() if line.watch.hooks else None
        try:
            lease = await line.acquire(self._terms, timeout)
        except AcquireTimeout:
            if began is not None:
                line.tell_timed_out(time.monotonic() - began)
            raise
        self._hold(lease)
        if began is not None:
            line.tell_acquired(lease, time.monotonic() - began)
        return lease

    def _hold(self, lease: Lease) -> None:
        task = lease.owner = asyncio.current_task()
        leases = self._held.get(task)
        if leases is None:
            self._held[task] = [lease]
        else:
            leases.append(lease)

    async def try_acquire(self) -> bool:
        """Acquire if that needs no waiting: True, and it is held, or False, and nothing is.

        Never overtakes those who wait already.

        Raises:
            StoreUnavailable: the store could not be asked; nothing is held past its lease.
        """
        line = self._cohort
        lease = await line.try_acquire(self._terms)
        if lease is None:
            if line.watch.hooks:
                line.tell_refused()
            return False
        self._hold(lease)
        if line.watch.hooks:
            line.tell_acquired(lease, 0.0)
        return True

    def _pick(self) -> Lease | None:
        """What a release ends: this task's oldest lease, else the oldest of the object's."""
        held = self._held
        if not held:
            return None
        if len(held) > 1:
            try:
                own = held.get(asyncio.current_task())
            except RuntimeError:  # called from outside the loop, as asyncio allows
                own = None
            if own is not None:
                return own[0]
        return next(iter(held.values()))[0]

    def _exchange(self, before: Lease, lease: Lease) -> None:
        """`lease` is what a wait got back for the one before, in the same body."""
        lease.succeed(before)
        self._keep(lease)
        for task, inside in self._inside.items():
            if inside is before:
                self._inside[task] = lease
                return
            while inside.outer is not None:
                if inside.outer is before:
                    inside.outer = lease
                    return
                inside = inside.outer

    def _enter_body(self, lease: Lease) -> None:
        """A body begins, of the task that has just acquired."""
        task = lease.owner
        assert task is not None
        if lease.hold is not None and self._terms.on_lost == "cancel":
            lease.guard(task)
        lease.outer = self._inside.get(task)
        self._inside[task] = lease

    def _leave_body(self) -> "tuple[asyncio.Task[object], Lease]":
        """The body that ends now: its task, and the lease that it began with."""
        task = asyncio.current_task()
        if task is None or task not in self._inside:
            # Left by another task than entered: an exit stack, a fixture.
            task = next(iter(self._inside))
        entered = self._inside[task]
        if entered.outer is None:
            del self._inside[task]
        else:
            self._inside[task] = entered.outer
        return task, entered

    def _end_body(self, entered: Lease) -> Reply[None]:
        """Release what the body began with, or what its task has acquired since."""
        mine = self._held.get(entered.owner)
        if not mine:
            return self._end_empty_handed(entered)
        return self._give_back(entered if entered in mine else mine[-1])

    def _end_empty_handed(self, entered: Lease) -> Reply[None]:
        """The body, or another task, has released its lease already."""
        raise NotHeld(self._named("Lock is not acquired."))

    def _held_by_anyone(self) -> Lease:
        """The lease that a release ends; raises what asyncio does where there is none."""
        lease = self._pick()
        if lease is None:
            raise NotHeld(self._named("Lock is not acquired."))
        return lease

    def _named(self, text: str) -> str:
        """asyncio's text, and which object it is about."""
        return f"{text} ({self._cohort.what})" if self.name else text

    def _give_back(self, lease: Lease) -> Reply[None]:
        self._forget(lease)
        reply = self._cohort.give_back(lease)
        if lease.told:
            self._cohort.tell_released(lease)
        return reply

    def _keep(self, lease: Lease) -> None:
        self._held.setdefault(lease.owner, []).append(lease)

    def _forget(self, lease: Lease) -> None:
        leases = self._held[lease.owner]
        if len(leases) == 1:
            del self._held[lease.owner]
        else:
            leases.remove(lease)

    def locked(self) -> Reply[bool]:
        """Whether an acquire would have to wait: at once, as far as this process knows.

        Awaited, the store's answer.

        Raises:
            StoreUnavailable: awaited, the store could not be asked.
        """
        return Reply(known=self._known_locked(), ask=self._ask_locked)

    def _known_locked(self) -> bool:
        return self._cohort.busy()

    def _ask_locked(self, reply: Reply[bool]) -> None:
        def answered(call: Call) -> None:
            if isinstance(call.reply, BaseException):
                reply.settle(call.reply)
            else:
                limit, _, holding, waiting, *_ = call.reply
                known = self._cohort.declared if limit < 0 else limit
                reply.settle(holding >= known or waiting > 0)

        self._cohort.ask("permit_info", answered)

    async def __aenter__(self) -> Lease:
        lease = await self._acquire(None)
        self._enter_body(lease)
        return lease

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, entered = self._leave_body()
        cancelled = entered.unguard()
        error: DsyncError | None = None
        reply: Reply[None] = DONE
        try:
            reply = self._end_body(entered)
        except DsyncError as refused:
            error = refused
        our_cancel = cancelled and await entered.lift(task, exc)
        try:
            if reply is not DONE:
                await reply
        except DsyncError as failed:
            error = failed
        if error is not None:
            if exc is None or our_cancel:
                raise error from exc
            # What the body raised, or a cancel from elsewhere, is never masked.
            exc.add_note(f"dsync: {error}")

    def _state(self) -> str:
        return "locked" if self._known_locked() else "unlocked"

    def __repr__(self) -> str:
        waiting = self._cohort.waiting()
        extra = f", waiters:{waiting}" if waiting else ""
        name = f" {self.name!r}" if self.name else ""
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x}{name} "
            f"[{self._state()}{extra}]>"
        )
