"""Permits: the transitions of one lock or semaphore, with what is the same in every call."""

from functools import partial
from typing import TYPE_CHECKING

from dsync.beat import SILENCE_MS
from dsync.declaration import Declaration
from dsync.store import Arg, Bound, Done

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["PASSES", "Permits"]

PASSES = 128  # from task to task for each grant; a grant reserves as many fences
TOMBSTONE_MS = 60_000  # for as long a token that has left is refused


class Permits:
    """Asks the store.  It remembers what this process has declared, and nothing else."""

    def __init__(self, client: "Client", kind: str, name: str, value: int, fences: bool) -> None:
        self._client = client
        self._record = client.store.at(kind, name)
        self.block = PASSES if fences else 0
        self._fixed = fences  # a lock's limit is 1 and nobody declares another
        self.declared: int = value
        self.declaration: Declaration = Declaration(client, kind, name)
        if not fences:
            self.declaration.make(value)
        self._common: dict[str, Arg] = {
            "block": self.block,
            "inbox": client.store.channel,
            "silence": SILENCE_MS,
        }
        # Bound once, used often: acquiring by its lease (trying, waiting), and releasing.
        self._acquires: tuple[dict[float, Bound], dict[float, Bound]] = ({}, {})
        release = partial(self._record.bind, "permit_release", **self._common)
        self.release: Bound = release(tombstone=0)
        # The same, and a late copy of the token's acquire will be refused.
        self.bury: Bound = release(tombstone=TOMBSTONE_MS)
        self._stamped: int | str = 0

    def acquire(self, token: str, lease: float, wait: int, done: Done) -> None:
        """`wait` 1: join the queue, or keep the place there; 0: now or not at all."""
        stamp = 0 if self._fixed else self.declaration.stamp()
        if stamp != self._stamped:
            self._acquires = ({}, {})
            self._stamped = stamp
        acquire = self._acquires[wait].get(lease)
        if acquire is None:
            acquire = self._acquires[wait][lease] = self._record.bind(
                "permit_acquire",
                declared=self.declared,
                stamp=stamp,
                lease=int(lease * 1000),
                wait=wait,
                **self._common,
            )
        acquire(token, done)

    def yield_up(
        self, token: str, condition: str, count: int, done: Done, *, sleeper: str = "",
        keep: bool = False, tombstone: bool = False,
    ) -> None:  # fmt: skip
        """Notify `count` sleepers of a condition, then give the lock back or `keep` it.

        `sleeper`: sleeps from now on in its place.
        """
        self._record.run(
            "permit_yield",
            done,
            token=token,
            condition=condition,
            count=count,
            sleeper=sleeper,
            keep=int(keep),
            tombstone=TOMBSTONE_MS if tombstone else 0,
            **self._common,
        )

    def wake(self, token: str, heir: str, lease: float, done: Done) -> None:
        """Keep a sleeper's place, or wake it: its heir waits for the lock then."""
        self._record.run(
            "permit_wake",
            done,
            token=token,
            heir=heir,
            lease=int(lease * 1000),
            tombstone=TOMBSTONE_MS,
            **self._common,
        )

    def renew(self, token: str, length: float, block: int, done: Done) -> None:
        """`length` seconds from now on, and `block` new fences."""
        self._record.run("permit_renew", done, token=token, lease=int(length * 1000), block=block)

    def add(self, done: Done) -> None:
        """One permit more, for everyone."""
        self.ask(
            "permit_add",
            done,
            token=self._client.token(0),
            declared=self.declared,
            stamp=self.declaration.stamp(),
            tombstone=TOMBSTONE_MS,
        )

    def ask(self, transition: str, done: Done, **args: Arg) -> None:
        """Any other transition."""
        common = {} if transition == "permit_info" else self._common
        self._record.run(transition, done, **args, **common)

    def declare(self, value: int) -> bool:
        """What the newest object of this process was made with.  -> whether that is news"""
        if value == self.declared:
            return False
        self.declared = value
        self.declaration.make(value)
        self._acquires = ({}, {})
        return True
