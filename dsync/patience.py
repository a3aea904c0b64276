"""Patience: notices the tasks that have waited for long, and says who holds them up."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING
from weakref import WeakSet

from dsync.arguments import checked_seconds
from dsync.telemetry import SlowWait

if TYPE_CHECKING:
    from dsync.cohort import Cohort
    from dsync.line import Waiter

__all__ = ["Patience"]

log: logging.Logger = logging.getLogger("dsync")
ENDLESS: frozenset[str] = frozenset({"leader"})  # kinds for which waiting is the ordinary case
LEAST = 0.05  # seconds between two looks


class Patience:
    """Looks a few times in `slow_wait` seconds at who waits, which costs those who wait nothing.

    As long as nobody waits it does not look: a client that nobody uses wakes no process.
    """

    def __init__(self, slow_wait: float) -> None:
        self._slow_wait: float = checked_seconds("slow_wait", slow_wait, zero=False)
        # Where tasks wait, or have waited when it last looked: those that are `minded`.
        self._cohorts: WeakSet[Cohort] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, cohort: "Cohort") -> None:
        """Tasks wait there."""
        cohort.minded = True
        if cohort.kind not in ENDLESS:
            self._cohorts.add(cohort)
            if self._timer is None:
                self._again()

    def end(self) -> None:
        """Nobody waits any more."""
        self._cohorts.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(self._slow_wait / 4, LEAST), self._look)

    def _look(self) -> None:
        self._timer = None
        before = time.monotonic() - self._slow_wait
        for cohort in list(self._cohorts):
            self._look_at(cohort, before)
        if self._cohorts:
            self._again()

    def _look_at(self, cohort: "Cohort", before: float) -> None:
        """Warn of who has waited longest; those behind wait for the same reason."""
        waiter = cohort.longest_waiting()
        if waiter is None:
            cohort.minded = False
            self._cohorts.discard(cohort)
        elif waiter.since <= before and not waiter.warned:
            waiter.warned = True
            self._warn(cohort, waiter)

    def _warn(self, cohort: "Cohort", waiter: "Waiter") -> None:
        waited = time.monotonic() - waiter.since
        task = "" if waiter.task is None else waiter.task.get_name()
        holder = cohort.holder()
        log.warning("%s: task %r has waited for %.1f s; %s", cohort.what, task, waited, holder)
        if cohort.watch.hooks:
            cohort.watch.tell(SlowWait(cohort.kind, cohort.name, waited, task, holder))
