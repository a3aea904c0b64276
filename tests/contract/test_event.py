"""What an Event promises, on every store."""

import asyncio
import gc
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

import dsync
from dsync import flag
from tests.conftest import ONE_CONNECTION, World, settled

RGX_REPR = re.compile(
    r"^<(?P<class>.*?) object at (?P<address>.*?)\[(?P<extras>(set|unset)(, waiters:\d+)?)\]>\Z"
)


@pytest.fixture(autouse=True)
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What callbacks of the loop raised: nothing."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    yield errors
    assert not errors


async def waits(count: int, *events: dsync.Event) -> None:
    """Until so many tasks wait, and the store has told them the generation they wait in."""

    def noted() -> bool:
        watchers = [w for f in {e._flag for e in events} for w in f.waiters]
        return len(watchers) == count and all(w.noted is not None for w in watchers)

    await settled(noted, f"{count} wait for {events[0]!r}")


async def forget_everything(world: World) -> None:
    """The server lost its data."""
    if world.admin is None:
        world.clients[0].store.memory.records.clear()  # type: ignore[attr-defined]
    else:
        for key in await world.keys():
            await world.admin.delete(key)


def deaf(client: dsync.Client) -> None:
    """From now on every message about events is lost."""
    client.news = lambda channel, payload: None  # type: ignore[method-assign]


async def commands(world: World, name: str) -> int:
    """How often a command was carried out, from scripts too."""
    stats = await world.admin.info("commandstats")
    found: int = stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]
    return found


# -- set, clear, wait ------------------------------------------------------------------------------


async def test_set_and_clear_are_seen_everywhere(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    assert await two.is_set() is False
    assert await one.set() is None  # type: ignore[func-returns-value]
    assert one.is_set()
    assert await two.is_set() is True
    assert await one.clear() is None  # type: ignore[func-returns-value]
    assert not one.is_set()
    assert await two.is_set() is False


async def test_who_comes_late_to_a_set_event_returns_at_once(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    await one.set()
    assert await two.wait() is True
    assert await two.wait(timeout=0) is True
    assert await two.wait() is True


async def test_a_set_wakes_everyone_who_waits_in_all_processes(world: World) -> None:
    events = [world.client().event("x") for _ in range(3)]
    tasks = [asyncio.create_task(event.wait()) for event in events for _ in range(3)]
    await waits(9, *events)
    await events[0].set()
    assert await asyncio.gather(*tasks) == [True] * 9


async def test_a_pulse_wakes_everyone_who_waited_and_nobody_who_comes_later(world: World) -> None:
    events = [world.client().event("x") for _ in range(3)]
    tasks = [asyncio.create_task(event.wait()) for event in events for _ in range(3)]
    await waits(9, *events)
    events[0].set()
    await events[0].clear()
    assert await asyncio.gather(*tasks) == [True] * 9
    for event in events:
        assert await event.is_set() is False
        with pytest.raises(dsync.WaitTimeout):
            await event.wait(timeout=0.02)


async def test_a_pulse_before_the_wait_does_not_wake_it(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    for _ in range(3):
        one.set()
        await one.clear()
        for event in (one, two):
            with pytest.raises(dsync.WaitTimeout):
                await event.wait(timeout=0.02)


async def test_a_pulse_wakes_the_waiters_of_its_own_process_in_one_step(world: World) -> None:
    event = world.client().event("x")
    task = asyncio.create_task(event.wait())
    await waits(1, event)
    event.set()
    event.clear()
    assert not event.is_set()
    assert await task is True
    assert not event.is_set()


async def test_one_pulse_after_the_other_each_wakes_who_waits_then(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    for _ in range(5):
        task = asyncio.create_task(two.wait())
        await waits(1, two)
        one.set()
        await one.clear()
        assert await task is True


async def test_waiters_are_woken_in_order_of_arrival(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    woken: list[int] = []

    async def work(number: int) -> None:
        await two.wait()
        woken.append(number)

    tasks = [asyncio.create_task(work(i)) for i in range(10)]
    await waits(10, two)
    await one.set()
    await asyncio.gather(*tasks)
    assert woken == list(range(10))


async def test_events_of_other_names_and_namespaces_are_others(world: World) -> None:
    client = world.client()
    await client.event("x").set()
    assert await client.event("y").is_set() is False
    away = world.client(namespace=world.namespace + "-b").event("x")
    assert await away.is_set() is False
    assert await client.lock("x").try_acquire()  # and a lock is another thing still
    await client.lock("z").info()
    await client.event("x").clear()


async def test_two_objects_of_one_name_in_one_process_are_one_event(world: World) -> None:
    client = world.client()
    one, two = client.event("x"), client.event("x", ttl=20)
    tasks = [asyncio.create_task(event.wait()) for event in (one, two)]
    await waits(2, one, two)
    one.set()
    assert two.is_set()
    assert await asyncio.gather(*tasks) == [True, True]
    two.clear()
    assert not one.is_set()
    assert await one.is_set() is False


async def test_strange_names_are_names(world: World) -> None:
    one, two = world.client(), world.client()
    for name in ("a b", "{x}", "ünï", "\x00\n", "%", ":", "x" * 5000, "🔒"):
        task = asyncio.create_task(two.event(name).wait())
        await settled(lambda: any(f.waiters for f in two._flags.values()))
        await one.event(name).set()
        assert await asyncio.wait_for(task, 5) is True
        await one.event(name).clear()


# -- nobody is missed ------------------------------------------------------------------------------


async def test_a_pulse_whose_messages_are_lost_wakes_at_the_next_beat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    client = world.client()
    one, two = world.client().event("x"), client.event("x")
    tasks = [asyncio.create_task(two.wait()) for _ in range(3)]
    await waits(3, two)
    deaf(client)
    one.set()
    await one.clear()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 2) == [True] * 3


async def test_a_set_whose_message_is_lost_wakes_at_the_next_beat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    client = world.client()
    one, two = world.client().event("x"), client.event("x")
    task = asyncio.create_task(two.wait())
    await waits(1, two)
    deaf(client)
    await one.set()
    assert await asyncio.wait_for(task, 2) is True
    assert two.is_set()


@ONE_CONNECTION
async def test_a_pulse_while_the_connection_is_down_wakes_after_the_reconnect(real: World) -> None:
    client = real.client()
    one, two = real.client().event("x"), client.event("x")
    tasks = [asyncio.create_task(two.wait()) for _ in range(2)]
    await waits(2, two)
    open_again = asyncio.Event()
    link: Any = client.store.link  # type: ignore[attr-defined]
    dial = link._dial

    async def gated() -> Any:
        await open_again.wait()
        return await dial()

    link._dial = gated
    for each in await real.admin.client_list():
        if client.client_id in each["name"]:
            await real.admin.client_kill_filter(_id=each["id"])
    await settled(lambda: link._connection is None, "it is cut off")
    one.set()
    await one.clear()
    assert not any(task.done() for task in tasks)
    open_again.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 2) == [True, True]


@ONE_CONNECTION
async def test_a_wait_that_begins_while_the_connection_is_down_is_woken(real: World) -> None:
    client = real.client()
    one, two = real.client().event("x"), client.event("x")
    await client
    open_again = asyncio.Event()
    link: Any = client.store.link  # type: ignore[attr-defined]
    dial = link._dial

    async def gated() -> Any:
        await open_again.wait()
        return await dial()

    link._dial = gated
    for each in await real.admin.client_list():
        if client.client_id in each["name"]:
            await real.admin.client_kill_filter(_id=each["id"])
    await settled(lambda: link._connection is None, "it is cut off")
    task = asyncio.create_task(two.wait())
    await settled(lambda: two._waiting() == 1)
    open_again.set()
    await waits(1, two)
    one.set()
    one.clear()
    assert await asyncio.wait_for(task, 2) is True


async def test_a_pulse_while_our_clear_keeps_the_look_of_a_wait_back_wakes_it(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    flag: Any = two._flag
    changed = flag._changed
    answers: list[tuple[Any, ...]] = []
    flag._changed = lambda *answer: answers.append(answer)  # it is on its way
    cleared = two.clear()
    await settled(lambda: bool(answers), "the store has cleared it")
    task = asyncio.create_task(two.wait())
    await asyncio.sleep(0)
    assert two._waiting() == 1
    one.set()
    await one.clear()
    changed(*answers[0])
    await cleared
    assert await asyncio.wait_for(task, 2) is True


async def test_a_pulse_before_our_clear_does_not_wake_the_wait_behind_it(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    with pytest.raises(dsync.WaitTimeout):
        await two.wait(timeout=0)  # it listens
    one.set()
    await one.clear()
    two.clear()
    task = asyncio.create_task(two.wait())
    await waits(1, two)
    await two.is_set()
    assert not task.done()
    one.set()
    await one.clear()
    assert await asyncio.wait_for(task, 2) is True


@pytest.mark.parametrize("lost", [False, True], ids=["heard", "message lost"])
async def test_after_the_server_lost_its_data_the_next_set_wakes(
    world: World, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    client = world.client()
    one, two = world.client().event("x"), client.event("x")
    one.set()
    await one.clear()
    task = asyncio.create_task(two.wait())
    await waits(1, two)
    await forget_everything(world)
    if lost:
        deaf(client)
    one.set()
    await one.clear()
    assert await asyncio.wait_for(task, 2) is True


async def test_a_set_event_that_the_server_lost_is_unset(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    one, two = world.client().event("x"), world.client().event("x")
    await one.set()
    await two.wait()
    assert two.is_set()
    await forget_everything(world)
    assert await two.is_set() is False
    task = asyncio.create_task(two.wait())
    await waits(1, two)
    await settled(lambda: not two.is_set(), "the store's answer is believed")
    assert not task.done()
    await one.set()
    assert await asyncio.wait_for(task, 2) is True


async def test_a_set_event_survives_every_client(world: World) -> None:
    anchor = world.client()  # a store in memory lives as long as somebody uses it
    await anchor.lock("other").info()
    first = world.client()
    await first.event("x").set()
    await first.aclose()
    second = world.client().event("x")
    assert await second.is_set() is True
    assert await second.wait(timeout=0) is True
    if world.admin is not None:
        state = world.key("event", "x", "state")
        assert (await world.keys())[state] == -1
        await second.clear()
        assert (await world.keys())[state] > 0


async def test_a_thousand_waiters_in_four_processes_are_woken_by_one_message(real: World) -> None:
    clients = [real.client() for _ in range(4)]
    events = [client.event("x") for client in clients]
    tasks = [asyncio.create_task(event.wait()) for event in events for _ in range(250)]
    await waits(1000, *events)
    published, asked = await commands(real, "publish"), await commands(real, "evalsha")
    await events[0].set()
    assert await asyncio.gather(*tasks) == [True] * 1000
    assert await commands(real, "publish") - published == 1
    # The set itself, and at most a beat of each process that fell into this moment.
    assert await commands(real, "evalsha") - asked <= 5


# -- giving up -------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.03])
async def test_a_timeout_raises_and_leaves_nothing(world: World, timeout: float) -> None:
    event = world.client().event("x")
    with pytest.raises(
        TimeoutError, match=rf"event 'x' was not set within {timeout:g} s"
    ) as raised:
        await event.wait(timeout=timeout)
    assert isinstance(raised.value, dsync.WaitTimeout)
    assert not event._flag.waiters
    assert await world.keys() == {}


async def test_a_timeout_of_zero_asks_the_store_once(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    await one.set()
    assert await two.wait(timeout=0) is True
    await one.clear()
    with pytest.raises(dsync.WaitTimeout):
        await two.wait(timeout=0)


async def test_a_timeout_that_is_long_enough_is_never_heard_of(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    task = asyncio.create_task(two.wait(timeout=30))
    await waits(1, two)
    await one.set()
    assert await task is True


async def test_asyncio_timeout_works_as_everywhere(world: World) -> None:
    event = world.client().event("x")
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0.03):
            await event.wait()
    assert not isinstance(raised.value, dsync.DsyncError)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(event.wait(), 0.03)
    assert not event._flag.waiters


async def test_a_cancelled_wait_leaves_nothing_and_the_others_waiting(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    first, second = (asyncio.create_task(two.wait()) for _ in range(2))
    await waits(2, two)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await waits(1, two)
    await one.set()
    assert await second is True
    assert not two._flag.waiters


async def test_at_most_max_waiters_wait(world: World) -> None:
    client = world.client()
    event = client.event("x", max_waiters=2)
    tasks = [asyncio.create_task(event.wait()) for _ in range(2)]
    await waits(2, event)
    with pytest.raises(dsync.TooManyWaiters, match=r"event 'x': 2 tasks .*\(max_waiters=2\)"):
        await event.wait()
    assert len(event._flag.waiters) == 2
    elsewhere = asyncio.create_task(world.client().event("x", max_waiters=2).wait())
    await client.event("x").set()
    assert await asyncio.gather(*tasks, elsewhere) == [True] * 3
    assert await event.wait() is True  # nobody waits for what is set


async def test_a_closing_client_fails_who_waits(world: World) -> None:
    client = world.client()
    event = client.event("x")
    task = asyncio.create_task(event.wait())
    await waits(1, event)
    await client.aclose()
    with pytest.raises(dsync.ClientClosed, match="event 'x'"):
        await task
    with pytest.raises(dsync.ClientClosed):
        await event.wait()
    with pytest.raises(dsync.ClientClosed):
        event.set()
    assert not event.is_set()


# -- ttl -------------------------------------------------------------------------------------------


async def test_an_event_with_a_ttl_is_unset_by_itself(world: World) -> None:
    one, two = world.client().event("x", ttl=0.2), world.client().event("x")
    began = time.monotonic()
    await one.set()
    assert await two.wait() is True
    assert one.is_set()
    assert two.is_set()

    async def over() -> bool:
        return not await two.is_set()

    await settled(over, "the store says it is over")
    assert 0.19 < time.monotonic() - began < 0.2 + 0.5
    with pytest.raises(dsync.WaitTimeout):
        await two.wait(timeout=0)
    await settled(lambda: not (one.is_set() or two.is_set()), "and so do we")


async def test_the_end_of_the_ttl_is_known_without_a_message(world: World) -> None:
    client = world.client()
    one, two = world.client().event("x", ttl=0.15), client.event("x")
    await one.set()
    await two.wait()
    deaf(client)
    assert two.is_set()
    ends = time.monotonic() + 0.3
    while two.is_set():
        assert time.monotonic() < ends
        await asyncio.sleep(0.002)


async def test_setting_it_again_extends_the_ttl(world: World) -> None:
    one, two = world.client().event("x", ttl=0.3), world.client().event("x")
    await one.set()
    ends = time.monotonic() + 0.6
    while time.monotonic() < ends:
        await one.set()
        assert await two.is_set() is True
        assert one.is_set()
        await asyncio.sleep(0.05)


async def test_setting_it_for_good_ends_the_ttl(world: World) -> None:
    one, two = world.client().event("x", ttl=0.1), world.client().event("x")
    began = time.monotonic()
    await one.set()
    await two.set()
    while time.monotonic() < began + 0.2:
        assert await one.is_set() is True
        await asyncio.sleep(0.02)
    assert one.is_set()
    await one.clear()


@pytest.mark.parametrize("ttl", [None, 30])
async def test_setting_it_for_a_shorter_time_does_not_end_it_sooner(
    world: World, ttl: float | None
) -> None:
    one, two = world.client().event("x", ttl=ttl), world.client().event("x", ttl=0.05)
    await one.set()
    await two.set()
    other = world.client().event("y", ttl=0.05)
    await other.set()

    async def over() -> bool:
        return not await other.is_set()

    await settled(over, "what was set for as long, and later, has ended")
    for event in (one, two):
        assert await event.is_set() is True
        assert event.is_set()
    await one.clear()


async def test_a_wait_after_the_ttl_is_woken_by_the_next_set(world: World) -> None:
    one, two = world.client().event("x", ttl=0.06), world.client().event("x")
    await one.set()
    await settled(lambda: not one.is_set())

    async def over() -> bool:
        return not await two.is_set()

    await settled(over)
    task = asyncio.create_task(two.wait())
    await waits(1, two)
    await one.set()
    assert await asyncio.wait_for(task, 2) is True


# -- plain calls -----------------------------------------------------------------------------------


def test_without_a_running_loop_it_is_unset_and_says_so() -> None:
    event = dsync.connect("memory://").event("x")
    assert not event.is_set()
    assert repr(event).endswith(" 'x' [unset]>")


async def test_is_set_begins_to_keep_this_process_informed(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    assert not two.is_set()  # the first question: from here on it listens
    await one.set()
    await settled(lambda: bool(two.is_set()), "it was told")
    await one.clear()
    await settled(lambda: not two.is_set(), "it was told again")


async def test_is_set_asks_about_what_was_before_it_listened(world: World) -> None:
    one, two = world.client().event("x"), world.client().event("x")
    await one.set()
    await settled(lambda: bool(two.is_set()), "it has asked")


@ONE_CONNECTION
async def test_a_plain_is_set_costs_no_command_once_it_listens(real: World) -> None:
    event = real.client().event("x")
    await event.set()
    await event.wait()
    asked = await commands(real, "evalsha")
    for _ in range(100):
        assert event.is_set()
    await event.is_set()
    assert await commands(real, "evalsha") - asked == 1


async def test_a_set_that_nobody_awaits_is_followed_by_anything(world: World) -> None:
    client, other = world.client(), world.client().event("x")
    event = client.event("x")
    event.set()
    assert event.is_set()
    assert await event.wait() is True
    event.clear()
    assert not event.is_set()
    with pytest.raises(dsync.WaitTimeout):
        await event.wait(timeout=0)
    event.set()
    event.clear()
    event.set()
    assert event.is_set()
    assert await event.is_set() is True
    assert await other.is_set() is True
    event.clear()
    await client.aclose()
    assert await other.is_set() is False


async def test_closing_confirms_what_nobody_awaited(world: World) -> None:
    client, other = world.client(), world.client().event("x")
    waiting = asyncio.create_task(other.wait())
    await waits(1, other)
    event = client.event("x")
    event.set()
    event.clear()
    event.set()
    await client.aclose()
    assert await asyncio.wait_for(waiting, 2) is True
    assert await other.is_set() is True


@pytest.mark.parametrize("write", ["set", "clear"])
async def test_a_write_that_failed_and_that_nobody_awaited_is_reported(
    world: World, write: str
) -> None:
    if world.admin is None:
        pytest.skip("nothing can fail in memory")
    heard: list[BaseException] = []
    event = world.client(on_error=heard.append).event("x")
    key = world.key("event", "x", "state")
    await world.admin.set(key, "mine", px=60_000)
    getattr(event, write)()
    await settled(lambda: gc.collect() >= 0 and bool(heard))
    assert isinstance(heard[0], dsync.ForeignKey)
    with pytest.raises(dsync.ForeignKey):
        await getattr(event, write)()
    with pytest.raises(dsync.ForeignKey):
        await event.is_set()
    with pytest.raises(dsync.ForeignKey):
        await event.wait(timeout=2)
    assert not event._flag.waiters
    await world.admin.delete(key)
    assert not event.is_set()
    assert len(heard) == 1


# -- listening -------------------------------------------------------------------------------------


async def subscribers(world: World, event: dsync.Event) -> int:
    channel = event._flag.channel
    if world.admin is None:
        memory = world.clients[0].store.memory  # type: ignore[attr-defined]
        return len(memory.listeners.get(channel, ()))
    [(_, count)] = await world.admin.pubsub_numsub(channel)
    return int(count)


async def test_it_stops_listening_when_nobody_cares_and_begins_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flag, "LINGER", 0.05)
    if world.kind == "fakeredis":
        pytest.skip("it keeps subscribers that have gone")
    one, two = world.client().event("x"), world.client().event("x")
    for _ in range(3):
        task = asyncio.create_task(two.wait())
        await waits(1, two)
        assert await subscribers(world, two) == 1
        one.set()
        await one.clear()
        assert await task is True

        async def nobody() -> bool:
            return await subscribers(world, two) == 0

        await settled(nobody, "nobody listens")
        assert not two._flag._listening


async def test_it_listens_as_long_as_somebody_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flag, "LINGER", 0.03)
    monkeypatch.setattr("dsync.beat.BEAT", 60)  # a message, or nothing
    one, two = world.client().event("x"), world.client().event("x")
    rests = 0
    rest = flag.Flag._rest

    def counted(self: flag.Flag) -> None:
        nonlocal rests
        rests += 1
        rest(self)

    monkeypatch.setattr(flag.Flag, "_rest", counted)
    task = asyncio.create_task(two.wait())
    await waits(1, two)
    await settled(lambda: rests >= 3, "its linger has passed, several times")
    one.set()
    await one.clear()
    assert await asyncio.wait_for(task, 2) is True


async def test_asking_keeps_it_listening(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flag, "LINGER", 0.1)
    client = world.client()
    event = client.event("x")
    ends = time.monotonic() + 0.3
    while time.monotonic() < ends:
        assert not event.is_set()
        assert event._flag._listening
        await asyncio.sleep(0.01)
    await settled(lambda: not event._flag._listening)


async def test_a_client_closed_while_it_lingers_is_closed(world: World) -> None:
    client = world.client()
    event = client.event("x")
    with pytest.raises(dsync.WaitTimeout):
        await event.wait(timeout=0)
    assert event._flag._listening
    resting = event._flag._resting
    assert resting is not None
    await client.aclose()
    assert resting.cancelled()


async def test_names_that_were_used_and_dropped_leave_nothing_in_the_client(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flag, "LINGER", 0.03)
    client = world.client()
    for i in range(50):
        with pytest.raises(dsync.WaitTimeout):
            await client.event(f"name-{i}").wait(timeout=0)
    await settled(lambda: gc.collect() >= 0 and not client._flags)


# -- repr ------------------------------------------------------------------------------------------


async def test_repr_tells_the_state(world: World) -> None:
    event = world.client().event("x")
    assert repr(event).endswith(" 'x' [unset]>")
    tasks = [asyncio.create_task(event.wait()) for _ in range(2)]
    await waits(2, event)
    assert repr(event).endswith(" 'x' [unset, waiters:2]>")
    assert RGX_REPR.match(repr(event))
    event.set()
    await asyncio.gather(*tasks)
    assert repr(event).endswith(" 'x' [set]>")
    assert RGX_REPR.match(repr(event))
    event.clear()
