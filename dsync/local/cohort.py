"""What stands behind `dsync.local`: permits that nobody outside this process can want."""

import asyncio
from typing import Any

from dsync.lease import Lease, Terms
from dsync.line import DONE, Line, Waiter
from dsync.reply import Reply
from dsync.store import Arg, Call, Done

__all__ = ["LocalCohort"]


class LocalCohort(Line):
    """A line with a counter: no store, no lease, nothing that could be lost.

    A release hands the permit to the next waiter itself, so a newcomer never overtakes.
    """

    # Permits are given out in order: while a task that has been given one has yet to run, nobody
    # takes one at once.  So value > 0 implies that nobody waits, or that such a task is `_waking`.

    counts_waking = True

    def __init__(self, what: str, value: int, fences: bool) -> None:
        super().__init__(what)
        self.value = value  # permits that are free
        self.limit = self.declared = value
        self._waking = 0
        self._fence = 0 if fences else None
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self) -> Lease | None:
        if self.value > 0 and not self._waking:
            self.value -= 1
            return self._lease()
        return None

    def _serve(self) -> None:
        """Give what is free to those who wait."""
        while self.value > 0 and (waiter := self._next_waiter()) is not None:
            self.value -= 1
            self._waking += 1
            waiter.future.set_result(self._lease())

    def _woken(self, waiter: Waiter) -> None:
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            self._waking -= 1
        self._serve()

    def _lease(self) -> Lease:
        if self._fence is not None:
            self._fence += 1
        return Lease(self.what, None, self._fence)

    async def try_acquire(self, terms: Terms) -> Lease | None:
        return None  # take() has been asked

    def give_back(self, lease: Lease) -> Reply[None]:
        lease.released = True
        self.value += 1
        self._serve()
        return DONE

    def add(self) -> Reply[None]:
        """One permit more, for whoever is next."""
        self.limit += 1
        self.value += 1
        self._serve()
        return DONE

    def busy(self) -> bool:
        """Whether an acquire would have to wait."""
        return self.value <= 0 or self._waking > 0

    def free(self) -> int:
        return self.value

    def describe(self) -> str:
        return f"{self.limit - self.value} of {self.limit} held, {len(self.waiters)} waiting"

    def learn_limit(self, limit: int, expected: bool = False) -> None:
        self.limit = limit

    def _join(self, waiter: Waiter) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(f"{self.what} is bound to a different event loop")
        self.waiters.append(waiter)

    def _left(self, waiter: Waiter) -> None:
        pass

    # -- what the store would tell ----------------------------------------------------------------

    def ask(self, transition: str, done: Done, **args: Arg) -> None:
        call = Call(None, done, 0.0)
        call.reply = self._tell(transition, **args)
        done(call)

    async def answer(self, transition: str, **args: Arg) -> list[Any]:
        return self._tell(transition, **args)

    def _tell(self, transition: str, **args: Arg) -> list[Any]:
        if transition == "permit_resize":
            wanted = int(args["wanted"])
            self.value += wanted - self.limit
            self.limit = wanted
            self._serve()
            return [wanted, len(self.waiters)]
        return [self.limit, 0, self.limit - self.value, len(self.waiters), [], [], self._fence or 0]
