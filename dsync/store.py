"""The seam: where the state of primitives lives, and how a transition on it is carried out.

A store knows nothing of waiting, timeouts or leases; a primitive knows nothing of Redis.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

__all__ = ["Arg", "Bound", "Call", "Done", "Home", "Inbox", "Listener", "Record", "Store"]


Arg = str | int | bytes


class Call:
    """One transition on its way: what was asked, when, and in the end the reply.

    `reply` is what the transition returned, or the exception that stands for it.
    """

    __slots__ = ("attempts", "command", "done", "issued", "refused", "reply", "sent")

    def __init__(self, command: Any, done: "Done", issued: float) -> None:
        self.command: Any = command
        self.done: Done = done
        self.issued: float = issued  # time.monotonic()
        # When the attempt that was answered left, time.monotonic(): a lease counts from here,
        # never from the arrival of the reply.
        self.sent: float = issued
        # How often it was sent and may have been carried out: > 1 means that an answer was lost.
        self.attempts: int = 0
        self.refused: bool = False  # for a moment, and sent again
        self.reply: Any = None


# Called exactly once for each call, synchronously, from the reader of the connection (or, in the
# memory store, before `run` returns).  It must not block and must not raise.
Done = Callable[[Call], None]


class Inbox(Protocol):
    """Where a store delivers what it was not asked for; the client."""

    def news(self, channel: str, payload: bytes) -> None:
        """A message on a channel that was subscribed to."""
        ...

    def tuned(self, channel: str, refused: BaseException | None) -> None:
        """A subscription has begun, or was refused; what was asked before came too early for it."""
        ...

    def pushed(self, message: list[bytes], evidence: float) -> None:
        """A message for this client: a grant, a wish, a loss.

        `evidence`: when the last command answered before it was sent, time.monotonic(); the
        message is younger than that.  -inf where the order of replies and messages is unknown.
        """
        ...

    def gap(self) -> None:
        """Messages may have been lost: everybody who waits asks again."""
        ...

    def disconnected(self, trouble: BaseException) -> None:
        """A connection has broken; `gap` follows when there is another."""
        ...


class Home(Protocol):
    """Whose a token is: what asks, waits or holds under it in this process."""

    def heard(self, kind: bytes, token: str, numbers: list[int], evidence: float) -> None:
        """A message about one of its tokens; see Inbox.pushed for `evidence`."""
        ...

    def ask_all(self) -> None:
        """Messages may have been lost: hear what became of every token."""
        ...

    def close(self) -> None:
        """The client closes: nobody waits, nobody holds."""
        ...


class Listener(Protocol):
    """Who hears what is said on a channel."""

    @property
    def channel(self) -> str: ...

    def heard(self, payload: bytes) -> None:
        """A message.  Raises ValueError where it is none of ours."""
        ...

    def tuned(self, refused: BaseException | None) -> None:
        """Everything said on the channel is heard from now on; or it may not be heard."""
        ...

    def ask_all(self) -> None:
        """Messages may have been lost: see how things stand."""
        ...

    def close(self) -> None:
        """The client closes."""
        ...


# A transition with everything bound but its token.
Bound = Callable[[str, Done], None]


class Record(Protocol):
    """The state of one primitive in a store."""

    def run(self, transition: str, done: Done, /, **args: Arg) -> None:
        """Carry out a transition and call `done` with the outcome.  Sent in the order of calls."""
        ...

    def bind(self, transition: str, /, **args: Arg) -> Bound:
        """`run` of a transition that will be used often: all but `token` is prepared once."""
        ...


class Store(Protocol):
    """Where the state of primitives lives."""

    client_id: str
    distant: bool  # whether there is a connection, which can break
    ordered: bool  # whether messages and answers come in the order in which they were sent
    channel: str  # what the channel of a process is named, less its id

    @property
    def born(self) -> str | int:
        """Server time, µs, when this client was born; '' until known.  It orders declarations."""
        ...

    @property
    def born_asked(self) -> float:
        """When `born` was asked for, time.monotonic()."""
        ...

    @property
    def listening(self) -> bool:
        """Whether messages reach us at the moment."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the server can be asked at the moment, as far as is known."""
        ...

    def subscribe(self, channel: str) -> None:
        """From now on the inbox gets the channel's `news`.

        The inbox is told once it is `tuned`; after a reconnect its `gap` says so.
        """
        ...

    def unsubscribe(self, channel: str) -> None:
        """No more news of this channel."""
        ...

    @property
    def progress(self) -> float:
        """Moves with every answer."""
        ...

    def at(self, kind: str, name: str) -> Record:
        """The record of the primitive `name` of this `kind`; nothing is created by looking."""
        ...

    def disown(self) -> None:
        """This is a forked child: what is connected belongs to the parent, never touch it."""
        ...

    def check(self) -> Awaitable[None]:
        """Ask the server for a sign of life; StoreUnavailable where there is none."""
        ...

    def drain(self) -> Awaitable[None]:
        """Wait until everything sent is answered."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Give up connections and tasks.  What was not answered fails with ClientClosed."""
        ...
