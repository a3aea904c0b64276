"""Who holds and who waits, as `info()` tells it."""

from dataclasses import dataclass
from typing import Any

from dsync.names import who

__all__ = ["Holder", "LockInfo", "Queued", "SemaphoreInfo"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a permit.  Times are seconds."""

    label: str
    host: str
    pid: int
    held: float  # since the permit came to this process
    lease_left: float
    token: str


@dataclass(frozen=True, slots=True)
class Queued:
    """A place in the store's queue; one may stand for many tasks.  Times are seconds."""

    label: str
    host: str
    pid: int
    waited: float
    token: str


@dataclass(frozen=True, slots=True)
class LockInfo:
    """The state of a lock at one moment: its holder and the queue, the next first."""

    name: str
    holder: Holder | None
    waiters: tuple[Queued, ...]
    fence: int  # of the grant to the process that holds; 0 where nobody does


@dataclass(frozen=True, slots=True)
class SemaphoreInfo:
    """The state of a semaphore at one moment; the lists stop at the first 1000."""

    name: str
    value: int
    pinned: bool  # by resize()
    held: int
    waiting: int
    holders: tuple[Holder, ...]
    waiters: tuple[Queued, ...]


def holders_of(listing: list[Any]) -> tuple[Holder, ...]:
    """`[token, ms left, ms held, ...]` as the store lists them."""
    found = []
    for token, left, held in zip(listing[::3], listing[1::3], listing[2::3], strict=True):
        text = token if isinstance(token, str) else token.decode()
        _, label, host, pid = who(text)
        found.append(Holder(label, host, pid, held / 1000, left / 1000, text))
    return tuple(found)


def waiters_of(listing: list[Any]) -> tuple[Queued, ...]:
    """`[token, ms waited, ...]` as the store lists them, the next first."""
    found = []
    for token, waited in zip(listing[::2], listing[1::2], strict=True):
        text = token if isinstance(token, str) else token.decode()
        _, label, host, pid = who(text)
        found.append(Queued(label, host, pid, waited / 1000, text))
    return tuple(found)
