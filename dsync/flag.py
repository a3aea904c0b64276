"""Flag: what this process knows of one event, and its tasks that wait for it.

Each wait notes the event's generation, which moves with every change: once it has moved, the event
was set in between, whatever became of the message that said so.  A flag listens to its event's
channel while somebody waits or asks, and for a while after.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dsync.beat import Beat
from dsync.errors import ClientClosed, TooManyWaiters, WaitTimeout
from dsync.names import tag
from dsync.reply import Reply
from dsync.store import Arg, Call

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Flag"]

TOMBSTONE_MS = 60_000  # for as long a repeated change is known as one
LINGER = 10.0  # seconds for which it listens after its last use
NEVER = float("inf")


class Watcher:
    """A task that waits."""

    __slots__ = ("asked", "future", "known", "late", "noted", "once")

    def __init__(self, future: "asyncio.Future[None]", once: bool) -> None:
        self.future: asyncio.Future[None] = future
        self.once: bool = once  # it does not wait: now or not at all
        # The generation when the wait began; None until the store has told it.
        self.noted: int | None = None
        # ... as this process knew it at the time, or as its own last change before left it.
        self.known: int | None = None
        self.asked: bool = False  # its look has left; until then our own changes keep it back
        self.late: bool = False  # its look does not leave with it

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Flag:
    """One event, seen from this process."""

    def __init__(self, client: "Client", name: str) -> None:
        self.client = client
        self.what: str = f"event {name!r}"
        self.waiters: dict[Watcher, None] = {}  # in order of arrival
        self.channel: str = tag(client.namespace, "event", name)[1:-1]
        self._record = client.store.at("event", name)
        self._beat = Beat(client, self._beats)
        # As the store has told us last.
        self._set = False
        self._generation = 0
        self._told = False
        self._told_at = 0.0  # time.monotonic()
        self._ends = NEVER  # when it is unset by itself, time.monotonic()
        # Our own changes that are under way, and what the last of them makes of it.
        self._changing = 0
        self._wanted = False
        # Each is sent when the one before is answered, or a store that refuses one for a moment
        # would swap them; and what is asked after them is asked after them.
        self._change_sent = False
        self._turns: deque[Callable[[], None]] = deque()
        self._listening = False
        self._used = 0.0  # time.monotonic()
        self._resting: asyncio.TimerHandle | None = None

    # -- what Event calls -----------------------------------------------------------------------

    def is_set(self) -> bool:
        """As far as this process knows; begins to listen, if it does not."""
        try:
            self.client.enter()
        except RuntimeError:
            pass  # no loop, or closed: it is what it was
        else:
            if not self._listening:
                self._listen()
                self.ask_all()
            self._used = time.monotonic()
        if self._changing:
            return self._wanted
        return self._set and time.monotonic() < self._ends

    def ask_is_set(self, reply: Reply[bool]) -> None:
        """The store's answer."""
        self.client.enter()

        def answered(call: Call) -> None:
            if isinstance(call.reply, BaseException):
                reply.settle(call.reply)
                return
            self._answered(call)
            reply.settle(bool(call.reply[0]))

        self._in_turn(partial(self._record.run, "event_look", answered))

    def change(self, wanted: bool, ttl: float | None) -> Reply[None]:
        """Set or unset it: here at once, and in the store in the order of calls."""
        self.client.enter()
        reply: Reply[None] = Reply(report=self.client.report)
        self._changing += 1
        self._wanted = wanted
        args: dict[str, Arg] = {
            "token": self.client.token(0),
            "channel": self.channel,
            "tombstone": TOMBSTONE_MS,
        }
        if wanted:
            args["ttl"] = 0 if ttl is None else int(ttl * 1000)
            for watcher in self.waiters:
                watcher.wake()
        self._in_turn(partial(self._send, "event_set" if wanted else "event_clear", reply, args))
        return reply

    async def wait(self, timeout: float | None, max_waiters: int | None) -> None:
        """Return when it is set, or was set since this call began."""
        loop = self.client.enter()
        if self._changing and self._wanted:
            return
        if max_waiters is not None and len(self.waiters) >= max_waiters:
            raise TooManyWaiters(
                f"{self.what}: {len(self.waiters)} tasks of this process wait already "
                f"(max_waiters={max_waiters})"
            )
        watcher = Watcher(loop.create_future(), once=timeout == 0)
        self.waiters[watcher] = None
        timer = None
        if timeout:
            timer = loop.call_later(timeout, self._time_out, watcher, timeout)
        try:
            if self._listening and self._told:
                watcher.known = self._generation
                watcher.late = not self.client.listening()  # there is no connection
            self._listen()
            self._in_turn(partial(self._ask, watcher))
            await watcher.future
        finally:
            if timer is not None:
                timer.cancel()
            del self.waiters[watcher]
            self._used = time.monotonic()

    def _ask(self, watcher: Watcher) -> None:
        watcher.asked = True
        self._record.run("event_look", partial(self._noted, watcher))

    # -- what the store says --------------------------------------------------------------------

    def heard(self, payload: bytes) -> None:
        """The event has changed."""
        flag, generation, ms = map(int, payload.split())
        if generation >= self._generation:
            self._learn(flag, generation, ms, time.monotonic())

    def ask_all(self) -> None:
        """Messages may have been lost, or a beat has come: see how things stand."""
        if self._listening:
            self._record.run("event_look", self._looked)

    def _beats(self, missed: bool) -> None:
        if self.waiters:
            self._beat.start()
            self.ask_all()

    def tuned(self, refused: BaseException | None) -> None:
        """It hears of every change from now on, or (refused) only when it asks."""
        if refused is None:
            self.ask_all()

    def close(self) -> None:
        """The client closes: nobody waits."""
        for watcher in self.waiters:
            watcher.fail(ClientClosed(f"{self.what}: the client was closed while this task waited"))
        self._beat.stop()
        if self._resting is not None:
            self._resting.cancel()

    def _in_turn(self, send: Callable[[], None]) -> None:
        if self._change_sent:
            self._turns.append(send)
        else:
            send()

    def _send(self, transition: str, reply: Reply[None], args: dict[str, Arg]) -> None:
        self._change_sent = True
        self._record.run(transition, partial(self._changed, reply), **args)

    def _changed(self, reply: Reply[None], call: Call) -> None:
        self._changing -= 1
        self._change_sent = False
        if isinstance(call.reply, BaseException):
            reply.settle(call.reply)
        else:
            for watcher in self.waiters:
                if not watcher.asked:
                    watcher.known, watcher.late = call.reply[1], True
            self._answered(call)
            reply.settle(None)
        while self._turns and not self._change_sent:
            self._turns.popleft()()

    def _noted(self, watcher: Watcher, call: Call) -> None:
        """The first look of a wait: from here on it knows what it waits for."""
        if isinstance(call.reply, BaseException):
            watcher.fail(call.reply)
            return
        flag, generation, _ = call.reply
        watcher.noted = generation
        self._answered(call)
        # If this look left late (behind our own changes, a refusal, an outage), a pulse may have
        # come and gone since the wait began; or just before, and then one wake-up too many is the
        # smaller evil.
        late = watcher.late or call.refused or call.attempts > 1
        missed = late and watcher.known is not None and generation > watcher.known
        if flag or missed or self._generation > generation:
            watcher.wake()
        elif watcher.once:
            watcher.fail(self._too_late(0))
        elif watcher in self.waiters:
            self._beat.start()

    def _looked(self, call: Call) -> None:
        if isinstance(call.reply, BaseException):
            for watcher in self.waiters:
                own = type(call.reply)(*call.reply.args)
                own.__cause__ = call.reply.__cause__
                watcher.fail(own)
            return
        self._answered(call)
        if call.reply[0]:
            # Those who wait began before this look, so it is set for them whatever its generation,
            # which may have fallen back with the server's clock when it lost its data.
            for watcher in self.waiters:
                if watcher.noted is not None:
                    watcher.wake()

    def _answered(self, call: Call) -> None:
        flag, generation, ms = call.reply
        # Older news than we have, if it was asked for before we had them.  Else the store has lost
        # its data, or they were not the store's.
        if generation >= self._generation or call.sent > self._told_at:
            self._learn(flag, generation, ms, call.sent)

    def _learn(self, flag: int, generation: int, ms: int, since: float) -> None:
        self._ends = since + ms / 1000 if ms >= 0 else NEVER
        self._told_at = time.monotonic()
        moved = generation != self._generation
        self._set, self._generation, self._told = bool(flag), generation, True
        # Else nobody noted an older one: they were woken when this one was learnt.
        for watcher in self.waiters if moved else ():
            if watcher.noted is not None and generation > watcher.noted:
                watcher.wake()

    # -- listening ------------------------------------------------------------------------------

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            self.client.listen(self)
            self._used = time.monotonic()
            self._resting = asyncio.get_running_loop().call_later(LINGER, self._rest)

    def _rest(self) -> None:
        """Stop listening if nobody has wanted to know anything for a while."""
        idle = time.monotonic() - self._used
        if self.waiters or idle < LINGER:
            delay = LINGER if self.waiters else LINGER - idle
            self._resting = asyncio.get_running_loop().call_later(delay, self._rest)
        else:
            self._listening = False
            self.client.ignore(self)

    def _time_out(self, watcher: Watcher, timeout: float) -> None:
        watcher.fail(self._too_late(timeout))

    def _too_late(self, timeout: float) -> WaitTimeout:
        return WaitTimeout(f"{self.what} was not set within {timeout:g} s")
