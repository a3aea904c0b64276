"""An overview of a namespace: what there is, who holds it, who waits, and how fast it goes.

::

    async with dsync.connect("redis://localhost:6379") as client:
        async with Overview(client) as overview:
            while True:
                print((await overview.look()).as_dict())
                await asyncio.sleep(1)
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dsync.errors import DsyncError, StoreUnavailable
from dsync.facts import KINDS, facts_of
from dsync.overview.places import Places, places_of
from dsync.overview.roll_call import RollCall
from dsync.overview.rows import Row, hold_of, process_of, row_of
from dsync.store import Record

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.redis.scan import Found

__all__ = ["Overview", "Snapshot", "add_tasks"]

LOOKS = 500  # primitives that are looked at in one go
BATCH = 100  # of them at once
ASKED = 100  # processes that are asked in one go
RECOUNT = 5.0  # seconds between two looks for processes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand at one moment."""

    at: float  # time.time()
    namespace: str
    server: str  # where, as people would write it
    rows: tuple[Row, ...]  # by kind and name
    left_out: int  # primitives that were not looked at this time: see the `age` of their rows
    unread: bool  # not all of the server's keys were looked through yet: there may be more
    processes: int  # that use the namespace, as far as is known
    answered: int  # ... and have answered what their tasks do
    cut: bool  # one of them knows more than it has told

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON.  Times are seconds, rates are per second."""
        known = asdict(self)
        for row in known["rows"]:
            del row["key"]
        return known


class Overview:
    """Looks at the primitives whose names match `pattern`, as often as it is told to.

    A look costs a server with few keys a SCAN and one short script for each primitive; where there
    are many it goes through the keys, and through what nobody uses, in several turns.  Processes
    are asked what their tasks do, and count what happens, only as long as somebody looks.  One look
    at a time.
    """

    def __init__(self, client: "Client", pattern: str = "*") -> None:
        self._client = client
        self._places = places_of(client.store)
        self.pattern = pattern
        # Keys of rows that are looked at each time, whatever there is, and told of first.
        self.first: Sequence[str] = ()
        self.roll: RollCall = RollCall(client)
        self._found: dict[Found, float] = {}  # -> when it was looked at, time.monotonic()
        self._seen: set[Found] = set()  # in this round through the keys
        self._whole = False  # one has ended
        self._facts: dict[Found, dict[str, Any]] = {}
        self._rows: dict[Found, Row] = {}
        self._before: dict[Found, tuple[float, float]] = {}  # when, and how much, for rates
        self._listening: dict[str, Record | None] = {}  # processes, as they are asked
        self._counted = float("-inf")
        self._processes = 0  # those, and others that hold or wait

    @property
    def where(self) -> str:
        """The server, as people would write it."""
        link = getattr(self._client.store, "link", None)
        return "memory://" if link is None else str(link.address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ask nobody any more."""
        self.roll.close()

    async def look(self, patience: float = 0.3) -> Snapshot:
        """Look.

        Args:
            patience: seconds to wait for processes that do not answer; they are waited for in
                three looks at most.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        self._client.enter()
        await self._find()
        chosen = self._chosen()
        await self._call_the_roll(chosen)
        await self._look_at(chosen)
        await self.roll.answers(patience)
        now = time.monotonic()
        fresh = {*chosen, *map(self._places.found, self.roll.busy())}
        for each, known in self._facts.items():
            row = self._rows.get(each)
            if row is None or row.busy or each in fresh:
                self._rows[each] = self._row(each, known, now)
            else:
                row.age = now - self._found[each]
        answered, _ = self.roll.present
        return Snapshot(
            at=time.time(),
            namespace=self._client.namespace,
            server=self.where,
            rows=tuple(
                row for each in sorted(self._rows) if _worth_showing(row := self._rows[each])
            ),
            left_out=len(self._found) - len(chosen),
            unread=not self._whole,
            processes=self._processes,
            answered=answered,
            cut=self.roll.cut,
        )

    # -- what there is --------------------------------------------------------------------------

    async def _find(self) -> None:
        found, ended = await self._places.find()
        # What has no record yet, such as an event that was never set, and is waited for.
        told = map(self._places.found, self.roll.busy())
        found |= {each for each in told if each is not None}
        mine = {f for f in found if f.kind in KINDS and fnmatchcase(f.name, self.pattern)}
        self._seen |= mine
        for each in mine:
            self._found.setdefault(each, float("-inf"))
        if ended:
            for each in self._found.keys() - self._seen:
                for known in (self._found, self._facts, self._rows, self._before):
                    known.pop(each, None)
            self._seen, self._whole = set(), True

    def _chosen(self) -> "list[Found]":
        """What is looked at this time: all, or half of it busy ones, in turns; then the rest."""
        if len(self._found) <= LOOKS:
            return list(self._found)
        order = sorted(self._found, key=lambda each: self._found[each])  # the longest unseen first
        first = set(self.first)
        shown = [each for each in order if each.key in first]
        busy = [each for each in order if each in self._rows and self._rows[each].busy]
        chosen = dict.fromkeys([*shown, *busy][: LOOKS // 2])
        rest = (each for each in order if each not in chosen)
        return [*chosen, *islice(rest, LOOKS - len(chosen))]

    async def _look_at(self, chosen: "list[Found]") -> None:
        for start in range(0, len(chosen), BATCH):
            some = chosen[start : start + BATCH]
            looks = (self._places.look(each, KINDS[each.kind]) for each in some)
            replies = await asyncio.gather(*looks, return_exceptions=True)
            lost = [reply for reply in replies if isinstance(reply, StoreUnavailable)]
            if len(lost) == len(some) > 1 or (lost and not self._client.store.connected):
                raise lost[0]
            for each, reply in zip(some, replies, strict=True):
                self._found[each] = time.monotonic()
                self._facts[each] = _known(each, reply)

    def _row(self, each: "Found", known: dict[str, Any], now: float) -> Row:
        if "error" in known:
            row = Row(each.kind, each.name, known["error"], True, error=True)
        else:
            told = self.roll.told(each.key)
            row = row_of(known, told)
            waits = self.roll.waits(each.key)
            if waits is not None:
                row.wait_p50, row.wait_p99 = waits.quantile(0.5), waits.quantile(0.99)
            row.rate = self._rate(each, known)
            if row.rate is None and row.unit:
                rate, (answered, _) = self.roll.rate(each.key), self.roll.present
                if rate or told or answered == self._processes:
                    row.rate = rate  # else those who have not answered may know of some
        row.key = each.key
        row.age = max(now - self._found[each], 0.0)
        return row

    def _rate(self, each: "Found", known: dict[str, Any]) -> float | None:
        """What the store's own count says since the last look: of buses."""
        if "messages" not in known:
            return None
        count = float(known["messages"])
        now = self._found[each]
        at, before = self._before.get(each, (now, count))
        if now > at:
            self._before[each] = now, count
            return max(count - before, 0) / (now - at)
        self._before.setdefault(each, (now, count))
        return self._rows[each].rate if each in self._rows else None

    # -- who knows more -------------------------------------------------------------------------

    async def _call_the_roll(self, chosen: "Iterable[Found]") -> None:
        now = time.monotonic()
        if now - self._counted > RECOUNT:
            self._counted = now
            try:
                self._listening = await self._places.processes()
            except StoreUnavailable:
                pass  # this user may not ask that: then those that hold or wait are asked
        # Those that hold and wait hear what concerns that; the others may have stopped listening.
        asked = _parties(self._places, {each: self._facts.get(each, {}) for each in chosen})
        everybody = asked | {p: room for p, room in self._listening.items() if p not in asked}
        asked = dict(islice(everybody.items(), ASKED))
        self._processes = len(everybody)
        held = (e.key for e in chosen if self._facts.get(e, {}).get("holders"))
        await self.roll.ask(asked, dict.fromkeys([*self.first, *held]))


def _worth_showing(row: Row) -> bool:
    """A lock that somebody had to compute a value is nothing by itself when it is free."""
    return row.busy or row.kind != "single_flight"


async def add_tasks(
    client: "Client", facts: "Mapping[Found, dict[str, Any]]", patience: float
) -> None:
    """Put into the facts which tasks hold, as their processes tell within `patience` seconds."""
    asked = dict(islice(_parties(places_of(client.store), facts).items(), ASKED))
    if not asked:
        return
    roll = RollCall(client)
    try:
        async with asyncio.timeout(patience):
            await roll.ask(
                asked, (each.key for each, known in facts.items() if known.get("holders"))
            )
            await roll.answers(patience)
    except TimeoutError:
        pass
    finally:
        roll.close()
    for each, known in facts.items():
        told = roll.told(each.key)
        for holder in known.get("holders", ()):
            hold = hold_of(holder, known, told)
            if hold is not None:
                holder["task"], holder["held"], _ = hold


def _parties(places: Places, facts: "Mapping[Found, dict[str, Any]]") -> dict[str, Record | None]:
    """The processes that hold or wait, and where they are asked."""
    asked: dict[str, Record | None] = {}
    for each, known in facts.items():
        for party in (*known.get("holders", ()), *known.get("waiters", ())):
            asked.setdefault(process_of(party), places.room(each))
    return asked


def _known(found: "Found", reply: Any) -> dict[str, Any]:
    """What a reply says, or why it says nothing."""
    try:
        if isinstance(reply, DsyncError):
            raise reply
        return facts_of(found.kind, found.name, reply)
    except (DsyncError, ValueError, TypeError, LookupError) as error:  # not of our making
        return {"kind": found.kind, "name": found.name, "error": str(error)}
