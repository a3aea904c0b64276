"""Idle: permits that a process keeps for a moment after their release, for its own next task.

As cluster lock managers keep a lock at the node that used it last, until another asks for it.
A hold that idles is held like any other, with its token, its lease and its block of fences; only
no body runs on it.  So whatever is true of a hold between two tasks is true of it.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from dsync.lease import Hold, Lease, Terms

if TYPE_CHECKING:
    from dsync.cohort import Cohort

__all__ = ["Idle"]


class Idle:
    """The holds of a cohort that nobody uses at the moment.

    Invariants: while one idles, nothing of this process waits or sleeps, here or in the store: it
    would hide those behind it from us.  And nobody elsewhere is known to wait: who begins to has us
    told, and then all are released.
    """

    __slots__ = ("_cohort", "_timer", "_until")

    def __init__(self, cohort: "Cohort") -> None:
        self._cohort = cohort
        self._until: dict[Hold, float] = {}  # loop time; the one released last stands last
        self._timer: asyncio.TimerHandle | None = None  # fires when the first is over, or earlier

    def __len__(self) -> int:
        return len(self._until)

    def keep(self, hold: Hold) -> bool:
        """Let a hold idle for `linger` seconds.  -> False: there is no loop to see to it"""
        try:
            loop = self._cohort.client.enter()
        except RuntimeError:  # released from outside the loop, as asyncio allows
            return False
        hold.lease = None
        until = self._until[hold] = loop.time() + hold.terms.linger
        # A timer is not stopped when a hold is used again: that would be most of a cycle.
        if self._timer is None or until < self._timer.when():
            self._wake_at(until, loop)
        return True

    def take(self, terms: Terms) -> Lease | None:
        """A lease on the hold that was released last; None: no hold idles, not any more either."""
        while self._until:
            hold = next(reversed(self._until))
            late = time.monotonic() >= hold.deadline
            if late or terms.alone or not self._cohort.passable(hold):
                self.let_go()
                return None
            del self._until[hold]
            lease = self._cohort.pass_on(hold, terms)
            if lease.held:
                return lease
        return None

    def let_go(self) -> None:
        """Release them all: somebody waits, or something is asked of the store."""
        while self._until:
            self._release(next(iter(self._until)))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self, hold: Hold) -> None:
        """It was released or lost."""
        self._until.pop(hold, None)

    def _release(self, hold: Hold) -> None:
        # Nobody waits for the answer: that it arrives is the link's business.
        self._cohort.release(hold, lambda call: None)

    def _wake_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Release those that nobody has wanted for as long as they may idle."""
        self._timer = None
        now = loop.time()
        for hold in [hold for hold, until in self._until.items() if until <= now]:
            self._release(hold)
        if self._until:
            self._wake_at(min(self._until.values()), loop)
