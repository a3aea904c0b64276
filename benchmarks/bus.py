"""What an event costs to publish, how soon it is heard elsewhere, and what it weighs in a queue."""

import asyncio
import json
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import redis.asyncio

import dsync
from benchmarks.crew import crew
from benchmarks.locks import DSYNC
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over, value
from benchmarks.peers import load
from benchmarks.rig import Rig, until
from benchmarks.worker import Member

__all__ = ["WORKLOADS", "deliver", "hoard"]

ONE_BY_ONE = "redis.asyncio, 50 tasks one by one"
PIPELINES = "redis.asyncio, pipelines of 100"
PUBSUB = "redis.asyncio pub/sub"
BROADCASTER, BROADCAST = "broadcaster, 50 tasks one by one", "broadcaster"
TASKS, PIPELINE, BURST = 50, 100, 10_000
RATE = 500  # messages a second, where they are paced
QUEUED = 100_000
MESSAGES, P50 = "messages/s", "p50 µs"
HEAVY = "MB/100,000 queued"


def written(data: object) -> bytes:
    """What everybody sends: small, as JSON, encoded each time."""
    return json.dumps(data, separators=(",", ":")).encode()


# -- publishing ------------------------------------------------------------------------------------


async def ours(rig: Rig) -> Measured:
    """Plain calls in a loop, of which the last of each burst is awaited."""
    async with dsync.connect(rig.url, namespace=rig.namespace) as client:
        bus = client.event_bus()
        await bus.trigger("warm")

        async def burst() -> int:
            for i in range(BURST - 1):
                bus.trigger("order.created", {"id": i})
            await bus.trigger("order.created", {"id": BURST})
            return BURST

        return await published(burst, rig)


async def one_by_one(rig: Rig) -> Measured:
    async with redis.asyncio.Redis.from_url(rig.url) as client:

        async def publish() -> None:
            for i in range(TASKS):
                await client.publish(f"{rig.namespace}:order.created", written({"id": i}))

        async def burst() -> int:
            await asyncio.gather(*(publish() for _ in range(TASKS)))
            return TASKS * TASKS

        await publish()
        return await published(burst, rig)


async def broadcaster(rig: Rig) -> Measured:
    async with load("broadcaster").Broadcast(rig.url) as broadcast:

        async def publish() -> None:
            for i in range(TASKS):
                await broadcast.publish(f"{rig.namespace}:order.created", written({"id": i}))

        async def burst() -> int:
            await asyncio.gather(*(publish() for _ in range(TASKS)))
            return TASKS * TASKS

        await publish()
        return await published(burst, rig)


async def pipelines(rig: Rig) -> Measured:
    async with redis.asyncio.Redis.from_url(rig.url) as client:

        async def burst() -> int:
            pipeline = client.pipeline(transaction=False)
            for i in range(PIPELINE):
                pipeline.publish(f"{rig.namespace}:order.created", written({"id": i}))
            await pipeline.execute()
            return PIPELINE

        await burst()
        return await published(burst, rig)


async def published(burst: Callable[[], Awaitable[int]], rig: Rig) -> Measured:
    """Burst after burst."""
    count = 0
    began, cpu = time.monotonic(), time.process_time()
    while not count or until(began + rig.seconds):
        count += await burst()
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    return {MESSAGES: count / took, "CPU µs/message": 1e6 * cpu / count}


# -- delivery --------------------------------------------------------------------------------------

# Publishes; and what has been heard, from the moment at which it is entered.
Publish = Callable[[object], Awaitable[object]]
Way = tuple[Publish, AbstractAsyncContextManager[AsyncIterator[Any]]]


@asynccontextmanager
async def our_way(url: str, namespace: str) -> AsyncIterator[Way]:
    async with dsync.connect(url, namespace=namespace) as client:
        bus = client.event_bus()

        @asynccontextmanager
        async def heard() -> AsyncIterator[AsyncIterator[Any]]:
            async with bus.subscribe("tick") as events:
                yield (
                    message.data async for message in events if isinstance(message, dsync.Message)
                )

        yield partial(bus.trigger, "tick"), heard()


@asynccontextmanager
async def their_way(url: str, namespace: str) -> AsyncIterator[Way]:
    channel = f"{namespace}:tick"
    async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as pubsub:

        @asynccontextmanager
        async def heard() -> AsyncIterator[AsyncIterator[Any]]:
            await pubsub.subscribe(channel)
            messages = pubsub.listen()
            await anext(messages)  # it is subscribed
            yield (json.loads(message["data"]) async for message in messages)

        async def publish(data: object) -> None:
            await client.publish(channel, written(data))

        yield publish, heard()


@asynccontextmanager
async def broadcast_way(url: str, namespace: str) -> AsyncIterator[Way]:
    channel = f"{namespace}:tick"
    async with load("broadcaster").Broadcast(url) as broadcast:

        @asynccontextmanager
        async def heard() -> AsyncIterator[AsyncIterator[Any]]:
            async with broadcast.subscribe(channel) as events:
                yield (json.loads(event.message) async for event in events)

        async def publish(data: object) -> None:
            await broadcast.publish(channel, written(data))

        yield publish, heard()


WAYS: dict[str, Callable[[str, str], AbstractAsyncContextManager[Way]]] = {
    DSYNC: our_way,
    PUBSUB: their_way,
    BROADCAST: broadcast_way,
}


async def deliver(member: Member, contender: str) -> list[float]:
    """-> how long each message was under way that was sent inside the window; of one member.

    The first listens, the second sends a message every 2 ms, and a last one when it is over.
    """
    async with WAYS[contender](member.url, member.namespace) as (publish, hearing):
        if member.index:
            await publish(0.0)  # connects, loads scripts
            window = await member.signal()
            due = time.monotonic()
            while until(window.end):
                await publish(time.monotonic())
                due += 1 / RATE
                await asyncio.sleep(due - time.monotonic())
            await publish(None)
            return []
        delays: list[float] = []
        async with hearing as heard:
            window = await member.signal()
            async for sent in heard:
                now = time.monotonic()
                if sent is None:
                    break
                if sent >= window.start:
                    delays.append(now - sent)
    return delays


async def delivered(contender: str, rig: Rig) -> Measured:
    async with crew(2, deliver, rig, contender) as members:
        members.go(rig.seconds)
        delays, _ = await members.results()
    return {
        P50: 1e6 * statistics.median(delays),
        "p95 µs": 1e6 * statistics.quantiles(delays, n=20)[-1],
        "per s": len(delays) / rig.seconds,
    }


# -- memory ----------------------------------------------------------------------------------------


async def hoard(member: Member, count: int) -> int:
    """-> bytes by which so many queued messages make a process grow, as it counts itself."""
    async with dsync.connect(member.url, namespace=member.namespace) as client:
        bus = client.event_bus()
        async with (
            bus.subscribe("order.*", maxsize=count) as orders,
            bus.subscribe("over") as over_,
        ):
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            member.say(True)
            await anext(over_)  # so all orders are in the queue
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            for i in range(count):
                message = await anext(orders)
                if not isinstance(message, dsync.Message) or message.data != {"id": i}:
                    raise RuntimeError(f"expected order {i}, got {message!r}")
    return after - before


async def hoarded(rig: Rig) -> Measured:
    count = QUEUED // 10 if rig.quick else QUEUED
    async with (
        crew(1, hoard, rig, count) as members,
        dsync.connect(rig.url, namespace=rig.namespace) as client,
    ):
        bus = client.event_bus()
        for i in range(count):
            bus.trigger("order.created", {"id": i})
        await bus.trigger("over")
        [grown] = await members.results()
    return {HEAVY: grown / 1e6 * QUEUED / count, "bytes/message": grown / count}


WORKLOADS = (
    Workload(
        "bus-publish",
        "one process publishes small messages as fast as it can; nobody listens",
        {ONE_BY_ONE: one_by_one, PIPELINES: pipelines, DSYNC: ours, BROADCASTER: broadcaster},
        (
            Ratio("dsync vs one by one", over(MESSAGES, DSYNC, ONE_BY_ONE), Goal("≥", 8)),
            Ratio(
                "dsync ÷ hand-written pipelines", over(MESSAGES, DSYNC, PIPELINES), Goal("≥", 0.5)
            ),
        ),
        Score(MESSAGES, True),
    ),
    Workload(
        "bus-delivery",
        f"{RATE} messages a second go from one process to another",
        {who: partial(delivered, who) for who in (PUBSUB, DSYNC, BROADCAST)},
        (Ratio("p50, dsync ÷ redis.asyncio pub/sub", over(P50, DSYNC, PUBSUB), Goal("≤", 1.5)),),
        Score(P50, False),
    ),
    Workload(
        "bus-queued",
        f"{QUEUED:,} small messages wait in one subscriber's queue",
        {DSYNC: hoarded},
        (Ratio(f"MB for {QUEUED:,} queued messages", value(DSYNC, HEAVY)),),
        rounds=2,
    ),
)
