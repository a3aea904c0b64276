"""The store in this process: a transition is a function call under one clock."""

import asyncio
import time
from collections.abc import Callable, MutableMapping
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

from dsync.local import barriers, buses, events, flights, permits, rates, rolls
from dsync.names import tag
from dsync.store import Arg, Bound, Call, Done, Inbox

__all__ = ["Memory", "MemoryStore"]

Spaces = MutableMapping[str, "Memory"]
SWEEP = 1024  # steps between two looks for what nobody needs any more
_WALL = time.time() - time.monotonic()


def _microseconds() -> int:
    return int((time.monotonic() + _WALL) * 1_000_000)


class State(Protocol):
    """The record of one primitive."""

    fence: int

    def sweep(self, now: int) -> bool:
        """Drop what nobody needs any more.  -> whether Redis would have let it all expire"""
        ...

    def empty(self) -> bool:
        """Whether a fresh record would do as well, but for its fence."""
        ...


TRANSITIONS = {
    name: transition
    for module in (permits, events, barriers, buses, rates, flights, rolls)
    for name, transition in module.TRANSITIONS.items()
}


class Memory:
    """What clients of one `memory://` URL share: records, an inbox for each client, channels."""

    # One for each event loop and name: nothing here is safe to use from two threads.
    _shared: ClassVar["WeakKeyDictionary[asyncio.AbstractEventLoop, Spaces]"] = WeakKeyDictionary()

    def __init__(self, clock: Callable[[], int] = _microseconds) -> None:
        self.clock = clock  # µs, the server's time
        self.records: dict[str, State] = {}
        self.inboxes: dict[str, Inbox] = {}
        self.listeners: dict[str, dict[str, Inbox]] = {}  # channel -> client id -> inbox
        # What a step has to say, delivered after it.
        self._messages: list[tuple[str, list[bytes]]] = []
        self._news: list[tuple[str, bytes]] = []
        self._make: dict[str, Callable[[], State]] = {
            "permit": lambda: permits.Permits(self.send),
            "event": lambda: events.Signal(self.publish),
            "barrier": lambda: barriers.Gathering(self.send),
            "bus": lambda: buses.Sequence(self.publish),
            "rate": rates.Bucket,
            "flight": lambda: flights.Value(self.publish),
            "roll": lambda: rolls.Roll(self.send, self.publish),
        }
        self.floor: int = 0  # above every fence of the records that were dropped
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
        self._messages.append((process, message))
        return int(process in self.inboxes)

    def publish(self, channel: str, payload: bytes) -> int:
        self._news.append((channel, payload))
        return len(self.listeners.get(channel, ()))

    def apply(self, key: str, transition: str, args: dict[str, Arg]) -> object:
        """Carry out a transition, then deliver what it sent."""
        state = self.records.get(key)
        if state is None:
            state = self.records[key] = self._make[transition.partition("_")[0]]()
            state.fence = self.floor
        try:
            reply = TRANSITIONS[transition](state, self.clock(), **args)
        finally:
            if state.empty():
                self._drop(key, state)
        self._steps += 1
        if self._steps >= max(SWEEP, len(self.records)):  # so a step costs the same among many
            self._steps = 0
            self._sweep()
        self._deliver()
        return reply

    def _deliver(self) -> None:
        messages, self._messages = self._messages, []
        news, self._news = self._news, []
        for process, message in messages:
            inbox = self.inboxes.get(process)
            if inbox is not None:
                inbox.pushed(message, time.monotonic())
        for channel, payload in news:
            for inbox in list(self.listeners.get(channel, {}).values()):
                inbox.news(channel, payload)

    def _drop(self, key: str, state: State) -> None:
        self.floor = max(self.floor, state.fence)
        del self.records[key]

    def _sweep(self) -> None:
        """Drop what Redis would have let expire."""
        now = self.clock() // 1000
        for key, state in list(self.records.items()):
            if state.sweep(now) or state.empty():
                self._drop(key, state)


class MemoryStore:
    """Carries out transitions in this process, at once."""

    def __init__(self, client_id: str, inbox: Inbox, namespace: str, name: str) -> None:
        self.client_id = client_id
        self.channel = ""
        self.ordered = True
        self.distant = False
        self.progress: float = 0.0
        self.listening = True
        self.connected = True
        self.born_asked: float = time.monotonic()
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

    def subscribe(self, channel: str) -> None:
        self.memory.listeners.setdefault(channel, {})[self.client_id] = self.inbox
        self.inbox.tuned(channel, None)

    def unsubscribe(self, channel: str) -> None:
        listeners = self.memory.listeners.get(channel, {})
        listeners.pop(self.client_id, None)
        if not listeners:
            self.memory.listeners.pop(channel, None)

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
            for channel in list(self._memory.listeners):
                self.unsubscribe(channel)


class MemoryRecord:
    """The state of one primitive, found again at each step: an empty one is dropped."""

    __slots__ = ("key", "store")

    def __init__(self, store: MemoryStore, key: str) -> None:
        self.store: MemoryStore = store
        self.key: str = key

    def bind(self, transition: str, /, **args: Arg) -> Bound:
        def run(token: str, done: Done) -> None:
            self.run(transition, done, token=token, **args)

        return run

    def run(self, transition: str, done: Done, /, **args: Arg) -> None:
        call = Call(None, done, time.monotonic())
        call.attempts = 1
        call.reply = self.store.memory.apply(self.key, transition, args)
        done(call)
