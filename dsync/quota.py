"""Quota: what this process has reserved of one rate limit, and its tasks that wait for their turns.

Each task reserves a slot in the store, which tells its time, and is served when that has come: no
polling, no messages.  Tasks that want as many units are served in order of arrival by the slots
they have reserved between them, so who is cancelled lets the others move up; what is left over is
handed back, the newest first, as long as nobody has reserved behind it.
"""

import asyncio
import math
import time
from collections import deque
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from dsync.beat import BEAT, Beat
from dsync.declaration import Declaration
from dsync.errors import AcquireTimeout, ClientClosed
from dsync.reply import Reply
from dsync.slots import NEVER, Line, Slot, Waiter
from dsync.store import Arg, Bound, Call, Done

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Quota"]

# Seconds.  Whoever comes later than it takes to refill the burst, within these bounds, because the
# process stood still, reserves anew, once: what was not used in its time is gone, or all who were
# late would come in a bunch.
LEAST_LATE, MOST_LATE = 0.05, 1.0
FOREVER = 1e9  # seconds; longer timeouts are none
BOUND = 64  # kinds of calls that are kept prepared


class Quota:
    """One rate limit, seen from this process."""

    def __init__(
        self, client: "Client", kind: str, name: str, what: str, rate: float, per: float, burst: int
    ) -> None:
        self.client = client
        self.kind = kind
        self.what = what
        self._record = client.store.at(kind, name)
        self._declaration = Declaration(client, kind, name)
        self._declared: dict[str, Arg] = {}
        self._late = 0.0  # seconds
        self._stamped: int | str = 0
        self._bound: dict[tuple[int, int], Bound] = {}  # by amount and patience
        self._lines: dict[int, Line] = {}  # by amount; those in which something is under way
        # What stands for it in the client's `homes`, as long as something is under way.
        self._home = client.token(0)
        self._epoch = 0
        # There was no connection, or there is a new one: the store may have lost its data, and
        # nobody is served before it has said that it has not.
        self._unsure = False
        self._beat = Beat(client, self._on_beat)  # as long as somebody sleeps for longer than that
        self._spare: list[Slot] = []  # to be handed back, at the end of this tick
        self._returning = False
        self._handing = 0  # what is on its way back
        self._closed = False
        self.declare(rate, per, burst)

    def declare(self, rate: float, per: float, burst: int) -> None:
        """What the newest object of this process was made with."""
        declared = _declared(rate, per, burst)
        if declared != self._declared:
            self._declared = declared
            self._declaration.make(declared)
            self._bound = {}
            self._late = min(max(burst * per / rate, LEAST_LATE), MOST_LATE)

    # -- what RateLimiter calls -------------------------------------------------------------------

    async def acquire(self, amount: int, timeout: float | None) -> None:
        """Return when so many units are ours to use now."""
        loop = self.client.enter()
        line = self._line(amount)
        if timeout is not None and timeout > FOREVER:
            timeout = None
        deadline = NEVER if timeout is None else time.monotonic() + timeout
        waiter = Waiter(loop.create_future(), deadline)
        line.waiters[waiter] = None
        timer = None
        if timeout:
            timer = loop.call_later(timeout, waiter.fail, self._too_late(amount, None))
        try:
            self._cover(line, waiter)
            await waiter.future
        except BaseException:
            if waiter.slot is not None:  # it was served, and did not run any more
                line = self._line(amount)
                line.put(waiter.slot)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            line.waiters.pop(waiter, None)
            self._settle(line)

    async def try_acquire(self, amount: int) -> list[int]:
        """Take so many units, or none.  -> what rate_take returns"""
        future: asyncio.Future[Any] = self.client.enter().create_future()
        token = self._new_token()
        self._take(token, amount, 0, partial(self._tried, future, token, amount))
        try:
            reply = await future
        except BaseException:
            if future.done() and not future.cancelled():  # it was answered just before
                self._give_up(token, amount, future.result())
            raise
        if isinstance(reply, BaseException):
            raise reply
        if reply[0] < 0:
            raise self._too_much(amount, reply)
        answer: list[int] = reply
        return answer

    def _tried(self, future: "asyncio.Future[Any]", token: str, amount: int, call: Call) -> None:
        if not isinstance(call.reply, BaseException):
            self._learn(call.reply)
        if not future.done():
            future.set_result(call.reply)
        else:
            self._give_up(token, amount, call.reply)

    def _give_up(self, token: str, amount: int, reply: Any) -> None:
        """Who tried was cancelled: hand back what it got."""
        if type(reply) is list and reply[0] == 1:
            position, epoch = reply[4:6]
            self._spare.append(Slot(token, amount, position, epoch, time.monotonic()))
            self._hand_back()

    async def look(self) -> list[Any]:
        """What rate_look returns."""
        self.client.enter()
        answer: Reply[list[Any]] = Reply()
        self._record.run("rate_look", lambda call: answer.settle(call.reply))
        return await answer

    # -- asking -----------------------------------------------------------------------------------

    def _new_token(self) -> str:
        return self.client.token(0).rpartition(":")[2]  # the store remembers some: a short one

    def _take(self, token: str, amount: int, patience: int, done: Done) -> None:
        """`patience`: µs; 0 now or not at all, -1 any time."""
        stamp = self._declaration.stamp()
        if stamp != self._stamped:
            self._bound = {}
            self._stamped = stamp
        take = self._bound.get((amount, patience))
        if take is None:
            args: dict[str, Arg] = {
                **self._declared, "amount": amount, "patience": patience, "born": stamp
            }  # fmt: skip
            if patience > 0:  # another one each time
                self._record.run("rate_take", done, token=token, **args)
                return
            if len(self._bound) >= BOUND:
                self._bound = {}
            take = self._bound[amount, patience] = self._record.bind("rate_take", **args)
        take(token, done)

    def _cover(self, line: Line, waiter: Waiter) -> None:
        """See to it that the last waiter will get a slot, in time."""
        ahead = len(line.waiters) - 1
        if ahead < len(line.slots):
            if line.slots[ahead].at > waiter.deadline:
                raise self._too_late(line.amount, line.slots[ahead].at - time.monotonic())
        elif waiter.deadline != NEVER or line.surplus() < 0:
            self._ask(line, waiter)
        # Else somebody who has gone has asked, and there is no hurry.

    def _ask(self, line: Line, waiter: Waiter) -> None:
        """Reserve a slot for whoever is next, no later than this one will wait for."""
        patience = -1
        if waiter.deadline != NEVER:
            patience = max(0, int((waiter.deadline - time.monotonic()) * 1e6))
        token = self._new_token()
        line.asked += 1
        self._take(token, line.amount, patience, partial(self._answered, line, waiter, token))

    def _answered(self, line: Line, waiter: Waiter, token: str, call: Call) -> None:
        line.asked -= 1
        reply = call.reply
        if isinstance(reply, BaseException):
            self._refuse(line, waiter, _copy(reply))
            self._settle(line)
            return
        code, wait, _, _, position, epoch = reply[:6]
        if code == 1:
            at = time.monotonic() + wait / 1e6
            line.put(Slot(token, line.amount, position, epoch, at))
        elif code == 0:
            self._refuse(line, waiter, self._too_late(line.amount, wait / 1e6))
        else:
            self._refuse(line, waiter, self._too_much(line.amount, reply))
        self._learn(reply)
        self._serve(line)
        if self._closed:
            self._hand_back()

    def _refuse(self, line: Line, waiter: Waiter, error: BaseException) -> None:
        """A question came to nothing: so does the wait of who asked it, or somebody asks anew."""
        if waiter in line.waiters:
            # Among those whom the slots that there are will serve, in order?
            served = zip(line.waiters, line.slots, strict=False)
            mine = next((slot for each, slot in served if each is waiter), None)
            if mine is None or mine.at > waiter.deadline:
                del line.waiters[waiter]
                waiter.fail(error)
        self._cover_all(line)

    def _learn(self, reply: list[Any]) -> None:
        """What a reply says of the limiter as such."""
        if self._declaration.unborn:
            self._declaration.be_born(reply[6])
        if len(reply) > 7:
            self.client.disagreement(
                self.what,
                f"admits {_told(*reply[7:])}; this process was made with "
                f"{_told(*self._declared.values())} (a newer process declared another rate)",
            )
        self._note_epoch(reply[5])

    def _note_epoch(self, epoch: int) -> None:
        """If the store has lost its data, what we had reserved is reserved no more."""
        if epoch != self._epoch:
            self._epoch = epoch
            for line in list(self._lines.values()):
                line.slots = deque(slot for slot in line.slots if slot.epoch == epoch)
                self._cover_all(line)

    def _cover_all(self, line: Line) -> None:
        for waiter in line.last(-line.surplus()):
            self._ask(line, waiter)

    # -- serving ----------------------------------------------------------------------------------

    def _serve(self, line: Line) -> None:
        """Serve those whose time has come, and look again when that of the next has."""
        now = time.monotonic()
        while line.slots and line.slots[0].at <= now:
            if not self._unsure and not self.client.store.connected:
                self._verify()
                continue  # unsure, unless it was answered at once
            if self._unsure:
                return
            if now - line.slots[0].at > self._late:
                self._skip(line, now)
                continue
            slot = line.slots.popleft()
            waiter = line.first()
            if waiter is not None:
                line.give(slot, waiter)
            elif not slot.kept:
                self._spare.append(slot)
        self._cover_all(line)
        self._settle(line)

    def _skip(self, line: Line, now: float) -> None:
        """What was due too long ago is not used any more, but by those who were late before."""
        waiters = [waiter for waiter in line.waiters if not waiter.future.done()]
        waiters.reverse()
        while line.slots and now - line.slots[0].at > self._late:
            slot = line.slots.popleft()
            if waiters:
                waiter = waiters.pop()
                if waiter.late:
                    line.give(slot, waiter)
                waiter.late = True

    def _on_time(self, line: Line) -> None:
        line.stop()
        self._serve(line)

    def _settle(self, line: Line) -> None:
        """Hand back what nobody needs, and be there when the next slot is due."""
        too_many = line.surplus() > 0 and line.slots and not line.slots[-1].kept
        if (too_many or self._spare) and not (self._returning or self._closed):
            # At the end of this tick: if many are cancelled, the last has to go first.
            self._returning = True
            asyncio.get_running_loop().call_soon(self._hand_back)
        if line.slots and not self._unsure:
            line.wake(line.slots[0].at, self._on_time)
            if line.slots[-1].at > time.monotonic() + BEAT:
                self._beat.start()
        if not (line.waiters or line.slots or line.asked):
            line.stop()
            if self._lines.get(line.amount) is line:
                del self._lines[line.amount]
            self._rest()

    def _rest(self) -> None:
        """If nothing is under way, nobody has to tell us that the client closes."""
        if not (self._lines or self._spare or self._handing):
            self.client.homes.pop(self._home, None)

    def _line(self, amount: int) -> Line:
        line = self._lines.get(amount)
        if line is None:
            line = self._lines[amount] = Line(amount)
            self.client.homes[self._home] = self
        return line

    # -- handing back -----------------------------------------------------------------------------

    def _hand_back(self) -> None:
        """Give the store what is spare: in one step what was taken in one go, the newest first."""
        self._returning = False
        lines = list(self._lines.values())
        if any(line.asked for line in lines):
            return  # what is answered next was taken behind these
        for line in lines:
            for _ in range(min(line.surplus(), len(line.slots))):
                if line.slots[-1].kept:
                    break
                self._spare.append(line.slots.pop())
        valid = [slot for slot in self._spare if slot.epoch == self._epoch]
        self._spare = []
        for line in lines:
            self._settle(line)
        spare = deque(sorted(valid, key=attrgetter("position"), reverse=True))
        while spare:
            run = [spare.popleft()]
            amount = run[0].amount
            while spare and spare[0].position == run[0].position - amount:
                amount += spare[0].amount
                run.append(spare.popleft())
            self._handing += 1
            self.client.homes[self._home] = self
            self._record.run(
                "rate_return", partial(self._returned, run), token=run[0].token,
                position=run[0].position, amount=amount,
            )  # fmt: skip

    def _returned(self, run: list[Slot], call: Call) -> None:
        self._handing -= 1
        self._rest()
        if self._closed:
            return
        if isinstance(call.reply, BaseException) or call.reply[0] or call.attempts > 1:
            # They are, or it is not known whether they are, free for all: so those before them may
            # be the last now.
            for line in list(self._lines.values()):
                for slot in line.slots:
                    slot.kept = False
                self._settle(line)
            return
        # Somebody has reserved behind them.  Whoever comes next here may have them.
        now = time.monotonic()
        for slot in run:
            slot.kept = True
            if slot.at > now and slot.epoch == self._epoch:
                line = self._line(slot.amount)
                line.put(slot)
                self._settle(line)

    # -- what the store says ----------------------------------------------------------------------

    def heard(self, kind: bytes, token: str, numbers: list[int], evidence: float) -> None:
        """Nobody sends messages about slots."""

    def ask_all(self) -> None:
        """The connection is a new one: the store may have lost its data."""
        if any(line.slots for line in self._lines.values()):
            self._verify()

    def _verify(self) -> None:
        """Hear whether what we have reserved still is."""
        if not self._unsure:
            self._unsure = True
            self._record.run("rate_look", self._verified)

    def _verified(self, call: Call) -> None:
        self._unsure = False
        lines = list(self._lines.values())
        if isinstance(call.reply, BaseException):
            for line in lines:
                line.slots.clear()
                for waiter in list(line.waiters):
                    self._refuse(line, waiter, _copy(call.reply))
                self._settle(line)
            return
        self._note_epoch(call.reply[4])
        for line in lines:
            self._serve(line)

    def _on_beat(self, missed: bool) -> None:
        """See whether what those who sleep have reserved still is."""
        if any(line.slots for line in self._lines.values()) and self.client.store.connected:
            self._record.run("rate_look", self._looked)

    def _looked(self, call: Call) -> None:
        if not isinstance(call.reply, BaseException):
            self._note_epoch(call.reply[4])
            for line in list(self._lines.values()):
                self._settle(line)

    def close(self) -> None:
        """The client closes: nobody waits, and what was reserved is free for others.

        What is asked at the moment is handed back when all of it is answered, the newest first.
        """
        self._closed = True
        for line in list(self._lines.values()):
            for waiter in line.waiters:
                waiter.fail(
                    ClientClosed(f"{self.what}: the client was closed while this task waited")
                )
            line.waiters.clear()
            self._spare += line.slots
            line.slots.clear()
            line.stop()
        self._beat.stop()
        self._hand_back()

    # -- errors -----------------------------------------------------------------------------------

    def _too_late(self, amount: int, wait: float | None) -> AcquireTimeout:
        units = "a unit" if amount == 1 else f"{amount} units"
        when = "it was not in time" if wait is None else f"that would be in {wait:,.2f} s"
        return AcquireTimeout(
            f"{self.what}: {units} could not be had within the timeout ({when}); nothing was taken"
        )

    def _too_much(self, amount: int, reply: list[Any]) -> ValueError:
        burst = reply[9] if len(reply) > 7 else self._declared["capacity"]
        return ValueError(
            f"{self.what}: amount {amount} is more than the burst of {_text(burst)}: "
            "it could never be granted"
        )


def _declared(rate: float, per: float, burst: int) -> dict[str, Arg]:
    return {
        "declared": repr(float(rate)),
        "period": math.ceil(round(per * 1e6, 3)),
        "capacity": burst,
    }


def _copy(error: BaseException) -> BaseException:
    own = type(error)(*error.args)
    own.__cause__ = error.__cause__
    return own


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _told(rate: Any, per: Any, burst: Any) -> str:
    """`10 per 1 s, at most 10 at once`"""
    return (
        f"{float(_text(rate)):g} per {float(_text(per)) / 1e6:g} s, at most {_text(burst)} at once"
    )
