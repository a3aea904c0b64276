"""Cohort: the tasks of this process that want one name, and what the process has and asks for.

In-process first, as in lock cohorting (Dice, Marathe, Shavit: "Lock Cohorting", PPoPP 2012): the
process is what a NUMA node is there.  Tasks queue here; one request for each permit that they could
use stands in the store's queue.  A release hands the permit to the next task with no network at
all, until another process waits: then for at most PASSES passes or PASS_TIME seconds more.

Nothing here awaits but the waiting tasks themselves: replies and messages change the state in
place and wake whose turn it is.
"""

import asyncio
import random
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from dsync.beat import Beat
from dsync.errors import ClientClosed, StoreUnavailable, TooManyWaiters
from dsync.lease import Hold, Lease, Terms, margin
from dsync.line import DONE, Line, Sleeper, Waiter
from dsync.linger import Idle
from dsync.permits import PASSES, Permits
from dsync.reply import Reply
from dsync.request import Request
from dsync.rival import Rival, taken_by
from dsync.sleepers import Sleepers, is_sleepers
from dsync.store import Arg, Call, Done
from dsync.telemetry import HandedOver, RenewedLate, Skipped, Watch

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Cohort"]

PASS_TIME = 0.010  # seconds


class Cohort(Line):
    """What this process wants, asks for and holds of one lock or semaphore."""

    def __init__(self, client: "Client", kind: str, name: str, value: int, fences: bool) -> None:
        super().__init__(f"{kind} {name!r}")
        self.client = client
        self.kind = kind
        self.name = name
        self.watch: Watch = client.watch
        self.permits: Permits = Permits(client, kind, name, value, fences)
        self.block: int = self.permits.block  # fences that come with a grant
        self.limit: int = value  # as the store has told us last
        # `waiters` are the tasks without a request of their own.
        # By token, in order of asking.  A token is here or in `holds`, never in both, and in the
        # client's `homes` as long as it is in either.
        self.requests: dict[str, Request] = {}
        # Those of them that stand for whoever is next here; and those that wait to be notified.
        self._shared: dict[str, Request] = {}
        self.asleep: dict[str, Request] = {}
        self.holds: dict[str, Hold] = {}
        self.idle: Idle | None = None  # those of them that linger, once one has
        self._passable = 0  # how many of the holds go from task to task
        # Since when another process is known to wait, and how often we have passed since.
        self._contended: float | None = None
        self._passes = 0
        self.beat: Beat = Beat(client, self._keep_places)
        self._turn = 0
        self._changing = 0  # calls of ours on their way that change the limit
        self.minded = False  # Patience looks at it from time to time
        self.rival: Rival = Rival(client.client_id)

    @property
    def sleepers(self) -> Sleepers:
        """Its tasks that wait for conditions."""
        return Sleepers(self)

    # -- what primitives call ------------------------------------------------------------------

    def take(self, terms: Terms) -> Lease | None:
        return None if self.idle is None else self.idle.take(terms)

    async def try_acquire(self, terms: Terms) -> Lease | None:
        """A permit if one is free and nobody waits for it, else None."""
        while True:
            lease = await self._try_acquire(terms)
            if lease is None or lease.held:
                return lease
            self.put_away(lease)  # it ended before this task ran

    async def _try_acquire(self, terms: Terms) -> Lease | None:
        self.client.enter()
        lease = self.take(terms)
        if lease is not None:
            return lease
        if self.waiters and len(self.holds) >= self.limit:
            return None
        waiter = Waiter(asyncio.get_running_loop().create_future(), terms)
        waiter.request = self.ask_for(terms, waiter, wait=0)
        try:
            return await waiter.future
        except BaseException:
            self._abandon(waiter)
            raise

    def give_back(self, lease: Lease) -> Reply[None]:
        """End a lease: pass its permit on here, or release it in the store.  Raises LeaseLost."""
        hold = self.still_held(lease)
        if hold.notices:
            return self.sleepers.release(hold, lease)
        now = time.monotonic()
        waiter = None
        if self.waiters and self._may_pass(hold, now):
            waiter = self._next_waiter()
        if waiter is not None:
            waiter.give(self.pass_on(hold, waiter.terms))
            if self.watch.hooks:
                self.watch.tell(HandedOver(self.kind, self.name, "task"))
            return DONE
        if hold.terms.linger and self._may_idle(hold):
            if self.idle is None:
                self.idle = Idle(self)
            if self.idle.keep(hold):
                return DONE
        reply: Reply[None] = Reply(report=self.client.report)
        self.release(hold, partial(self.released, reply, lease))
        return reply

    def release(self, hold: Hold, done: Done) -> None:
        """Give a permit back to the store; those waiting here ask for it anew."""
        self.drop(hold)
        release = self.permits.bury if hold.tombstone else self.permits.release
        release(hold.token, done)
        if self.waiters or self._shared:
            self.stand()

    def still_held(self, lease: Lease) -> Hold:
        """The hold that a holder is about to give back.  Raises LeaseLost."""
        hold = lease.hold
        assert hold is not None
        if self.client.forked:
            self.client.enter()  # raises: it is the parent's
        if hold.lease is not lease:
            # The store may still have us as the holder: the body has ended, let it go.
            self.abandon(hold.token)
            raise lease.error()
        if time.monotonic() >= hold.deadline:
            self.expire(hold)
            self.abandon(hold.token)
            raise lease.error()
        return hold

    def waiting(self) -> int:
        """How many tasks of this process wait."""
        shared, asleep = len(self._shared), len(self.asleep)
        return len(self.waiters) + len(self.requests) - shared - asleep

    def busy(self) -> bool:
        """Whether, as far as this process knows, an acquire would have to wait now."""
        if self.waiters or self.free() <= 0:
            return True
        return any(request.queued for request in self.requests.values())

    async def answer(self, transition: str, **args: Arg) -> list[Any]:
        """What `ask` brings, awaited."""
        reply: Reply[list[Any]] = Reply()
        changes = transition == "permit_resize"
        self._changing += changes

        def answered(call: Call) -> None:
            self._changing -= changes
            if changes and type(call.reply) is list:
                self.learn_limit(call.reply[0], expected=True)
            reply.settle(call.reply)

        self.ask(transition, answered, **args)
        return await reply

    async def revoke(self, token: str) -> bool:
        """Take a permit from its holder.  -> whether it had it"""
        reply: Reply[bool] = Reply()

        def revoked(call: Call) -> None:
            if isinstance(call.reply, BaseException):
                reply.settle(call.reply)
            else:
                # Not held, but asked twice: the first time did it, and its answer was lost.
                reply.settle(bool(call.reply[0]) or call.attempts > 1)

        self.ask("permit_revoke", revoked, token=token)
        return await reply

    def add(self) -> Reply[None]:
        """Raise the limit by one, for everyone."""
        reply: Reply[None] = Reply(report=self.client.report)
        self._changing += 1

        def added(call: Call) -> None:
            self._changing -= 1
            failed = isinstance(call.reply, BaseException)
            reply.settle(call.reply if failed else None)
            if not failed:
                self.learn_limit(call.reply[0], expected=True)

        self.client.enter()
        self.permits.add(added)
        return reply

    def free(self) -> int:
        """Permits that nobody holds, as far as this process knows."""
        idle = 0 if self.idle is None else len(self.idle)
        return max(self.limit - len(self.holds) + idle, 0)

    @property
    def declared(self) -> int:
        return self.permits.declared

    def declare(self, value: int) -> None:
        """What the newest object of this process was made with."""
        if self.permits.declare(value):
            self.limit = value
            if self.waiters:
                self.stand()

    def ask(self, transition: str, done: Done, **args: Arg) -> None:
        """Run a transition that changes nobody's place here."""
        self.client.enter()
        self.permits.ask(transition, done, **args)

    # -- requests: our places in the store's queue ----------------------------------------------

    def stand(self) -> None:
        """Have one request for each permit that the tasks waiting here could use."""
        room = self.limit - self._passable
        if room <= 0:
            # With nothing in hand somebody has to be in the queue, for the limit may grow.
            room = 0 if self._passable else 1
        wanted = min(len(self.waiters), room)
        for _ in range(wanted - len(self._shared)):
            if self.waiters:  # a store that answers at once may have served them
                self.ask_for(self.waiters[0].terms, None)
        if len(self._shared) > wanted:
            for request in list(self._shared.values())[wanted:]:
                self.leave(request)

    def ask_for(self, terms: Terms, waiter: Waiter | None, wait: int = 1) -> Request:
        request = Request(self.client.token(terms.claim), terms, waiter, wait)
        if waiter is None:
            self._shared[request.token] = request
        self.enlist(request)
        self.send(request)
        return request

    def enlist(self, request: Request) -> None:
        """From now on what the store says of this token is heard here."""
        if self.idle is not None:
            self.idle.let_go()  # what we ask for must not find ourselves in the way
        self.requests[request.token] = request
        self.client.homes[request.token] = self

    def send(self, request: Request) -> None:
        """Ask for the permit: the first time, to keep the place, or to hear what became of it."""
        request.asking = True
        if request.sleeps:
            self.sleepers.send(request)
            return
        self.permits.acquire(
            request.token, request.terms.first_lease, request.wait, partial(self.answered, request)
        )

    def answered(self, request: Request, call: Call) -> None:
        request.asking = False
        if call.attempts > 1:
            request.resent = True
        if request.token not in self.requests:
            return  # it has left meanwhile; the store hears of that behind this question
        reply = call.reply
        if type(reply) is int:  # the fence of a lock that was free: the usual case
            asked = int(request.terms.first_lease * 1000) / 1000
            self.granted(request, reply, call.sent, asked, 0)
            return
        if type(reply) is not list:
            self.refused(request, reply, sent=call.attempts > 0)
            return
        code, fence_or_place, ms, waiting, limit, *holder = reply
        if code == 0:
            self.rival.note(holder[0], call.sent)
        if limit != self.limit:
            self.learn_limit(limit)
        if self.permits.declaration.unborn:
            self.permits.declaration.be_born()
        if code == 1:
            self.granted(request, fence_or_place, call.sent, ms / 1000, waiting)
        elif code == 0 and fence_or_place >= 0:
            request.queued = True
            if request.sleeps:
                self.sleepers.notified(request)
            if fence_or_place and ms > 0:
                # When the lease ends the next in the queue asks; those behind it one in a ms.
                ms += int(random.uniform(0, min(waiting, 1000)))
            self.queued(request, ms, waiting)
        elif code == 0:
            self.forget(request)
            if request.resent:
                self.abandon(request.token)
            if request.waiter is not None and not request.waiter.gone:
                request.waiter.future.set_result(None)
        else:
            # The store knows this token as one that has left: ours came late, after a
            # reconnect.  Ask anew.
            self.forget(request)
            self._replace(request)

    def queued(self, request: Request, ms: int, waiting: int) -> None:
        """It has its place in the store, which will look at it again in `ms`."""
        self.note_waiting(waiting)
        self.mind()
        self.beat.start(ms)  # again when the next lease ends
        if request.again:
            request.again = False
            self.send(request)

    def heard(self, kind: bytes, token: str, numbers: list[int], evidence: float) -> None:
        """A grant, a wish of others, or a revocation."""
        if kind == b"g":
            fence, claim, waiting, limit = numbers
            self._heard_grant(token, fence, claim / 1000, waiting, limit, evidence)
        elif kind == b"w":
            waiting, limit = numbers
            self.learn_limit(limit)
            self.note_waiting(waiting)
        elif kind == b"l" and token in self.holds:
            self.lose(self.holds[token], "it was released by force")

    def _heard_grant(
        self, token: str, fence: int, claim: float, waiting: int, limit: int, evidence: float
    ) -> None:
        """The store has given us a permit, not before `evidence`, for `claim` seconds."""
        request = self.requests.get(token)
        if request is None:
            return  # granted twice, or it has left meanwhile
        self.learn_limit(limit)
        claim = min(claim, request.terms.claim / 1000)  # whoever says so, it is not for longer
        if evidence + claim - margin(claim) > time.monotonic():
            self.granted(request, fence, evidence, claim, waiting)
        elif request.asking:
            request.again = True
        else:
            self.send(request)  # too old to be believed: ask

    def granted(
        self, request: Request, fence: int, since: float, length: float, waiting: int
    ) -> None:
        """The permit is ours for `length` seconds from `since` on: give it to who is next."""
        del self.requests[request.token]
        self._shared.pop(request.token, None)
        if request.sleeps:
            self.sleepers.notified(request)
        deadline = since + length - margin(length)
        if deadline <= time.monotonic():
            # The answer took longer than the lease: it is none any more.
            self.abandon(request.token)
            del self.client.homes[request.token]
            self._replace(request)
            return
        hold = Hold(self, request.token, request.terms, fence)
        hold.tombstone = request.resent or request.asking
        self._contended = None
        if waiting:
            self.note_waiting(waiting)
        waiter = request.waiter if request.waiter is not None else self._next_waiter()
        if waiter is None or waiter.gone:
            self.abandon(request.token)
            del self.client.homes[request.token]
            if self.watch.hooks:
                self.watch.tell(Skipped(self.kind, self.name))
            return
        if type(waiter) is Sleeper:
            self.sleepers.served(request)
        self.holds[hold.token] = hold
        hold.terms = terms = waiter.terms
        self._passable += not terms.alone
        if terms.max_hold is not None:
            hold.cap = time.monotonic() + terms.max_hold
        self.client.keeper.confirm(hold, since, length, deadline)
        waiter.give(self._lease_on(hold))

    def _replace(self, request: Request) -> None:
        """This token will not do: whoever waits for it gets another."""
        waiter = request.waiter
        if waiter is None:
            self.stand()
        elif not waiter.gone:
            waiter.request = self.ask_for(request.terms, waiter, request.wait)

    def refused(self, request: Request, error: BaseException, sent: bool) -> None:
        """The store could not be asked: tell the tasks that wait for this request."""
        self.forget(request)
        if isinstance(error, StoreUnavailable) and sent:
            self._give_up(request)  # it may have been heard all the same
        if request.waiter is not None:
            waiters = [request.waiter]
        else:
            waiters = list(self.waiters)
            self.waiters.clear()
        for waiter in waiters:
            own = type(error)(*error.args)
            own.__cause__ = error.__cause__
            waiter.fail(own)

    def leave(self, request: Request) -> None:
        """Nobody waits for this request any more: out of the queue, or pass on what it got."""
        self.forget(request)
        self._give_up(request)

    def _give_up(self, request: Request) -> None:
        if request.sleeps:
            self.sleepers.abandon(request.token)
        else:
            self.abandon(request.token)

    def forget(self, request: Request) -> None:
        """Nothing that is heard of this token concerns us any more."""
        self.requests.pop(request.token, None)
        self._shared.pop(request.token, None)
        self.asleep.pop(request.token, None)
        self.client.homes.pop(request.token, None)

    # -- tasks: who waits here -------------------------------------------------------------------

    def _lease_on(self, hold: Hold) -> Lease:
        """What whoever owns this hold from now on gets."""
        fence = hold.fence if self.block else None
        hold.lease = lease = Lease(self.what, hold, fence)
        lease.since = time.monotonic()
        return lease

    def _enter(self) -> asyncio.AbstractEventLoop:
        return self.client.enter()

    def _join(self, waiter: Waiter) -> None:
        terms = waiter.terms
        if terms.max_waiters is not None:
            self._check_room(terms.max_waiters)
        waiter.since, waiter.task = time.monotonic(), asyncio.current_task()
        if terms.alone:
            waiter.request = self.ask_for(terms, waiter)
        else:
            self.waiters.append(waiter)
            if 0 < self.limit <= self._passable:
                self.mind()  # all there is passes through our hands
            else:
                self.stand()

    def mind(self) -> None:
        """Tasks here wait: see to it that somebody notices if that takes long."""
        if not self.minded and self.client.patience is not None:
            self.client.patience.begin(self)

    def _left(self, waiter: Waiter) -> None:
        if waiter.request is None:
            self.stand()
        elif waiter.request.token in self.requests:
            self.leave(waiter.request)

    def describe(self) -> str:
        others = max(self.waiting() - 1, 0)
        return (
            f"this process holds {len(self.holds)} of {self.limit} and has {others} others "
            f"waiting; {self.holder()}"
        )

    def longest_waiting(self) -> Waiter | None:
        """Of the tasks here that wait for it, the one that came first."""
        own = (r.waiter for r in self.requests.values() if r.waiter and r.token not in self.asleep)
        both = [*self.waiters, *own]
        waiting = [each for each in both if each.since and not each.gone]
        return min(waiting, key=lambda waiter: waiter.since, default=None)

    def holder(self) -> str:
        """Who holds it, or for longest of several here, in words, as far as this process knows."""
        now = time.monotonic()
        some = islice(self.holds.values(), 16)  # each of thousands that time out at once asks
        leases = [hold.lease for hold in some if hold.lease is not None]
        if leases:
            first = min(leases, key=lambda lease: lease.since)
            it = "it" if self.block else "one"
            return f"{first.holder()} of this process has held {it} for {now - first.since:.1f} s"
        return self.rival.in_words(alone=bool(self.block))

    def _check_room(self, max_waiters: int) -> None:
        # Whom a free permit may already be on its way to does not count as waiting.
        coming = max(self.limit - len(self.holds), 0)
        if any(request.queued for request in self.requests.values()):
            coming = 0
        if self.waiting() - coming >= max_waiters:
            raise TooManyWaiters(
                f"{self.what}: {self.waiting()} tasks of this process wait already "
                f"(max_waiters={max_waiters}); nothing was queued"
            )

    # -- holds ----------------------------------------------------------------------------------

    def _may_pass(self, hold: Hold, now: float) -> bool:
        """Whether the next task here may have it, although another process may wait."""
        if hold.terms.alone or not self.passable(hold):
            return False
        if self._contended is None:
            return True
        if self._passes < PASSES and now - self._contended < PASS_TIME:
            self._passes += 1
            return True
        self._contended, self._passes = now, 0
        return False

    def _may_idle(self, hold: Hold) -> bool:
        """Whether it may be kept for a task here that has yet to come."""
        if self.requests or self._contended is not None:
            return False
        return self.passable(hold) and self.client.listening()

    def passable(self, hold: Hold) -> bool:
        """Whether there is a permit, and a fence, for one task more."""
        if self.block and hold.fence >= hold.last_fence:
            return False
        return len(self.holds) <= self.limit

    def pass_on(self, hold: Hold, terms: Terms) -> Lease:
        """A lease on it for the next task here."""
        hold.fence += 1
        hold.terms = terms
        lease = self._lease_on(hold)
        if hold.length * 1000 < terms.claim and not hold.renewing:
            self.renew(hold)  # the one before had it on a shorter lease
        half_used = hold.last_fence - hold.fence == PASSES // 2
        if half_used and self._contended is None and not hold.renewing:
            self.renew(hold, self.block)
        return lease

    def renew(self, hold: Hold, block: int = 0) -> None:
        """Ask for the full lease from now on, and for `block` new fences."""
        hold.renewing = True
        length = hold.next_length()
        self.permits.renew(hold.token, length, block, partial(self._renewed, hold, length))

    def _renewed(self, hold: Hold, length: float, call: Call) -> None:
        hold.renewing = False
        if hold.token not in self.holds:
            return
        if isinstance(call.reply, BaseException):
            self.client.keeper.failed(hold)
            return
        code, fence, _, waiting, limit, *holder = call.reply
        if code == 0:
            self.lose(hold, taken_by(holder[0], alone=bool(self.block)))
            return
        if hold.failed and self.watch.hooks:
            left = max(hold.deadline - time.monotonic(), 0.0)
            self.watch.tell(RenewedLate(self.kind, self.name, left))
        if fence:
            # The holder keeps the fence it knows; the next one here gets the first of these.
            hold.fence, hold.last_fence = fence - 1, fence + self.block - 1
        self.client.keeper.confirm(hold, call.sent, length, call.sent + length - margin(length))
        self.learn_limit(limit)
        self.note_waiting(waiting)

    def expire(self, hold: Hold) -> None:
        """Its deadline has passed, and nobody has renewed it."""
        late = max(time.monotonic() - hold.deadline, 0)
        self.lose(
            hold, f"its lease of {hold.length:g} s ran out {late:.2f} s ago and was not renewed"
        )

    def lose(self, hold: Hold, reason: str) -> None:
        """It is not ours any more: tell the holder, and let those waiting here ask anew."""
        lease = hold.lease
        self.drop(hold)
        if lease is not None:
            held = time.monotonic() - lease.since
            lease.lose(f"{reason} (held for {held:.1f} s by {lease.holder()})")
            self.client.lost(self, lease)
        self.stand()

    def drop(self, hold: Hold) -> None:
        hold.lease = None
        if self.idle is not None:
            self.idle.forget(hold)
        del self.holds[hold.token]
        self._passable -= not hold.terms.alone
        self.client.homes.pop(hold.token, None)
        self.client.keeper.forget(hold)

    def abandon(self, token: str) -> None:
        """Give back what nobody uses; that it arrives is the link's business."""
        self.permits.bury(token, lambda call: None)

    def released(self, reply: Reply[None], lease: Lease, call: Call) -> None:
        if isinstance(call.reply, BaseException):
            reply.settle(call.reply)
            return
        answer: list[Any] = [1, 0, 0] if type(call.reply) is int else call.reply
        held, waiting, more = answer  # how many were served, or who holds it instead
        self.note_waiting(waiting)
        if not held and call.attempts == 1:
            lease.lose(taken_by(more, alone=bool(self.block)))
            self.client.lost(self, lease)
            reply.settle(lease.error())
        else:
            if held and more and self.watch.hooks:
                self.watch.tell(HandedOver(self.kind, self.name, "store"))
            # Not held, but asked twice: the first time did it, and its answer was lost.
            reply.settle(None)

    # -- what others do ---------------------------------------------------------------------------

    def note_waiting(self, waiting: int) -> None:
        """So many requests wait in the store, our shared ones among them."""
        if waiting <= len(self._shared):
            self._contended = None
        elif self._contended is None:
            self._contended, self._passes = time.monotonic(), 0
            if self.idle is not None:
                self.idle.let_go()

    def learn_limit(self, limit: int, expected: bool = False) -> None:
        """The store has this limit; `expected`: a call of ours has just made it so."""
        if limit != self.limit:
            grown, self.limit = limit > self.limit, limit
            if not (expected or self._changing or limit == self.declared):
                self.client.disagreement(
                    self.what,
                    f"has {limit} permits in all; this process was made with {self.declared} "
                    "(a newer process declared another value, or somebody resized it)",
                )
            if grown:
                self.stand()

    def _keep_places(self, missed: bool) -> None:
        """Keep our places, and move the queue if its holder has died.

        The oldest request speaks for the process; the others take turns at being asked for too,
        so that a lost message costs each of them something, but never for ever.
        """
        queued = [r for r in self.requests.values() if r.queued or r.token in self.asleep]
        if queued:
            # Whatever becomes of the questions: who is asked for may be served by its answer.
            self.beat.start()
        if missed:
            self.ask_all()
        if missed or not queued:
            return
        self._turn += 1
        chosen = {id(r): r for r in (queued[0], queued[self._turn % len(queued)])}
        for request in [*chosen.values(), *self.sleepers.oldest()]:
            if not request.asking:
                self.send(request)

    def ask_all(self) -> None:
        """Messages may have been lost: hear what became of every request."""
        for request in list(self.requests.values()):
            if request.asking:
                request.again = True
            else:
                self.send(request)

    def close(self) -> None:
        """The client closes: nobody waits, nobody holds."""
        if self.idle is not None:
            self.idle.let_go()
        error = ClientClosed(f"{self.what}: the client was closed while this task waited")
        waiting = [*self.waiters, *(r.waiter for r in self.requests.values() if r.waiter)]
        self.waiters.clear()
        for waiter in waiting:
            waiter.fail(ClientClosed(*error.args))
        for request in list(self.requests.values()):
            self.leave(request)
        # Holds last: a store that answers at once would give them to who waits here.
        for hold in list(self.holds.values()):
            if hold.token in self.holds:  # a hook may have released it meanwhile
                self._close(hold)
        self.beat.stop()

    def _close(self, hold: Hold) -> None:
        lease = hold.lease
        if lease is not None:
            lease.lose("its client was closed")
        if hold.notices and lease is not None:
            self.sleepers.release(hold, lease)  # what it has notified is notified
        else:
            self.drop(hold)
            if lease is not None and lease.owner is None and is_sleepers(hold.token):
                self.sleepers.abandon(hold.token)  # its task has yet to run, and will not
            else:
                self.abandon(hold.token)
        if lease is not None:
            self.tell_lost(lease)
