"""What an EventBus promises, on every store."""

import asyncio
import contextvars
import functools
import gc
import json
import logging
import pickle
import sys
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis.exceptions

import dsync
import dsync.local
from dsync import Gap, Message, backlog, hub
from tests.conftest import LOOP, ONE_CONNECTION, World, settled

Item = Message | Gap
ODD = (" ", "a b", "a\nb\r\n", "grün 😀", "%20", "a%", "*", "{x}", "\0", "x" * 300, "a:b/c", "é́")
request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


@pytest.fixture(autouse=True)
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What callbacks of the loop raised: nothing."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    yield errors
    gc.collect()
    assert not errors


async def take(events: Any, count: int, within: float = 5.0) -> list[Item]:
    """So many items of a stream."""
    async with asyncio.timeout(within):
        return [await anext(events) for _ in range(count)]


def data(items: list[Item]) -> list[Any]:
    """The data of messages, and how many are missing for each Gap, as a string."""
    return [item.data if isinstance(item, Message) else f"gap {item.missed}" for item in items]


@contextmanager
def deaf(client: dsync.Client) -> Iterator[list[bytes]]:
    """Messages to this client are lost.  -> those that were"""
    lost: list[bytes] = []
    client.news = lambda channel, payload: lost.append(payload)  # type: ignore[method-assign]
    yield lost
    del client.news


async def lose(client: dsync.Client, bus: dsync.EventBus, *events: str) -> None:
    """Trigger what does not reach this client."""
    with deaf(client) as lost:
        for event in events:
            await bus.trigger(event, "lost")
        await settled(lambda: len(lost) == len(events))


async def forget_everything(world: World) -> None:
    """The server lost its data."""
    if world.admin is None:
        world.clients[0].store.memory.records.clear()  # type: ignore[attr-defined]
    else:
        for key in await world.keys():
            await world.admin.delete(key)


def told(world: World) -> list[BaseException]:
    """What the hook was called with; taken out, as it was expected."""
    errors, world.errors[:] = list(world.errors), []
    return errors


# -- on, once, off, wait_for -----------------------------------------------------------------------


async def test_callbacks_of_all_processes_get_the_data(world: World) -> None:
    buses = [world.client().event_bus() for _ in range(3)]
    got: list[tuple[int, Any]] = []

    async def asynchronous(value: Any) -> None:
        await asyncio.sleep(0)
        got.append((1, value))

    await buses[0].on("x", lambda value: got.append((0, value)))
    await buses[1].on("x", asynchronous)
    await buses[2].on("y", lambda value: got.append((2, value)))
    assert await buses[1].trigger("x", {"id": 7}) is None  # type: ignore[func-returns-value]
    await buses[1].trigger("x")
    await settled(lambda: len(got) == 4)
    assert sorted(got, key=repr) == [(0, None), (0, {"id": 7}), (1, None), (1, {"id": 7})]


async def test_what_a_callback_returns_is_awaited_if_it_can_be(world: World) -> None:
    bus = world.client().event_bus()
    done: list[int] = []

    async def work(value: int) -> None:
        done.append(value)

    class Callable_:
        async def __call__(self, value: int) -> None:
            done.append(value)

    for callback in (lambda v: work(v), functools.partial(work), Callable_()):
        await bus.on("x", callback)
    await bus.trigger("x", 1)
    await settled(lambda: done == [1, 1, 1])


@pytest.mark.skipif(LOOP == "uvloop", reason="it gives asyncio's eager factory too many arguments")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="there every task begins later")
async def test_callbacks_go_on_where_tasks_begin_eagerly(world: World) -> None:
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    bus = world.client().event_bus()
    got: list[int] = []
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 -- mypy has 3.11
    try:
        await bus.on("x", got.append)
        for number in range(5):
            await bus.trigger("x", number)
            await settled(lambda: got == list(range(number + 1)))  # noqa: B023
    finally:
        loop.set_task_factory(factory)


async def test_a_callback_runs_in_the_context_in_which_it_was_given(world: World) -> None:
    """Not in that of who used the client first, nor of who triggers."""
    client = world.client()
    bus = client.event_bus()
    got: list[str] = []

    async def within(name: str, call: Callable[[], Any]) -> None:
        request.set(name)
        await call()

    async def do(name: str, call: Callable[[], Any]) -> None:
        await asyncio.create_task(within(name, call))

    await do("first", client.check)
    await do("subscriber", lambda: bus.on("x", lambda value: got.append(request.get())))
    await do("publisher", lambda: bus.trigger("x"))
    await settled(lambda: got == ["subscriber"], lambda: f"it ran in {got}")


async def test_a_decorator_leaves_the_function_as_it_was(world: World) -> None:
    bus = world.client().event_bus()
    got: list[int] = []

    @bus.on("x", maxsize=5, overflow="drop_newest")
    def callback(value: int) -> None:
        got.append(value)

    assert callback(0) is None
    await bus.on("live", print)
    await bus.trigger("x", 1)
    await settled(lambda: got == [0, 1])


@pytest.mark.parametrize("kind", ["memory", "server"])
def test_a_decorator_works_before_there_is_a_loop(kind: str, server_url: str) -> None:
    url = server_url if kind == "server" else f"memory://{uuid.uuid4()}"
    client = dsync.connect(url, namespace=f"t-{uuid.uuid4().hex[:12]}")
    bus = client.event_bus()
    got: list[Any] = []

    @bus.on("x")
    async def callback(value: Any) -> None:
        got.append(value)

    @bus.on("never")
    def never(value: Any) -> None:
        raise AssertionError

    assert bus.off("never") == 1

    async def main() -> None:
        async with client:
            # Nobody awaits it: the first use of the client made it live.
            await settled(lambda: all(s.live for s in bus._hub.subscribers()))
            await bus.trigger("x", 1)
            await bus.trigger("never")
            await settled(lambda: got == [1])

    asyncio.run(main())


async def test_patterns_and_odd_names_reach_whom_they_should(world: World) -> None:
    one, two = world.client().event_bus(), world.client().event_bus()
    names = ("order.created", "order.x", "orders", "a*b", "axb", *ODD)
    async with (
        two.subscribe() as everything,
        two.subscribe("order.*") as orders,
        two.subscribe(r"a\*b") as star,
        two.subscribe("a*b") as between,
    ):
        literal = {name: await two.subscribe(name.replace("*", r"\*")) for name in names}
        for number, name in enumerate(names):
            await one.trigger(name, number)
        await one.trigger("order.end", -1)
        heard = await take(everything, len(names) + 1)
        assert [m.event for m in heard if isinstance(m, Message)] == [*names, "order.end"]
        assert data(await take(orders, 3)) == [0, 1, -1]
        assert data(await take(star, 1)) == [3]
        assert [m.event for m in await take(between, 3)] == ["a*b", "axb", "a\nb\r\n"][:2] + [  # type: ignore[union-attr]
            n for n in ODD if n.startswith("a") and n.endswith("b")
        ]
        for number, name in enumerate(names):
            assert data(await take(literal[name], 1)) == [number]
            literal[name].cancel()


async def test_buses_of_odd_names_are_apart(world: World) -> None:
    one, two = world.client(), world.client()
    got: list[tuple[str, Any]] = []

    def hears(name: str) -> Callable[[Any], None]:
        return lambda value: got.append((name, value))

    for name in ODD:
        await two.event_bus(name).on("x", hears(name))
    for name in ODD:
        await one.event_bus(name).trigger("x", name)
    await world.client(namespace=world.namespace + "-b").event_bus(ODD[0]).trigger("x", "other")
    await settled(lambda: len(got) == len(ODD))
    assert sorted(got) == sorted((name, name) for name in ODD)


async def test_once_is_once(world: World) -> None:
    one, two = world.client().event_bus(), world.client().event_bus()
    got: list[Any] = []

    async def callback(value: Any) -> None:
        got.append(value)
        await asyncio.sleep(0)

    async with two.subscribe("x") as events:
        await two.once("*", callback)
        for number in range(5):
            one.trigger("x", number)
        await take(events, 5)
        assert "cancelled" not in repr(events)
        await settled(lambda: got == [0])
        assert len(two._hub.subscribers()) == 1
    once = two.once("x", callback)
    once.cancel()
    assert not two._hub.subscribers()
    assert got == [0]


async def test_off_cancels_by_what_was_written(world: World) -> None:
    bus = world.client().event_bus()
    got: list[str] = []

    def first(value: Any) -> None:
        got.append("first")

    def second(value: Any) -> None:
        got.append("second")

    for callback in (first, second, first):
        await bus.on("x", callback)
    await bus.on("*", first)
    stream = await bus.subscribe("x")
    assert bus.off("nothing") == 0
    assert bus.off("x", print) == 0
    assert bus.off("x", first) == 2
    await bus.trigger("x")
    await settled(lambda: sorted(got) == ["first", "second"])
    assert bus.off("x") == 1
    assert bus.off("*") == 1
    assert bus.off("x") == 0
    await bus.trigger("x")
    assert len(await take(stream, 2)) == 2
    assert sorted(got) == ["first", "second"]
    stream.cancel()
    assert not bus._hub.subscribers()


async def test_wait_for_returns_the_next_message(world: World) -> None:
    one, two = world.client().event_bus(), world.client().event_bus()
    await one.trigger("order.a", "before")
    async with two.subscribe("begin"):
        waiting = [asyncio.create_task(two.wait_for("order.*", timeout=5)) for _ in range(3)]
        await settled(lambda: len(two._hub.subscribers()) == 4)
        await one.trigger("x")
        await one.trigger("order.b", 1)
        await one.trigger("order.c", 2)
        for message in await asyncio.gather(*waiting):
            assert (message.event, message.data) == ("order.b", 1)
        assert len(two._hub.subscribers()) == 1


@pytest.mark.parametrize("timeout", [0.05, 0])
async def test_wait_for_ends_in_time(world: World, timeout: float) -> None:
    bus = world.client().event_bus("jobs")
    with pytest.raises(dsync.WaitTimeout, match=rf"no event 'x' on bus 'jobs' within {timeout}"):
        await bus.wait_for("x", timeout=timeout)
    assert not bus._hub.subscribers()
    waiting = asyncio.create_task(bus.wait_for("x"))
    await settled(lambda: len(bus._hub.subscribers()) == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not bus._hub.subscribers()


async def test_wait_for_does_not_return_what_was_stalled_before_it(world: World) -> None:
    bus = world.client().event_bus()
    async with bus.subscribe("x", maxsize=1, overflow="block") as events:
        for number in range(3):
            await bus.trigger("x", number)
        await settled(lambda: len(bus._hub._backlog) == 2)
        waiting = asyncio.create_task(bus.wait_for("x", timeout=5))
        await settled(lambda: len(bus._hub.subscribers()) == 2)
        await bus.trigger("x", 3)
        assert data(await take(events, 4)) == [0, 1, 2, 3]
        assert (await waiting).data == 3


# -- live when awaited -----------------------------------------------------------------------------


async def test_what_is_triggered_after_await_on_is_never_missed(world: World) -> None:
    one, two = world.client(), world.client()
    for number in range(40):
        got: list[int] = []
        subscription = await two.event_bus(f"b{number}").on("x", got.append)
        await one.event_bus(f"b{number}").trigger("x", number)
        await settled(lambda got=got: bool(got))  # type: ignore[misc]
        assert got == [number]
        subscription.cancel()


async def test_what_is_triggered_after_subscribing_again_is_never_missed(world: World) -> None:
    one, two = world.client().event_bus(), world.client().event_bus()
    for number in range(40):
        async with asyncio.timeout(1), two.subscribe("x") as events:
            one.trigger("x", number)
            assert data(await take(events, 1)) == [number]
            if number % 2:
                await one.trigger("x", "unheard")


def held_back(bus: dsync.EventBus) -> list[Callable[[], None]]:
    """Answers for this bus, to be delivered when the test says so."""
    answers: list[Callable[[], None]] = []
    record_run = bus._hub._record.run

    def late(transition: str, done: Any, /, **args: Any) -> None:
        record_run(transition, lambda call: answers.append(lambda: done(call)), **args)

    bus._hub._record = type("Late", (), {"run": staticmethod(late)})()
    return answers


def begun(stream: dsync.Stream) -> dsync.Stream:
    """It is being entered; the answer is on its way."""
    stream.__await__()
    return stream


async def test_a_stream_that_was_not_entered_hears_nothing_and_holds_up_nobody(
    world: World,
) -> None:
    bus = world.client().event_bus()
    never = bus.subscribe("x", maxsize=1, overflow="block")
    async with bus.subscribe("x") as events:
        for number in range(3):
            await bus.trigger("x", number)
        assert data(await take(events, 3)) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="hears nothing yet: enter it by `async with"):
        await anext(never)
    assert not bus._hub.subscribers()


@pytest.mark.parametrize("counted", [True, False])
async def test_what_comes_before_the_first_answer_is_counted_or_heard(
    real: World, counted: bool
) -> None:
    bus, other = real.client().event_bus(), real.client().event_bus()
    looked = held_back(bus)
    events = begun(bus.subscribe("x"))
    await settled(lambda: len(looked) == 2)
    for number in range(3):
        await other.trigger("x", number)
    await settled(lambda: len(bus._hub._early) == 3)
    if counted:
        bus._hub._ask()
        await settled(lambda: len(looked) == 3)
    looked[-1]()
    assert events.live
    await other.trigger("x", 3)
    expected = [3] if counted else [0, 1, 2, 3]
    assert data(await take(events, len(expected))) == expected
    events.cancel()


async def test_a_look_from_before_it_left_makes_nobody_live(real: World) -> None:
    """What was answered for an earlier subscription says nothing about the new one."""
    bus = real.client().event_bus()
    await bus.trigger("warm")
    looked = held_back(bus)
    first = begun(bus.subscribe("x"))
    await settled(lambda: len(looked) == 2)
    first.cancel()
    second = begun(bus.subscribe("x"))
    await settled(lambda: len(looked) == 4)
    for answer in looked[:2]:
        answer()
    assert not second.live
    assert bus._hub._position is None
    looked[3]()
    assert second.live
    second.cancel()


async def test_each_new_object_of_a_bus_continues_where_the_last_one_was(world: World) -> None:
    one, two = world.client(), world.client().event_bus()
    async with two.subscribe("x") as events:
        for number in range(5):
            await one.event_bus().trigger("x", number)
            gc.collect()
        assert data(await take(events, 5)) == list(range(5))


async def test_awaiting_what_was_cancelled_ends(world: World) -> None:
    bus = world.client().event_bus()
    subscription = bus.on("x", print)

    async def wait() -> None:
        await subscription

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    subscription.cancel()
    subscription.cancel()
    await asyncio.wait([waiting], timeout=2)
    assert waiting.done()


async def test_who_is_cancelled_while_it_enters_leaves_nothing(world: World) -> None:
    bus = world.client().event_bus()

    async def enter() -> None:
        async with bus.subscribe():
            raise AssertionError

    entering = asyncio.create_task(enter())
    if world.kind != "memory":  # there it is entered at once
        await asyncio.sleep(0)
        assert len(bus._hub.subscribers()) == 1
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    assert entering.cancelled()
    assert not bus._hub.subscribers()


async def test_a_stream_that_was_cancelled_ends(world: World) -> None:
    bus = world.client().event_bus()
    async with bus.subscribe("x") as events:
        await bus.trigger("x", 1)
        async for message in events:
            assert data([message]) == [1]
            events.cancel()
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_subscription_that_could_not_be_sent_is_sent_again(world: World) -> None:
    if world.kind != "fakeredis":
        pytest.skip("elsewhere it is not redis-py that subscribes")
    client = world.client()
    await client.check()
    link: Any = client.store.link  # type: ignore[attr-defined]
    subscribe, broken = link._pubsub.subscribe, [redis.exceptions.ConnectionError("broke")]

    async def breaks_once(*channels: str) -> None:
        if broken:
            raise broken.pop()
        await subscribe(*channels)

    link._pubsub.subscribe = breaks_once
    got: list[int] = []
    async with asyncio.timeout(5):
        await client.event_bus().on("x", got.append)
    assert not broken
    await client.event_bus().trigger("x", 1)
    await settled(lambda: got == [1])


# -- connections and subscriptions -----------------------------------------------------------------


async def connections(world: World, client: dsync.Client) -> int:
    return sum(f"dsync:{client.client_id}" == c["name"] for c in await world.admin.client_list())


async def subscribed(world: World, *buses: dsync.EventBus) -> list[int]:
    channels = [bus._hub.channel for bus in buses]
    return [count for _, count in await world.admin.pubsub_numsub(*channels)]


@ONE_CONNECTION
async def test_one_connection_and_one_subscription_however_many_subscribers(real: World) -> None:
    client = real.client()
    buses = [client.event_bus(f"b{i}") for i in range(10)]
    subscriptions: list[Any] = []
    for bus in buses:
        subscriptions += [await bus.on("x" if i % 2 else "*", print) for i in range(10)]
        subscriptions.append(await bus.subscribe("x"))
    assert await connections(real, client) == 1
    assert await subscribed(real, *buses) == [1] * 10
    for subscription in subscriptions[1:]:
        subscription.cancel()
    await client.check()
    assert await subscribed(real, *buses) == [1] + [0] * 9
    subscriptions[0].cancel()
    await client.check()
    assert await subscribed(real, *buses) == [0] * 10
    assert await connections(real, client) == 1


@ONE_CONNECTION
async def test_a_subscription_costs_nothing_but_a_look_in_a_while(real: World) -> None:
    client = real.client()
    bus = client.event_bus()
    await bus.on("x", print)
    bus._hub._on_beat(False)
    assert bus._hub._asking == 1
    bus._hub._on_beat(False)  # the first is not answered yet
    assert bus._hub._asking == 1
    await client.check()
    assert bus._hub._asking == 0
    bus.off("x")
    assert bus._hub._beat._timer is None


@ONE_CONNECTION
async def test_buses_that_are_quiet_share_one_look(real: World) -> None:
    """What it is for is to see whether the connection is alive."""
    client = real.client()
    buses = [client.event_bus(f"b{i}") for i in range(10)]
    for bus in buses:
        await bus.on("x", print)
    await settled(lambda: not any(bus._hub._asking for bus in buses))
    client._probed = float("-inf")  # as if the last beat were long ago
    for _ in range(2):
        for bus in buses:
            bus._hub._on_beat(False)
        assert sum(bus._hub._asking for bus in buses) == 1


async def test_where_nothing_can_break_nobody_looks() -> None:
    bus = dsync.local.EventBus()
    await bus.on("x", print)
    assert bus._hub._beat._timer is None


# -- messages --------------------------------------------------------------------------------------


async def test_messages_say_where_they_come_from(world: World) -> None:
    clients = [world.client(label=f"l{i}") for i in range(2)]
    one, two = (client.event_bus() for client in clients)
    async with one.subscribe() as here, two.subscribe() as there:
        await one.trigger("x", 1)
        await two.trigger("x", 2)
        for events, local in ((here, [True, False]), (there, [False, True])):
            messages = await take(events, 2)
            assert [m.origin for m in messages] == [c.client_id for c in clients]  # type: ignore[union-attr]
            assert [m.is_local for m in messages] == local  # type: ignore[union-attr]
            assert messages[0].sequence < messages[1].sequence  # type: ignore[union-attr]


async def test_messages_come_in_order_of_their_publisher_and_of_their_numbers(
    world: World,
) -> None:
    buses = [world.client().event_bus() for _ in range(3)]
    streams = [await bus.subscribe(maxsize=10_000) for bus in buses]

    async def publish(number: int) -> None:
        for i in range(300):
            reply = buses[number].trigger(f"e{number}", i)
            if i % 50 == 0 or i == 299:
                await reply

    await asyncio.gather(*map(publish, range(3)))
    everything = []
    for stream in streams:
        messages = await take(stream, 900, within=20)
        assert all(isinstance(m, Message) for m in messages)
        everything.append([(m.event, m.data, m.sequence) for m in messages])  # type: ignore[union-attr]
        numbers = [m.sequence for m in messages]  # type: ignore[union-attr]
        assert numbers == list(range(numbers[0], numbers[0] + 900))
        for number in range(3):
            assert [m.data for m in messages if m.event == f"e{number}"] == list(range(300))  # type: ignore[union-attr]
        stream.cancel()
    assert everything[0] == everything[1] == everything[2]


async def test_what_was_triggered_is_sent_though_the_client_closes(world: World) -> None:
    one, two = world.client(), world.client().event_bus()
    async with two.subscribe(maxsize=10_000) as events:
        bus = one.event_bus()
        for number in range(2000):
            bus.trigger("x", number)
        await one.aclose()
        assert data(await take(events, 2000)) == list(range(2000))


@pytest.mark.parametrize("codec", [None, pickle, json])
async def test_no_subscriber_can_change_what_another_gets(world: World, codec: Any) -> None:
    bus = world.client().event_bus(codec=codec)
    sent = {"list": [1]}
    got: list[Any] = []

    def spoil(value: Any) -> None:
        got.append(dict(value))
        value["list"].append("spoilt")
        value.clear()

    await bus.on("x", spoil)
    await bus.on("x", spoil)
    async with bus.subscribe("*") as events:
        reply = bus.trigger("x", sent)
        sent["list"].append(2)
        await reply
        assert data(await take(events, 1)) == [{"list": [1]}]
    await settled(lambda: len(got) == 2)
    assert [list(value) for value in got] == [["list"]] * 2


class Packer:
    def encode(self, value: Any) -> bytes:
        return repr(value).encode()

    def decode(self, payload: bytes) -> Any:
        return eval(payload)


@pytest.mark.parametrize(
    ("codec", "value"),
    [(pickle, {(1, 2): {3}}), (Packer(), {(1, 2): {3}}), (bytes, b"\0 \xff\r\n"), (bytes, b"")],
    ids=["pickle", "packer", "bytes", "nothing"],
)
async def test_codecs(world: World, codec: Any, value: Any) -> None:
    one, two = world.client().event_bus(codec=codec), world.client().event_bus(codec=codec)
    async with two.subscribe() as events:
        await one.trigger("x", value)
        assert data(await take(events, 1)) == [value]


async def test_what_cannot_be_sent_raises_in_trigger_and_is_not_sent(world: World) -> None:
    bus = world.client().event_bus(max_size=100)
    async with bus.subscribe() as events:
        with pytest.raises(TypeError, match=r"event 'a\.b': json cannot encode its data, a set"):
            bus.trigger("a.b", {1})
        with pytest.raises(
            ValueError, match=r"event a\.ü: its name and data are 101.*max_size=100"
        ):
            bus.trigger("a.ü", "x" * 95)
        await bus.trigger("a.ü", "x" * 94)
        assert data(await take(events, 1)) == ["x" * 94]
    with pytest.raises(ValueError, match="max_size=1048576"):
        world.client().event_bus().trigger("x", "x" * 2**20)


async def test_large_messages_and_bursts_of_them_arrive(world: World) -> None:
    one, two = world.client().event_bus(), world.client().event_bus()
    async with two.subscribe() as events:
        for number in range(6):
            one.trigger("x", [number, "x" * 1_000_000])
        async with asyncio.timeout(20):
            got = data(await take(events, 6))
        assert [number for number, _ in got] == list(range(6))


# -- what goes wrong -------------------------------------------------------------------------------


async def foreign(world: World) -> str:
    """Somebody else's value is where the state of the bus belongs."""
    if world.admin is None:
        pytest.skip("memory has no keys of somebody else")
    key = world.key("bus", "default", "state")
    await world.admin.set(key, "mine", ex=60)
    return key


async def test_a_trigger_that_fails_raises_or_is_reported(world: World) -> None:
    key = await foreign(world)
    bus = world.client().event_bus()
    with pytest.raises(dsync.ForeignKey):
        await bus.trigger("x")
    assert not world.errors
    bus.trigger("x")
    await settled(lambda: (gc.collect(), len(world.errors))[1] == 1)
    assert isinstance(told(world)[0], dsync.ForeignKey)
    await world.admin.delete(key)
    await bus.trigger("x")


async def test_a_bus_that_cannot_be_asked_says_so_to_who_awaits_and_else_to_the_hook(
    world: World,
) -> None:
    key = await foreign(world)
    bus = world.client().event_bus()
    got: list[Any] = []
    bus.on("x", got.append)
    with pytest.raises(dsync.ForeignKey):
        await bus.on("y", got.append)
    with pytest.raises(dsync.ForeignKey):
        await bus.wait_for("y", timeout=5)
    await settled(lambda: len(world.errors) == 1)
    assert isinstance(told(world)[0], dsync.ForeignKey)
    # Nobody told the first one that it is over, so it is not.
    await world.admin.delete(key)
    bus._hub._ask()
    await settled(lambda: bus._hub.subscribers()[0].live)
    await bus.trigger("x", 1)
    await settled(lambda: got == [1])


async def test_who_waits_for_a_bus_that_could_not_be_asked_before_is_told_too(world: World) -> None:
    await foreign(world)
    bus = world.client().event_bus()
    bus.on("x", print)
    await settled(lambda: bool(world.errors))
    await settled(lambda: not bus._hub._asking, "nothing is asked any more")
    with pytest.raises(dsync.ForeignKey):
        await bus.wait_for("y", timeout=5)
    world.errors.clear()


async def test_a_user_without_rights_on_the_channel_is_told(real: World) -> None:
    name = f"u{uuid.uuid4().hex[:8]}"
    await real.admin.acl_setuser(
        name, enabled=True, passwords=["+p"], keys=["*"], channels=[], commands=["+@all"],
        reset=True,
    )  # fmt: skip
    try:
        url = real.url_of(name, "p")
        client = dsync.Client(url, namespace=real.namespace, on_error=real.errors.append)
        real.clients.append(client)
        bus = client.event_bus()
        async with asyncio.timeout(5):
            with pytest.raises(dsync.StoreUnavailable, match=r"does not allow this user.*&"):
                await bus.on("x", print)
            with pytest.raises(dsync.StoreUnavailable, match="does not allow this user"):
                await bus.wait_for("x", timeout=3)
            with pytest.raises(dsync.StoreUnavailable):
                await bus.trigger("x")
        assert not real.errors
        bus.on("x", print)
        await settled(lambda: len(real.errors) == 1)
        assert isinstance(told(real)[0], dsync.StoreUnavailable)
        assert not bus._hub.subscribers()
    finally:
        await real.admin.acl_deluser(name)


@ONE_CONNECTION
@pytest.mark.parametrize("refused", ["another", "its own"])
async def test_of_channels_that_are_refused_after_a_reconnect_only_those_are_lost(
    real: World, refused: str
) -> None:
    name = f"u{uuid.uuid4().hex[:8]}"
    inbox, buses = (f"{real.namespace}:{kind}:*" for kind in ("inbox", "bus"))
    await real.admin.acl_setuser(
        name, enabled=True, passwords=["+p"], keys=["*"], channels=[inbox, buses],
        commands=["+@all"], reset=True,
    )  # fmt: skip
    try:
        url = real.url_of(name, "p")
        client = dsync.Client(url, namespace=real.namespace, on_error=real.errors.append)
        real.clients.append(client)
        bus, got = client.event_bus(), list[int]()
        subscription = await bus.on("x", got.append)
        if refused == "another":
            await client.event("e").is_set()  # it would listen, and asks where it cannot
        else:  # the server hangs up on him
            await real.admin.acl_setuser(name, enabled=True, channels=[inbox], reset_channels=True)
        if refused == "another":
            await client.check()
            await real.admin.client_kill_filter(user=name)
            await settled(lambda: not client.listening())
            await client.check()
            await real.client().event_bus().trigger("x", 1)
            await settled(lambda: got == [1])
        else:
            # Who awaited it was told that it is live, so the hook is told that it is no more.
            await settled(lambda: len(real.errors) == 1)
            (error,) = told(real)
            assert isinstance(error, dsync.StoreUnavailable)
            assert "does not allow this user" in str(error)
            assert "cancelled" in repr(subscription)
        await client.aclose()
    finally:
        await real.admin.acl_deluser(name)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"hello", b"1 2", b"1 2 origin", b"x 2 o e d", b"1 x o e d", b"\xff 1 o e d",
     b"1 1 \xff e d", b"1 1 o \xff d"],
)  # fmt: skip
async def test_garbage_of_somebody_else_is_reported_once_and_skipped(
    world: World, garbage: bytes
) -> None:
    bus = world.client().event_bus()
    async with bus.subscribe() as events, bus.subscribe("x") as others:
        await bus.trigger("x", 1)
        if world.admin is None:
            bus._hub.client.news(bus._hub.channel, garbage)
        else:
            await world.admin.publish(bus._hub.channel, garbage)
        await settled(lambda: len(world.errors) == 1)
        await bus.trigger("x", 2)
        assert data(await take(events, 2)) == data(await take(others, 2)) == [1, 2]
    (error,) = told(world)
    assert isinstance(error, dsync.BadMessage)
    assert "bus 'default': somebody else wrote on its channel" in str(error)


async def test_data_of_another_codec_are_reported_and_skipped(world: World) -> None:
    one, two = world.client(), world.client().event_bus()
    got: list[Any] = []
    await two.on("*", got.append)
    async with two.subscribe() as events:
        await one.event_bus(codec=pickle).trigger("a.b", 1)
        await one.event_bus().trigger("a.b", 2)
        assert data(await take(events, 1)) == [2]
        await settled(lambda: got == [2])
    errors = told(world)
    assert len(errors) == 2  # each of the two would have had it
    for error in errors:
        assert isinstance(error, dsync.BadMessage)
        assert "json cannot decode the data of event 'a.b' from " + one.client_id in str(error)


async def test_a_failing_callback_is_named_and_hinders_nobody(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    bus = world.client().event_bus("jobs")
    got: list[int] = []

    async def broken(value: int) -> None:
        got.append(value)
        if value == 0:
            raise LookupError("no such job")

    def breaks(value: int) -> None:
        raise OSError("disk")

    def fine(value: int) -> None:
        got.append(10 + value)

    for callback in (broken, breaks, fine):
        await bus.on("a.*", callback)
    for number in range(2):
        await bus.trigger("a.b", number)
    await settled(lambda: len(got) == 4 and len(world.errors) == 3)
    assert sorted(got) == [0, 1, 10, 11]
    notes = {(type(e), e.__notes__[0]) for e in told(world)}
    assert {kind for kind, _ in notes} == {LookupError, OSError}
    for _, note in notes:
        assert "on event 'a.b' of bus 'jobs'" in note
        assert "broken" in note or "breaks" in note
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("LookupError: no such job" in text and "broken" in text for text in logged)


async def test_without_a_hook_the_loop_hears_of_it(
    world: World, loop_errors: list[dict[str, Any]]
) -> None:
    bus = world.client(on_error=None).event_bus()

    def breaks(value: int) -> None:
        raise OSError("disk")

    await bus.on("x", breaks)
    await bus.trigger("x")
    await settled(lambda: len(loop_errors) == 1)
    assert "bus 'default': a message was not handled" in loop_errors.pop()["message"]


async def test_a_callback_that_is_cancelled_from_within_goes_on_with_the_next(
    world: World,
) -> None:
    bus = world.client().event_bus()
    got: list[int] = []

    async def callback(value: int) -> None:
        got.append(value)
        if value == 0:
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled
        elif value == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(10)

    await bus.on("x", callback)
    for number in range(4):
        await bus.trigger("x", number)
        await settled(lambda: len(got) == number + 1)  # noqa: B023
    assert [type(error) for error in told(world)] == [asyncio.CancelledError]


class Ends(BaseException):
    """No Exception: what calls the callback does not catch it."""


@pytest.mark.parametrize("how", ["cancels itself", "raises"])
async def test_a_callback_that_ends_its_task_is_called_with_what_waits(
    world: World, loop_errors: list[dict[str, Any]], how: str
) -> None:
    bus = world.client().event_bus()
    may_go = asyncio.Event()
    got: list[int] = []

    async def callback(value: int) -> None:
        got.append(value)
        if value == 0:
            await may_go.wait()
            if how == "raises":
                raise Ends
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    await bus.on("x", callback, maxsize=2, overflow="block")
    async with bus.subscribe("x") as events:
        for number in range(10):
            await bus.trigger("x", number)
        await settled(lambda: len(bus._hub._backlog) == 7)
        may_go.set()
        assert data(await take(events, 10)) == list(range(10))
    await settled(lambda: got == list(range(10)))
    gc.collect()
    assert [type(e["exception"]) for e in loop_errors] == ([Ends] if how == "raises" else [])
    loop_errors.clear()


async def test_an_error_that_is_raised_again_and_again_does_not_grow(world: World) -> None:
    bus = world.client().event_bus()
    error = OSError("no database")
    error.add_note("its own")

    def breaks(value: int) -> None:
        raise error

    await bus.on("x", breaks)
    for number in range(5):
        await bus.trigger("x", number)
        await settled(lambda: len(world.errors) == number + 1)  # noqa: B023
    assert told(world) == [error] * 5
    own, dsyncs = error.__notes__
    assert own == "its own"
    assert "breaks on event 'x' of bus 'default'" in dsyncs


async def test_a_slow_callback_delays_nobody_else(world: World) -> None:
    client = world.client()
    bus = client.event_bus()
    may_go = asyncio.Event()
    slow: list[int] = []

    async def callback(value: int) -> None:
        slow.append(value)
        await may_go.wait()

    await bus.on("x", callback)
    async with bus.subscribe("x") as events:
        for number in range(10):
            await bus.trigger("x", number)
        assert data(await take(events, 10)) == list(range(10))
    async with asyncio.timeout(1), client.lock("x"):
        await client.event_bus("other").trigger("x")
    await settled(lambda: bool(slow))
    assert slow == [0]
    may_go.set()
    await settled(lambda: slow == list(range(10)))


async def test_sync_callbacks_leave_the_loop_to_others(world: World) -> None:
    bus = world.client().event_bus()
    got: list[int] = []
    ticks: set[int] = set()
    tick = 0
    await bus.on("x", got.append)
    await bus.on("x", lambda value: ticks.add(tick))
    for number in range(50):
        bus.trigger("x", number)
    while len(got) < 50:
        await asyncio.sleep(0)
        tick += 1
    assert got == list(range(50))
    await settled(lambda: len(ticks) > 40, "it lets others run between two calls")


async def test_a_subscriber_may_leave_in_its_own_callback(world: World) -> None:
    bus = world.client().event_bus()
    got: list[tuple[str, int]] = []

    async def leave(value: int) -> None:
        subscription.cancel()
        await asyncio.sleep(0)
        got.append(("leave", value))  # it comes to its end

    def off(value: int) -> None:
        bus.off("x", off)
        got.append(("off", value))

    subscription = await bus.on("x", leave)
    await bus.on("x", off)
    async with bus.subscribe("x") as events:
        for number in range(3):
            bus.trigger("x", number)
        await take(events, 3)
    await settled(lambda: sorted(got) == [("leave", 0), ("off", 0)])
    assert not bus._hub.subscribers()
    assert "cancelled" in repr(subscription)


async def test_a_subscriber_may_come_in_a_callback(world: World) -> None:
    bus = world.client().event_bus()
    got: list[str] = []

    async def callback(value: Any) -> None:
        if value == 0:
            await bus.on("x", lambda value: got.append(f"new {value}"))
            bus.trigger("x", 1)

    await bus.on("x", callback)
    await bus.trigger("x", 0)
    await settled(lambda: got == ["new 1"])


# -- gaps ------------------------------------------------------------------------------------------


async def test_a_gap_stands_where_messages_were_lost_and_counts_them(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, client = world.client().event_bus(), world.client()
    two = client.event_bus()
    gaps: list[Gap] = []
    got: list[Any] = []
    await two.on("x", got.append, on_gap=gaps.append)
    await two.on("x", print)
    async with two.subscribe("x") as events:
        await one.trigger("x", 1)
        assert data(await take(events, 1)) == [1]
        await lose(client, one, "x", "x", "other")
        await one.trigger("x", 2)
        await one.trigger("x", 3)
        assert data(await take(events, 3)) == ["gap 3", 2, 3]
        await settled(lambda: got == [1, 2, 3])
        assert gaps == [Gap(3)]
    await settled(lambda: "a callback has missed 3 messages" in caplog.text)


async def test_a_failing_on_gap_is_reported(world: World) -> None:
    client = world.client()
    bus, got = client.event_bus(), list[Any]()

    def on_gap(gap: Gap) -> None:
        raise LookupError

    await bus.on("x", got.append, on_gap=on_gap)
    await lose(client, world.client().event_bus(), "x")
    await bus.trigger("x", 1)
    await settled(lambda: got == [1])
    (error,) = told(world)
    assert "on_gap on a gap of bus 'default'" in error.__notes__[0]


async def test_a_gap_is_noticed_without_another_message(world: World) -> None:
    """After a reconnect, and by the beat."""
    client = world.client()
    bus = client.event_bus()
    async with bus.subscribe() as events:
        await bus.trigger("x", 1)
        assert data(await take(events, 1)) == [1]
        await lose(client, world.client().event_bus(), "x", "x")
        client.gap()
        assert data(await take(events, 1)) == ["gap 2"]
        client.gap()
        await bus.trigger("x", 2)
        assert data(await take(events, 1)) == [2]


async def test_nobody_knows_how_many_when_the_server_has_lost_its_data(world: World) -> None:
    one, two = world.client().event_bus(), world.client().event_bus()
    async with two.subscribe() as events:
        await one.trigger("x", 1)
        await forget_everything(world)
        await one.trigger("x", 2)
        await one.trigger("x", 3)
        assert data(await take(events, 4)) == [1, "gap None", 2, 3]


async def test_before_the_first_message_there_is_no_gap(world: World) -> None:
    client = world.client()
    bus = client.event_bus()
    async with bus.subscribe() as events:
        await lose(client, world.client().event_bus(), "x", "x")
        await bus.trigger("x", 1)
        assert data(await take(events, 2)) == ["gap 2", 1]


async def test_numbers_that_are_given_again_are_a_gap_and_not_silence(world: World) -> None:
    """The server came back with an older copy of its data, or a replica has taken over."""
    client = world.client()
    bus = client.event_bus()
    async with bus.subscribe() as events:
        for number in range(5):
            await bus.trigger("x", number)
        assert len(await take(events, 5)) == 5
        if world.admin is None:
            memory = client.store.memory  # type: ignore[attr-defined]
            (state,) = memory.records.values()
            state.number -= 3
        else:
            await world.admin.hincrby(world.key("bus", "default", "state"), "sequence", -3)
        client.gap()
        assert data(await take(events, 1)) == ["gap None"]
        await bus.trigger("x", "new")
        assert data(await take(events, 1)) == ["new"]


async def test_an_answer_that_messages_have_overtaken_is_no_gap(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they come by different ways, an answer may be older than what was heard."""
    monkeypatch.setattr(hub, "GRACE", 0.02)
    loop = asyncio.get_running_loop()
    client = world.client()
    bus, other = client.event_bus(), world.client().event_bus()
    async with bus.subscribe() as events:
        client.gap()  # answered before there was any message
        await client.check()
        asked = loop.time()
        for number in range(5):
            await other.trigger("x", number)
            assert data(await take(events, 1)) == [number]
            client.gap()
            await client.check()
        await settled(lambda: loop.time() > asked + 0.1, "every answer has been looked at")
        await other.trigger("x", "end")
        assert data(await take(events, 1)) == ["end"]


async def test_a_user_with_the_documented_rights_can_use_it(real: World) -> None:
    name = f"u{uuid.uuid4().hex[:8]}"
    await real.admin.acl_setuser(
        name, enabled=True, passwords=["+p"], keys=[f"{{{real.namespace}:*"],
        channels=[f"{real.namespace}:*"], reset=True,
        commands=["+@read", "+@write", "+@scripting", "+@pubsub", "+time", "+ping",
                  "+client|setname"],
    )  # fmt: skip
    try:
        url = real.url_of(name, "p")
        client = dsync.Client(url, namespace=real.namespace, on_error=real.errors.append)
        real.clients.append(client)
        async with client.event_bus("a b").subscribe() as events:
            await client.event_bus("a b").trigger("x", 1)
            assert data(await take(events, 1)) == [1]
        await client.aclose()
    finally:
        await real.admin.acl_deluser(name)


class Gate:
    """Holds back a client's next connections."""

    def __init__(self, client: dsync.Client) -> None:
        link: Any = client.store.link  # type: ignore[attr-defined]
        self.open = asyncio.Event()
        dial = link._dial

        async def wait_and_dial() -> Any:
            await self.open.wait()
            return await dial()

        link._dial = wait_and_dial


@ONE_CONNECTION
async def test_what_is_lost_while_the_connection_is_down_is_counted(real: World) -> None:
    one, client = real.client().event_bus(), real.client()
    two, other = client.event_bus(), client.event_bus("other")
    await one.trigger("x", 0)
    async with two.subscribe() as events, other.subscribe() as quiet:
        for round in range(3):
            await one.trigger("x", "before")
            gate = Gate(client)
            await real.admin.client_kill_filter(_type="pubsub", skipme=True)
            await settled(lambda: not client.listening())
            for _ in range(round):
                await one.trigger("x", "lost")
            gate.open.set()
            await client.check()
            await one.trigger("x", "after")
            gap = [f"gap {round}"] if round else []
            assert data(await take(events, 2 + len(gap))) == ["before", *gap, "after"]
        await other.trigger("x", 1)
        assert data(await take(quiet, 1)) == [1]


@ONE_CONNECTION
async def test_who_comes_while_the_connection_is_down_is_live_when_it_is_back(
    real: World,
) -> None:
    """And is told of nothing that was lost before."""
    one, client = real.client().event_bus(), real.client()
    two = client.event_bus()
    async with two.subscribe() as older:
        await one.trigger("x", "before")
        gate = Gate(client)
        await real.admin.client_kill_filter(_type="pubsub", skipme=True)
        await settled(lambda: not client.listening())
        for _ in range(7):
            await one.trigger("x", "lost")
        younger = begun(two.subscribe("x"))
        assert not younger.live
        gate.open.set()
        async with younger:
            assert client.listening()
            await one.trigger("x", "after")
            assert data(await take(younger, 1)) == ["after"]
        assert data(await take(older, 3)) == ["before", "gap 7", "after"]


# -- overflow --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overflow", "expected"),
    [
        ("drop_oldest", ["gap 4", 4, 5, 6, "then"]),
        ("drop_newest", [0, 1, 2, "gap 4", "then"]),
        ("block", [0, 1, 2, 3, 4, 5, 6, "then"]),
    ],
)
async def test_what_does_not_fit_is_counted_in_its_place(
    world: World, overflow: Any, expected: list[Any]
) -> None:
    bus = world.client().event_bus()
    async with (
        bus.subscribe("x", maxsize=3, overflow=overflow) as events,
        bus.subscribe("*") as end,
    ):
        for number in range(7):
            bus.trigger("x", number)
        await bus.trigger("end")
        if overflow != "block":
            await take(end, 8)
        else:
            await settled(lambda: len(bus._hub._backlog) == 5)
        got = data(await take(events, 3))
        await bus.trigger("x", "then")
        got += data(await take(events, len(expected) - 3))
        assert got == expected


async def test_drops_of_both_ends_add_up(world: World) -> None:
    bus = world.client().event_bus()
    async with (
        bus.subscribe("x", maxsize=2) as oldest,
        bus.subscribe("x", maxsize=2, overflow="drop_newest") as newest,
        bus.subscribe("x", maxsize=10_000) as all_,
    ):
        got: list[list[Item]] = [[], []]
        sent = 0
        for burst in (3, 1, 7, 2, 5, 0, 9):
            for _ in range(burst):
                bus.trigger("x", sent)
                sent += 1
            await bus.trigger("other")
            await take(all_, burst)
            for i, stream in enumerate((oldest, newest)):
                if burst % 3:
                    got[i] += await take(stream, 1)
        for i, stream in enumerate((oldest, newest)):
            while stream._queue:
                got[i] += await take(stream, 1)
            seen = [item.data for item in got[i] if isinstance(item, Message)]
            assert seen == sorted(seen)
            missed = sum(item.missed or 0 for item in got[i] if isinstance(item, Gap))
            assert len(seen) + missed == sent
            # A Gap says how many numbers are missing at its place.
            expected = 0
            for item in got[i]:
                if isinstance(item, Gap):
                    expected += item.missed or 0
                else:
                    assert item.data == expected
                    expected += 1


async def test_a_gap_and_an_overflow_become_one(world: World) -> None:
    client = world.client()
    bus = client.event_bus()
    async with bus.subscribe(maxsize=2) as events:
        await bus.trigger("x", 0)
        await settled(lambda: events._size == 1)
        await lose(client, world.client().event_bus(), "x", "x")
        for number in range(1, 4):
            await bus.trigger("x", number)
        await settled(lambda: bus._hub._heard == 4)
        assert data(await take(events, 3)) == ["gap 4", 2, 3]


async def test_a_callback_with_block_gets_everything_and_only_this_bus_waits(
    world: World,
) -> None:
    client, other = world.client(), world.client()
    bus = client.event_bus()
    may_go = asyncio.Event()
    blocker: list[int] = []
    sibling: list[Any] = []
    elsewhere: list[int] = []

    async def callback(value: int) -> None:
        blocker.append(value)
        await may_go.wait()

    await bus.on("x", callback, maxsize=2, overflow="block")
    await bus.on("*", sibling.append)
    await other.event_bus().on("x", elsewhere.append)
    async with client.event_bus("other").subscribe() as events:
        for number in range(20):
            await other.event_bus().trigger("x", number)
        await other.event_bus().trigger("y", "y")
        await settled(lambda: elsewhere == list(range(20)))
        await settled(lambda: len(bus._hub._backlog) == 18)
        await settled(lambda: sibling == [0, 1, 2])
        await client.event_bus("other").trigger("x", 1)
        assert data(await take(events, 1)) == [1]
    async with asyncio.timeout(1), client.lock("x"):
        pass
    assert blocker == [0]
    may_go.set()
    await settled(lambda: sibling == [*range(20), "y"])
    assert blocker == list(range(20))


async def test_a_blocker_that_leaves_lets_the_others_go_on(world: World) -> None:
    bus = world.client().event_bus()
    blocker = await bus.subscribe("x", maxsize=1, overflow="block")
    async with bus.subscribe("*") as events:
        for number in range(5):
            await bus.trigger("x", number)
        await settled(lambda: len(bus._hub._backlog) == 4)
        blocker.cancel()
        assert data(await take(events, 5)) == list(range(5))
        assert not bus._hub._backlog


async def test_what_waited_for_a_blocker_leaves_the_loop_to_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "SLICE", 10)
    bus = world.client().event_bus()
    waiting = bus._hub._backlog
    blocker = await bus.subscribe("x", maxsize=1, overflow="block")
    async with bus.subscribe("*") as events:
        for number in range(61):
            await bus.trigger("x", number)
        await settled(lambda: len(waiting) == 60)
        blocker.cancel()
        assert len(waiting) == 50
        reply = bus.trigger("x", 61)  # it comes behind them
        while before := len(waiting):
            await asyncio.sleep(0)
            assert before - len(waiting) <= 10
        await reply
        assert data(await take(events, 62)) == list(range(62))


async def test_what_waits_for_a_blocker_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MOST", 10)
    client = world.client()
    bus, other = client.event_bus(), world.client().event_bus()
    async with (
        bus.subscribe("x", maxsize=2, overflow="block") as events,
        bus.subscribe("*") as siblings,
    ):
        for number in range(50):
            await bus.trigger("x", number)
        await settled(lambda: bus._hub._heard == 50)
        assert len(bus._hub._backlog) <= 11
        for _ in range(30):  # gaps alone do not pass it either
            await lose(client, other, "y")
            client.gap()
            await client.check()
        await settled(lambda: world.kind == "fakeredis" or len(bus._hub._backlog) <= 12)
        async with asyncio.timeout(5):
            got, seen = [], 0
            while seen < 50:
                got.append(await anext(events))
                last = got[-1]
                seen += 1 if isinstance(last, Message) else last.missed or 0
        assert data(got)[:3] == [0, 1, f"gap {50 - 2 - len(data(got)[3:])}"]
        assert [item for item in data(got) if item == 49]
        first = data(await take(siblings, 3))
        assert first == [0, 1, data(got)[2]]


# -- streams ---------------------------------------------------------------------------------------


async def test_tasks_that_share_a_stream_get_each_message_once(world: World) -> None:
    bus = world.client().event_bus()
    async with bus.subscribe(maxsize=1000) as events:
        got: list[list[Any]] = [[] for _ in range(4)]

        async def work(number: int) -> None:
            async for message in events:
                got[number].append(message.data)  # type: ignore[union-attr]
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work(i)) for i in range(4)]
        for number in range(100):
            bus.trigger("x", number)
        await settled(lambda: sum(map(len, got)) == 100)
        assert sorted(value for values in got for value in values) == list(range(100))
        assert all(got)
        events.cancel()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("ticks", range(4))
async def test_a_task_that_is_cancelled_loses_no_message_for_the_others(
    world: World, ticks: int
) -> None:
    bus = world.client().event_bus()
    async with bus.subscribe() as events:
        for number in range(10):
            given_up = asyncio.create_task(anext(events))
            await asyncio.sleep(0)
            other = asyncio.create_task(anext(events))
            await asyncio.sleep(0)
            reply = bus.trigger("x", number)
            if ticks == 3:
                await reply
            for _ in range(ticks):
                await asyncio.sleep(0)
            given_up.cancel()
            results = await asyncio.gather(given_up, return_exceptions=True)
            if isinstance(results[0], Message):
                assert results[0].data == number  # it had it already
                other.cancel()
                await asyncio.gather(other, return_exceptions=True)
            else:
                message = await asyncio.wait_for(other, 5)
                assert data([message]) == [number]
        assert not events._takers


async def test_a_task_that_was_woken_and_is_cancelled_wakes_the_next(world: World) -> None:
    bus = world.client().event_bus()
    async with bus.subscribe() as events:
        first, second = (asyncio.create_task(anext(events)) for _ in range(2))
        await settled(lambda: len(events._takers) == 2)
        woken = events._takers[0]
        bus.trigger("x", 1)
        while not woken.done():  # not settled(): this very tick
            await asyncio.sleep(0)
        if not first.done():
            first.cancel()
        results = await asyncio.gather(first, return_exceptions=True)
        if isinstance(results[0], Message):
            pytest.skip("it was faster")
        assert data([await asyncio.wait_for(second, 2)]) == [1]


async def test_a_woken_task_that_is_cancelled_at_once_wakes_the_next(world: World) -> None:
    bus = world.client().event_bus()
    async with bus.subscribe() as events:
        first, second = (asyncio.create_task(anext(events)) for _ in range(2))
        await settled(lambda: len(events._takers) == 2)
        put = events.put

        def put_and_cancel(parcel: Any) -> None:
            put(parcel)
            first.cancel()

        events.put = put_and_cancel  # type: ignore[method-assign]
        await bus.trigger("x", 1)
        assert data([await asyncio.wait_for(second, 2)]) == [1]
        assert (await asyncio.gather(first, return_exceptions=True))[0] is not None
        assert first.cancelled()


# -- the end ---------------------------------------------------------------------------------------


async def test_a_stream_ends_with_its_client(world: World) -> None:
    client = world.client()
    bus = client.event_bus()
    events = await bus.subscribe()
    tasks = [asyncio.create_task(anext(events)) for _ in range(3)]
    tasks.append(asyncio.create_task(bus.wait_for("x")))
    await settled(lambda: len(events._takers) == 3 and len(bus._hub.subscribers()) == 2)
    await client.aclose()
    for task in tasks:
        with pytest.raises(dsync.ClientClosed, match="bus 'default': the client was closed"):
            await asyncio.wait_for(task, 2)
    for call in (lambda: bus.trigger("x"), lambda: bus.on("x", print)):
        with pytest.raises(dsync.ClientClosed):
            call()
    with pytest.raises(dsync.ClientClosed):
        await bus.subscribe()
    with pytest.raises(dsync.ClientClosed):
        await bus.wait_for("x", timeout=1)
    assert not bus._hub.subscribers()


async def test_a_callback_ends_with_its_client(world: World) -> None:
    client = world.client()
    bus = client.event_bus()
    ended: list[str] = []

    async def callback(value: Any) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append("cancelled")

    subscription = await bus.on("x", callback)
    for _ in range(3):
        await bus.trigger("x")
    await settled(lambda: subscription._task is not None and subscription._size == 2)
    await client.aclose()
    await settled(lambda: ended == ["cancelled"] and subscription._task is None)


async def test_a_callback_may_close_its_client(world: World) -> None:
    client = world.client()
    bus = client.event_bus()
    done: list[str] = []

    async def stop(value: Any) -> None:
        await bus.trigger("stopping")
        await client.aclose()
        await asyncio.sleep(0)
        done.append("closed")

    await bus.on("stop", stop)
    async with world.client().event_bus().subscribe("stopping") as events:
        await bus.trigger("stop")
        await take(events, 1)
    await settled(lambda: done == ["closed"])
    assert "closed" in repr(client)


async def test_a_client_on_another_loop_is_refused_and_nothing_stays(world: World) -> None:
    bus = world.client().event_bus()
    await bus.on("x", print)

    async def elsewhere() -> None:
        for call in (lambda: bus.on("x", print), lambda: bus.trigger("x")):
            with pytest.raises(RuntimeError, match="different event loop"):
                call()
        with pytest.raises(RuntimeError, match="different event loop"):
            await bus.subscribe()
        with pytest.raises(RuntimeError, match="different event loop"):
            await bus.wait_for("x", timeout=1)

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert len(bus._hub.subscribers()) == 1


async def test_bad_arguments_are_named(world: World) -> None:
    client = world.client()
    bus = client.event_bus()
    bad: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, "name must not be empty", lambda: client.event_bus("")),
        (TypeError, "name must be a str", lambda: client.event_bus(5)),  # type: ignore[arg-type]
        (TypeError, "codec must have", lambda: client.event_bus(codec=5)),
        (ValueError, "max_size", lambda: client.event_bus(max_size=0)),
        (TypeError, "max_size", lambda: client.event_bus(max_size=True)),
        (ValueError, "event must not be empty", lambda: bus.trigger("")),
        (TypeError, "event must be a str", lambda: bus.trigger(b"x")),  # type: ignore[arg-type]
        (ValueError, "event must be encodable", lambda: bus.trigger("\ud800")),
        (ValueError, "event must not be empty", lambda: bus.on("", print)),
        (TypeError, "event must be a str", lambda: bus.subscribe(5)),  # type: ignore[arg-type]
        (TypeError, "callback must be callable", lambda: bus.on("x", 5)),  # type: ignore[call-overload]
        (TypeError, "callback must be callable", lambda: bus.once("x", None)),  # type: ignore[arg-type]
        (TypeError, "on_gap must be callable", lambda: bus.on("x", print, on_gap=5)),  # type: ignore[call-overload]
        (ValueError, "maxsize", lambda: bus.on("x", print, maxsize=0)),
        (TypeError, "maxsize", lambda: bus.subscribe("x", maxsize=1.5)),  # type: ignore[arg-type]
        (ValueError, "overflow must be one of", lambda: bus.subscribe(overflow="drop")),  # type: ignore[arg-type]
        (ValueError, "overflow must be one of", lambda: bus.on("x", overflow="x")(print)),  # type: ignore[call-overload]
    ]
    for kind, text, call in bad:
        with pytest.raises(kind, match=text):
            call()
    with pytest.raises(ValueError, match="timeout"):
        await bus.wait_for("x", timeout=-1)
    assert not bus._hub.subscribers()


async def test_reprs(world: World) -> None:
    bus = world.client().event_bus("jobs")
    stream = await bus.subscribe("a.*")
    assert repr(bus).endswith(" 'jobs' [subscribers:1]>")
    assert repr(stream).endswith("Stream object to 'a.*' [0 queued]>") or "'a.*'" in repr(stream)
    stream.cancel()
    assert "[cancelled]" in repr(stream)


# -- dsync.local -----------------------------------------------------------------------------------


async def test_the_local_bus_is_a_bus_of_its_own() -> None:
    errors: list[BaseException] = []
    one = dsync.local.EventBus(on_error=errors.append)
    two = dsync.local.EventBus(codec=pickle, max_size=100)
    assert isinstance(one, dsync.EventBus)
    got: list[Any] = []

    @one.on("a.*")
    async def callback(value: Any) -> None:
        got.append(value)
        raise LookupError

    async with one.subscribe() as first, two.subscribe() as second:
        value = {"list": [1]}
        one.trigger("a.b", value)
        value["list"].append(2)
        await two.trigger("a.b", {1, 2})
        (message,) = await take(first, 1)
        assert isinstance(message, Message)
        assert (message.data, message.is_local, message.sequence) == ({"list": [1]}, True, 1)
        assert data(await take(second, 1)) == [{1, 2}]
        await settled(lambda: len(errors) == 1)
        assert got == [{"list": [1]}]
        with pytest.raises(ValueError, match="max_size=100"):
            two.trigger("x", "x" * 200)
    async with one.subscribe("x", maxsize=2) as events:
        for number in range(5):
            one.trigger("x", number)
        assert data(await take(events, 3)) == ["gap 3", 3, 4]
    with pytest.raises(dsync.WaitTimeout):
        await one.wait_for("x", timeout=0.01)


async def test_a_local_bus_that_nobody_keeps_is_forgotten() -> None:
    bus = dsync.local.EventBus()
    await bus.on("x", print)
    hub_ = weakref.ref(bus._hub)
    del bus
    await settled(lambda: (gc.collect(), hub_() is None)[1])


def test_the_local_bus_can_be_decorated_at_import() -> None:
    bus = dsync.local.EventBus()
    got: list[Any] = []
    bus.on("x")(got.append)

    async def main() -> None:
        await bus.trigger("x", 1)
        await settled(lambda: got == [1])

    asyncio.run(main())


async def test_what_is_triggered_goes_in_order_though_nobody_keeps_the_bus(world: World) -> None:
    client = world.client()
    async with world.client().event_bus().subscribe("*") as events:
        replies = [client.event_bus().trigger("n", number) for number in range(7)]
        for reply in replies:
            await reply
        assert data(await take(events, 7)) == list(range(7))
