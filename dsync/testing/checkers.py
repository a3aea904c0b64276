"""What a history has to be like: each checker goes through the events and names those that are not.

They believe the workers only as far as these say what they did themselves; see history.py for the
events, and each checker for those that it alone reads.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from dsync.testing.history import Event, Span, harms, holds, time_of, waits, who
from dsync.testing.violation import Violation, is_harm
from dsync.testing.waiting import generations, pulses, wake_ups

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


def fences(events: Iterable[Event], allowed: float = 0.0) -> list[Violation]:
    """Each holder has a greater fence than those before it.

    With `allowed`, a harm makes the server forget, and two may hold for so many seconds: of those
    the one with the smaller fence was the first, whoever began first.
    """
    events = list(events)
    found = []
    for each in _by_thing(holds(events)):
        greatest: Span | None = None
        for hold in _as_granted(each, events, allowed):
            if greatest is not None and hold.event["fence"] <= greatest.event["fence"]:
                what = "a later holder has no greater fence"
                found.append(Violation("fences", what, (greatest.event, hold.event)))
            else:
                greatest = hold
    return found


def stale_writes(events: Iterable[Event], allowed: float = 0.0) -> list[Violation]:
    """A store that refuses what is older than it has seen refuses stale writes, and no others.

    Each `held` and each `step` counts as a write under its fence.  It is stale if one who came
    later to hold the thing has written already; `allowed`: as of `fences`.
    """
    events = list(events)
    order: dict[int, int] = {}
    for each in _by_thing(holds(events)):
        for number, hold in enumerate(_as_granted(each, events, allowed)):
            order[id(hold.event)] = number
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
    bursts = [harm.ends for harm in harms(events) if forgets and is_harm(harm)]
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


def _as_granted(found: Iterable[Span], events: Iterable[Event], allowed: float) -> list[Span]:
    """These holds in the order in which they were granted, as far as that is known.

    For `allowed` seconds after a harm, who was forgotten goes on beside who came after it, and its
    process may pass its hold on: those that began so shortly one after the other come by fence.
    """
    unsure = [(harm.starts, harm.ends + allowed) for harm in harms(events) if is_harm(harm)]
    in_order: list[Span] = []
    for hold in found:
        at = len(in_order)
        if allowed and any(begin <= hold.starts <= end for begin, end in unsure):
            while at and _crossed(in_order[at - 1], hold, allowed):
                at -= 1
        in_order.insert(at, hold)
    return in_order


def _crossed(before: Span, hold: Span, allowed: float) -> bool:
    older = hold.event.get("fence", 0) < before.event.get("fence", 0)
    return older and hold.starts - before.starts <= allowed


def _by_thing(found: Iterable[Span]) -> list[list[Span]]:
    things: dict[str, list[Span]] = defaultdict(list)
    for hold in found:
        things[hold.event.get("of", "")].append(hold)
    return list(things.values())
