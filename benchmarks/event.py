"""How long after `set()` the last of 1,000 tasks in 4 processes runs, against a bare message."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import redis.asyncio

import dsync
from benchmarks.crew import crew
from benchmarks.locks import DSYNC
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over, value
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "wait"]

FLOOR = "floor: redis.asyncio pub/sub + asyncio.Event"
PROCESSES, TASKS = 4, 250
LAST = "last of all, p50 µs"
PUBLISHES = "PUBLISHes/change"


class Event(Protocol):
    """What both can do."""

    def set(self) -> Awaitable[object]: ...

    def clear(self) -> Awaitable[object]: ...

    async def wait(self) -> object: ...

    async def settle(self) -> None:
        """Return when everybody here who has called wait() will be woken by the next set()."""
        ...


class Ours:
    def __init__(self, event: dsync.Event) -> None:
        self.set, self.clear, self.wait = event.set, event.clear, event.wait
        self._is_set = event.is_set

    async def settle(self) -> None:
        await self._is_set()  # is answered behind what they have asked


class Theirs:
    """A message on a channel sets an asyncio.Event in each process, for a moment."""

    def __init__(self, client: Any, channel: str, local: asyncio.Event) -> None:
        self._client, self._channel = client, channel
        self.wait = local.wait

    async def set(self) -> None:
        await self._client.publish(self._channel, "1")

    async def clear(self) -> None:
        pass

    async def settle(self) -> None:
        pass


Opened = AbstractAsyncContextManager[Event]


@asynccontextmanager
async def ours(url: str, namespace: str, listens: bool) -> AsyncIterator[Event]:
    async with dsync.connect(url, namespace=namespace) as client:
        yield Ours(client.event("go"))


@asynccontextmanager
async def theirs(url: str, namespace: str, listens: bool) -> AsyncIterator[Event]:
    channel, local = f"{namespace}:go", asyncio.Event()

    async def listen() -> None:
        async for message in messages:
            if message["type"] == "message":
                local.set()
                local.clear()  # who waited is woken all the same

    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:
        messages = pubsub.listen()
        listener = None
        if listens:
            await pubsub.subscribe(channel)
            await anext(messages)  # it is subscribed
            listener = asyncio.create_task(listen())
        yield Theirs(client, channel, local)
        if listener is not None:
            listener.cancel()
            await asyncio.wait([listener])


# (url, namespace, whether this process is going to wait) -> the event
EVENTS: dict[str, Callable[[str, str, bool], Opened]] = {DSYNC: ours, FLOOR: theirs}


async def wait(member: Member, contender: str) -> None:
    """Again and again, until told to stop; says when all wait, and then when the last one ran."""
    async with EVENTS[contender](member.url, member.namespace, True) as event:
        member.say(True)
        while await member.hear():
            tasks = [asyncio.create_task(woken(event)) for _ in range(TASKS)]
            await asyncio.sleep(0)
            await event.settle()
            member.say(True)
            member.say(max(await asyncio.gather(*tasks)))


async def woken(event: Event) -> float:
    """-> when it returned."""
    await event.wait()
    return time.monotonic()


async def slice_of(contender: str, rig: Rig) -> Measured:
    took: list[float] = []
    async with (
        crew(PROCESSES, wait, rig, contender) as members,
        EVENTS[contender](rig.url, rig.namespace, False) as event,
    ):
        await event.clear()
        published, changes = rig.publishes(), 0
        end = time.monotonic() + rig.seconds
        while not took or until(end):
            members.say(True)
            await members.results()
            began = time.monotonic()
            await event.set()
            took.append(max(await members.results()) - began)
            await event.clear()
            changes += 2
        published = rig.publishes() - published
        members.say(False)
    return {
        LAST: 1e6 * statistics.median(took),
        "last of all, least µs": 1e6 * min(took),
        PUBLISHES: published / changes,
    }


WORKLOADS = (
    Workload(
        "event",
        f"one process sets an event that {TASKS} tasks in each of {PROCESSES} others wait for",
        {who: partial(slice_of, who) for who in (FLOOR, DSYNC)},
        (
            Ratio("set until the last runs, dsync ÷ floor", over(LAST, DSYNC, FLOOR), Goal("≤", 3)),
            Ratio("PUBLISHes per change", value(DSYNC, PUBLISHES), Goal("≤", 1)),
        ),
        Score(LAST, False),
    ),
)
