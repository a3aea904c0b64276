"""What a history has to be like: each checker goes through the events and names those that are not.

They believe the workers only as far as these say what they did themselves; see history.py for the
events, and each checker for those that it alone reads.
"""

import math
from collections import Counter, defaultdict, deque
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


def wake_ups(events: Iterable[Event], deaths: bool = False) -> list[Violation]:
    """Each notification wakes as many sleepers of a condition as it names, and no more.

    Written with the lock held, so that their order is the lock's: `asleep` before the wait,
    `notified` with `n` (None: all) behind a notify, `awake` when the wait has returned or has been
    given up (with `why`), which hands the notification on.

    Args:
        events: what was written.
        deaths: a process that dies or loses its lease may lose or pass on a notification, so one
            more or less for each is right.
    """
    sleepers: dict[str, int] = defaultdict(int)
    owed: dict[str, deque[Event]] = defaultdict(deque)  # of -> notifications not yet heard
    spare = 0
    found = []
    for event in sorted(events, key=time_of):
        what, of = event["what"], event.get("of", "")
        if deaths and what in ("killed", "lost"):
            spare += 1
        elif what == "asleep":
            sleepers[of] += 1
        elif what == "notified":
            able = sleepers[of] - len(owed[of])
            n = event.get("n", 1)
            owed[of].extend([event] * max(0, able if n is None else min(able, n)))
        elif what == "awake":
            sleepers[of] -= 1
            if "why" in event:  # given up: what it was notified of goes to another, if any
                while len(owed[of]) > sleepers[of]:
                    owed[of].popleft()
            elif owed[of]:
                owed[of].popleft()
            elif spare:
                spare -= 1
            else:
                found.append(Violation("wake-ups", "it woke, and nobody notified it", (event,)))
    for queue in owed.values():
        for event in queue:
            if spare:
                spare -= 1
            else:
                found.append(Violation("wake-ups", "it was notified, and did not wake", (event,)))
    return found


def pulses(events: Iterable[Event], within: float = 2.5) -> list[Violation]:
    """Who waits for an event when a pulse comes returns; and nobody returns without one.

    Read here: `waiting` and `woken`; `pulsing` before a `set(); clear()` is sent and `pulsed` when
    it is confirmed, by one task after the other; `setting`, `set`, `clearing`, `cleared` likewise.

    Args:
        events: what was written.
        within: seconds after the confirmation, or after the last harm that touches them.
    """
    events = sorted(events, key=time_of)
    last = events[-1]["t"] if events else 0.0
    spans = list(_set_spans(events))
    bad = [(harm.starts, harm.ends) for harm in harms(events)]
    found = []
    for wait in waits(events, until=("woken",)):
        of = wait.event.get("of", "")
        mine = [span for span in spans if span[3] == of]
        for begins, confirmed, _, _, event in mine:
            due = max([confirmed, wait.starts, *(end for begun, end in bad if begun <= confirmed)])
            due += within
            if wait.starts < begins and due < min(wait.ends, last):
                what = f"it waited when the event came, and not woken {within} s later"
                found.append(Violation("pulses", what, (wait.event, event)))
                break
        woken = wait.end is not None and wait.end["what"] == "woken"
        if woken and not any(a <= wait.ends and b >= wait.starts for a, _, b, *_ in mine):
            assert wait.end is not None
            what = "it woke, and the event was never set"
            found.append(Violation("pulses", what, (wait.event, wait.end)))
    return found


def _set_spans(events: Sequence[Event]) -> Iterator[tuple[float, float, float, str, Event]]:
    """(may be set from, set for certain at, unset for certain at, of, its first event)"""
    began: dict[object, Event] = {}
    set_: dict[str, list[tuple[Event, float]]] = defaultdict(list)  # of -> (begun, confirmed)
    for event in events:
        what, of, key = event["what"], event.get("of", ""), who(event)
        if what in ("pulsing", "setting"):
            began[key] = event
        elif what == "pulsed":
            begun = began.pop(key)
            yield begun["t"], event["t"], event["t"], of, begun
        elif what == "set":
            set_[of].append((began.pop(key), event["t"]))
        elif what == "cleared":
            for begun, confirmed in set_.pop(of, []):
                yield begun["t"], confirmed, event["t"], of, begun
    for of, pairs in set_.items():
        for begun, confirmed in pairs:
            yield begun["t"], confirmed, math.inf, of, begun
    for begun in began.values():  # never confirmed: it may have been, at any time
        yield begun["t"], math.inf, math.inf, begun.get("of", ""), begun


def generations(events: Iterable[Event], parties: int) -> list[Violation]:
    """All parties of a generation pass the barrier or none, with the indexes 0 to parties - 1.

    Read here: `waiting` before the wait, and `passed` with the `index` that it returned.  A
    generation may lack those that were killed, or are stopped or waiting still.
    """
    events = sorted(events, key=time_of)
    rounds: list[dict[int, Event]] = []
    arrived: dict[object, Event] = {}
    since: dict[int, float] = {}  # id of a pass -> when that party had arrived
    found = []
    for event in events:
        if event["what"] == "waiting":
            arrived[who(event)] = event
        elif event["what"] == "passed":
            since[id(event)] = arrived[who(event)]["t"]
            # The oldest generation that it can belong to.
            mine = next((r for r in rounds if event["index"] not in r), None)
            if mine is None:
                rounds.append(mine := {})
            mine[event["index"]] = event
    gone = sum(event["what"] in ("killed", "stopped") for event in events)
    for members in rounds:
        party = tuple(members.values())
        strange = [index for index in members if not 0 <= index < parties]
        missing = parties - len(members)
        if strange or missing > gone:
            what = f"the indexes are {sorted(members)}, of {parties} parties"
            found.append(Violation("generations", what, party))
            continue
        gone -= max(missing, 0)
        first = min(party, key=time_of)
        late = tuple(event for event in party if since[id(event)] > first["t"])
        if late:
            what = "one passed before these had come"
            found.append(Violation("generations", what, (first, *late)))
    return found


# -- counting --------------------------------------------------------------------------------------


def deliveries(events: Iterable[Event]) -> list[Violation]:
    """For each subscriber: delivered + gaps = published, in order per publisher, nothing twice.

    Read here: `publishing` and `published` (confirmed) with a `number` that rises by one with each
    message of a publisher (its pid and task); `subscribed` (confirmed), `heard` with `publisher`
    ([pid, task]) and `number`, `gap` with `missed` (None: nobody knows), and `left`.
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
        begin = mine[0]["t"]
        end = mine[-1]["t"] if mine[-1]["what"] == "left" else math.inf
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
        if end == math.inf:
            continue  # killed, or still there: what it missed is not known
        gaps = [event["missed"] for event in mine if event["what"] == "gap"]
        # Between its first and its last breath it may have heard the rest, and need not.
        due = {m for m, t in confirmed.items() if asked[m]["t"] > begin and t < end and m[0] == of}
        may = {m for m, event in asked.items() if event["t"] < end and m[0] == of}
        known = sum(missed or 0 for missed in gaps)
        if None not in gaps and not len(due - got) <= known <= len(may - got):
            what = f"{len(due - got)} messages were not heard, and gaps tell of {known}"
            found.append(Violation("accounting", what, (mine[0], mine[-1])))
    return found


def admissions(
    events: Iterable[Event], rate: float, per: float = 1.0, burst: float = 1.0, slack: float = 0.0
) -> list[Violation]:
    """In no window more is admitted than `rate` for each `per` seconds of it, and `burst`.

    Read here: `admitted`, with `amount` (1 if it is missing).  `slack` is how late, in seconds, one
    may have been to write that down.
    """
    level: dict[str, tuple[float, float]] = {}  # of -> (how full the bucket is, since when)
    found = []
    for event in sorted(events, key=time_of):
        if event["what"] != "admitted":
            continue
        of = event.get("of", "")
        full, since = level.get(of, (0.0, event["t"]))
        full = max(0.0, full - (event["t"] - since) * rate / per) + event.get("amount", 1)
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
