"""What many processes did, and when: one file that all of them append to, and how it is read.

An event is a line of JSON: `what`, `t` (time.monotonic(), one clock for all processes of a
machine), `pid`, and whatever else there is to say.  `of` names the thing that it is about and
`task` the one of several tasks of a process; both may be left out.  What is read here:

    waiting   before an acquire, or another wait      gave up   a wait was cancelled or timed out
    held      the body begins; with `fence`           step      the body goes on; with `fence`
    leaving   the body's last line                    told      the loss was reported
    lost      LeaseLost has left the body             failed    anything else has; with `why`
    woken     a wait for an event has returned        passed    a wait at a barrier has

Of other processes, with the `whom` (a pid) that it happened to:

    killed    it can do nothing any more              ended     it has ended; with `code`
    stopped   it stands still (SIGSTOP)               continued it goes on
    harm      something bad begins; with `kind`       over      ... and has ended
"""

import json
import math
import os
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Event", "History", "Span", "harms", "holds", "time_of", "waits", "who"]

Event = dict[str, Any]


class Span(NamedTuple):
    """A hold, a wait or a harm: something that begins, and ends or does not.

    Times are seconds of time.monotonic().
    """

    starts: float
    ends: float  # inf: it has not
    event: Event  # that it began with
    end: Event | None  # that it ended with

    @property
    def left(self) -> bool:
        """Whether this was a hold, and the holder left it by itself."""
        return self.end is not None and self.end["what"] == "leaving"


class History:
    """A file to which several processes append events.

    Making one does nothing to the file; it may be made in each process, and pickled.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        self._read = 0
        self._events: list[Event] = []

    def write(self, what: str, **more: Any) -> float:
        """Append an event; -> its time, in seconds of time.monotonic()."""
        event = {"what": what, "t": time.monotonic(), "pid": os.getpid(), **more}
        # Opened each time: nothing is left open, also in a child.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self.path, flags, 0o600)
        try:
            os.write(file, json.dumps(event).encode() + b"\n")  # one write: lines do not mix
        finally:
            os.close(file)
        return float(event["t"])

    def events(self, what: str | None = None, pid: int | None = None) -> list[Event]:
        """What was written so far, in the order of time."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # still being written
                    self._read += len(line)
                    self._events.append(json.loads(line))
            self._events.sort(key=time_of)
        return [
            event
            for event in self._events
            if what in (None, event["what"]) and pid in (None, event["pid"])
        ]

    def holds(self) -> list[tuple[float, float, Event]]:
        """Each hold so far: when it began, when it ended (inf: it did not), its first event."""
        return [(hold.starts, hold.ends, hold.event) for hold in holds(self.events())]


def time_of(event: Event) -> float:
    """Seconds of time.monotonic()."""
    return float(event["t"])


def who(event: Event) -> tuple[str, int, Any]:
    """Of what, which process, and which of its tasks."""
    return event.get("of", ""), event["pid"], event.get("task")


def holds(events: Iterable[Event]) -> list[Span]:
    """Each hold, in the order in which they began.

    It ends when the body is left, when the holder is told of its loss, and when it is killed.  What
    the holder does in it later proves that it lasted until then: that counts.  A process that was
    stopped and told of the loss before it did anything more held until it was stopped.
    """
    stops: dict[int, list[float]] = defaultdict(list)
    open_: dict[tuple[str, int, Any], Event] = {}
    last: dict[tuple[str, int, Any], float] = {}  # when it last did something in there
    told: dict[tuple[str, int, Any], Event] = {}
    found: list[Span] = []

    def close(key: tuple[str, int, Any], end: Event | None) -> None:
        event, done = open_.pop(key), last.pop(key)
        loss = told.pop(key, None)
        if end is None and loss is None:
            found.append(Span(event["t"], math.inf, event, None))
            return
        if end is None or (loss is not None and end["what"] in ("lost", "killed", "ended")):
            end = loss
        assert end is not None
        ends = float(end["t"])
        if end["what"] in ("told", "lost", "killed", "ended"):
            stopped = stops[event["pid"]]
            at = bisect_right(stopped, done)  # stood still since before it could do more
            if at < len(stopped):
                ends = min(ends, stopped[at])
            ends = max(ends, done)
        found.append(Span(event["t"], ends, event, end))

    for event in sorted(events, key=time_of):
        what, key = event["what"], who(event)
        if what == "held":
            if key in open_:  # the end of the last one was not written: a killed pid used again
                close(key, event)
            open_[key], last[key] = event, event["t"]
        elif what in ("leaving", "lost", "failed") and key in open_:
            close(key, event)
        elif what == "step" and key in open_:
            last[key] = event["t"]
        elif what == "told":
            of, pid, task = key
            for other in open_:
                if pid == other[1] and of in ("", other[0]) and task in (None, other[2]):
                    told.setdefault(other, event)
        elif what == "stopped":
            stops[event["whom"]].append(event["t"])
        elif what in ("killed", "ended"):
            for other in [other for other in open_ if other[1] == event["whom"]]:
                close(other, event)
    for key in list(open_):
        close(key, None)
    return sorted(found, key=lambda hold: hold.starts)


def waits(events: Iterable[Event], until: Iterable[str] = ("held",)) -> list[Span]:
    """Each wait, in the order in which they began.

    It ends with one of the events `until`, when it failed or was given up, and with its process.
    """
    ends = {*until, "gave up", "failed", "lost", "leaving"}
    open_: dict[tuple[str, int, Any], Event] = {}
    found: list[Span] = []
    for event in sorted(events, key=time_of):
        what, key = event["what"], who(event)
        if what in ends and key in open_:
            begun = open_.pop(key)
            found.append(Span(begun["t"], event["t"], begun, event))
        if what == "waiting":
            open_[key] = event
        elif what in ("killed", "ended"):
            for other in [other for other in open_ if other[1] == event["whom"]]:
                begun = open_.pop(other)
                found.append(Span(begun["t"], event["t"], begun, event))
    found += [Span(event["t"], math.inf, event, None) for event in open_.values()]
    return sorted(found, key=lambda wait: wait.starts)


def harms(events: Iterable[Event]) -> list[Span]:
    """Each harm, kill and stop, in the order in which they began; a kill is over at once."""
    open_: dict[tuple[object, object], Event] = {}
    found: list[Span] = []
    for event in sorted(events, key=time_of):
        key = event.get("whom"), event.get("kind")
        if event["what"] == "killed":
            open_.pop(key, None)  # it stood still before
            found.append(Span(event["t"], event["t"], event, event))
        elif event["what"] in ("stopped", "harm"):
            open_[key] = event
        elif event["what"] in ("continued", "over") and key in open_:
            begun = open_.pop(key)
            found.append(Span(begun["t"], event["t"], begun, event))
    found += [Span(event["t"], math.inf, event, None) for event in open_.values()]
    return sorted(found, key=lambda harm: harm.starts)
