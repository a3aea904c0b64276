"""The link to one server: commands go down in order, each comes back answered or failed, once.

`Link` owns what does not depend on the connection: what is retried and for how long.  How commands
travel is a subclass's: `Wire` in wire.py, `PooledLink` in pooled.py.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable

import hiredis

from dsync.errors import ClientClosed, StoreUnavailable
from dsync.redis.script import TEXTS
from dsync.store import Call, Done, Inbox

__all__ = ["Link", "Refusal"]

# A command is its words, or the bytes they are packed to.
Command = tuple[str | bytes | int, ...] | bytes


def packed(*words: str | bytes | int) -> bytes:
    """The words of a command as they go over the wire."""
    data: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub takes one word
    return data


def words_of(command: Command) -> list[str | bytes | int]:
    """The words of a command, whichever it is, the first two as text."""
    if not isinstance(command, bytes):
        return list(command)
    reader = hiredis.Reader()
    reader.feed(command)
    name, *rest = reader.gets()
    return [name.decode(), *(word.decode() for word in rest[:1]), *rest[1:]]


def text_of(word: str | bytes | int) -> str:
    """A word as text, for messages."""
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


class Refusal(Exception):
    """An error reply: its first word is the code, the rest differs between servers."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code: str = text.partition(" ")[0]


# The server cannot right now.  Asked again until `outage_timeout`, which is safe: transitions are
# idempotent by token.
TRANSIENT = frozenset(
    {
        *("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
        *("BUSY", "OOM", "MISCONF", "NOREPLICAS"),
    }
)
FIRST_BACKOFF, LONGEST_BACKOFF = 0.02, 0.4


class Link:
    """`call(command, done)` going down; `done` and what the inbox gets coming back.

    Commands reach the server in the order of the calls, those in flight when a connection breaks
    are sent again in that order, and none is given up before `outage_timeout` seconds.
    """

    watches_replies = True  # whether late replies are looked for here
    hint = "is it running, and is the URL right?"  # what to ask oneself without a connection

    def __init__(
        self,
        address: str,
        channel: str,
        inbox: Inbox,
        greet: Callable[[], Call],
        explain: Callable[[Refusal, Call], Exception],
        outage_timeout: float,
    ) -> None:
        self.address = address  # for messages
        self.channel = channel  # of the messages for this process
        self.inbox = inbox
        self.channels: set[str] = set()  # what else we listen to
        self.greet = greet  # the first call on each connection
        self.explain = explain
        self.outage_timeout = outage_timeout
        # A reply that takes longer means that the connection is dead, or as good as.
        self.reply_timeout: float = outage_timeout / 3
        self.progress: float = 0.0  # moves with every answer
        self.closed: bool = False
        self.listening: bool = False  # the server has confirmed our channel
        self.trouble: BaseException | None = None  # why there is no connection
        # Every call that is not finished is in exactly one of these.
        self._backlog: deque[Call] = deque()  # to be sent, in order
        self._inflight: deque[Call] = deque()  # sent and not answered, in order
        self._delayed: set[Call] = set()  # refused for now, waits out a backoff
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = float("inf")  # when it fires, time.monotonic()
        self._drained: list[asyncio.Future[None]] = []

    def call(self, command: Command, done: Done) -> Call:
        """Send a command; `done` is called with the answered Call, exactly once."""
        call = Call(command, done, time.monotonic())
        if self.closed:
            call.reply = ClientClosed("the client is closed: make a new one with dsync.connect()")
            done(call)
            return call
        self._watch_by(call.issued + self.outage_timeout)
        self._put(call)
        return call

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return True

    def subscribe(self, channel: str) -> None:
        """Listen to a channel; commands that are called from now on are answered afterwards, or
        else the inbox is told when it has begun.
        """
        raise NotImplementedError

    def unsubscribe(self, channel: str) -> None:
        """Stop listening to it."""
        raise NotImplementedError

    def backoff(self, attempt: int) -> float:
        """Seconds before the next attempt: doubling, with jitter so that fleets do not beat time.

        Never so long that a server which is back is not tried again within `outage_timeout`.
        """
        doubled = FIRST_BACKOFF * float(2 ** min(attempt, 10))
        return min(LONGEST_BACKOFF, self.outage_timeout / 5, doubled) * random.uniform(0.5, 1.0)

    def _put(self, call: Call) -> None:
        """Send it, or leave it in the backlog until there is a connection."""
        raise NotImplementedError

    def _hang_up(self, trouble: BaseException) -> None:
        """Give up the connection, put what it leaves unanswered back, get another."""
        raise NotImplementedError

    def disown(self) -> None:
        """In a forked child: send nothing any more, and leave the parent's connection alone."""
        self.closed = True

    async def drain(self) -> None:
        """Return when everything called so far is answered or has failed."""
        if self._backlog or self._inflight or self._delayed:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drained.append(waiter)
            await waiter

    async def aclose(self) -> None:
        """Fail what is unanswered with ClientClosed."""
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
        self._backlog.extendleft(reversed(self._inflight))
        self._backlog.extend(self._delayed)
        self._inflight.clear()
        self._delayed.clear()
        self._fail(lambda call: True, ClientClosed(f"the client of {self.address} was closed"))

    def _answered(self, call: Call, reply: object) -> None:
        if type(reply) is Refusal:
            self._refused(call, reply)
            return
        call.reply = reply
        self._finish(call)

    def _finish(self, call: Call) -> None:
        try:
            call.done(call)
        except Exception as exc:
            self._failed(call, exc)
        self._note_drained()

    def _note_drained(self) -> None:
        """Something has left: tell those who wait for that, if it was the last."""
        if self._drained and not (self._backlog or self._inflight or self._delayed):
            for waiter in self._drained:
                if not waiter.done():
                    waiter.set_result(None)
            self._drained.clear()

    def _failed(self, call: Call, exc: Exception) -> None:
        """A bug of ours must not take the reader, and so everybody else, along."""
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"dsync: {call.command!r:.80} failed on its reply", "exception": exc}
        )

    def _refused(self, call: Call, refusal: Refusal) -> None:
        call.attempts -= 1  # this one certainly did nothing
        call.refused = True
        if refusal.code == "NOSCRIPT":
            # This one command again, with the text.  Those behind it have overtaken it, which is
            # harmless: a token that was left in the meantime is refused.
            _, sha, *rest = words_of(call.command)
            call.command = ("EVAL", TEXTS[str(sha)], *rest)
            self._put(call)
        elif refusal.code in TRANSIENT and time.monotonic() < call.issued + self.outage_timeout:
            self.trouble = refusal
            self._delayed.add(call)
            loop = asyncio.get_running_loop()
            # As long again as it has waited by now: that doubles, too.
            waited = max(time.monotonic() - call.issued, FIRST_BACKOFF)
            delay = min(waited, LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
            loop.call_later(delay, self._again, call)
            if refusal.code == "READONLY":
                # We talk to a replica, or to a primary that has become one: find the new one.
                self._hang_up(refusal)
        else:
            call.reply = self.explain(refusal, call)
            self._finish(call)

    def _again(self, call: Call) -> None:
        if call in self._delayed:
            self._delayed.remove(call)
            self._put(call)

    def _watch_by(self, when: float) -> None:
        """See to it that somebody looks out at this time or earlier."""
        if when < self._watch_at:
            if self._watch is not None:
                self._watch.cancel()
            self._watch_at = when
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(max(when - time.monotonic(), 0.001), self._look_out)

    def _look_out(self) -> None:
        """Find what has taken too long, and look again when something else could have."""
        self._watch, self._watch_at = None, float("inf")
        now = time.monotonic()
        if (
            self.watches_replies
            and self._inflight
            and self._inflight[0].sent + self.reply_timeout <= now
        ):
            self._hang_up(TimeoutError(f"no reply within {self.reply_timeout:.1f} s"))
        self._give_up()
        if self.closed:
            return
        if self.watches_replies and self._inflight:
            self._watch_by(self._inflight[0].sent + self.reply_timeout)
        if self._backlog:
            self._watch_by(min(call.issued for call in self._backlog) + self.outage_timeout)

    def _give_up(self) -> None:
        """Fail the calls that have waited for a connection for `outage_timeout`."""
        before = time.monotonic() - self.outage_timeout
        if any(call.issued <= before for call in self._backlog):
            error = StoreUnavailable(
                f"Redis at {self.address} could not be asked for {self.outage_timeout:g} s "
                f"({self.trouble or 'no connection yet'}); {self.hint}"
            )
            # Its cause is in its text: a traceback of how connecting failed would bury that.
            error.__suppress_context__ = True
            self._fail(lambda call: call.issued <= before, error)

    def _fail(self, chosen: Callable[[Call], bool], error: Exception) -> None:
        """Finish the calls of the backlog that are `chosen` with an error."""
        calls = list(self._backlog)
        self._backlog.clear()
        self._backlog.extend(call for call in calls if not chosen(call))
        for call in calls:
            if chosen(call):
                call.reply = error
                self._finish(call)
