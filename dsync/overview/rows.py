"""Rows of an overview: one for each primitive, from what the store and the processes tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsync.facts import KINDS, lasting, state
from dsync.overview.roll_call import Hold, Told

__all__ = ["Held", "Row", "Waiting", "hold_of", "process_of", "row_of"]


@dataclass(slots=True)
class Held:
    """A hold.  Times are seconds."""

    label: str
    host: str
    pid: int
    task: str | None  # its name; None: the process has not told
    held: float  # by this task; where it is not known, by its process
    lease_left: float
    fence: int | None
    token: str


@dataclass(slots=True)
class Waiting:
    """A task that waits, or a process of which no more is known."""

    label: str
    host: str
    pid: int
    task: str | None
    waited: float  # seconds


@dataclass(slots=True)
class Row:
    """One primitive.  Times are seconds; what nobody has told is None."""

    kind: str
    name: str
    state: str  # in words
    busy: bool  # whether it is held, waited for, set or in use
    held: int = 0  # permits, parties that have come, units that are taken, 1 for what is set
    limit: int | None = None  # of those; None where there is none
    waiting: int = 0  # tasks, as far as processes have told, else places in the store's queue
    asleep: int = 0  # tasks that wait to be notified by a condition over it
    holders: list[Held] = field(default_factory=list)
    waiters: list[Waiting] = field(default_factory=list)  # in order, the next first
    rate: float | None = None  # per second, of what `unit` says
    unit: str = "grants"  # "wakes" of events and barriers, "units" of limiters, "messages" of
    # buses, "" of what has none
    wait_p50: float | None = None
    wait_p99: float | None = None
    age: float = 0.0  # since the store was asked
    error: bool = False  # it could not be read; `state` says why
    key: str = ""


UNITS = {"event": "wakes", "barrier": "wakes", "rate": "units", "every": "units"}
UNITS |= {"bus": "messages", "flight": ""}


def row_of(known: dict[str, Any], told: Mapping[str, Told]) -> Row:
    """The row of what the store knows and what processes have told, by their client ids."""
    text, busy = state(known)
    kind = known["kind"]
    row = Row(kind, known["name"], text, busy, unit=UNITS.get(kind, "grants"))
    match KINDS[kind]:
        case "permit_info":
            row.held, row.limit = known["held"], known.get("value", 1)
        case "event_look":
            row.held, row.limit = int(known["set"]), 1
        case "barrier_info":
            row.held, row.limit = known["waiting"], known["parties"]
        case "rate_look" if known["rate"] is not None:
            row.held, row.limit = known["burst"] - known["remaining"], known["burst"]
        case "flight_look":
            row.held, row.limit = int(known["kept"]), 1
    row.holders = [_held(holder, known, told) for holder in known.get("holders", ())]
    row.waiters = _waiters(known, told)
    here = sum(each.waiting for each in told.values())
    silent = sum(process_of(each) not in told for each in known.get("waiters", ()))
    unlisted = max(known.get("waiting", 0) - len(known.get("waiters", ())), 0)
    row.waiting = max(here, known.get("reserved", 0)) + silent + unlisted
    row.asleep = sum(each.asleep for each in told.values())
    row.busy = busy or row.waiting > 0 or row.asleep > 0
    row.state = _put(row, known, text)
    return row


def _put(row: Row, known: dict[str, Any], text: str) -> str:
    """The state in words, where processes have told more than the store knows."""
    if KINDS[row.kind] == "permit_info" and row.kind != "semaphore" and row.holders:
        holder = row.holders[0]
        by = holder.label if holder.task is None else f"{holder.label}: {holder.task}"
        text = f"held by {by} for {lasting(holder.held)}"
        text += f", {row.waiting} waiting" if row.waiting else ""
    elif row.waiting > known.get("waiting", known.get("reserved", 0)):
        text = f"{text.partition(', ')[0]}, {row.waiting} waiting"
    return text + (f", {row.asleep} wait to be notified" if row.asleep else "")


def process_of(party: dict[str, Any]) -> str:
    """The client id of a holder or a waiter."""
    return str(party["token"]).rpartition(".")[0]


def _held(holder: dict[str, Any], known: dict[str, Any], told: Mapping[str, Told]) -> Held:
    held = Held(
        holder["label"], holder["host"], holder["pid"], None, holder["held"],
        holder["lease_left"], known.get("fence"), holder["token"],
    )  # fmt: skip
    hold = hold_of(holder, known, told)
    if hold is not None:
        held.task, held.held, held.fence = hold
    return held


def hold_of(holder: dict[str, Any], known: dict[str, Any], told: Mapping[str, Told]) -> Hold | None:
    """What its process tells of a hold."""
    process = told.get(process_of(holder))
    if process is None:
        return None
    hold = process.holds.get(holder["token"])
    if hold is None and "value" not in known:  # of a lock: it has got it anew in between
        hold = next(iter(process.holds.values()), None)
    return hold


def _waiters(known: dict[str, Any], told: Mapping[str, Told]) -> list[Waiting]:
    """In order, as far as that is known: the tasks of a process stand where its first place is.

    First those of processes without a place in the queue: they wait for a task of their own.
    """
    queued = {process_of(each): each for each in reversed(known.get("waiters", ()))}
    order = [*(process for process in told if process not in queued), *reversed(queued)]
    waiters = []
    for process in order:
        if process in told and told[process].tasks:
            label, host, pid = told[process].party
            waiters += [Waiting(label, host, pid, *task) for task in told[process].tasks]
        elif process in queued:
            one = queued[process]
            waiters.append(Waiting(one["label"], one["host"], one["pid"], None, one["waited"]))
    return waiters
