"""Event buses when connections break, answers get lost, processes stand still and servers forget.

Run as a module it is the other process:

    python -m tests.fault.test_bus_faults URL NAMESPACE publish COUNT     numbers, a few at a time
    python -m tests.fault.test_bus_faults URL NAMESPACE listen COUNT      prints what it has heard
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import dsync
from dsync import Gap, Message, outbox
from dsync.redis.script import SCRIPTS
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer, Through

PUBLISH = SCRIPTS["bus_publish"].sha.encode()


# -- the other process -----------------------------------------------------------------------------


async def publish(bus: dsync.EventBus, count: int) -> None:
    for number in range(count):
        reply = bus.trigger("n", number)
        if number % 20 == 19:
            await reply
            await asyncio.sleep(0.005)


async def listen(bus: dsync.EventBus, count: int) -> None:
    numbers: list[int] = []
    gaps: list[int | None] = []
    async with bus.subscribe("n", maxsize=100_000) as events:
        print("live", flush=True)
        async for item in events:
            if isinstance(item, Gap):
                gaps.append(item.missed)
            else:
                numbers.append(item.data[0])
                if item.data[0] == count:
                    break
    print(json.dumps([numbers, gaps]), flush=True)


async def other_process(url: str, namespace: str, what: str, count: str) -> None:
    async with dsync.connect(url, namespace=namespace) as client:
        await {"publish": publish, "listen": listen}[what](client.event_bus(), int(count))


@asynccontextmanager
async def another(world: World, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The other process, which does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fault.test_bus_faults", world.url, world.namespace),
        *arguments, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        # Its pipe's transport closes on a later tick.
        process._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)


# -- what tests look at ----------------------------------------------------------------------------


async def kill(world: World, *clients: dsync.Client) -> None:
    """CLIENT KILL of these clients' connections."""
    names = {f"dsync:{client.client_id}" for client in clients}
    for connection in await world.admin.client_list():
        if connection["name"] in names:
            await world.admin.client_kill_filter(_id=connection["id"])


class Ledger:
    """What a subscriber of numbers, 0 and up, has got: each once and in order, or in a Gap."""

    def __init__(self) -> None:
        self.received = self.missed = self.gaps = 0
        self.last_sequence = 0

    @property
    def seen(self) -> int:
        return self.received + self.missed

    def add(self, item: Message | Gap) -> None:
        if isinstance(item, Gap):
            assert item.missed is not None, "it could be known"
            assert item.missed > 0
            self.missed += item.missed
            self.gaps += 1
        else:
            assert item.data == self.seen, f"{item.data} came where {self.seen} was expected"
            assert item.sequence > self.last_sequence
            self.last_sequence = item.sequence
            self.received += 1

    async def follow(self, events: Any, count: int, within: float) -> None:
        async with asyncio.timeout(within):
            while self.seen < count:
                self.add(await anext(events))
        assert self.seen == count


async def next_of(events: Any, within: float = 5.0) -> Any:
    async with asyncio.timeout(within):
        item = await anext(events)
    return item.data if isinstance(item, Message) else f"gap {item.missed}"


# -- connections -----------------------------------------------------------------------------------


async def test_what_the_reader_got_and_what_it_missed_is_what_was_sent(real: World) -> None:
    """Its connection is killed every 100 ms while 10,000 messages pass."""
    client, count = real.client(), 10_000
    ledger, kills = Ledger(), 0
    async with (
        client.event_bus().subscribe("n", maxsize=count) as events,
        another(real, "publish", str(count)) as process,
    ):
        following = asyncio.create_task(ledger.follow(events, count, within=40))
        try:
            await settled(lambda: ledger.received > 0, within=10)
            while process.returncode is None:
                await asyncio.sleep(0.1)  # the fault's rhythm
                await kill(real, client)
                kills += 1
            await following
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    assert process.returncode == 0
    assert kills > 10
    assert ledger.gaps > 5, "nothing was lost: it shows nothing"
    assert ledger.received > 1000


async def test_every_confirmed_message_is_published_once_whatever_becomes_of_the_publisher(
    real: World,
) -> None:
    """Its connection is killed again and again; the subscriber's is well."""
    publisher, count = real.client(), 4000
    bus, ledger = publisher.event_bus(), Ledger()
    async with real.client().event_bus().subscribe(maxsize=count) as events:
        following = asyncio.create_task(ledger.follow(events, count, within=30))
        replies = []
        for number in range(count):
            replies.append(bus.trigger("n", number))
            if number % 200 == 100:
                await kill(real, publisher)
            if number % 50 == 0:
                await replies[-1]
        await asyncio.gather(*replies)
        await following
    assert ledger.received == count


async def test_a_publisher_that_dies_leaves_no_hole_in_what_others_get(real: World) -> None:
    ledger = Ledger()
    async with (
        real.client().event_bus().subscribe("n", maxsize=100_000) as events,
        another(real, "publish", "100000") as process,
    ):
        await ledger.follow(events, 500, within=15)
        process.kill()
        await process.wait()
        last = real.client().event_bus()
        await last.trigger("end")
        await last.trigger("n", "end")
        while True:
            async with asyncio.timeout(5):
                item = await anext(events)
            if isinstance(item, Message) and item.data == "end":
                break
            ledger.add(item)
    assert not ledger.missed


async def test_a_publish_whose_reply_was_lost_is_heard_once(
    real: World, proxy: Proxy, through: Through
) -> None:
    bus = through().event_bus()
    await bus.trigger("warm")
    async with real.client().event_bus().subscribe("n") as events:
        sent = 0
        for count in (1, 3, 600):  # 600: more than one batch
            cut = proxy.swallow_replies_then_cut(PUBLISH)
            replies = [bus.trigger("n", sent + i) for i in range(count)]
            sent += count
            await asyncio.gather(*replies)
            assert cut.done()
        ledger = Ledger()
        await ledger.follow(events, sent, within=10)
        await bus.trigger("n", "end")
        assert await next_of(events) == "end"
    assert ledger.received == sent


async def test_a_batch_is_known_again_for_as_long_as_it_may_be_repeated(
    real: World, proxy: Proxy, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which depends on `outage_timeout`."""
    monkeypatch.setattr(outbox, "REMEMBER_MS", 1)
    bus = through().event_bus()
    await bus.trigger("warm")
    async with real.client().event_bus().subscribe("n") as events:
        for number in range(3):
            cut = proxy.swallow_replies_then_cut(PUBLISH)
            await bus.trigger("n", number)
            assert cut.done()
        await bus.trigger("n", "end")
        assert [await next_of(events) for _ in range(4)] == [0, 1, 2, "end"]


async def test_a_late_copy_of_a_batch_is_not_published_again(
    real: World, proxy: Proxy, through: Through
) -> None:
    client = through(outage_timeout=1.5)
    bus = client.event_bus()
    await bus.trigger("warm")
    async with real.client().event_bus().subscribe("n") as events:
        proxy.strand()
        await bus.trigger("n", 0)  # by way of a second connection
        await bus.trigger("n", 1)
        before = len(await real.admin.client_list())
        proxy.heal()

        async def arrived() -> bool:
            return len(await real.admin.client_list()) < before

        await settled(arrived, "the server has read the stranded one to its end")
        await bus.trigger("n", 2)
        await bus.trigger("n", "end")
        assert [await next_of(events) for _ in range(4)] == [0, 1, 2, "end"]


async def test_a_connection_on_which_nothing_comes_is_noticed(
    real: World, proxy: Proxy, through: Through
) -> None:
    """A subscriber asks nothing of its own accord but for the beat."""
    client, other = through(outage_timeout=0.9), real.client().event_bus()
    async with client.event_bus().subscribe("n") as events:
        await other.trigger("n", 0)
        assert await next_of(events) == 0
        proxy.strand()
        await other.trigger("n", 1)
        await other.trigger("n", 2)
        assert await next_of(events) == "gap 2"
        await other.trigger("n", 3)
        assert await next_of(events) == 3


async def test_messages_held_up_on_the_way_arrive_in_order_and_without_a_gap(
    real: World, proxy: Proxy, through: Through
) -> None:
    ledger, count = Ledger(), 300
    proxy.delay = proxy.jitter = 0.01
    reader, writer = through(), through()
    async with reader.event_bus().subscribe("n", maxsize=count) as events:
        bus = writer.event_bus()
        for number in range(count):
            bus.trigger("n", number)
            if number % 10 == 0:
                await asyncio.sleep(0)
        await ledger.follow(events, count, within=10)
    assert ledger.received == count


# -- servers ---------------------------------------------------------------------------------------


async def test_scripts_that_are_flushed_all_the_time_keep_the_order(own_server: OwnServer) -> None:
    buses = [own_server.client().event_bus() for _ in range(2)]
    streams = [await bus.subscribe(maxsize=10_000) for bus in buses]
    flushed = 0

    async def work(number: int) -> None:
        for i in range(300):
            reply = buses[number].trigger(f"n{number}", i)
            if i % 3 == 0:
                await reply
        await buses[number].trigger(f"n{number}", 300)

    working = asyncio.gather(work(0), work(1))
    while not working.done():
        await own_server.admin.script_flush()
        flushed += 1
    await working
    assert flushed > 20
    for stream in streams:
        heard: dict[str, list[Any]] = {"n0": [], "n1": []}
        for _ in range(602):
            async with asyncio.timeout(5):
                item = await anext(stream)
            assert isinstance(item, Message)
            heard[item.event].append(item.data)
        assert heard == {"n0": list(range(301)), "n1": list(range(301))}
        stream.cancel()


async def test_a_server_that_comes_back_empty_is_a_gap_of_unknown_size(
    own_server: OwnServer,
) -> None:
    one, two = own_server.client().event_bus(), own_server.client().event_bus()
    gaps: list[Gap] = []
    got: list[int] = []
    await two.on("n", got.append, on_gap=gaps.append)
    async with two.subscribe("n") as events:
        for number in range(3):
            await one.trigger("n", number)
        assert [await next_of(events) for _ in range(3)] == [0, 1, 2]
        own_server.restart()
        await settled(lambda: gaps == [Gap(None)], "it hears of it without a message")
        for number in range(3, 6):
            await one.trigger("n", number)
        assert [await next_of(events) for _ in range(4)] == ["gap None", 3, 4, 5]
    await settled(lambda: got == list(range(6)))
    assert gaps == [Gap(None)]


async def test_a_subscriber_outlives_an_outage_of_any_length(own_server: OwnServer) -> None:
    """It asks for nothing, so nothing of its own fails and brings the connection back."""
    client, got = own_server.client(outage_timeout=0.3), list[Any]()
    await client.event_bus().on("n", got.append)
    own_server.kill()
    link: Any = client.store.link  # type: ignore[attr-defined]
    await settled(lambda: not client.listening())
    await settled(lambda: link._dialling is None, "it has given up dialling")
    own_server.restart()
    await settled(client.listening, "it listens again")
    await own_server.client().event_bus().trigger("n", 1)
    await settled(lambda: got == [1])


async def test_a_callback_waits_for_a_server_that_comes_late(own_server: OwnServer) -> None:
    own_server.kill()
    client, got = own_server.client(outage_timeout=0.3), list[Any]()
    bus = client.event_bus()
    bus.on("n", got.append)
    with pytest.raises(dsync.StoreUnavailable):
        await bus.on("n", print)
    with pytest.raises(dsync.StoreUnavailable):
        await bus.wait_for("n", timeout=5)
    assert [type(error) for error in own_server.errors] == [dsync.StoreUnavailable]
    own_server.errors.clear()
    own_server.restart()
    await settled(lambda: all(s.live for s in bus._hub.subscribers()))
    await own_server.client().event_bus().trigger("n", 1)
    await settled(lambda: got == [1])


async def test_a_callback_whose_waiter_gave_up_waits_for_a_server_that_comes_late(
    own_server: OwnServer,
) -> None:
    """Nobody awaits it any more, so nobody is told that it is over: it is not."""
    own_server.kill()
    bus, got = own_server.client(outage_timeout=0.3).event_bus(), list[Any]()
    subscription = bus.on("n", got.append)

    async def enter() -> None:
        await subscription

    entering = asyncio.create_task(enter())
    await asyncio.sleep(0)
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    await settled(lambda: len(own_server.errors) == 1, "the hook is told")
    assert isinstance(own_server.errors.pop(), dsync.StoreUnavailable)
    own_server.restart()
    await settled(lambda: subscription.live)
    await own_server.client().event_bus().trigger("n", 1)
    await settled(lambda: got == [1])


async def test_nobody_is_live_while_the_server_is_gone_though_another_was_before(
    own_server: OwnServer,
) -> None:
    client, got = own_server.client(outage_timeout=0.3), list[Any]()
    bus = client.event_bus()
    await bus.on("n", got.append)
    own_server.kill()
    await settled(lambda: not client.listening())
    outcomes = await asyncio.gather(
        *(bus.on("n", print), bus.subscribe("n"), bus.wait_for("n", timeout=5)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [dsync.StoreUnavailable] * 3
    assert len(bus._hub.subscribers()) == 1
    own_server.restart()
    await bus.trigger("n", 1)
    await settled(lambda: got == [1])


async def test_all_that_waits_to_be_published_fails_when_the_server_is_gone(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not one batch after the other, each after another `outage_timeout`."""
    monkeypatch.setattr(outbox, "BATCH", 1)
    bus = own_server.client(outage_timeout=0.4).event_bus()
    await bus.trigger("n", "warm")
    own_server.kill()
    replies = [bus.trigger("n", number) for number in range(2000)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    outcomes = await asyncio.gather(*replies, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {dsync.StoreUnavailable}
    assert loop.time() - began < 1.5
    own_server.restart()
    await bus.trigger("n", "after")


async def test_a_client_that_closes_while_the_server_is_gone_fails_all_that_waits(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BATCH", 1)
    client = own_server.client(outage_timeout=0.4)
    bus = client.event_bus()
    await bus.trigger("n", "warm")
    own_server.kill()
    waiting = asyncio.gather(
        *(bus.trigger("n", number) for number in range(2000)), return_exceptions=True
    )
    await asyncio.sleep(0)
    await client.aclose()
    outcomes = {type(outcome) for outcome in await waiting}
    assert outcomes <= {dsync.ClientClosed, dsync.StoreUnavailable}
    own_server.restart()


async def test_a_client_that_closes_sends_all_that_waits_as_long_as_there_are_answers(
    real: World, proxy: Proxy, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes: `outage_timeout` is for a server that is silent."""
    monkeypatch.setattr(outbox, "BATCH", 1)
    client, count = through(outage_timeout=0.6), 25
    bus = client.event_bus()
    await bus.trigger("warm")
    async with real.client().event_bus().subscribe("n") as events:
        proxy.delay = 0.02  # each way: 25 times there and back are more than 0.6 s
        replies = [bus.trigger("n", number) for number in range(count)]
        await client.aclose()
        await asyncio.gather(*replies)
        assert [await next_of(events) for _ in range(count)] == list(range(count))


# -- slow ones -------------------------------------------------------------------------------------


async def test_one_of_200_that_is_stuck_hinders_nobody(real: World) -> None:
    client, count = real.client(), 300
    bus = client.event_bus()
    heard = [0] * 199
    stuck = await bus.subscribe("n", maxsize=10)
    never = asyncio.Event()
    began = 0

    async def hang(value: Any) -> None:
        nonlocal began
        began += 1
        await never.wait()

    def counts(i: int) -> Callable[[int], None]:
        def callback(value: int) -> None:
            assert value == heard[i]
            heard[i] += 1

        return callback

    await bus.on("n", hang, maxsize=10)
    for i in range(198):
        await bus.on("n" if i % 2 else "*", counts(i))
    heard.pop()
    other = real.client().event_bus()
    for number in range(count):
        reply = other.trigger("n", number)
        if number % 10 == 0:
            await reply
            async with asyncio.timeout(1), client.lock("x"):  # other primitives go on, too
                pass
    await settled(lambda: heard == [count] * 198, within=10)
    assert began == 1
    assert await next_of(stuck) == f"gap {count - 10}"
    assert [await next_of(stuck) for _ in range(10)] == list(range(count - 10, count))
    assert len(await real.admin.pubsub_channels(f"{bus._hub.channel}*")) == 1


async def test_a_process_that_stood_still_beyond_the_servers_patience_learns_what_it_missed(
    own_server: OwnServer,
) -> None:
    await own_server.admin.config_set("client-output-buffer-limit", "pubsub 500000 0 0")
    bus, count = own_server.client().event_bus(), 1500
    async with another(own_server, "listen", str(count)) as process:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 10) == b"live\n"
        channel = bus._hub.channel
        assert dict(await own_server.admin.pubsub_numsub(channel)) == {channel.encode(): 1}
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for number in range(count):  # more than the sockets on the way can take
                await bus.trigger("n", [number, "x" * 10_000])

            async def dropped() -> bool:
                return dict(await own_server.admin.pubsub_numsub(channel)) == {channel.encode(): 0}

            await settled(dropped, "the server has dropped it")
        finally:
            os.kill(process.pid, signal.SIGCONT)

        async def back() -> bool:
            return not await dropped()

        await settled(back, "it is back")
        await bus.trigger("n", [count, ""])
        line = await asyncio.wait_for(process.stdout.readline(), 10)
    numbers, gaps = json.loads(line)
    assert numbers == sorted(set(numbers))
    assert len(gaps) == 1
    assert len(numbers) + gaps[0] == count + 1


if __name__ == "__main__":
    asyncio.run(other_process(*sys.argv[1:]))
