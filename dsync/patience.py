"""Patience: notices the tasks that have waited for long, and says who holds them up."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING
from weakref import ref

from dsync.arguments import checked_seconds
from dsync.telemetry import SlowWait

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.cohort import Cohort
    from dsync.line import Waiter

__all__ = ["Patience"]

log: logging.Logger = logging.getLogger("dsync")
ENDLESS = ("leader",)  # kinds for which waiting is the ordinary case


class Patience:
    """Looks a few times in `slow_wait` seconds at who waits, which costs those who wait nothing."""

    def __init__(self, client: "Client", slow_wait: float) -> None:
        self._client = ref(client)  # a client that nobody has may be collected
        self._slow_wait = checked_seconds("slow_wait", slow_wait, zero=False)
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """There is a loop: look from now on."""
        if self._timer is None:
            self._again()

    def end(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._slow_wait / 4, self._look)

    def _look(self) -> None:
        client = self._client()
        if client is None:
            return
        self._again()
        before = time.monotonic() - self._slow_wait
        for cohort in client.cohorts():
            # Of ten thousand locks that are held, few are waited for.
            if (cohort.waiters or cohort.requests) and cohort.kind not in ENDLESS:
                self._look_at(cohort, before)

    def _look_at(self, cohort: "Cohort", before: float) -> None:
        """Warn of who has waited longest; those behind wait for the same reason."""
        waiter = cohort.longest_waiting()
        if waiter is not None and waiter.since <= before and not waiter.warned:
            waiter.warned = True
            self._warn(cohort, waiter)

    def _warn(self, cohort: "Cohort", waiter: "Waiter") -> None:
        waited = time.monotonic() - waiter.since
        task = "" if waiter.task is None else waiter.task.get_name()
        holder = cohort.holder()
        log.warning("%s: task %r has waited for %.1f s; %s", cohort.what, task, waited, holder)
        if cohort.watch.hooks:
            cohort.watch.tell(SlowWait(cohort.kind, cohort.name, waited, task, holder))
