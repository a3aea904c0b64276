"""Leases: what a holder has, how long it stays, and the Keeper that renews them all in one batch.

A lease counts from before the request was sent that won or renewed it, on this process's own
monotonic clock, and ends here before it ends on the server.  Not knowing is an outcome of its own:
a renewal that was neither confirmed nor refused moves no deadline.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dsync.errors import LeaseLost

if TYPE_CHECKING:
    from dsync.cohort import Cohort

__all__ = ["Hold", "Keeper", "Lease", "Terms", "margin"]

CLAIM = 5.0  # seconds, the longest lease of a grant by message, until it is renewed
_NEVER = float("inf")
OnLost = Literal["cancel", "flag"]


def margin(lease: float) -> float:
    """How long before the server does the holder gives up, seconds."""
    return lease / 4 if lease < 2 else max(lease / 10, 0.5)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a primitive holds: its keyword arguments, all in seconds."""

    lease: float = 30.0
    renew: bool = True
    max_hold: float | None = None
    on_lost: OnLost = "cancel"
    fair: bool = False
    max_waiters: int | None = None
    linger: float = 0.0

    # Whether each hold goes to the store by itself, instead of from task to task.
    alone: bool = field(init=False)
    first_lease: float = field(init=False)  # what an acquire asks for
    claim: int = field(init=False)  # ms for which a grant by message is good

    def __post_init__(self) -> None:
        alone = self.fair or not self.renew or self.max_hold is not None
        object.__setattr__(self, "alone", alone)
        cap = self.lease if self.max_hold is None else self.max_hold
        object.__setattr__(self, "first_lease", min(self.lease, cap))
        # What is not renewed has to be good for all of its lease from the beginning.
        claim = min(self.first_lease, CLAIM) if self.renew else self.first_lease
        object.__setattr__(self, "claim", int(claim * 1000))


class Lease:
    """One acquisition: ours from the moment it was granted until it is released or lost.

    Attributes:
        fence: the fencing token, greater than that of every earlier holder of the name; give it to
            the resource, which refuses a smaller one than it has seen.  None for semaphores.
    """

    __slots__ = (
        "_cancelling", "_event", "_paused", "_reason", "_task", "fence", "hold", "outer", "owner",
        "released", "since", "told", "what",
    )  # fmt: skip

    def __init__(self, what: str, hold: "Hold | None", fence: int | None) -> None:
        self.what: str = what  # "lock 'invoices'", for messages
        self.hold: Hold | None = hold  # None: it cannot be lost (dsync.local)
        self.fence: int | None = fence
        self.released: bool = False  # of those that have no hold
        self.since: float = 0.0  # when it was granted, time.monotonic(); of those that have a hold
        # What hooks have heard: nothing (""), that it was "acquired", that it was "released".
        # After a loss nothing more is told.
        self.told: Literal["", "acquired", "released"] = ""
        self.owner: asyncio.Task[object] | None = None  # the task that acquired
        self._reason: str | None = None  # why it was lost
        self._event: asyncio.Event | None = None
        # The task whose body is cancelled on loss, and how often it was being cancelled before.
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._paused: asyncio.Task[object] | None = None  # the same, while a wait goes on
        self.outer: Lease | None = None  # of the body around this one, in one task and object

    @property
    def held(self) -> bool:
        """Whether it is still ours.  Computed from the clock: a blocked loop does not bend it."""
        hold = self.hold
        if hold is None:
            return not self.released
        return hold.lease is self and time.monotonic() < hold.deadline

    @property
    def left(self) -> float:
        """Seconds until it has to be renewed or is lost; 0.0 when it is."""
        if not self.held:
            return 0.0
        return _NEVER if self.hold is None else max(self.hold.deadline - time.monotonic(), 0.0)

    @property
    def lost(self) -> asyncio.Event:
        """Set when it was lost.  Not set by a release."""
        if self._event is None:
            self._event = asyncio.Event()
            if self._reason is not None:
                self._event.set()
        return self._event

    def holder(self) -> str:
        """The task that has it, for messages."""
        if self.owner is None:
            return "a task"
        return f"task {self.owner.get_name()!r}"

    @property
    def reason(self) -> str:
        """Why it was lost; "" as long as it is not."""
        return self._reason or ""

    def error(self) -> LeaseLost:
        """The LeaseLost that says what happened to it."""
        reason = self._reason
        if reason is None:
            assert self.hold is not None
            late = time.monotonic() - self.hold.deadline
            reason = f"its lease ran out {max(late, 0):.1f} s ago, before it was renewed"
        return LeaseLost(f"{self.what} was lost: {reason}")

    def lose(self, reason: str) -> None:
        """Called by the store's side: it is not ours any more; tell whoever should know."""
        self._reason = reason
        if self._event is not None:
            self._event.set()
        if self._task is not None:
            self._task.cancel(msg=f"dsync: {self.what} was lost: {reason}")

    def guard(self, task: "asyncio.Task[object]") -> None:
        """From now on a loss cancels the task, as the end of `asyncio.timeout()` does."""
        self._task = task
        self._cancelling = task.cancelling()

    def orphan(self) -> None:
        """This is a forked child: it is the parent's."""
        self._reason = "it belongs to the parent process, and this is a forked child"
        if self.hold is not None:
            self.hold.lease = None

    def pause(self) -> None:
        """A `Condition.wait()` has given it back: what becomes of it cancels no body."""
        self._paused, self._task = self._task, None

    def resume(self) -> None:
        """The wait could not get it back: from now on a loss cancels the body again."""
        self._task, self._paused = self._paused, None

    def succeed(self, before: "Lease") -> None:
        """Take the place of a paused lease: its owner and its body."""
        self.owner = before.owner
        self.outer = before.outer
        self._task, self._cancelling = before._paused, before._cancelling

    def unguard(self) -> bool:
        """The body has ended.  -> whether we have cancelled it: then `lift()` has to follow."""
        guarded, self._task, self._paused = self._task, None, None
        return guarded is not None and self._reason is not None

    async def lift(self, task: "asyncio.Task[object]", exc: BaseException | None) -> bool:
        """Take our cancel back from a body that has ended with `exc`.  -> whether that was it."""
        others = task.uncancel() > self._cancelling
        if isinstance(exc, asyncio.CancelledError):
            return not others
        # The body ended before our cancel reached it.  Meet it here, so that it hits nothing else.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if others:
                raise
        return False

    def __repr__(self) -> str:
        state = "lost" if self._reason is not None else "released"
        if self.held:
            state = f"{self.left:.1f} s left"
        return f"<dsync.Lease of {self.what} [{state}, fence:{self.fence}]>"


class Hold:
    """A permit that the store has given to this process, under one token.

    Tasks of the process may pass it on among each other; each of them has a Lease on it in turn.
    """

    __slots__ = (
        "cap", "cohort", "deadline", "failed", "fence", "last_fence", "lease", "length", "notices",
        "renew_at", "renewing", "round", "terms", "token", "tombstone",
    )  # fmt: skip

    def __init__(self, cohort: "Cohort", token: str, terms: Terms, fence: int) -> None:
        self.cohort: Cohort = cohort
        self.token: str = token
        self.terms: Terms = terms
        self.fence: int = fence  # of the current lease
        self.last_fence: int = fence + cohort.block - 1  # of the block that is reserved
        self.tombstone: bool = False  # an acquire of this token may still be under way
        self.lease: Lease | None = None
        # How many waiters of which condition the holder has notified; the release takes it along.
        self.notices: dict[str, int] = {}
        self.cap: float = _NEVER  # renewal does not pass it
        self.length: float = 0.0  # seconds, as confirmed last
        self.deadline: float = 0.0  # here
        self.renew_at: float = 0.0
        self.renewing: bool = False  # a renewal is on its way
        self.failed: bool = False  # the last renewal was neither confirmed nor refused
        self.round: dict[Hold, None] | None = None  # of the Keeper's; None: it was never confirmed

    def next_length(self) -> float:
        """Seconds to ask for now."""
        return max(min(self.terms.lease, self.cap - time.monotonic()), 0.001)


class Keeper:
    """Renews every lease of a client at a third of its length, all that are due in one batch.

    It gives a lease up, as lost, when its deadline passes.
    """

    # More renewals at once would stall the event loop, and so would more that are under way: the
    # garbage collector goes through them.  So the server gets the time to answer a slice.
    SLICE = 50
    PAUSE = 0.001  # seconds

    def __init__(self) -> None:
        # Leases of one length are renewed in the order in which they were confirmed, so each
        # round is sorted by deadline: the next one due stands first.
        self._rounds: dict[tuple[float, bool], dict[Hold, None]] = {}
        # What was found to be due, and goes out slice by slice.  While there is any, nobody looks
        # for more: two slices never meet, and none is renewed twice.
        self._due: deque[Hold] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = float("inf")
        # One for each client, so that a fleet that started together does not renew together.
        self._share = random.uniform(0.28, 0.34)

    def confirm(self, hold: Hold, sent: float, length: float, deadline: float) -> None:
        """The server confirmed this hold, for `length` seconds from `sent`; here, to `deadline`."""
        if hold.round is not None:
            hold.round.pop(hold, None)
        hold.length = length
        ends = sent + length  # on the server, at the earliest
        hold.deadline = deadline
        hold.failed = False
        grows = hold.terms.renew and ends < hold.cap - 0.001
        hold.renew_at = wake = sent + length * self._share if grows else _NEVER
        key = (length, grows)
        try:
            hold.round = self._rounds[key]
        except KeyError:
            hold.round = self._rounds[key] = {}
        hold.round[hold] = None
        if wake is _NEVER:
            wake = hold.deadline
        if wake < self._wake_at or self._timer is None:
            self._wake_by(wake)

    def forget(self, hold: Hold) -> None:
        """It was released or lost: no renewal starts any more."""
        if hold.round is not None:
            hold.round.pop(hold, None)

    def renew_now(self) -> None:
        """The connection was lost and is back: find out what we still hold.

        What others here ask for goes at once: before they can have it, its holder hears of a loss.
        """
        holds = sorted(self.holds(), key=lambda hold: hold.deadline)
        self._renew_slice([hold for hold in holds if hold.cohort.requests])
        self._renew(holds)

    def holds(self) -> list[Hold]:
        """Everything that is held."""
        return [hold for round_ in self._rounds.values() for hold in round_]

    def close(self) -> None:
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake_by(self, when: float) -> None:
        if self._timer is not None:
            if self._wake_at <= when:
                return
            self._timer.cancel()
        self._wake_at = when
        delay = max(when - time.monotonic(), 0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = time.monotonic()
        wake = float("inf")
        lost: list[Hold] = []
        due: list[Hold] = []
        for key, round_ in list(self._rounds.items()):
            if not round_:
                del self._rounds[key]
            for hold in round_:
                if hold.deadline <= now:
                    lost.append(hold)
                    continue
                if self._due:
                    wake = now  # look again when those are through; who is lost stands before
                    break
                wake = min(wake, hold.deadline)
                if hold.renew_at <= now:
                    if not hold.renewing:
                        due.append(hold)
                else:
                    wake = min(wake, hold.renew_at)
                    if not hold.failed:
                        break  # those behind it are due later
        if wake < float("inf"):
            self._wake_by(max(wake, now + self.PAUSE))
        for hold in lost:
            if hold.token in hold.cohort.holds:  # a hook may have released it meanwhile
                hold.cohort.expire(hold)
        if due:
            due.sort(key=lambda hold: hold.deadline)  # a short one may stand behind thousands
            self._renew(due)

    def _renew(self, due: Iterable[Hold]) -> None:
        """Renew a slice now, and the rest slice by slice."""
        under_way = bool(self._due)
        self._due = deque(due)
        if not under_way:
            self._renew_next()

    def _renew_next(self) -> None:
        due = self._due
        try:
            self._renew_slice([due.popleft() for _ in range(min(len(due), self.SLICE))])
        finally:  # one that cannot be renewed must not keep the others from it
            if due:
                asyncio.get_running_loop().call_later(self.PAUSE, self._renew_next)

    def _renew_slice(self, holds: list[Hold]) -> None:
        for hold in holds:
            if hold.token in hold.cohort.holds and not hold.renewing and hold.terms.renew:
                hold.cohort.renew(hold)

    def failed(self, hold: Hold) -> None:
        """A renewal came to nothing: the deadline stays, and it is tried again soon."""
        hold.failed = True
        hold.renew_at = time.monotonic() + min(1.0, hold.length / 10)
        self._wake_by(hold.renew_at)


# Called with each lease that is lost.
LostHook = Callable[[Lease], object]
