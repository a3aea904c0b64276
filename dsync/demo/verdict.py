"""What was promised, against what the journals say happened."""

import math
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dsync.demo.items import Queue
from dsync.demo.journal import DIRECTOR, Event, Journals
from dsync.demo.ledger import Ledger

__all__ = ["Promise", "exit_code", "summary", "verify"]

SLACK = 0.5  # seconds that a hand-over may take beyond the lease
COMMANDS = 3.0  # a hold takes one to acquire and one to release; the rest is renewing and waiting


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise, what was measured, and whether it was kept; None: nothing put it to the test."""

    text: str
    measured: str
    kept: bool | None


class Hold:
    """One hold, put together from what was noted of it."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.notes: dict[str, Event] = {}
        self.ends: float = math.inf

    def at(self, what: str) -> float:
        """When that was noted; inf if it never was."""
        return self.notes[what].at if what in self.notes else math.inf

    @property
    def starts(self) -> float:
        return self.at("entered")

    @property
    def lost(self) -> bool:
        return "lost" in self.notes

    @property
    def fence(self) -> int:
        return int(self.notes["entered"]["fence"])


class Story:
    """All that happened in a run, in order."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.director: dict[str, Event] = {}  # what it did once
        self.ended: dict[int, Event] = {}  # worker -> how
        self.failed: dict[int, Event] = {}
        self.ready: dict[int, Event] = {}
        self.through: dict[int, Event] = {}  # ... the gate
        self.done: list[str] = []  # items of the queue
        self.heard: dict[int, list[int]] = defaultdict(list)  # worker -> fences of its news
        self.missed: list[int | None] = []  # news that were lost, each time
        self.holds: dict[str, list[Hold]] = defaultdict(list)  # of what -> in order of entering
        self._read(sorted(events, key=lambda event: event.at))
        for hold in [hold for holds in self.holds.values() for hold in holds]:
            hold.ends = self._end_of(hold)

    def _read(self, events: list[Event]) -> None:
        holds: dict[tuple[int, int], Hold] = {}
        for event in events:
            if event.what == "entered":
                hold = holds[event.worker, event.hold] = Hold(event.worker)
                self.holds[event.of].append(hold)
            if event.hold and (event.worker, event.hold) in holds:
                holds[event.worker, event.hold].notes[event.what] = event
            elif event.what in ("failed", "ready", "through"):
                getattr(self, event.what)[event.worker] = event
            elif event.what == "done":
                self.done.append(event["item"])
            elif event.what == "heard":
                self.heard[event["whom"]].append(event["fence"])
            elif event.what == "missed":
                self.missed.append(event["count"])
            elif event.worker == DIRECTOR and event.what == "ended":
                self.ended[event["whom"]] = event
            elif event.worker == DIRECTOR:
                self.director[event.what] = event

    def happened(self, what: str) -> Event | None:
        return self.director.get(what)

    def _end_of(self, hold: Hold) -> float:
        """When the holder did the last that it could do in there.

        A killed process does nothing more, nor does one that stands still; but if it went on
        with its hold when it ran again, the hold lasted until then.
        """
        ends = min(hold.at("lost"), math.inf if hold.lost else hold.at("left"))
        stopped, killed = self.happened("stopped"), self.happened("killed")
        if stopped and stopped["whom"] == hold.worker and hold.lost and hold.starts < stopped.at:
            went_on = max((e.at for e in hold.notes.values() if e.what in WORK), default=0.0)
            if went_on <= stopped.at:
                ends = min(ends, stopped.at, hold.at("left"))
        if killed and killed["whom"] == hold.worker:
            ends = min(ends, max(killed.at, hold.starts))
        ended = self.ended.get(hold.worker)
        return min(ends, ended.at) if ended else ends


WORK = ("entered", "writing", "written")


def verify(directory: Path) -> list[Promise]:
    """Go through everything that a run has left in its directory."""
    story = Story(Journals(directory).news())
    set_up = story.happened("set up")
    terms: dict[str, Any] = set_up.more if set_up else {}
    ledger = Ledger(directory / "ledger").read()
    queue = Queue(directory / "queue")
    promises = list(_promises(story, terms, ledger, queue))
    queue.close()
    return promises


def _promises(story: Story, terms: dict[str, Any], ledger: int, queue: Queue) -> Iterator[Promise]:
    holds = story.holds["ledger"]
    yield _gate(story)
    yield _exclusion(holds)
    yield _fences(holds)
    yield _ledger(holds, ledger)
    yield _slots(story.holds["slots"], terms.get("slots", 0))
    yield _upstream(story, terms.get("cap", 0))
    yield _queue(story, queue, terms.get("size", 0))
    yield _waking(story.holds["queue"])
    yield _news(story, holds)
    yield _hand_over(story, holds, terms.get("lease", 0.0))
    yield _stopped(story, holds)
    yield _commands(story, bool(terms.get("own")))
    yield _endings(story, terms.get("workers", 0))


def _gate(story: Story) -> Promise:
    text = "one set() starts all, and none before"
    opened = story.happened("opened")
    if opened is None:
        return Promise(text, "the gate was never opened", None)
    waited = [number for number, event in story.ready.items() if event.at < opened.at]
    woken = [story.through[number].at for number in waited if number in story.through]
    began = [event.at for event in story.through.values()]
    began += [hold.starts for holds in story.holds.values() for hold in holds]
    early = sum(at < opened.at for at in began)
    last = f" in {1000 * (max(woken) - opened.at):.0f} ms" if woken else ""
    measured = f"{len(woken)} of {len(waited)} woken{last}, {early} early"
    return Promise(text, measured, _kept(waited, len(woken) == len(waited) and not early))


def _exclusion(holds: list[Hold]) -> Promise:
    overlaps = _overlaps(holds)
    measured = f"{len(holds)} holds, {overlaps} overlaps"
    return Promise("the lock has one holder at a time", measured, _kept(holds, not overlaps))


def _overlaps(holds: list[Hold]) -> int:
    overlaps, busy_until = 0, -math.inf
    for hold in holds:
        overlaps += hold.starts < busy_until
        busy_until = max(busy_until, hold.ends)
    return overlaps


def _out_of_order(holds: list[Hold]) -> int:
    return sum(after.fence <= before.fence for before, after in pairwise(holds))


def _fences(holds: list[Hold]) -> Promise:
    stale = _out_of_order(holds)
    measured = f"{len(holds)} fences, {stale} out of order"
    return Promise("each hold has a greater fence", measured, _kept(holds, not stale))


def _ledger(holds: list[Hold], total: int) -> Promise:
    """The total is the number of writes: an update that was lost is missing in it."""
    writes = [hold for hold in holds if "writing" in hold.notes]
    done = 0
    for index, hold in enumerate(writes):
        if "written" in hold.notes:
            done += 1
        else:  # killed over it: it was done if somebody has seen it since
            seen = [after.notes["writing"]["read"] for after in writes[index + 1 :]] or [total]
            done += seen[0] == hold.notes["writing"]["total"]
    measured = f"{done} updates, total {total}"
    return Promise("no update of the ledger is lost", measured, _kept(writes, done == total))


def _slots(holds: list[Hold], limit: int) -> Promise:
    changes = [(hold.starts, 1) for hold in holds] + [(hold.ends, -1) for hold in holds]
    most = now = 0
    for _, change in sorted(changes):  # at one moment, ends come first
        now += change
        most = max(most, now)
    measured = f"{most} at most, {len(holds)} holds"
    return Promise(f"no more than {limit} slots are taken", measured, _kept(holds, most <= limit))


def _upstream(story: Story, cap: int) -> Promise:
    text = f"no more than {cap} calls upstream at once"
    summed_up = story.happened("summed up")
    if summed_up is None or not summed_up["calls"]:
        return Promise(text, "it was never called", None)
    most, calls = summed_up["most"], summed_up["calls"]
    return Promise(text, f"it counted {most}, {calls} calls", most <= cap)


def _queue(story: Story, queue: Queue, size: int) -> Promise:
    """What was put is done or still there; what a killed worker had in its hands went with it."""
    text = f"the queue of {size} loses nothing"
    waiting = len(queue)
    killed = story.happened("killed")
    victim = killed["whom"] if killed else None
    twice = len(story.done) - len(set(story.done))
    missing = queue.put_by.keys() - set(story.done) - set(queue.items)
    gone = [item for item in missing if queue.taken_by.get(item) == victim]
    lost = len(missing) - len(gone[:1])
    strange = len(set(story.done) - queue.put_by.keys())
    measured = f"{len(queue.put_by)} put, {len(story.done)} done, {waiting} left, {lost} lost"
    if gone:
        measured += f", {len(gone)} killed with {victim}"
    if twice or strange:
        measured += f", {twice + strange} too many"
    kept = not (lost or twice or strange) and queue.most <= size
    return Promise(text, measured, _kept(list(queue.put_by), kept))


def _waking(holds: list[Hold]) -> Promise:
    """Whoever returns from a wait holds the lock: until its release nobody else does."""
    woken = [hold for hold in holds if hold.notes["entered"]["woken"]]
    bad = _overlaps(holds) + _out_of_order(holds)
    measured = f"{len(woken)} wake-ups, {bad} without it"
    return Promise("who is notified wakes with the lock", measured, _kept(woken, not bad))


def _news(story: Story, holds: list[Hold]) -> Promise:
    """A worker's news carry the fences of its holds, so they have to grow."""
    told = [(hold.worker, hold.fence) for hold in holds if "told" in hold.notes]
    heard = {(who, fence) for who, fences in story.heard.items() for fence in fences}
    mixed = sum(a >= b for fences in story.heard.values() for a, b in pairwise(fences))
    lost = len(set(told) - heard)
    known = sum(missed or 0 for missed in story.missed)
    measured = f"{len(told)} told, {lost} not heard, {mixed} out of order"
    if story.missed:
        measured += f", {len(story.missed)} gaps: {'?' if None in story.missed else known}"
    kept = not mixed and (None in story.missed or lost <= known)
    return Promise("news is heard in order, or as a gap", measured, _kept(told, kept))


def _hand_over(story: Story, holds: list[Hold], lease: float) -> Promise:
    text = f"a dead holder's lock passes on in {lease + SLACK:g} s"
    killed = story.happened("killed")
    if killed is None:
        return Promise(text, "nobody was killed", None)
    victim = killed["whom"]
    if not any(h.worker == victim and h.starts < killed.at == h.ends for h in holds):
        return Promise(text, f"worker {victim} did not hold it", None)
    heir = next((hold for hold in holds if hold.starts > killed.at), None)
    if heir is None:
        return Promise(text, "nobody got it", False)
    waited = heir.starts - killed.at
    measured = f"{waited:.2f} s, {victim} to {heir.worker}, lease {lease:g} s"
    return Promise(text, measured, waited <= lease + SLACK and heir.worker != victim)


def _stopped(story: Story, holds: list[Hold]) -> Promise:
    text = "an overslept holder does not write on"
    stopped, continued = story.happened("stopped"), story.happened("continued")
    if stopped is None or continued is None:
        return Promise(text, "nobody was stopped", None)
    mine = [
        hold
        for hold in holds
        if hold.worker == stopped["whom"]
        and hold.starts < stopped.at < min(hold.at("left"), hold.at("lost"))
    ]
    if not mine:
        return Promise(text, f"worker {stopped['whom']} did not hold it", None)
    hold = mine[-1]
    wrote = stopped.at < hold.at("writing") < math.inf
    if not hold.lost:
        fate = "never heard that it was lost"
    else:
        fate = f"LeaseLost {(hold.at('lost') - continued.at) * 1000:.0f} ms after"
    slept = continued.at - stopped.at
    measured = f"{slept:.1f} s, {'wrote, ' if wrote else ''}{fate}"
    return Promise(text, measured, hold.lost and not wrote)


def _commands(story: Story, own: bool) -> Promise:
    count = sum(len(holds) for holds in story.holds.values())
    summed_up = story.happened("summed up")
    commands = summed_up["commands"] if summed_up else None
    measured = f"{commands / count:.2f}, {count} holds" if commands and count else "not measured"
    if summed_up and not own:
        # Others may use that server, too, and it need not tell us: this says nothing about us.
        return Promise("commands of the server per hold", measured, True)
    text = f"a hold costs no more than {COMMANDS:g} commands"
    kept = commands / count <= COMMANDS if commands and count else None
    return Promise(text, measured, kept)


def _endings(story: Story, workers: int) -> Promise:
    text = "all workers end in good order"
    killed = story.happened("killed")
    victim = killed["whom"] if killed else None
    due = {victim: -signal.SIGKILL}
    bad = [n for n, end in story.ended.items() if end["code"] != due.get(n, 0)]
    if bad:
        failed = story.failed.get(bad[0])
        end = story.ended[bad[0]]
        why = failed["why"] if failed else end["words"] or f"exit code {end['code']}"
        return Promise(text, f"worker {bad[0]}: {why}", False)
    measured = f"{len(story.ended)} ended" + (", 1 of them killed" if killed else "")
    return Promise(text, measured, None if len(story.ended) < max(workers, 1) else True)


def _kept(evidence: Sequence[object], kept: bool) -> bool | None:
    return kept if evidence else None


WORDS: dict[bool | None, str] = {True: "ok", False: "BROKEN", None: "NOT SEEN"}


def summary(promises: list[Promise]) -> list[str]:
    """The summary: a line for each promise."""
    width = max(len(promise.text) for promise in promises)
    return [f"{WORDS[p.kept]:<8}  {p.text:<{width}}  {p.measured}" for p in promises]


def exit_code(promises: list[Promise]) -> int:
    """0 if all promises were put to the test and kept."""
    return 0 if all(promise.kept for promise in promises) else 1
