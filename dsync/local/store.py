"""The store in this process: a transition is a function call under one clock."""

import asyncio
import time
from collections.abc import Callable, MutableMapping
from typing import ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from dsync.local.permits import TRANSITIONS, Permits
from dsync.names import tag
from dsync.store import Arg, Bound, Call, Done, Inbox

__all__ = ["Memory", "MemoryStore"]

Spaces = MutableMapping[str, "Memory"]
SWEEP = 1024  # steps between two looks for what nobody needs any more
KEEP_MS = 7 * 24 * 3600 * 1000  # for which a record outlives its last use
_WALL = time.time() - time.monotonic()


def _microseconds() -> int:
    return int((time.monotonic() + _WALL) * 1_000_000)


class Memory:
    """What clients of one `memory://` URL share: records, and an inbox for each client."""

    # One for each event loop and name: nothing here is safe to use from two threads.
    _shared: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, Spaces]"] = WeakKeyDictionary()

    def __init__(self, clock: Callable[[], int] = _microseconds) -> None:
        self.clock = clock  # µs, the server's time
        self.records: dict[str, Permits] = {}
        self.inboxes: dict[str, Inbox] = {}
        self.messages: list[tuple[str, list[bytes]]] = []
        self.floor = 0  # above every fence of the records that were dropped
        self._steps = 0

    @classmethod
    def named(cls, name: str) -> "Memory":
        """The one that everybody on the running loop gets who asks by this name."""
        spaces = cls._shared.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        memory = spaces.get(name)
        if memory is None:
            memory = spaces[name] = cls()
        return memory

    def send(self, process: str, message: list[bytes]) -> int:
        self.messages.append((process, message))
        return int(process in self.inboxes)

    def apply(self, key: str, transition: str, args: dict[str, Arg]) -> object:
        """Carry out a transition, then deliver what it sent."""
        permits = self.records.get(key)
        if permits is None:
            permits = self.records[key] = Permits(self.send)
            permits.fence = self.floor
        try:
            reply = TRANSITIONS[transition](permits, self.clock(), **args)
        finally:
            if permits.empty():
                self.floor = max(self.floor, permits.fence)
                del self.records[key]
        self._steps += 1
        if self._steps % SWEEP == 0:
            self._sweep()
        messages, self.messages = self.messages, []
        for process, message in messages:
            inbox = self.inboxes.get(process)
            if inbox is not None:
                inbox.pushed(message, time.monotonic())
        return reply

    def _sweep(self) -> None:
        """Drop what Redis would have let expire."""
        now = self.clock() // 1000
        for key, permits in list(self.records.items()):
            permits.left = {token: until for token, until in permits.left.items() if until > now}
            idle = not (permits.holders or permits.waiters or permits.left)
            if permits.empty() or (idle and now - permits.clock > KEEP_MS):
                self.floor = max(self.floor, permits.fence)
                del self.records[key]


class MemoryStore:
    """Carries out transitions in this process, at once."""

    def __init__(self, client_id: str, inbox: Inbox, namespace: str, name: str) -> None:
        self.client_id = client_id
        self.channel = ""
        self.listening = True
        self.born_asked = time.monotonic()
        self.inbox = inbox
        self.namespace = namespace
        self.name = name
        self._memory: Memory | None = None
        self._born: int | None = None

    @property
    def memory(self) -> Memory:
        # Found late: the client may be made where no loop runs.
        if self._memory is None:
            self._memory = Memory.named(self.name)
            self._memory.inboxes[self.client_id] = self.inbox
        return self._memory

    @property
    def born(self) -> int:
        if self._born is None:
            self._born = self.memory.clock()
        return self._born

    def at(self, kind: str, name: str) -> "MemoryRecord":
        return MemoryRecord(self, tag(self.namespace, kind, name))

    def disown(self) -> None:
        """Memory is copied by a fork: nothing is shared that could be harmed."""

    async def check(self) -> None:
        _ = self.memory

    async def drain(self) -> None:
        """Nothing is ever on its way."""

    async def aclose(self) -> None:
        if self._memory is not None:
            self._memory.inboxes.pop(self.client_id, None)


class MemoryRecord:
    """The state of one primitive, found again at each step: an empty one is dropped."""

    __slots__ = ("key", "store")

    def __init__(self, store: MemoryStore, key: str) -> None:
        self.store = store
        self.key = key

    def bind(self, transition: str, /, **args: Arg) -> Bound:
        def run(token: str, done: Done) -> None:
            self.run(transition, done, token=token, **args)

        return run

    def run(self, transition: str, done: Done, /, **args: Arg) -> None:
        call = Call(None, done, time.monotonic())
        call.attempts = 1
        call.reply = self.store.memory.apply(self.key, transition, args)
        done(call)
