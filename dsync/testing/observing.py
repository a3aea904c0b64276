"""The checker of those who watch an election: what they see has to be what happens."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from dsync.testing.history import Event, Span, harms, holds, time_of, who
from dsync.testing.violation import Violation, is_harm, touches
from dsync.testing.waiting import due

__all__ = ["sightings"]


def sightings(
    events: Iterable[Event], lease: float = 30.0, within: float = 2.5, forgets: bool = False
) -> list[Violation]:
    """Who observes an election sees each leader that leads for long enough, and nobody else.

    Read here: `saw` with the `fence` of a term and its `leader` (a pid), or with the fence None
    (nobody leads), and `left`, when an observer looks no more.  The terms are holds of that thing.

    Args:
        events: what was written.
        lease: seconds for which the server may take one for the leader who did not resign.
        within: seconds in which an observer sees a change.
        forgets: a harm makes the server forget, or go back in time: a former leader may be seen
            again for a `lease` after it.
    """
    events = sorted(events, key=time_of)
    bad = harms(events)
    terms: dict[str, dict[int, Span]] = defaultdict(dict)
    for term in holds(events):
        terms[term.event.get("of", "")][term.event["fence"]] = term
    newest: dict[object, Span] = {}
    found: list[Violation] = []
    for saw in _sights(events):
        its, fence = terms[saw.event.get("of", "")], saw.event["fence"]
        touched = [harm for harm in bad if touches(harm, saw)]
        if fence is None:
            found += _overlooked(saw, its.values(), touched, within)
            continue
        if forgets and any(is_harm(harm) and _near(harm, saw, lease) for harm in bad):
            continue
        if fence in its:
            found += _shown(saw, its[fence], lease, touched, within)
        elif not any(_near(h, saw, lease + within) for h in bad if _befell(h, saw)):
            # Elected, it never heard of it: that happens to one who is killed, stopped, or cut off.
            found.append(Violation("sightings", "it saw one who never led", (saw.event,)))
        before = newest.get(who(saw.event))
        if before is not None and before.event["fence"] >= fence:
            what = "it saw an earlier term after a later one"
            found.append(Violation("sightings", what, (before.event, saw.event)))
        newest[who(saw.event)] = saw
    return found


def _overlooked(
    saw: Span, terms: Iterable[Span], touched: Sequence[Span], within: float
) -> Iterator[Violation]:
    """It saw nobody, though somebody led."""
    for term in terms:
        if min(saw.ends, term.ends) > due(max(saw.starts, term.starts), touched, within):
            what = f"it saw nobody for more than {within:g} s of a term"
            yield Violation("sightings", what, (saw.event, term.event))


def _shown(
    saw: Span, term: Span, lease: float, touched: Sequence[Span], within: float
) -> Iterator[Violation]:
    """It saw the one who led this term."""
    if term.event["pid"] != saw.event["leader"]:
        what = "it saw another than the one who led"
        yield Violation("sightings", what, (saw.event, term.event))
    ended = term.ends if term.left else term.ends + lease
    if saw.ends > due(max(saw.starts, ended), touched, within):
        what = f"it saw one lead for more than {within:g} s after the end of that term"
        yield Violation("sightings", what, (saw.event, term.event))


def _sights(events: Iterable[Event]) -> list[Span]:
    """What each observer saw, and for how long it saw nothing else."""
    open_: dict[tuple[str, int, object], Event] = {}
    found: list[Span] = []
    last = 0.0
    for event in events:
        key, last = who(event), event["t"]
        gone = [key] if event["what"] in ("saw", "left") else []
        if event["what"] in ("killed", "ended"):
            gone = [other for other in open_ if other[1] == event["whom"]]
        for other in gone:
            if other in open_:
                begun = open_.pop(other)
                found.append(Span(begun["t"], event["t"], begun, event))
        if event["what"] == "saw":
            open_[key] = event
    return found + [Span(event["t"], last, event, None) for event in open_.values()]


def _near(harm: Span, saw: Span, seconds: float) -> bool:
    """Whether it was seen in a harm, or so many seconds after it at most."""
    return harm.starts <= saw.ends and saw.starts <= harm.ends + seconds


def _befell(harm: Span, saw: Span) -> bool:
    """Whether it happened to the leader that was seen, among others or alone."""
    return is_harm(harm) or harm.event.get("whom") == saw.event["leader"]
