"""The roll call, for who asks: questions to processes, and what they have answered last."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from dsync.names import tag, who
from dsync.roll import (
    ANSWER,
    PLACES,
    TASK_NAME,
    TASKS,
    VERSION,
    WANTED,
    Waits,
    crc,
    ignore,
    place_of,
)
from dsync.store import Record

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Hold", "RollCall", "Told"]

STALE = 3.0  # seconds for which an answer is believed
LEAST = 0.5  # seconds for which a process has to have counted before it says how often
LONGEST = 1000  # characters of a place
HALF_LIFE = 10.0  # seconds after which a wait counts for half
# What comes of reading an answer that is none.
NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)

Hold = tuple[str | None, float, int | None]  # the task, since when it holds, its fence


@dataclass(slots=True)
class Told:
    """What one process tells of one primitive.  Times are seconds."""

    party: tuple[str, str, int]  # label, host, pid
    holds: dict[str, Hold] = field(default_factory=dict)  # by token
    waiting: int = 0  # tasks
    tasks: list[tuple[str | None, float]] = field(default_factory=list)  # the first of them
    asleep: int = 0  # tasks that wait to be notified, as the lock's condition has it
    count: float = 0.0  # grants, wakes, units or messages since it began to count


Counts = tuple[float, dict[int, int]]  # of one primitive: how often, and of the waits how long


@dataclass(slots=True)
class Voice:
    """A process, as far as it has answered."""

    asked: int  # number of the last question to it
    heard: int  # ... and of the last that it has answered
    at: float = float("-inf")  # when it did, time.monotonic()
    age: float = 0.0  # seconds for which it had counted then
    told: dict[str, Told] = field(default_factory=dict)  # by place
    counts: dict[str, Counts] = field(default_factory=dict)  # by place
    rates: dict[str, float] = field(default_factory=dict)  # by place, per second
    cut: bool = False  # it knows more than it has told

    @property
    def awaited(self) -> bool:
        """Whether it has still to answer, and has not been silent for long."""
        return 0 < self.asked - self.heard <= 3


class RollCall:
    """Asks processes, and keeps what they have told last.  It has to be closed."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._name = token_hex(8)
        self.channel: str = tag(client.namespace, "roll", self._name)[1:-1]
        self._number = 0  # of the last question
        self._voices: dict[str, Voice] = {}  # by client id
        self._waits: dict[str, Waits] = {}  # by place
        self._faded = time.monotonic()  # when they were last
        self._listening = False
        self._tuned = asyncio.Event()  # answers reach us, or will never
        self._complete = asyncio.Event()  # nobody is awaited
        self._warned = False  # of nonsense

    async def ask(self, whom: Mapping[str, Record | None], wanted: Iterable[str] = ()) -> None:
        """Ask these processes, by client id, each of all that it knows.

        `whom`: of each the record of which it hears what concerns it; None: of any.
        `wanted`: keys of primitives that are to be told of first.
        """
        client = self._client
        if not self._listening:
            self._listening = True
            client.listen(self)
            await self._within(self._tuned, 1.0)
        self._number += 1
        self._fade()
        now = time.monotonic()
        self._voices = {
            process: voice
            for process, voice in self._voices.items()
            if process in whom or now - voice.at < STALE
        }
        places = (place_of(key, client.namespace) for key in islice(wanted, WANTED))
        question = " ".join((self._name, str(self._number), *(str(crc(p)) for p in places)))
        rooms: dict[Record, list[str]] = {}
        everywhere = client.store.at("roll", self._name)
        for process, record in whom.items():
            voice = self._voices.setdefault(process, Voice(0, self._number - 1))
            voice.asked = self._number
            rooms.setdefault(record or everywhere, []).append(process)
        self._note_complete()
        for record, processes in rooms.items():
            record.run(
                "roll_call", ignore, processes=" ".join(processes), question=question,
                inbox=client.store.channel,
            )  # fmt: skip

    async def answers(self, timeout: float) -> None:
        """Return when everybody has answered, or after so many seconds."""
        await self._within(self._complete, timeout)

    def told(self, key: str) -> dict[str, Told]:
        """What is told of the primitive with this key, by client id."""
        place, now = place_of(key, self._client.namespace), time.monotonic()
        return {
            process: voice.told[place]
            for process, voice in self._voices.items()
            if place in voice.told and now - voice.at < STALE
        }

    def busy(self) -> set[str]:
        """The keys of what is held, waited for or used, as processes have told lately."""
        now = time.monotonic()
        prefix = tag(self._client.namespace, "", "")[: -len(":}")]
        return {
            f"{prefix}{place}}}"
            for voice in self._voices.values()
            if now - voice.at < STALE
            for place, told in voice.told.items()
            if told.holds or told.waiting or told.asleep or voice.rates.get(place)
        }

    def rate(self, key: str) -> float | None:
        """Grants, wakes, units or messages per second; None: nobody has counted for long enough."""
        place, now = place_of(key, self._client.namespace), time.monotonic()
        voices = self._voices.values()
        counting = [v for v in voices if now - v.at < STALE and v.age >= LEAST]
        return sum(voice.rates.get(place, 0.0) for voice in counting) if counting else None

    def waits(self, key: str) -> Waits | None:
        """How long tasks have waited lately, in all processes."""
        return self._waits.get(place_of(key, self._client.namespace))

    @property
    def present(self) -> tuple[int, int]:
        """Processes that have answered lately, and those that were asked last."""
        now = time.monotonic()
        asked = [voice for voice in self._voices.values() if voice.asked == self._number]
        return sum(now - voice.at < STALE for voice in asked), len(asked)

    @property
    def cut(self) -> bool:
        """Whether somebody knows more than it has told."""
        return any(voice.cut for voice in self._voices.values())

    def _fade(self) -> None:
        now = time.monotonic()
        passed, self._faded = now - self._faded, now
        for place, waits in list(self._waits.items()):
            waits.fade(0.5 ** (passed / HALF_LIFE))
            if not waits.counts:
                del self._waits[place]

    async def _within(self, event: asyncio.Event, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            pass

    def _note_complete(self) -> None:
        if any(voice.awaited for voice in self._voices.values()):
            self._complete.clear()
        else:
            self._complete.set()

    # -- answers ----------------------------------------------------------------------------------

    def heard(self, payload: bytes) -> None:
        """An answer.  Raises ValueError where it is none, the first time."""
        try:
            if len(payload) > 2 * ANSWER:
                raise ValueError("too long")
            self._learn(json.loads(payload))
        except NONSENSE as error:
            if not self._warned:
                self._warned = True
                raise ValueError(str(error)) from None

    def _learn(self, answer: dict[str, Any]) -> None:
        voice = self._voices.get(answer["by"])
        if voice is None or answer["v"] != VERSION:
            return  # nobody has asked it, or it speaks another language
        number, age, of = int(answer["q"]), _number(answer["age"]), int(answer["of"])
        _, label, host, pid = who(f"{answer['by']}.")
        entries = {_place(entry["p"]): entry for entry in answer["at"][:PLACES]}
        told = {place: _told(entry, (label, host, pid)) for place, entry in entries.items()}
        counts = {place: _counts(entry) for place, entry in entries.items() if "c" in entry}
        # Only now, when nothing in it has turned out to be nonsense.
        if not voice.heard < number <= self._number:
            return
        before = voice.counts if age > voice.age else {}
        passed = age - voice.age if before or age > voice.age > 0 else age
        voice.rates = {}
        for place, (count, waits) in counts.items():
            known, known_waits = before.get(place, (0.0, {}))
            voice.rates[place] = max(count - known, 0) / max(passed, 0.001)
            for step, times in waits.items():
                more = times - known_waits.get(step, 0)
                if more > 0:
                    self._waits.setdefault(place, Waits()).put(step, more)
        voice.told, voice.counts = told, counts
        voice.heard, voice.at, voice.age = number, time.monotonic(), age
        voice.cut = of > len(entries)
        self._note_complete()

    def tuned(self, refused: BaseException | None) -> None:
        """Answers reach us from now on, or (refused) never."""
        self._tuned.set()

    def ask_all(self) -> None:
        """What was lost is asked again with the next question."""

    def close(self) -> None:
        """Ask nobody any more."""
        if self._listening:
            self._listening = False
            self._client.ignore(self)


def _told(entry: dict[str, Any], party: tuple[str, str, int]) -> Told:
    told = Told(party, waiting=_count(entry.get("n", 0)))
    told.asleep = _count(entry.get("z", 0))
    for token, task, since, fence in entry.get("h", ())[:TASKS]:
        told.holds[str(token)] = _task(task), _number(since), None if fence is None else int(fence)
    told.tasks = [(_task(task), _number(since)) for task, since in entry.get("w", ())[:TASKS]]
    return told


def _counts(entry: dict[str, Any]) -> Counts:
    steps = {_count(step): _count(times) for step, times in entry.get("s", ())[: Waits.MOST + 1]}
    return _number(entry["c"]), {min(step, Waits.MOST): times for step, times in steps.items()}


def _place(text: Any) -> str:
    if not isinstance(text, str) or not text.isascii() or len(text) > LONGEST:
        raise ValueError(f"{text!r:.80} is no place")
    return text


def _task(name: Any) -> str | None:
    """A name that can be written anywhere."""
    return None if name is None else str(name)[:TASK_NAME].encode(errors="replace").decode()


def _count(number: Any) -> int:
    return min(max(int(number), 0), 2**53)


def _number(number: Any) -> float:
    """A time or a count, 0 or more."""
    value = float(number)
    if not 0 <= value <= 2**53:
        raise ValueError(f"{number!r} is none")
    return value
