"""What a history has to be like: each checker goes through the events and names those that are not.

They believe the workers only as far as these say what they did themselves; see history.py for the
events, and each checker for those that it alone reads.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dsync.testing.history import Event, Span, harms, holds, time_of, waits, who

__all__ = [
    "Violation",
    "admissions",
    "deliveries",
    "failures",
    "fences",
    "generations",
    "losses",
    "overlaps",
    "pulses",
    "stale_writes",
    "stranded",
    "wake_ups",
]


AT_ONCE = 0.1  # seconds: a harm that is over so soon keeps nobody from anything
JUST_BEFORE = 0.25  # seconds before a harm: what was confirmed then may not have been heard of


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept, and the events that show it."""

    promise: str
    what: str
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.promise}: {self.what}"]
        return "\n    ".join(lines + [str(event) for event in self.events])


# -- holding ---------------------------------------------------------------------------------------


def overlaps(events: Iterable[Event], limit: int = 1, allowed: float = 0.0) -> list[Violation]:
    """Never more than `limit` holds of a thing at once, or for at most `allowed` seconds."""
    found = []
    for each in _by_thing(holds(events)):
        inside: list[Span] = []
        for hold in each:
            inside = [other for other in inside if other.ends > hold.starts]
            inside.append(hold)
            if len(inside) > limit:
                first_to_go = sorted(other.ends for other in inside)[len(inside) - limit - 1]
                lasted = first_to_go - hold.starts
                if lasted > allowed:
                    what = f"{len(inside)} hold it at once for {lasted:.6f} s, and {limit} may"
                    shown = tuple(other.event for other in inside)
                    found.append(Violation("holders", what, shown))
    return found


def fences(events: Iterable[Event]) -> list[Violation]:
    """Each holder has a greater fence than those before it."""
    found = []
    for each in _by_thing(holds(events)):
        greatest: Span | None = None
        for hold in each:
            if greatest is not None and hold.event["fence"] <= greatest.event["fence"]:
                what = "a later holder has no greater fence"
                found.append(Violation("fences", what, (greatest.event, hold.event)))
            else:
                greatest = hold
    return found


def stale_writes(events: Iterable[Event]) -> list[Violation]:
    """A store that refuses what is older than it has seen refuses stale writes, and no others.

    Each `held` and each `step` counts as a write under its fence.  It is stale if one who came
    later to hold the thing has written already.
    """
    events = list(events)
    order = {id(hold.event): number for number, hold in enumerate(holds(events))}
    inside: dict[object, int] = {}  # who -> the number of its hold
    newest: dict[str, tuple[int, Event]] = {}  # of -> the latest hold that has written
    seen: dict[str, int] = {}  # of -> the greatest fence that the store has seen
    found = []
    for event in sorted(events, key=time_of):
        if event["what"] == "held":
            inside[who(event)] = order[id(event)]
        if event["what"] not in ("held", "step") or "fence" not in event:
            continue
        of = event.get("of", "")
        number, fence = inside.get(who(event), -1), event["fence"]
        latest, its = newest.get(of, (number, event))
        stale, refused = number < latest, fence < seen.get(of, fence)
        if stale != refused:
            what = "a stale write passes" if stale else "the rightful holder is refused"
            found.append(Violation("fenced store", what, (its, event)))
        if not stale:
            newest[of] = (number, event)
        seen[of] = max(fence, seen.get(of, fence))
    return found


def losses(events: Iterable[Event]) -> list[Violation]:
    """Nobody loses what it holds, but those who were stopped."""
    events = list(events)
    stopped = {event["whom"] for event in events if event["what"] == "stopped"}
    return [
        Violation("no loss", "it was not stopped, and lost its lease", (event,))
        for event in events
        if event["what"] == "lost" and event["pid"] not in stopped
    ]


def failures(events: Iterable[Event]) -> list[Violation]:
    """Nothing fails, and who was not killed ends in good order."""
    events = list(events)
    killed = {event["whom"] for event in events if event["what"] == "killed"}
    found = []
    for event in events:
        if event["what"] == "failed":
            found.append(Violation("no failure", event.get("why", "it failed"), (event,)))
        elif event["what"] == "ended" and event["code"] and event["whom"] not in killed:
            found.append(Violation("no failure", f"exit code {event['code']}", (event,)))
    return found


def stranded(
    events: Iterable[Event], lease: float, limit: int = 1, within: float = 2.5
) -> list[Violation]:
    """Nobody waits for longer than `within` seconds while the thing is free.

    After a hold that was not left, after a kill and while a process is stopped, the server may
    count the thing as held for one `lease` (seconds); during a harm nobody need get on.
    """
    events = list(events)
    if not events:
        return []
    # (when, kind, change): how many wait, hold, and reasons why nobody need get on
    edges: list[tuple[float, str, int]] = []

    def span(kind: str, begin: float, end: float) -> None:
        edges.extend([(begin, kind, 1), (end, kind, -1)])

    stops = [harm for harm in harms(events) if harm.event["what"] == "stopped"]
    for wait in waits(events):
        span("waiting", wait.starts, wait.ends)
        for stop in stops:  # who stands still waits for nothing
            if stop.event["whom"] == wait.event["pid"] and wait.ends > stop.starts:
                span("asleep", max(stop.starts, wait.starts), min(stop.ends, wait.ends))
    for hold in holds(events):
        span("holding", hold.starts, hold.ends if hold.left else hold.ends + lease)
    for harm in harms(events):
        over = harm.ends if harm.event["what"] == "harm" else harm.starts + lease
        span("excused", harm.starts, over)
    count = Counter[str]()
    idle: float | None = None
    found = []
    last = max(event["t"] for event in events)
    for t, kind, change in [*sorted(edges), (last, "excused", 1)]:
        if t > last:
            t = last
        count[kind] += change
        free = count["holding"] < limit and not count["excused"]
        if free and count["waiting"] > count["asleep"]:
            idle = t if idle is None else idle
        elif idle is not None:
            if t - idle > within:
                waiting = [w.event for w in waits(events) if w.starts <= idle and w.ends >= t]
                what = f"it was free for {t - idle:.3f} s, and they waited"
                found.append(Violation("progress", what, tuple(waiting)))
            idle = None
    return found


# -- waiting ---------------------------------------------------------------------------------------


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
        lease: seconds after which somebody else is notified in the place of one that is dead.
        within: seconds in which a notification is heard.
        forgets: a harm makes the server forget: nothing is exact from then until `within` seconds
            after it.
    """
    events = sorted(events, key=time_of)
    unsure = [(h.starts, h.ends + within) for h in harms(events) if _is_harm(h)] if forgets else []
    things: dict[str, _Sleepers] = defaultdict(_Sleepers)
    found = []
    for event in events:
        t, key = float(event["t"]), who(event)
        if event["what"] in ("killed", "stopped", "continued"):
            for sleepers in things.values():
                dead = event["what"] == "killed"
                sleepers.excuse(event["whom"], dead, t + min(lease, 5.0) + within)
            continue
        sleepers = things[key[0]]
        if any(begin <= t <= end for begin, end in unsure):
            sleepers.forgive()
        late = sleepers.take(event, within)
        if late is not None and not any(begin <= t <= end for begin, end in unsure):
            found.append(late)
        if event["what"] == "lost":
            sleepers.void(key, t + min(lease, 5.0) + within)
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
        self.optional.append(until)
        if self.owed:
            self.owed.pop(0)


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
        touched = [harm for harm in bad if _touches(harm, wait)]
        for begins, confirmed, _, _, event in mine:
            if not wait.starts < begins or confirmed + within >= min(wait.ends, last):
                continue
            due = _due(confirmed, touched, within)
            forgotten = forgets and any(
                _is_harm(harm) and harm.starts <= confirmed + within and harm.ends >= begins
                for harm in touched
            )
            if due < min(wait.ends, last) and not forgotten:
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
                if _is_harm(harm) and harm.starts <= wait.starts <= harm.ends + within
            ]
        )
        if not any(begins <= wait.ends and ends >= since for begins, _, ends, *_ in mine):
            what = "it woke, and the event was never set"
            found.append(Violation("pulses", what, (wait.event, wait.end)))
    return found


def _due(confirmed: float, touched: Iterable[Span], within: float) -> float:
    """When a wait has heard of that at the latest.

    A harm keeps it from that while it lasts; one that is over at once costs no more than a
    heartbeat, as a lost message does.
    """
    due = confirmed + within
    for harm in touched:
        if harm.starts <= due and harm.ends > confirmed and harm.ends - harm.starts > AT_ONCE:
            due = max(due, harm.ends + within)
    return due


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
        forgets: a harm makes the server forget: who has not heard of it by then arrives again.
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
        first, missing = _first(members), parties - len(members)
        for _ in range(missing):
            heard = {
                id(w): _due(first["t"], (h for h in bad if _touches(h, w)), within) for w in absent
            }
            it = next(
                (
                    w
                    for w in absent
                    if _counted(w, first["t"], lease, within) and min(w.ends, last) <= heard[id(w)]
                ),
                None,
            )
            if it is not None:
                absent.remove(it)
                missing -= 1
        forgotten = forgets and any(
            harm.starts <= first["t"] + within and harm.ends >= first["t"] - within
            for harm in bad
            if _is_harm(harm)
        )
        strange = [index for index in members if not 0 <= index < parties]
        if strange or (missing > 0 and not forgotten):
            what = f"the indexes are {sorted(members)}, of {parties} parties"
            party = tuple(event for _, event in members.values())
            found.append(Violation("generations", what, party))
    return found


def _first(members: dict[int, tuple[float, Event]]) -> Event:
    return min((event for _, event in members.values()), key=time_of)


def _counted(wait: Span, passed: float, lease: float, within: float) -> bool:
    """Whether one who never passed may have counted for those who did by then."""
    killed = wait.end is not None and wait.end["what"] in ("killed", "ended")
    return wait.starts < passed <= wait.ends + (lease if killed else 0.0) + within


# -- counting --------------------------------------------------------------------------------------


def deliveries(
    events: Iterable[Event], within: float = 0.0, forgets: bool = False
) -> list[Violation]:
    """For each subscriber: delivered + gaps = published, in order per publisher, nothing twice.

    Read here: `publishing` and `published` (confirmed) with a `number` that rises by one with each
    message of a publisher (its pid and task); `subscribed` (confirmed), `heard` with `publisher`
    ([pid, task]) and `number`, `gap` with `missed` (None: nobody knows), and `left`.

    Args:
        events: what was written.
        within: seconds for which a message may be under way to a subscriber that leaves.
        forgets: a harm makes the server forget: then a gap may tell that nobody knows how many,
            and what it stands for is not counted.
    """
    events = sorted(events, key=time_of)
    asked: dict[tuple[str, int, object], Event] = {}
    confirmed: dict[tuple[str, int, object], float] = {}
    subscribers: dict[tuple[str, int, object], list[Event]] = defaultdict(list)
    for event in events:
        of, pid, task = who(event)
        if event["what"] == "publishing":
            asked[of, event["number"], (pid, task)] = event
        elif event["what"] == "published":
            confirmed[of, event["number"], (pid, task)] = event["t"]
        elif event["what"] in ("subscribed", "heard", "gap", "left"):
            subscribers[of, pid, task].append(event)
    found = []
    for (of, _, _), mine in subscribers.items():
        greatest: dict[tuple[object, ...], Event] = {}
        got = set()
        for event in mine:
            if event["what"] != "heard":
                continue
            publisher = tuple(event["publisher"])
            before = greatest.get(publisher)
            if before is not None and event["number"] <= before["number"]:
                what = "heard twice, or out of order"
                found.append(Violation("order", what, (before, event)))
            greatest[publisher] = event
            got.add((of, event["number"], publisher))
        gaps = [event for event in mine if event["what"] == "gap"]
        unknown = [gap for gap in gaps if gap["missed"] is None]
        if unknown and not forgets:
            what = "nobody knows how many it missed, and the server has kept its data"
            found.append(Violation("accounting", what, tuple(unknown)))
        if mine[-1]["what"] != "left":
            continue  # killed, or still there: what it missed is not known
        # Between its first and its last breath it may have heard the rest, and need not.
        begin, end = (unknown or mine)[-1 if unknown else 0]["t"], mine[-1]["t"]
        due = {
            m
            for m, t in confirmed.items()
            if asked[m]["t"] > begin and t < end - within and m[0] == of
        }
        may = {m for m, event in asked.items() if event["t"] < end and m[0] == of}
        known = sum(gap["missed"] for gap in gaps if gap["missed"] and gap["t"] >= begin)
        if not len(due - got) <= known <= len(may - got):
            what = f"{len(due - got)} messages were not heard, and gaps tell of {known}"
            found.append(Violation("accounting", what, (mine[0], mine[-1])))
    return found


def admissions(
    events: Iterable[Event],
    rate: float,
    per: float = 1.0,
    burst: float = 1.0,
    slack: float = 0.0,
    forgets: bool = False,
) -> list[Violation]:
    """In no window more is admitted than `rate` for each `per` seconds of it, and `burst`.

    Read here: `admitted`, with `amount` (1 if it is missing).  `slack` is how late, in seconds, one
    may have been to write that down.  With `forgets` each harm brings one burst more.
    """
    events = sorted(events, key=time_of)
    level: dict[str, tuple[float, float]] = {}  # of -> (how full the bucket is, since when)
    bursts = [harm.ends for harm in harms(events) if forgets and _is_harm(harm)]
    found = []
    for event in events:
        if event["what"] != "admitted":
            continue
        of = event.get("of", "")
        full, since = level.get(of, (0.0, event["t"]))
        more = burst * sum(since < over <= event["t"] for over in bursts)
        full = max(0.0, full - more - (event["t"] - since) * rate / per) + event.get("amount", 1)
        if full > burst + slack * rate / per + 1e-9:
            what = f"{full - burst:.3f} more than the rate and the burst allow"
            found.append(Violation("rate", what, (event,)))
        level[of] = (full, event["t"])
    return found


# -- parts -----------------------------------------------------------------------------------------


def _by_thing(found: Iterable[Span]) -> list[list[Span]]:
    things: dict[str, list[Span]] = defaultdict(list)
    for hold in found:
        things[hold.event.get("of", "")].append(hold)
    return list(things.values())


def _is_harm(span: Span) -> bool:
    """Whether this happened to all, and not to one process."""
    return span.event["what"] == "harm"


def _touches(harm: Span, wait: Span) -> bool:
    """Whether it happened to the process of this wait, among others or alone."""
    return _is_harm(harm) or harm.event.get("whom") == wait.event["pid"]
