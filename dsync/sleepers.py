"""Sleepers: the tasks of this process that wait for conditions of one lock.

Wait morphing: a sleeper stands in its condition's queue in the store; a notification moves it to
the lock's queue, and it wakes once, as the owner.  Its token says that it is a sleeper's, so the
store passes its notification on if it dies.

A sleeper that is cancelled or times out waits for the lock under a token of its own, its heir,
unless the store has notified it before: then it has to pass that on, for it is not going to use it.
"""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from dsync.errors import ClientClosed
from dsync.lease import Hold, Lease, Terms
from dsync.line import Sleeper
from dsync.reply import Reply
from dsync.request import Request
from dsync.store import Call, Done

if TYPE_CHECKING:
    from dsync.cohort import Cohort

__all__ = ["LOST", "Sleepers", "is_sleepers"]

LOST = "it was lost before the wait began: the store gave it to another or has forgotten it"


class Sleepers:
    """Puts tasks to sleep and wakes them.  It has no state: their requests are the cohort's."""

    def __init__(self, cohort: "Cohort") -> None:
        self._cohort = cohort

    def sleep(self, lease: Lease, condition: str, terms: Terms) -> Sleeper:
        """Give the lock back with what was notified, and wait in its place.  Raises LeaseLost."""
        cohort = self._cohort
        loop = cohort.client.enter()
        hold = cohort.still_held(lease)
        sleeper = Sleeper(loop.create_future(), terms)
        sleeper.task = asyncio.current_task()
        token = f"{cohort.client.token(terms.claim)}/{condition}"
        request = sleeper.request = Request(token, terms, sleeper)
        request.sleeps = request.asking = True
        cohort.asleep[token] = request
        cohort.enlist(request)
        cohort.drop(hold)
        lease.pause()
        done = partial(self._slept, request, hold, lease)
        self._yield_up(hold, condition, hold.notices.pop(condition, 0), token, done)
        cohort.stand()
        return sleeper

    def release(self, hold: Hold, lease: Lease) -> Reply[None]:
        """Give the lock back with what was notified."""
        cohort = self._cohort
        reply: Reply[None] = Reply(report=cohort.client.report)
        cohort.drop(hold)
        condition, count = hold.notices.popitem()
        self._yield_up(hold, condition, count, "", partial(cohort.released, reply, lease))
        cohort.stand()
        return reply

    def _yield_up(self, hold: Hold, condition: str, count: int, sleeper: str, done: Done) -> None:
        """One condition's notifications go with the release, those of others go before it.

        It is sent when those are answered: if the store refused one of them for a moment, it would
        come when the lock is not ours any more, and notify nobody.
        """
        permits = self._cohort.permits
        if hold.notices:
            other, others = hold.notices.popitem()

            def then(call: Call) -> None:
                self._yield_up(hold, condition, count, sleeper, done)

            permits.yield_up(hold.token, other, others, then, keep=True, tombstone=True)
        else:
            permits.yield_up(
                hold.token, condition, count, done, sleeper=sleeper, tombstone=hold.tombstone
            )

    def _slept(self, request: Request, hold: Hold, lease: Lease, call: Call) -> None:
        """The lock was given back, and the sleeper sleeps, or could not."""
        cohort = self._cohort
        request.asking = False
        request.resent = call.attempts > 1
        if isinstance(call.reply, BaseException):
            cohort.abandon(hold.token)
            if request.token in cohort.requests:
                cohort.refused(request, call.reply, sent=call.attempts > 0)
            return
        held, waiting, *_ = call.reply
        if request.token not in cohort.requests:
            return
        if held:
            cohort.queued(request, 0, waiting)
        elif call.attempts == 1:
            cohort.forget(request)
            if request.heir is not None:
                cohort.leave(request.heir)
            lease.lose(LOST)
            cohort.client.lost(cohort, lease)
            assert request.waiter is not None
            request.waiter.fail(lease.error())
        else:
            cohort.send(request)  # an answer was lost: hear what became of it

    def notified(self, request: Request) -> None:
        """A notification has moved it to the lock's queue, or all the way to the lock."""
        self._cohort.asleep.pop(request.token, None)
        if isinstance(request.waiter, Sleeper):
            request.waiter.notified = True
            self._wants_lock(request.waiter)

    def _wants_lock(self, sleeper: Sleeper) -> None:
        """From now on it waits for the lock, as others do."""
        if not sleeper.since:
            sleeper.since = time.monotonic()
            self._cohort.mind()

    def served(self, request: Request) -> None:
        """An heir may be served before its waking is answered: then its sleeper is no more."""
        waiter = request.waiter
        if isinstance(waiter, Sleeper) and waiter.request is not request:
            before, waiter.request = waiter.request, request
            if before is not None and before.token in self._cohort.requests:
                self._cohort.forget(before)
                self._cohort.abandon(before.token)

    def rouse(self, sleeper: Sleeper) -> None:
        """It waits for no notification any more, only for the lock."""
        cohort, request = self._cohort, sleeper.request
        sleeper.roused = True
        self._wants_lock(sleeper)
        if request is None or request.heir is not None or not request.sleeps:
            return
        if request.token not in cohort.requests:
            return  # it has got the lock
        if request.asking:
            request.again = True  # one question at a time
        else:
            cohort.send(request)

    async def woken(self, sleeper: Sleeper) -> asyncio.CancelledError | None:
        """Wait until it holds the lock, or has failed.  -> the last cancellation in the meantime"""
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                await sleeper.woken()
            except asyncio.CancelledError as exc:
                cancelled = exc
                self.rouse(sleeper)
            lease = sleeper.lease
            if lease is not None and not lease.held:
                # It ended before this task ran: the loop stood still.  The lock is needed anew.
                sleeper.lease = None
                self._cohort.put_away(lease)
                try:
                    self._cohort.client.enter()
                except ClientClosed as closed:
                    sleeper.error = closed
                    return cancelled
                sleeper.request = self._cohort.ask_for(sleeper.terms, sleeper)
            elif lease is not None or sleeper.error is not None:
                return cancelled

    def leave(self, sleeper: Sleeper) -> None:
        """Its task will never run again: give back what it has, or will get."""
        if sleeper.lease is not None:
            self._cohort.put_away(sleeper.lease)
        request = sleeper.request
        for each in (request, request and request.heir):
            if each is not None and each.token in self._cohort.requests:
                self._cohort.leave(each)

    def oldest(self) -> list[Request]:
        """Of each condition the one that speaks for it: each has a queue to be kept."""
        oldest: dict[str, Request] = {}
        for token, request in self._cohort.asleep.items():
            oldest.setdefault(token.split("/", 2)[2], request)
        return list(oldest.values())

    def asleep(self, condition: str) -> int:
        """How many tasks of this process sleep in a condition."""
        return sum(token.endswith(f"/{condition}") for token in self._cohort.asleep)

    def send(self, request: Request) -> None:
        """Keep a sleeper's place, hear what became of it, or wake it if it has an heir."""
        sleeper = request.waiter
        assert isinstance(sleeper, Sleeper)
        if sleeper.roused and request.heir is None and not sleeper.notified:
            terms = request.terms
            request.heir = Request(self._cohort.client.token(terms.claim), terms, sleeper)
            request.heir.asking = True
            self._cohort.enlist(request.heir)
        heir = request.heir
        if heir is None or heir.token not in self._cohort.requests:
            token, done = "", partial(self._kept, request)
        else:
            token, done = heir.token, partial(self._roused, request, heir)
        self._cohort.permits.wake(request.token, token, request.terms.first_lease, done)

    def _kept(self, request: Request, call: Call) -> None:
        cohort = self._cohort
        request.resent = request.resent or call.attempts > 1
        forgotten = False
        if type(call.reply) is list:
            code, _, ms, waiting, _, woken, *_ = call.reply
            _take_out(call)
            if code == 2:
                request.asking = False
                if request.token in cohort.requests:
                    cohort.queued(request, ms, waiting)
                return
            forgotten = woken == 2
        cohort.answered(request, call)
        if forgotten:  # and so are the others: they need not wait for their turns to ask
            for other in list(cohort.asleep.values()):
                if not other.asking:
                    cohort.send(other)

    def _roused(self, request: Request, heir: Request, call: Call) -> None:
        """It has an heir now, or had been notified before."""
        cohort = self._cohort
        request.asking = heir.asking = False
        request.resent = request.resent or call.attempts > 1
        heir.resent = heir.resent or call.attempts > 1
        if heir.token not in cohort.requests:
            return  # answered twice, or the client was closed
        if type(call.reply) is not list:
            cohort.forget(heir)
            cohort.abandon(heir.token)
            cohort.answered(request, call)
            return
        woken = call.reply[5] == 1
        _take_out(call)
        if woken and request.token in cohort.requests:
            cohort.forget(request)
            if request.resent:
                cohort.abandon(request.token)
            assert heir.waiter is not None
            heir.waiter.request = heir
            cohort.answered(heir, call)
        elif woken:
            cohort.leave(heir)  # it holds the lock all the same: a grant was under way
        else:
            request.heir = None
            cohort.forget(heir)
            if heir.resent:
                cohort.abandon(heir.token)
            cohort.answered(request, call)

    def abandon(self, token: str) -> None:
        """It will not use what it may have been notified of: that goes to another."""
        condition = token.split("/", 2)[2]
        self._cohort.permits.yield_up(token, condition, 1, _nothing, tombstone=True)


def is_sleepers(token: str) -> bool:
    """Whether it is the token of a sleeper: `<client>.<counter>/<claim>/<condition>`."""
    return token.count("/") == 2


def _take_out(call: Call) -> None:
    """What is left of a reply of permit_wake is one of permit_acquire."""
    del call.reply[5]


def _nothing(call: Call) -> None:
    """Nobody waits for the answer: that it arrives is the link's business."""
