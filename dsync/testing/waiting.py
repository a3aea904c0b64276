"""The checkers of what tasks wait for without holding it: conditions, events and barriers."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from dsync.testing.history import Event, Span, harms, time_of, waits, who
from dsync.testing.violation import Violation, is_harm, touches

__all__ = ["due", "generations", "pulses", "wake_ups"]

AT_ONCE = 0.1  # seconds: a harm that is over so soon keeps nobody from anything
SILENT = 6.0  # seconds: so long may be waited for one that was notified and is dead
JUST_BEFORE = 0.25  # seconds before a harm: what was confirmed then may not have been heard of


def wake_ups(
    events: Iterable[Event], lease: float = 30.0, within: float = 2.5, forgets: bool = False
) -> list[Violation]:
    """Each notification wakes as many sleepers of a condition as it names, and no more.

    Written with the lock held, so that their order is the lock's: `asleep` before the wait,
    `notified` with `n` (None: all) behind a notify, `awake` when the wait has returned or has been
    given up (with `why`), which hands the notification on.  `released`, when the one who notified
    has left the lock and that is confirmed; until then it may take its notifications with it.

    A process that is killed, stopped or loses its lease may lose or pass on one notification for
    each of its sleepers, and one more: so many more or less is right then, and nothing else.

    Args:
        events: what was written.
        lease: seconds after which somebody else is notified in the place of one that is dead, or
            when it has been silent for too long.
        within: seconds in which a notification is heard.
        forgets: a harm makes the server forget: nothing is exact from then until `within` seconds
            after it.
    """
    events = sorted(events, key=time_of)
    unsure = [(h.starts, h.ends + within) for h in harms(events) if is_harm(h)] if forgets else []
    things: dict[str, _Sleepers] = defaultdict(_Sleepers)
    found = []
    for event in events:
        t, key = float(event["t"]), who(event)
        if event["what"] in ("killed", "stopped", "continued"):
            for sleepers in things.values():
                dead = event["what"] == "killed"
                sleepers.excuse(event["whom"], dead, t + max(min(lease, 5.0), SILENT) + within)
            continue
        sleepers = things[key[0]]
        if any(begin <= t <= end for begin, end in unsure):
            sleepers.forgive()
        late = sleepers.take(event, within)
        if late is not None and not any(begin <= t <= end for begin, end in unsure):
            found.append(late)
        if event["what"] == "lost":
            sleepers.void(key, t + max(min(lease, 5.0), SILENT) + within)
    last = events[-1]["t"] if events else 0.0
    for sleepers in things.values():
        if not any(begin <= last <= end for begin, end in unsure):
            what = "it was notified, and did not wake"
            found += [Violation("wake-ups", what, (event,)) for event in sleepers.owed]
    return found


class _Sleepers:
    """Who sleeps at a condition, and how many of them have been notified."""

    def __init__(self) -> None:
        self.asleep: dict[object, float] = {}  # since when; in order
        self.owed: list[Event] = []  # one for each sleeper that has yet to hear of it; in order
        self.optional: list[float] = []  # of those that may come or not: until when
        self.under_way: dict[object, int] = {}  # how many each has notified that holds the lock
        self.awake: set[object] = set()  # who holds the lock after a wait

    def take(self, event: Event, within: float) -> Violation | None:
        what, key = event["what"], who(event)
        if what in ("asleep", "leaving"):
            self.awake.discard(key)
        if what == "asleep":
            self.asleep[key] = event["t"]
        elif what == "notified":
            able, n = len(self.asleep) - len(self.owed), event.get("n", 1)
            notified = max(0, able if n is None else min(able, n))
            self.owed += [event] * notified
            self.under_way[key] = notified
        elif what == "released":
            self.under_way.pop(key, None)
        elif what == "awake" and "why" not in event:
            self.asleep.pop(key, None)
            self.awake.add(key)
            self.optional = [until for until in self.optional if until >= event["t"]]
            if self.owed:
                self.owed.pop(0)
            elif self.optional:
                self.optional.pop(0)
            else:
                return Violation("wake-ups", "it woke, and nobody notified it", (event,))
        elif what in ("awake", "gave up", "lost", "failed") and key in self.asleep:
            del self.asleep[key]
            return self._hand_on(event, within)
        return None

    def _hand_on(self, event: Event, within: float) -> Violation | None:
        """One gives up: a notification that nobody else can have been meant by may be void.

        It may go to one who fell asleep later, too, if it had arrived.
        """
        meant = iter(self.asleep.values())
        for owed in list(self.owed):
            if next(meant, math.inf) >= owed["t"]:
                self.owed.remove(owed)
                if event["t"] - owed["t"] > within:
                    what = f"it was notified, and had not heard of it {within:g} s later"
                    return Violation("wake-ups", what, (owed, event))
                self.optional.append(event["t"] + within)
        return None

    def excuse(self, pid: int, dead: bool, until: float) -> None:
        """This process may lose what its sleepers were notified of, or pass it on."""
        for key in [key for key in self.asleep if _of(key, pid)]:
            self.optional.append(until)  # it wakes, and so does who was notified in its place
            self._waive(until)
            if dead:
                del self.asleep[key]
        for key in [key for key in {*self.under_way, *self.awake} if _of(key, pid)]:
            self.void(key, until)

    def void(self, key: object, until: float) -> None:
        """This one lost the lock: "what it notified before is void".

        "A process that dies while it *holds* the lock after a wait() passes a notification on".
        """
        if key in self.awake:
            self.awake.remove(key)
            self.optional.append(until)
        for _ in range(self.under_way.pop(key, 0)):
            self._waive(until)

    def forgive(self) -> None:
        """Nobody knows who was notified."""
        self.optional += [math.inf] * len(self.owed)
        self.owed.clear()

    def _waive(self, until: float) -> None:
        """One of those that were notified need not wake."""
        if self.owed:
            self.owed.pop(0)
            self.optional.append(until)


def _of(key: object, pid: int) -> bool:
    return isinstance(key, tuple) and key[1] == pid


def pulses(
    events: Iterable[Event],
    within: float = 2.5,
    forgets: bool = False,
    calm: Iterable[str] = (),
) -> list[Violation]:
    """Who waits for an event when a pulse comes returns; and nobody returns without one.

    Read here: `waiting` and `woken`; `pulsing` before a `set(); clear()` is sent and `pulsed` when
    it is confirmed; `setting`, `set`, `clearing`, `cleared` likewise.

    Args:
        events: what was written.
        within: seconds after the confirmation, or after the last harm that touches them.
        forgets: a harm makes the server forget what was set: who has not heard of it by then waits
            for the next one.
        calm: the kinds of harm that break no connection.  After others, a pulse from just before
            a wait may wake it.
    """
    events = sorted(events, key=time_of)
    last = events[-1]["t"] if events else 0.0
    spans = list(_set_spans(events))
    bad = [harm for harm in harms(events) if harm.event.get("kind") not in {*calm}]
    found = []
    for wait in waits(events, until=("woken",)):
        of = wait.event.get("of", "")
        mine = [span for span in spans if span[3] == of]
        touched = [harm for harm in bad if touches(harm, wait)]
        for begins, confirmed, _, _, event in mine:
            if not wait.starts < begins or confirmed + within >= min(wait.ends, last):
                continue
            latest = due(confirmed, touched, within)
            forgotten = forgets and any(
                is_harm(harm) and harm.starts <= confirmed + within and harm.ends >= begins
                for harm in touched
            )
            if latest < min(wait.ends, last) and not forgotten:
                what = f"it waited when the event came, and was not woken {within:g} s later"
                found.append(Violation("pulses", what, (wait.event, event)))
                break
        if wait.end is None or wait.end["what"] != "woken":
            continue
        since = min(
            [wait.starts]
            + [
                harm.starts - JUST_BEFORE
                for harm in touched
                if is_harm(harm) and harm.starts <= wait.starts <= harm.ends + within
            ]
        )
        if not any(begins <= wait.ends and ends >= since for begins, _, ends, *_ in mine):
            what = "it woke, and the event was never set"
            found.append(Violation("pulses", what, (wait.event, wait.end)))
    return found


def due(confirmed: float, touched: Iterable[Span], within: float) -> float:
    """When a wait has heard of that at the latest.

    A harm keeps it from that while it lasts; one that is over at once costs no more than a
    heartbeat, as a lost message does.
    """
    latest = confirmed + within
    for harm in touched:
        if harm.starts <= latest and harm.ends > confirmed and harm.ends - harm.starts > AT_ONCE:
            latest = max(latest, harm.ends + within)
    return latest


def _set_spans(events: Sequence[Event]) -> Iterator[tuple[float, float, float, str, Event]]:
    """(may be set from, set for certain at, unset for certain at, of, its first event)

    What one who was killed has set, or was about to, lasts until somebody has cleared it after.
    """
    began: dict[tuple[str, int, object], Event] = {}
    set_: dict[str, list[tuple[Event, float]]] = defaultdict(list)  # of -> (begun, confirmed)
    left: dict[str, list[tuple[Event, float]]] = defaultdict(list)  # of -> (begun, killed at)
    for event in events:
        what, of, key = event["what"], event.get("of", ""), who(event)
        if what in ("pulsing", "setting", "clearing"):
            began[key] = event
        elif what == "set":
            set_[of].append((began.pop(key), event["t"]))
        elif what in ("pulsed", "cleared"):
            begun = began.pop(key, event)
            if what == "pulsed":
                yield begun["t"], event["t"], event["t"], of, begun
            for its, confirmed in set_.pop(of, []):
                yield its["t"], confirmed, event["t"], of, its
            for its, killed in left.pop(of, []):
                if begun["t"] > killed:
                    yield its["t"], math.inf, event["t"], of, its
                else:
                    left[of].append((its, killed))
        elif what in ("killed", "ended"):
            for other in [other for other in began if other[1] == event["whom"]]:
                left[other[0]].append((began.pop(other), event["t"]))
    for of, pairs in set_.items():
        for begun, confirmed in pairs:
            yield begun["t"], confirmed, math.inf, of, begun
    # Never confirmed: it may have been, at any time.
    never = [*began.values(), *(its for pairs in left.values() for its, _ in pairs)]
    for begun in never:
        yield begun["t"], math.inf, math.inf, begun.get("of", ""), begun


def generations(
    events: Iterable[Event],
    parties: int,
    lease: float = 30.0,
    within: float = 2.5,
    forgets: bool = False,
) -> list[Violation]:
    """All parties of a generation pass the barrier or none, with the indexes 0 to parties - 1.

    Read here: `waiting` before the wait, and `passed` with the `index` that it returned.  A
    generation may lack as many as were killed or cancelled just before it passed, or before they
    can have heard of it; those who were stopped or cut off hear of it when they are back.

    Args:
        events: what was written.
        parties: how many pass together.
        lease: seconds for which the server counts on one who was killed.
        within: seconds in which all parties hear that they may pass.
        forgets: a harm makes the server forget: who has not heard of it by then arrives again, and
            who has passed may be taken for waiting until its lease has ended, and for passing until
            that has.
    """
    events = sorted(events, key=time_of)
    last = events[-1]["t"] if events else 0.0
    bad = harms(events)
    found = []
    # Of each generation: index -> (when it had arrived, its pass).
    rounds: list[dict[int, tuple[float, Event]]] = []
    absent: list[Span] = []
    for wait in sorted(waits(events, until=("passed",)), key=lambda wait: wait.ends):
        if wait.end is None or wait.end["what"] != "passed":
            absent.append(wait)
            continue
        index = wait.end["index"]
        # The oldest generation that it can belong to: none that had begun to pass before it came.
        mine = next((r for r in rounds if index not in r and wait.starts < _first(r)["t"]), None)
        if mine is None:
            rounds.append(mine := {})
        mine[index] = wait.starts, wait.end
    for members in rounds:
        first, missing = _first(members)["t"], parties - len(members)
        excused = [w for w in absent if _counted(w, first, last, bad, lease, within)][:missing]
        for wait in excused:  # each is missing once
            absent.remove(wait)
        forgotten = forgets and any(
            harm.starts <= first + within and harm.ends >= first - within - 2 * lease
            for harm in bad
            if is_harm(harm)
        )
        strange = [index for index in members if not 0 <= index < parties]
        if strange or (len(excused) < missing and not forgotten):
            what = f"the indexes are {sorted(members)}, of {parties} parties"
            party = tuple(event for _, event in members.values())
            found.append(Violation("generations", what, party))
    return found


def _first(members: dict[int, tuple[float, Event]]) -> Event:
    return min((event for _, event in members.values()), key=time_of)


def _counted(
    wait: Span, passed: float, last: float, bad: Iterable[Span], lease: float, within: float
) -> bool:
    """Whether one who never passed may have counted for those who did by then.

    It had come, was not gone for longer than the server counts on it, and cannot have heard.
    """
    killed = wait.end is not None and wait.end["what"] in ("killed", "ended")
    gone = wait.ends + (lease if killed else 0.0) + within
    heard = due(passed, [harm for harm in bad if touches(harm, wait)], within)
    return wait.starts < passed <= gone and min(wait.ends, last) <= heard
