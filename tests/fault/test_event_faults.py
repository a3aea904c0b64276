"""Events when messages and answers get lost, and when those who wait stand still."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import dsync
from dsync.redis.script import SCRIPTS
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer, Through
from tests.fault.workers import Workers

SET, CLEAR, LOOK = (SCRIPTS[f"event_{name}"].sha.encode() for name in ("set", "clear", "look"))


@pytest.fixture
async def loaded(real: World) -> None:
    """Every script is there, so the first request is the one that counts."""
    for script in SCRIPTS.values():
        await real.admin.script_load(script.text)


async def waiting(event: dsync.Event, count: int = 1) -> list[asyncio.Task[Any]]:
    """Tasks that wait, and have heard from the store what for."""
    tasks = [asyncio.create_task(event.wait()) for _ in range(count)]
    flag = event._flag
    await settled(
        lambda: len(flag.waiters) == count and all(w.noted is not None for w in flag.waiters)
    )
    return tasks


async def pulse(event: dsync.Event) -> None:
    event.set()
    await event.clear()


# -- a pulse that nobody heard ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "reset", "to", "fro", "both", "strand"])
async def test_a_pulse_while_the_connection_is_broken_wakes_who_waited(
    real: World, proxy: Proxy, through: Through, how: str
) -> None:
    tasks = await waiting(through(outage_timeout=3.0).event("x"), 3)
    if how == "strand":
        proxy.strand()
    else:
        ways: dict[str, Any] = {"to": ("requests",), "fro": ("replies",)}
        proxy.black_hole(*ways.get(how, ()))
    await pulse(real.client().event("x"))
    if how != "to":  # the message gets through, then
        assert not any(task.done() for task in tasks)
    if how in ("cut", "reset"):
        getattr(proxy, how)()
    if how == "strand":  # a new connection is well, and the old one stays silent
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
    proxy.heal()
    await asyncio.wait_for(asyncio.gather(*tasks), 3)


async def test_a_pulse_before_the_wait_does_not_wake_it_even_over_a_broken_connection(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().event("x")
    event = client.event("x")
    for task in await waiting(event):
        await pulse(other)
        await asyncio.wait_for(task, 3)
    await pulse(other)
    (task,) = await waiting(event)
    for _ in range(3):
        connections = proxy.connections
        proxy.cut()
        await settled(lambda: proxy.connections > connections)  # noqa: B023
        await client.check()
        await client.check()
        assert not task.done()
    await pulse(other)
    await asyncio.wait_for(task, 3)


async def informed(event: dsync.Event, other: dsync.Event) -> None:
    """It has been woken by the other, and hears of every change."""
    (task,) = await waiting(event)
    await pulse(other)
    await asyncio.wait_for(task, 3)
    await settled(lambda: event._flag._generation == other._flag._generation)


@pytest.mark.parametrize("first", [True, False], ids=["the first ever", "another"])
async def test_a_pulse_before_the_look_of_a_wait_that_began_while_cut_off_wakes_it(
    real: World, proxy: Proxy, through: Through, first: bool
) -> None:
    client, other = through(outage_timeout=3.0), real.client().event("x")
    event = client.event("x")
    link: Any = client.store
    if not first:
        await informed(event, other)
    tasks = await waiting(event)
    proxy.black_hole()
    proxy.cut()
    await settled(lambda: link.link._connection is None, "it is cut off")
    tasks.append(asyncio.create_task(event.wait()))
    await settled(lambda: event._waiting() == 2)
    await pulse(other)
    assert not any(task.done() for task in tasks)
    proxy.heal()
    await asyncio.wait_for(asyncio.gather(*tasks), 3)


async def test_a_pulse_while_the_server_is_taught_the_look_of_a_wait_wakes_it(
    loaded: None, real: World, proxy: Proxy, through: Through
) -> None:
    event, other = through(outage_timeout=3.0).event("x"), real.client().event("x")
    await informed(event, other)
    await real.admin.script_flush()
    for name in ("set", "clear"):
        await real.admin.script_load(SCRIPTS[f"event_{name}"].text)
    proxy.black_hole("replies")
    task = asyncio.create_task(event.wait())
    await settled(lambda: b"NOSCRIPT" in proxy.held("replies"), "the look is refused")
    await pulse(other)
    proxy.heal()
    await asyncio.wait_for(task, 3)


async def test_a_stopped_process_hears_of_a_pulse_when_it_goes_on(
    real: World, workers: Workers
) -> None:
    stopped = workers.spawn("--do", "events", "--rounds", "3")
    event = real.client().event("x")
    await settled(lambda: stopped.did("waiting"), "all its tasks wait", 10)
    stopped.signal(signal.SIGSTOP)
    await pulse(event)
    # Its connection is gone, too, so it is told nothing.
    await real.admin.client_kill_filter(_type="pubsub", skipme=True)
    assert not stopped.did("woken")
    stopped.signal(signal.SIGCONT)
    await settled(lambda: stopped.did("done"), "it has ended")
    assert len(stopped.events("woken")) == 3


# -- answers that got lost -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["set", "clear"])
async def test_a_change_whose_reply_was_lost_is_not_made_again_over_anothers(
    loaded: None, real: World, proxy: Proxy, through: Through, which: str
) -> None:
    """Another client changes it back in between; the repeated call must not undo that."""
    client, other = through(), real.client().event("x")
    event = client.event("x")
    if which == "clear":
        await other.set()
    await client.check()
    proxy.black_hole("replies")
    reply = event.set() if which == "set" else event.clear()
    await settled(lambda: bool(proxy.held("replies")), "carried out")
    await (other.clear() if which == "set" else other.set())
    proxy.cut()
    proxy.heal()
    await asyncio.wait_for(reply, 3)
    assert await other.is_set() == (which == "clear")
    assert await event.is_set() == (which == "clear")


@pytest.mark.parametrize("which", ["set", "clear"])
async def test_a_late_copy_of_a_change_does_not_undo_anothers(
    loaded: None, real: World, proxy: Proxy, through: Through, which: str
) -> None:
    client, other = through(outage_timeout=1.5), real.client().event("x")
    event = client.event("x")
    if which == "clear":
        await other.set()
    await client.check()
    proxy.strand()
    await (event.set() if which == "set" else event.clear())  # by way of a second connection
    await (other.clear() if which == "set" else other.set())
    before = len(await real.admin.client_list())
    proxy.heal()

    async def gone() -> bool:
        return len(await real.admin.client_list()) < before

    await settled(gone, "the late copy has arrived")
    assert await other.is_set() == (which == "clear")


@pytest.mark.parametrize("lost", [SET, CLEAR, LOOK], ids=["set", "clear", "look"])
async def test_a_lost_reply_costs_no_wake_up_and_makes_none(
    loaded: None, real: World, proxy: Proxy, through: Through, lost: bytes
) -> None:
    """At each command of a wait and a pulse: carried out, and nobody told."""
    waiter, changer = through().event("x"), through()
    await changer.check()
    if lost is LOOK:
        await waiter._flag.client.check()
        done = proxy.swallow_replies_then_cut(lost)
        tasks = await waiting(waiter, 2)
    else:
        tasks = await waiting(waiter, 2)
        done = proxy.swallow_replies_then_cut(lost)
    await pulse(changer.event("x"))
    assert done.done()
    await asyncio.wait_for(asyncio.gather(*tasks), 3)
    (task,) = await waiting(waiter)
    assert not await real.client().event("x").is_set()
    await waiter._flag.client.check()
    assert not task.done()
    await pulse(changer.event("x"))
    await asyncio.wait_for(task, 3)


# -- order -----------------------------------------------------------------------------------------


async def test_a_clear_does_not_overtake_a_set_that_the_server_had_to_be_taught(
    real: World,
) -> None:
    event = real.client().event("x")
    for _ in range(3):
        await real.admin.script_flush()
        await real.admin.script_load(SCRIPTS["event_clear"].text)
        await pulse(event)
        assert not await event.is_set()


async def test_changes_keep_their_order_while_the_server_refuses_them(
    own_server: OwnServer,
) -> None:
    """For each a backoff of its own, by dice: ten pulses would not all come out right."""
    client = own_server.client()
    events = [client.event(f"x{number}") for number in range(10)]
    await client.check()
    await own_server.admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    pulses = [asyncio.create_task(pulse(event)) for event in events]
    link: Any = client.store
    await settled(lambda: bool(link.link._delayed), "refused")
    await own_server.admin.execute_command("REPLICAOF", "NO", "ONE")
    await asyncio.wait_for(asyncio.gather(*pulses), 8)
    assert not any([await event.is_set() for event in events])


# -- servers ---------------------------------------------------------------------------------------


async def test_who_waits_on_a_server_that_came_back_empty_waits_on_and_is_woken(
    own_server: OwnServer,
) -> None:
    waiter, other = own_server.client(), own_server.client().event("x")
    event = waiter.event("x")
    await pulse(other)
    tasks = await waiting(event, 3)
    own_server.restart()
    await waiter.check()
    assert not any(task.done() for task in tasks)
    assert not await event.is_set()
    await pulse(other)
    await asyncio.wait_for(asyncio.gather(*tasks), 3)


async def test_a_set_event_is_unset_when_the_server_came_back_empty(own_server: OwnServer) -> None:
    client = own_server.client()
    event = client.event("x")
    await event.set()
    assert event.is_set()
    own_server.restart()
    await client.check()
    assert not await event.is_set()
    await settled(lambda: not event.is_set(), "this process knows it")


async def kill_connections(server: OwnServer) -> None:
    for kind in ("normal", "pubsub"):
        await server.admin.client_kill_filter(_type=kind, skipme=True)


async def flush_scripts(server: OwnServer) -> None:
    await server.admin.script_flush()


@pytest.mark.parametrize("fault", [kill_connections, flush_scripts])
async def test_each_pulse_in_a_storm_wakes_all_who_wait_once(
    own_server: OwnServer, fault: Callable[[OwnServer], Awaitable[None]]
) -> None:
    events = [own_server.client().event("x") for _ in range(4)]
    changer = own_server.client().event("x")
    rounds = 15
    for _ in range(rounds):
        tasks = [task for event in events for task in await waiting(event, 5)]
        await fault(own_server)
        pulses = asyncio.create_task(pulse(changer))
        await fault(own_server)
        # Well below a heartbeat: a reconnect finds out, so nobody waits for one.
        await asyncio.wait_for(asyncio.gather(pulses, *tasks), 1.9)
        assert not await changer.is_set()


async def test_a_thousand_waiters_in_four_processes_are_woken_by_one_pulse(
    real: World, workers: Workers
) -> None:
    for _ in range(4):
        workers.spawn("--do", "events", "--rounds", "250")
    event = real.client().event("x")
    await settled(lambda: len(workers.log.events("waiting")) == 4, "all wait", 15)
    assert not workers.log.events("woken")
    await pulse(event)
    await settled(lambda: len(workers.log.events("done")) == 4, "all are done", 10)
    assert len(workers.log.events("woken")) == 1000
