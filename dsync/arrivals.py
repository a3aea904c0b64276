"""Arrivals: the tasks of this process that wait at one barrier, and what it has heard of the rest.

Each task arrives under a token of its own; the store decides when a generation is complete and
tells each process which of its tokens have passed, under which index.  Nothing here awaits but the
waiting tasks themselves.
"""

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from dsync.beat import Beat
from dsync.errors import ClientClosed, WaitTimeout
from dsync.reply import Reply
from dsync.store import Call

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Arrivals"]

# For as long a token that has passed or left is known: a party whose process stood still or was
# cut off hears its index, a late copy of an arrival is refused.
MEMORY_MS = 60_000


class Party:
    """A task that waits: its future gets its index, or an error."""

    __slots__ = (
        "again", "asking", "future", "joined", "lease", "once", "parties", "passed", "resent",
        "sent", "token",
    )  # fmt: skip

    def __init__(
        self, future: "asyncio.Future[int]", token: str, parties: int, lease: float, once: bool
    ) -> None:
        self.future: asyncio.Future[int] = future
        self.token: str = token
        self.parties: int = parties
        self.lease: float = lease
        self.once: bool = once  # now or not at all
        self.sent: bool = False  # its arrival is, or was, on its way
        self.asking: bool = False  # a question is on its way
        self.again: bool = False  # and another has to follow it
        self.joined: bool = False  # the store has said that it waits
        self.passed: bool = False  # and then that it need not; its task may have yet to run
        self.resent: bool = False  # a copy of the question may still arrive, much later


class Arrivals:
    """What this process wants of one barrier, and knows about it."""

    def __init__(self, client: "Client", name: str) -> None:
        self.client = client
        self.what: str = f"barrier {name!r}"
        self.broken: bool = False  # as the store has told us last, or we the store
        # In order of arrival; a party stays until its task has run, whatever its future has got.
        # Its token is in the client's `homes` for as long.
        self.parties: dict[str, Party] = {}
        self._record = client.store.at("barrier", name)
        self._heard = 0  # how many wait in the store, ours among them
        self._lease = 0.0  # seconds, the longest of those that wait here
        # Resets and aborts not confirmed yet, each sent when the one before is: a server that
        # refuses one for a moment must not swap them.  Who comes meanwhile arrives after them.
        self._changes: deque[tuple[bool, Reply[None]]] = deque()
        self._beat = Beat(client, self._keep_places)
        self._turn = 0

    # -- what Barrier calls ----------------------------------------------------------------------

    async def wait(self, parties: int, lease: float, timeout: float | None) -> int:
        """Wait for the others.  -> the index of this task in its generation"""
        loop = self.client.enter()
        token = self.client.token(int(lease * 1000))
        party = Party(loop.create_future(), token, parties, lease, once=timeout == 0)
        self.parties[token] = party
        self.client.homes[token] = self
        self._lease = max(self._lease, lease)
        timer = None
        if timeout:
            timer = loop.call_later(timeout, self._time_out, party, timeout)
        try:
            if not self._changes:
                self._send(party)
            return await party.future
        finally:
            if timer is not None:
                timer.cancel()
            if token in self.parties:
                # It has passed, and runs: the next generation need not wait for it.  Or it waits
                # no more: cancelled, or timed out.
                self._leave(party)

    def change(self, abort: bool) -> Reply[None]:
        """Break everybody who waits, and break the barrier (`abort`) or mend it.

        Who has waited here hears from the store what became of it: it may have passed by now.
        """
        self.client.enter()
        self.broken = abort
        reply: Reply[None] = Reply(report=self.client.report)
        self._changes.append((abort, reply))
        if len(self._changes) == 1:
            self._send_change()
        return reply

    async def info(self) -> list[Any]:
        """What barrier_info returns."""
        self.client.enter()
        answer: Reply[list[Any]] = Reply()
        self._record.run("barrier_info", lambda call: answer.settle(call.reply))
        _, _, broken, waiting, _, _ = reply = await answer
        self._learn(waiting, broken)
        return reply

    def waiting(self) -> int:
        """How many tasks wait, of all processes, as far as this one has heard."""
        return 0 if self._unsettled() else max(self._heard, len(self._waiting()))

    def state(self) -> str:
        """In asyncio's words, as far as this process has heard."""
        return "broken" if self.broken else self._unsettled() or "filling"

    def _unsettled(self) -> str:
        if any(party.passed for party in self.parties.values()):
            return "draining"
        return "resetting" if self._changes else ""

    # -- what the store says ---------------------------------------------------------------------

    def _send(self, party: Party) -> None:
        """Arrive: the first time, to keep the place, or to hear what became of it."""
        party.sent = party.asking = True
        self._record.run(
            "barrier_arrive",
            partial(self._answered, party),
            token=party.token,
            parties=party.parties,
            lease=int(self._lease * 1000),
            inbox=self.client.store.channel,
            memory=MEMORY_MS,
        )

    def _answered(self, party: Party, call: Call) -> None:
        party.asking = False
        if call.attempts > 1:
            party.resent = True
        reply = call.reply
        if party.token not in self.parties or party.future.done():
            # It has left or passed meanwhile; the store hears of that behind this question.
            if type(reply) is list:
                self._learn(self._heard, reply[3])
            return
        if type(reply) is not list:
            if call.attempts > 0:
                party.resent = True  # it may have been heard, or yet be heard, all the same
            self._failed(reply)
            return
        code, number, waiting, broken, ms = reply
        self._learn(waiting, broken)
        if code == 1:
            self._pass(party, number)
        elif code == 0:
            self._beat_by(ms)
            self._joined(party, new=number == 1)
        elif code == -2:
            self._refuse(
                party,
                ValueError(
                    f"{self.what} was made with {party.parties} parties here, but those who wait "
                    f"there now have come with {number}: use the same number everywhere"
                ),
            )
        else:
            self._refuse(party, self._broken_error("Barrier aborted" if code == -1 else ""))

    def _joined(self, party: Party, new: bool) -> None:
        """It waits."""
        if party.once:
            party.future.set_exception(self._too_late(party, 0))
            return
        forgotten = new and party.joined
        party.joined = True
        if forgotten:
            # We were taken for dead, or the store has lost the record: so it has the rest of us.
            self.ask_all()
        elif party.again:
            party.again = False
            self._send(party)

    def heard(self, kind: bytes, token: str, numbers: list[int], evidence: float) -> None:
        """A party of ours has passed, or was broken."""
        party = self.parties.get(token)
        if party is None or party.future.done():
            return
        if kind == b"t":
            index, waiting = numbers
            self._learn(waiting, self.broken)
            self._pass(party, index)
        elif kind == b"b":
            (broken,) = numbers
            self._learn(0, broken or self.broken)
            self._forget(party)  # the store refuses it from now on
            party.future.set_exception(self._broken_error())

    def _pass(self, party: Party, index: int) -> None:
        party.passed = True
        party.future.set_result(index)

    def _learn(self, waiting: int, broken: int) -> None:
        if not self._changes:  # else what we have changed counts
            self._heard, self.broken = waiting, bool(broken)

    def _refuse(self, party: Party, error: Exception) -> None:
        """The store does not know it: not now, and not when a copy comes late."""
        if party.resent:
            self._leave(party)
        else:
            self._forget(party)
        party.future.set_exception(error)

    def _failed(self, error: BaseException) -> None:
        """The store could not be asked: tell the tasks that wait, each by an error of its own."""
        for party in list(self.parties.values()):
            if not party.future.done():
                self._leave(party)
                own = type(error)(*error.args)
                own.__cause__ = error.__cause__
                party.future.set_exception(own)

    def _leave(self, party: Party) -> None:
        """Its task waits no more, or has passed and runs; the link sees to it that this arrives."""
        self._forget(party)
        if not party.sent:
            return
        if party.joined and not party.passed:
            self._heard = max(self._heard - 1, 0)
        self._record.run(
            "barrier_leave",
            self._left,
            token=party.token,
            late=int(party.asking or party.resent),
            inbox=self.client.store.channel,
            memory=MEMORY_MS,
        )

    def _left(self, call: Call) -> None:
        if type(call.reply) is list:
            self._learn(*call.reply)

    def _forget(self, party: Party) -> None:
        del self.parties[party.token]
        self.client.homes.pop(party.token, None)
        if not self.parties:
            self._beat.stop()
            self._lease = 0.0

    def _send_change(self) -> None:
        abort, _ = self._changes[0]
        self._record.run(
            "barrier_reset",
            self._changed,
            token=self.client.token(0),
            abort=int(abort),
            inbox=self.client.store.channel,
            memory=MEMORY_MS,
        )

    def _changed(self, call: Call) -> None:
        _, reply = self._changes.popleft()
        failed = isinstance(call.reply, BaseException)
        reply.settle(call.reply if failed else None)
        if self._changes:
            self._send_change()
            return
        if not failed:
            self._learn(0, call.reply[1])
        # Those who have come meanwhile arrive now.  Of the others the store has told us what became
        # of them, unless the message was lost, or comes by another way than this reply.
        self.ask_all()

    # -- time ------------------------------------------------------------------------------------

    def _beat_by(self, ms: int) -> None:
        """Ask again at the next beat, three times in a lease, or in so many ms (if > 0)."""
        third = max(int(self._lease * 1000 / 3), 1)
        self._beat.start(min(ms, third) if ms > 0 else third)

    def _keep_places(self, missed: bool) -> None:
        """Keep our arrivals good, and let the next generation pass if the one before has died.

        The oldest party speaks for the process; the others take turns at being asked for too, so
        that a lost message costs each of them something, but never for ever.
        """
        waiting = self._waiting()
        if not waiting:
            return
        self._lease = max(party.lease for party in waiting)
        # Whatever becomes of the questions: the one who asks may pass before it is answered.
        self._beat_by(-1)
        if missed:
            self.ask_all()
        if missed or self._changes:
            return
        self._turn += 1
        for party in {id(p): p for p in (waiting[0], waiting[self._turn % len(waiting)])}.values():
            if not party.asking:
                self._send(party)

    def ask_all(self) -> None:
        """Messages may have been lost: hear what became of every party."""
        if self._changes:
            return  # they are asked for behind the last one
        for party in self._waiting():
            if party.asking:
                party.again = True
            else:
                self._send(party)

    def close(self) -> None:
        """The client closes: nobody waits."""
        for party in list(self.parties.values()):
            waits = not party.future.done()
            self._leave(party)
            if waits:
                party.future.set_exception(
                    ClientClosed(f"{self.what}: the client was closed while this task waited")
                )

    def _waiting(self) -> list[Party]:
        return [party for party in self.parties.values() if not party.future.done()]

    def _time_out(self, party: Party, timeout: float) -> None:
        if not party.future.done():
            party.future.set_exception(self._too_late(party, timeout))

    def _too_late(self, party: Party, timeout: float) -> WaitTimeout:
        return WaitTimeout(
            f"{self.what}: {self.waiting()} of {party.parties} parties had come within "
            f"{timeout:g} s, as far as this process has heard; this task has left"
        )

    def _broken_error(self, text: str = "") -> asyncio.BrokenBarrierError:
        return asyncio.BrokenBarrierError(f"{text or 'Abort or reset of barrier'} ({self.what})")
