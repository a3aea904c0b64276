"""The transitions of Barrier in this process: twins of lua/barrier_*.

Each does what the script of its name does, in the same order, and returns the same reply; the
scripts' headers say what that is.  The model tests hold the two against each other.
"""

from collections.abc import Callable
from typing import Final

__all__ = ["TRANSITIONS", "Gathering"]

# What a transition sends to a process: -> how many listen (0: nobody there), as PUBLISH answers.
Send = Callable[[str, list[bytes]], int]
Listing = list[bytes | int]
KEEP_MS = 7 * 24 * 3600 * 1000  # for which a record outlives its last use
CLAIM_MS = 5000  # for as long a party that has passed, and died, keeps the next ones waiting


class Gathering:
    """The state of one barrier."""

    # A token waits in arrivals, or it has passed: then it has an index, and a place in draining
    # until its task has run.  arrivals are in order of arrival.
    __slots__ = (
        "alive", "arrivals", "broken", "clock", "draining", "fence", "generation", "index", "left",
        "parties", "send", "ticket",
    )  # fmt: skip

    def __init__(self, send: Send) -> None:
        self.send: Send = send
        self.clock: int = 0  # ms; time as this record knows it, which never goes back
        self.parties: int = 0  # 0: nobody has come yet
        self.generation: int = 0  # how often it has tripped
        self.broken: int = 0
        self.ticket: int = 0
        self.arrivals: dict[str, int] = {}  # token -> arrival, µs
        self.draining: dict[str, int] = {}  # token -> when it counts as gone, ms
        self.alive: dict[str, int] = {}  # process -> until when its arrivals are good, ms
        self.index: dict[str, int] = {}  # token -> its index
        self.left: dict[str, int] = {}  # token -> until when it is refused, ms
        self.fence: int = 0  # a barrier has none

    def sweep(self, now: int) -> bool:
        """Drop what nobody needs any more.  -> whether Redis would have let it all expire"""
        self.drop_dead(now)
        self.draining = {token: until for token, until in self.draining.items() if until > now}
        while self.left and min(self.left.values()) <= now:
            self.forget(now)
        return not (self.arrivals or self.left) and now - self.clock > KEEP_MS

    def empty(self) -> bool:
        return not (self.arrivals or self.left or self.generation or self.broken)

    def at(self, us: int) -> int:
        """Now, ms."""
        return max(us // 1000, self.clock)

    def refused(self, token: str, now: int) -> bool:
        return self.left.get(token, 0) > now

    def refuse(self, token: str, now: int, memory: int) -> None:
        self.left[token] = now + max(memory, lease_of(token))

    def forget(self, now: int) -> None:
        over = sorted((until, token) for token, until in self.left.items() if until <= now)
        for _, token in over[:1000]:
            del self.left[token]
            self.index.pop(token, None)

    def good(self, token: str, now: int) -> bool:
        return self.alive.get(process_of(token), 0) > now

    def drop_dead(self, now: int) -> None:
        if any(until <= now for until in self.alive.values()):
            self.alive = {p: until for p, until in self.alive.items() if until > now}
            self.arrivals = {t: came for t, came in self.arrivals.items() if self.good(t, now)}

    def undrained(self, now: int) -> int:
        return sum(until > now for until in self.draining.values())

    def trip(self, now: int, asker: str, memory: int) -> int | None:
        if not 0 < self.parties <= len(self.arrivals) or self.undrained(now):
            return None
        passing = list(self.arrivals)[: self.parties]
        self.draining = {}
        self.generation += 1
        self.clock = now
        self.forget(now)
        for i, token in enumerate(passing):
            del self.arrivals[token]
            self.draining[token] = now + min(lease_of(token), CLAIM_MS)
            self.index[token] = i
            self.refuse(token, now, memory)
        for i, token in enumerate(passing):
            if token != asker:
                self.told("t", token, i, len(self.arrivals))
        return passing.index(asker) if asker in passing else None

    def told(self, message: str, token: str, *numbers: int) -> None:
        words = (message, token, *map(str, numbers))
        self.send(process_of(token), [word.encode() for word in words])


def process_of(token: str) -> str:
    return token.rpartition(".")[0]


def lease_of(token: str) -> int:
    return int(token.rpartition("/")[2])


def barrier_arrive(
    record: Gathering, us: int, *, token: str, parties: int, lease: int, inbox: str, memory: int
) -> list[int]:
    now = record.at(us)
    if token in record.index:
        return [1, record.index[token], len(record.arrivals), record.broken, -1]
    if record.refused(token, now):
        return [-3, 0, len(record.arrivals), record.broken, -1]
    if record.broken:
        return [-1, 0, 0, 1, -1]
    record.alive[process_of(token)] = now + lease
    record.drop_dead(now)
    if not record.arrivals and not record.undrained(now):
        record.parties = parties
    if parties != record.parties:
        return [-2, record.parties, len(record.arrivals), 0, -1]
    joined = token not in record.arrivals
    record.clock, record.ticket = now, max(record.ticket + 1, us)
    if joined:
        record.arrivals[token] = record.ticket
    passed = record.trip(now, token, memory)
    waiting = len(record.arrivals)
    if passed is not None:
        return [1, passed, waiting, 0, -1]
    ms = -1
    if waiting >= parties and record.draining:
        ms = max(max(record.draining.values()) - now, 1)
    return [0, int(joined), waiting, 0, ms]


def barrier_leave(
    record: Gathering, us: int, *, token: str, late: int, inbox: str, memory: int
) -> list[int]:
    for entries in (record.arrivals, record.draining, record.index):
        entries.pop(token, None)
    now = record.at(us)
    if late:
        record.forget(now)
        record.refuse(token, now, memory)
    else:
        record.left.pop(token, None)
    record.drop_dead(now)
    record.trip(now, "", memory)
    return [len(record.arrivals), record.broken]


def barrier_reset(
    record: Gathering, us: int, *, token: str, abort: int, inbox: str, memory: int
) -> list[int]:
    now = record.at(us)
    if record.refused(token, now):
        return [0, record.broken]
    waiting, record.arrivals = list(record.arrivals), {}
    record.forget(now)
    record.broken, record.clock = abort, now
    for refused in (token, *waiting):
        record.refuse(refused, now, memory)
    for waiter in waiting:
        record.told("b", waiter, abort)
    return [len(waiting), abort]


def barrier_info(record: Gathering, us: int) -> list[int | Listing]:
    now = record.at(us)
    waiting = [entry for entry in record.arrivals.items() if record.good(entry[0], now)]
    listed: Listing = []
    for token, came in waiting[:1000]:
        listed += [token.encode(), max(0, (us - came) // 1000)]
    state = [record.parties, record.generation, record.broken]
    return [*state, len(waiting), record.undrained(now), listed]


TRANSITIONS: Final[dict[str, Callable[..., list[int] | list[int | Listing]]]] = {
    transition.__name__: transition
    for transition in (barrier_arrive, barrier_leave, barrier_reset, barrier_info)
}
