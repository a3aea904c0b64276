"""The roll call: what only the processes know, asked of them as long as somebody looks.

The store knows which process holds and waits.  Which of its tasks, and how long they wait for it,
each process tells who asks; from the first question on it counts, until nobody has asked for WATCH
seconds.  Who is not asked pays nothing.

Questions come as messages to a process, answers as JSON on a channel of the asker; neither is kept,
and neither is to be trusted: whatever they say changes nothing but what is shown.  Here is who
answers; who asks is in overview/roll_call.py.
"""

import asyncio
import json
import math
import re
import time
import zlib
from dataclasses import dataclass
from itertools import islice
from random import uniform
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dsync.names import tag
from dsync.store import Call, Record
from dsync.telemetry import Acquired, Happening, Published, Taken, Woken

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.cohort import Cohort

__all__ = [
    "ANSWER",
    "PLACES",
    "TASKS",
    "TASK_NAME",
    "VERSION",
    "WANTED",
    "Respondent",
    "Waits",
    "crc",
    "ignore",
    "place_of",
]

VERSION = 1
WATCH = 10.0  # seconds after the last question for which a process goes on counting
JITTER = 0.03  # seconds within which a question is answered
PAUSE = 0.2  # seconds at least between two answers to one asker
ASKERS = 8  # who are answered at a time
GONE = 3.0  # seconds after which one who does not ask again makes room for another
PLACES = 200  # primitives in an answer
COUNTED = 5000  # primitives whose waits are counted
TASKS = 20  # holders or waiters of one primitive in an answer
TASK_NAME = 80  # characters
ANSWER = 32_000  # bytes
WANTED = 64  # places of interest in a question


class Waits:
    """How long tasks have waited, by powers of 2 ** 0.25: good to a tenth, whatever the number."""

    __slots__ = ("counts",)

    LEAST = 1e-6  # seconds
    STEPS = 4  # for each doubling
    MOST = 160  # 2 ** 40 µs, twelve days

    def __init__(self) -> None:
        self.counts: dict[int, float] = {}

    def add(self, waited: float) -> None:
        step = int(math.log2(max(waited, self.LEAST) / self.LEAST) * self.STEPS)
        self.put(min(step, self.MOST), 1)

    def put(self, step: int, times: float) -> None:
        self.counts[step] = self.counts.get(step, 0) + times

    def fade(self, by: float) -> None:
        """Let the past count for less."""
        self.counts = {s: left for s, n in self.counts.items() if (left := n * by) > 0.05}

    def quantile(self, share: float) -> float | None:
        """What so great a share of the waits was not longer than, seconds."""
        left = sum(self.counts.values()) * share
        for step in sorted(self.counts):
            left -= self.counts[step]
            if left <= 1e-9:
                return 0.0 if step == 0 else float(self.LEAST * 2 ** ((step + 0.5) / self.STEPS))
        return None


def place_of(key: str, namespace: str) -> str:
    """What stands for a primitive in questions and answers: `kind:name`, as in its keys."""
    return key[len(tag(namespace, "", "")) - len(":}") : -1]


@dataclass(slots=True)
class Asker:
    """Somebody who asks."""

    record: Record
    channel: str
    number: int = 0  # of the last question
    wanted: frozenset[int] = frozenset()  # places of interest, by crc32
    asked: float = 0.0  # time.monotonic()
    answered: float = 0.0  # time.monotonic()
    due: asyncio.TimerHandle | None = None  # of the answer


class Tally:
    """What has happened to one primitive here since we began to count."""

    __slots__ = ("at", "count", "place", "waits")

    def __init__(self, place: str) -> None:
        self.place: str = place
        self.at: float = 0.0  # when it happened last, time.monotonic()
        self.count: int = 0
        self.waits: Waits = Waits()


class Respondent:
    """Answers questions, and counts from the first to WATCH seconds after the last."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._askers: dict[str, Asker] = {}
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._since = 0.0  # when it began to count, time.monotonic()
        self._asked = 0.0  # last
        self._rest: asyncio.TimerHandle | None = None  # as long as it counts
        self._places: WeakKeyDictionary[Cohort, str] = WeakKeyDictionary()  # found once
        self._hook = self._note  # one object: a bound method is another each time
        # Under which the client knows that it has to be told of its end.
        self._home = client.token(0)

    def asked(self, asker: str, numbers: list[int]) -> None:
        """A question.  Raises ValueError where it is none."""
        if not re.fullmatch("[0-9a-f]{1,40}", asker) or not numbers or len(numbers) > WANTED + 1:
            raise ValueError(asker)
        self._asked = time.monotonic()
        self._begin()
        one = self._askers.get(asker) or self._newcomer(asker)
        if one is None:
            return
        one.number, *wanted = numbers
        one.wanted, one.asked = frozenset(wanted), self._asked
        if one.due is None:
            delay = max(one.answered + PAUSE - self._asked, uniform(0, JITTER))
            one.due = asyncio.get_running_loop().call_later(delay, self._answer, one)

    def _newcomer(self, asker: str) -> Asker | None:
        """Somebody who has not asked before; None: there are too many."""
        for name, known in list(self._askers.items()):
            if known.due is None and known.asked < self._asked - GONE:
                del self._askers[name]
        if len(self._askers) >= ASKERS:
            return None
        client = self._client
        channel = tag(client.namespace, "roll", asker)[1:-1]
        self._askers[asker] = Asker(client.store.at("roll", asker), channel)
        return self._askers[asker]

    def _begin(self) -> None:
        if self._rest is None:
            self._since = self._asked
            self._client.homes[self._home] = self
            self._client.watch.add(self._hook)
            self._rest = asyncio.get_running_loop().call_later(WATCH, self._look_out)

    def _look_out(self) -> None:
        """Stop counting if nobody has asked for a while."""
        left = self._asked + WATCH - time.monotonic()
        if left > 0:
            self._rest = asyncio.get_running_loop().call_later(left, self._look_out)
        else:
            self.close()

    def close(self) -> None:
        """Nobody asks any more, or the client closes."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
            self._client.watch.remove(self._hook)
        for asker in self._askers.values():
            if asker.due is not None:
                asker.due.cancel()
        self._askers.clear()
        self._tallies.clear()
        self._client.homes.pop(self._home, None)

    def heard(self, kind: bytes, token: str, numbers: list[int], evidence: float) -> None:
        """Nobody sends messages about this token."""

    def ask_all(self) -> None:
        """What was lost is asked again, or not."""

    def _note(self, happening: Happening) -> None:
        """Called with all that happens."""
        waited: float | None = None
        count = 1
        match happening:
            case Acquired(waited=waited):
                pass
            case Taken(waited=waited, amount=count):
                pass
            case Woken(waited=waited) if happening.kind in ("event", "barrier"):
                pass
            case Published():
                pass
            case _:
                return
        which = happening.kind, happening.name
        tally = self._tallies.get(which)
        if tally is None:
            if len(self._tallies) >= COUNTED:  # what was used last is what is looked at
                known = sorted(self._tallies.items(), key=lambda each: each[1].at)
                self._tallies = dict(known[COUNTED // 2 :])
            tally = self._tallies[which] = Tally(self._place(*which))
        tally.at = time.monotonic()
        tally.count += count
        if waited is not None:
            tally.waits.add(waited)

    # -- answers ----------------------------------------------------------------------------------

    def _answer(self, asker: Asker) -> None:
        asker.due, asker.answered = None, time.monotonic()
        subjects = self._subjects()
        tallies = {tally.place: tally for tally in self._tallies.values()}
        past = [tally for place, tally in tallies.items() if place not in subjects]
        past.sort(key=lambda tally: tally.at, reverse=True)
        places = [*subjects, *(tally.place for tally in past)]
        if len(places) > PLACES:
            places.sort(key=lambda place: crc(place) not in asker.wanted)
        head = {
            "v": VERSION, "by": self._client.client_id, "q": asker.number,
            "age": round(asker.answered - self._since, 6), "of": len(places),
        }  # fmt: skip
        text = json.dumps(head)[:-1] + ', "at": ['
        room = ANSWER - len(text) - len("]}")
        parts: list[str] = []
        for place in places[:PLACES]:
            entry = {"p": place} | _told(subjects.get(place, 0), asker.answered)
            if place in tallies:
                tally = tallies[place]
                entry |= {"c": tally.count, "s": list(tally.waits.counts.items())}
            part = json.dumps(entry, separators=(",", ":"))
            room -= len(part) + 1
            if room < 0:
                break
            parts.append(part)
        answer = f"{text}{','.join(parts)}]}}".encode()
        asker.record.run("roll_answer", ignore, answer=answer, channel=asker.channel)

    def _place(self, kind: str, name: str) -> str:
        namespace = self._client.namespace
        return place_of(tag(namespace, kind, name), namespace)

    def _subjects(self) -> "dict[str, Cohort | int]":
        """What is held or waited for here, by place; where it is never held, how many wait."""
        client = self._client
        found: dict[str, Cohort | int] = {}
        for cohort in client.cohorts():
            if cohort.holds or cohort.requests or cohort.waiters:
                place = self._places.get(cohort)
                if place is None:
                    place = self._places[cohort] = self._place(cohort.kind, cohort.name)
                found[place] = cohort
        for flag in list(client._flags.values()):
            if flag.waiters:
                found[place_of(f"{{{flag.channel}}}", client.namespace)] = len(flag.waiters)
        for name, arrivals in list(client._arrivals.items()):
            waiting = sum(not party.future.done() for party in arrivals.parties.values())
            if waiting:
                found[self._place("barrier", name)] = waiting
        for which, quota in list(client._quotas.items()):
            waiting = sum(len(line.waiters) for line in quota._lines.values())
            if waiting:
                found[self._place(*which)] = waiting
        return found


def _told(subject: "Cohort | int", now: float) -> dict[str, Any]:
    """Who holds it and who waits, as an answer has it."""
    if isinstance(subject, int):
        return {"n": subject}
    leases = [(hold.token, hold.lease) for hold in islice(subject.holds.values(), TASKS)]
    own = (r.waiter for r in subject.requests.values() if r.token not in subject.asleep)
    waiters = [w for w in (*subject.waiters, *own) if w is not None and not w.gone]
    waiters.sort(key=lambda waiter: waiter.since)
    return {
        "h": [
            [token, _named(lease.owner), round(now - lease.since, 6), lease.fence]
            for token, lease in leases
            if lease is not None
        ],
        "n": len(waiters),
        "w": [
            [_named(each.task), round(now - each.since, 6) if each.since else 0.0]
            for each in waiters[:TASKS]
        ],
        "z": len(subject.asleep),
    }


def _named(task: "asyncio.Task[object] | None") -> str | None:
    return None if task is None else task.get_name()[:TASK_NAME]


def crc(place: str) -> int:
    """What stands for a place in a question."""
    return zlib.crc32(place.encode())


def ignore(call: Call) -> None:
    """Whether it was heard is the asker's business."""
