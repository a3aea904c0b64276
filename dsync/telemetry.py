"""What happens in a client, for whoever wants to know: hooks, metrics, traces.

A hook is called with each happening as it happens, in the thread and, where a task brings it about,
in the task that it concerns, so it must not block::

    def hook(happening: telemetry.Happening) -> None:
        match happening:
            case telemetry.Acquired(kind="lock", waited=waited) if waited > 1:
                print(happening.name, "came late")

    client = dsync.connect("redis://localhost:6379", on_event=hook)

Every `Acquired` is followed by exactly one `Released` or `Lost` of the same hold; only where the
server answers a release that the hold was lost before, a `Lost` with `late=True` follows its
`Released`.  All times are seconds.  New fields and new classes may come with any version: match by
keyword.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = [
    "Acquired",
    "Disconnected",
    "HandedOver",
    "Happening",
    "Hook",
    "Lost",
    "Missed",
    "Published",
    "Received",
    "Reconnected",
    "Refused",
    "Released",
    "RenewedLate",
    "Skipped",
    "SlowWait",
    "Taken",
    "TimedOut",
    "Woken",
]

log: logging.Logger = logging.getLogger("dsync")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Happening:
    """Something has happened to the primitive of this kind and name, as this process sees it.

    Times are seconds.

    Attributes:
        kind: "lock", "semaphore", "condition", "leader", "single_flight", "event", "barrier",
            "rate", "every" or "bus"; "client" for what concerns the connection.
        name: as it was given to the factory; of the connection, the namespace.
    """

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Acquired(Happening):
    """A task holds it: a lock, a permit, the lead."""

    waited: float  # since the task asked; 0.0 where a condition's notification brought it along
    task: str  # its name
    fence: int | None  # None where there are none


@dataclass(frozen=True, slots=True)
class Released(Happening):
    """It was given back."""

    held: float
    task: str  # whose it was
    fence: int | None


@dataclass(frozen=True, slots=True)
class Lost(Happening):
    """It was ours and is not any more, and nobody gave it back."""

    held: float
    task: str
    fence: int | None
    reason: str
    late: bool = False  # found by the release, so a Released was told before


@dataclass(frozen=True, slots=True)
class Refused(Happening):
    """Somebody tried, and it was not to be had without waiting."""

    retry_after: float | None  # of rate limiters


@dataclass(frozen=True, slots=True)
class TimedOut(Happening):
    """A wait, to hold it or to be woken by it, came to its `timeout`."""

    waited: float


@dataclass(frozen=True, slots=True)
class SlowWait(Happening):
    """A task still waits after `slow_wait` seconds; told once for each wait that is noticed."""

    waited: float
    task: str
    holder: str  # who holds it, in words, or why that is not known


@dataclass(frozen=True, slots=True)
class Woken(Happening):
    """A task's wait for an event, a notification or the other parties has ended well."""

    waited: float


@dataclass(frozen=True, slots=True)
class Taken(Happening):
    """Units of a rate limit were taken."""

    amount: int
    waited: float


@dataclass(frozen=True, slots=True)
class HandedOver(Happening):
    """A release has passed it on to who waited longest."""

    # "task": the next of this process, without the server; "store": whoever was next there, in
    # most cases of another process.
    to: Literal["task", "store"]


@dataclass(frozen=True, slots=True)
class Skipped(Happening):
    """It came for a waiter that had left, and went on to the next."""


@dataclass(frozen=True, slots=True)
class RenewedLate(Happening):
    """A lease was renewed, but not at the first attempt."""

    left: float  # of the lease, when the confirmation came; how near it was to being lost


@dataclass(frozen=True, slots=True)
class Published(Happening):
    """The server has numbered and published a message of ours."""

    event: str


@dataclass(frozen=True, slots=True)
class Received(Happening):
    """A message has reached a subscriber here."""

    event: str


@dataclass(frozen=True, slots=True)
class Missed(Happening):
    """A subscriber here has a gap."""

    missed: int | None  # messages; None: nobody knows how many


@dataclass(frozen=True, slots=True)
class Disconnected(Happening):
    """The connection broke."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reconnected(Happening):
    """There is a connection again, and everything was asked after."""

    outage: float


Hook = Callable[[Happening], object]


class Watch:
    """The hooks of one client.  Where there are none nothing is made to be told."""

    __slots__ = ("hooks",)

    def __init__(self, hooks: "Hook | Sequence[Hook] | None" = None) -> None:
        single = not isinstance(hooks, Sequence) or isinstance(hooks, str)
        several: Any = () if hooks is None else (hooks,) if single else hooks
        for hook in several:
            if not callable(hook):
                raise TypeError(f"on_event must be a callable or several in a list, got {hook!r}")
        self.hooks: tuple[Hook, ...] = tuple(several)

    def add(self, hook: Hook) -> None:
        """From now on it is called, too."""
        self.hooks = (*self.hooks, hook)

    def remove(self, hook: Hook) -> None:
        """It is not called any more."""
        self.hooks = tuple(each for each in self.hooks if each != hook)

    def tell(self, happening: Happening) -> None:
        """Call all hooks; one that fails is reported and harms nobody."""
        for hook in self.hooks:
            try:
                hook(happening)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException:  # a CancelledError of its own, too: it must end nothing of ours
                log.exception("the on_event hook %r failed on %r", hook, happening)

    async def taking(self, kind: str, name: str, amount: int, acquire: Awaitable[T]) -> T:
        """What an acquire of a rate limit returns; how it ended is told."""
        began = time.monotonic()
        try:
            outcome = await acquire
        except TimeoutError:
            self.tell(TimedOut(kind, name, time.monotonic() - began))
            raise
        self.tell(Taken(kind, name, amount, time.monotonic() - began))
        return outcome

    async def waking(self, kind: str, name: str, wait: Awaitable[T]) -> T:
        """What a wait returns; how it ended is told."""
        began = time.monotonic()
        try:
            outcome = await wait
        except TimeoutError:
            self.tell(TimedOut(kind, name, time.monotonic() - began))
            raise
        self.tell(Woken(kind, name, time.monotonic() - began))
        return outcome
