"""Arrivals: the tasks of this process that wait at one barrier, and what it has heard of the rest.

Each task arrives under a token of its own; the store decides when a generation is complete and
tells each process which of its tokens have passed, under which index.  Nothing here awaits but the
waiting tasks themselves.
"""

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from dsync.beat import Beat
from dsync.errors import ClientClosed, StoreUnavailable, WaitTimeout
from dsync.reply import Reply
from dsync.store import Call

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Arrivals"]

# For as long a token that has passed or left is known: a party whose process stood still or was
# cut off hears its index, a late copy of an arrival is refused.
MEMORY_MS = 60_000


class Party:
    """A task that waits: its future gets its index, or an error."""

    __slots__ = (
        "again", "asking", "future", "joined", "lease", "once", "parties", "resent", "sent", "token",
    )  # fmt: skip

    def __init__(
        self, future: "asyncio.Future[int]", token: str, parties: int, lease: float, once: bool
    ) -> None:
        self.future = future
        self.token = token
        self.parties = parties
        self.lease = lease
        self.once = once  # now or not at all
        self.sent = False  # its arrival is, or was, on its way
        self.asking = False  # a question is on its way
        self.again = False  # and another has to follow it
        self.joined = False  # the store has said that it waits
        self.resent = False  # a copy of the question may still arrive, much later


class Arrivals:
    """What this process wants of one barrier, and knows about it."""

    def __init__(self, client: "Client", name: str) -> None:
        self.client = client
        self.what = f"barrier {name!r}"
        self.broken = False  # as the store has told us last, or we the store
        # In order of arrival; a party stays until its task has run, whatever its future has got.
        # Its token is in the client's `homes` for as long.
        self.parties: dict[str, Party] = {}
        self._record = client.store.at("barrier", name)
        self._heard = 0  # how many wait in the store, ours among them
        self._lease = 0.0  # seconds, the longest of those that wait here
        # Resets and aborts not confirmed yet, each sent when the one before is: a server that
        # refuses one for a moment must not swap them.  Who comes meanwhile arrives after them.
        self._changes: deque[tuple[bool, Reply[None]]] = deque()
        self._beat = Beat(client, self._keep_places)
        self._turn = 0

    # -- what Barrier calls ----------------------------------------------------------------------

    async def wait(self, parties: int, lease: float, timeout: float | None) -> int:
        """Wait for the others.  -> the index of this task in its generation"""
        loop = self.client.enter()
        token = self.client.token(int(lease * 1000))
        party = Party(loop.create_future(), token, parties, lease, once=timeout == 0)
        self.parties[token] = self.client.homes[token] = party  # type: ignore[assignment]
        return 0
