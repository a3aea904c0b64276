"""Leaders that are killed, stopped, told to go and cut off; and those who observe them."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import dsync
from dsync.redis.script import SCRIPTS
from dsync.testing import Event, fences, overlaps
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer
from tests.fault.leaders import Candidates
from tests.fault.workers import Worker

SOON = 1.0  # seconds on a busy machine, far below a lease of 15


@pytest.fixture
def candidates(real: World, tmp_path: Path) -> Iterator[Candidates]:
    """Real processes beside the clients of `real`."""
    real.leftovers_allowed = True
    with Candidates(real.url, real.namespace, tmp_path / "log") as made:
        yield made


async def ended(worker: Worker, within: float = 5.0) -> int:
    """-> its exit status"""
    await settled(lambda: worker.process.poll() is not None, f"{worker.pid} ended", within)
    status: int = worker.process.returncode
    return status


async def leading(worker: Worker) -> Event:
    """-> what it wrote when its term began"""
    await settled(lambda: worker.did("held"), f"{worker.pid} leads", 10)
    return worker.events("held")[-1]


async def queued(world: World, count: int, name: str = "x", within: float = 10.0) -> None:
    async def stand() -> bool:
        found: int = await world.admin.zcard(world.key("leader", name, "waiters"))
        return found == count

    await settled(stand, f"{count} candidates", within)


async def term_end(world: World) -> float:
    """When the leader's lease ends on the server, by time.monotonic() here."""
    key = world.key("leader", "x", "holders")
    ((_, ends),) = await world.admin.zrange(key, 0, -1, withscores=True)
    seconds, micros = await world.admin.time()
    return time.monotonic() + float(ends) / 1000 - float(seconds) - float(micros) / 1e6


def never_two(candidates: Candidates) -> list[Event]:
    """No two bodies at once, and fences that grow.  -> the terms, in order"""
    events = candidates.log.events()
    assert not overlaps(events)
    assert not fences(events)
    return [event for _, _, event in candidates.log.holds()]


# -- killed, stopped -------------------------------------------------------------------------------


async def test_a_killed_leader_is_succeeded_when_its_lease_ends_and_observers_see_it(
    real: World, candidates: Candidates
) -> None:
    observer = candidates.spawn("--do", "observe")
    leader = candidates.spawn("--lease", "1")
    old = await leading(leader)
    follower = candidates.spawn("--lease", "1")
    await queued(real, 1)
    await settled(lambda: observer.did("saw"), within=10)
    await settled(lambda: observer.events("saw")[-1]["fence"] == old["fence"])
    leader.signal(signal.SIGKILL)
    ends = await term_end(real)
    new = await leading(follower)
    assert -0.01 < new["t"] - ends < 0.25
    await settled(lambda: observer.events("saw")[-1]["fence"] == new["fence"])
    assert observer.events("saw")[-1]["t"] - new["t"] < 0.25
    assert new["fence"] > old["fence"]


async def test_a_stopped_leader_does_nothing_more_when_it_goes_on(
    real: World, candidates: Candidates
) -> None:
    leader = candidates.spawn("--lease", "1")
    old = await leading(leader)
    await settled(lambda: leader.did("step"))
    follower = candidates.spawn("--lease", "1")
    await queued(real, 1)
    leader.signal(signal.SIGSTOP)
    new = await leading(follower)
    assert new["fence"] > old["fence"]
    went_on = leader.signal(signal.SIGCONT)
    await settled(lambda: leader.did("lost"))
    assert "leader 'x' was lost" in leader.events("lost")[0]["why"]
    assert not [event for event in leader.events("step") if event["t"] > went_on]
    await queued(real, 1)  # and is a candidate again


@pytest.mark.parametrize("how", ["flushall", "restart"])
async def test_a_server_that_lost_its_data_gets_a_new_leader_with_a_greater_fence(
    own_server: OwnServer, tmp_path: Path, how: str
) -> None:
    own_server.leftovers_allowed = True
    path = tmp_path / "log"
    with Candidates(own_server.url, own_server.namespace, path) as candidates:
        leader = candidates.spawn("--lease", "2")
        old = await leading(leader)
        candidates.spawn("--lease", "2")
        await queued(own_server, 1)
        observer = candidates.spawn("--do", "observe")
        await settled(lambda: observer.did("saw"), within=10)
        if how == "restart":
            await own_server.admin.connection_pool.disconnect()
            own_server.restart()
        else:
            await own_server.admin.flushall()
        await settled(lambda: leader.did("lost"))

        def seen() -> bool:
            terms = [event["fence"] for event in candidates.log.events("held")]
            return len(terms) > 1 and observer.events("saw")[-1]["fence"] == terms[-1]

        await settled(seen, "the observer saw the new leader", 10)
        terms = [event["fence"] for event in candidates.log.events("held")]
        assert terms == sorted(set(terms))
        assert terms[0] == old["fence"]


async def test_five_processes_lead_in_their_order_and_never_two_at_once(
    real: World, candidates: Candidates
) -> None:
    async with real.client().leader("x"):
        crowd = []
        for number in range(5):
            crowd.append(candidates.spawn("--rounds", "5", "--step", "0.01"))
            await queued(real, number + 1)
    await settled(lambda: all(one.process.poll() == 0 for one in crowd), "all are done", 20)
    terms = never_two(candidates)
    assert [event["pid"] for event in terms] == [one.pid for one in crowd] * 5


# -- SIGTERM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_leader_that_gets_sigterm_hands_over_when_its_body_has_ended(
    real: World, candidates: Candidates, loop: str, record_property: Callable[..., None]
) -> None:
    options = ["--cleanup", "0.2", *(["--uvloop"] if loop == "uvloop" else [])]
    leader = candidates.spawn(*options)
    await leading(leader)
    follower = candidates.spawn()
    await queued(real, 1)
    told = leader.signal(signal.SIGTERM)
    new = await leading(follower)
    assert await ended(leader) == -signal.SIGTERM
    (left,) = leader.events("leaving")
    assert told + 0.2 <= left["t"] < new["t"] < left["t"] + SOON
    record_property("hand_over", new["t"] - left["t"])
    never_two(candidates)
    assert not leader.did("behind")


async def test_a_candidate_that_gets_sigterm_leaves_the_queue_and_dies(
    real: World, candidates: Candidates
) -> None:
    async with real.client().leader("x"):
        candidate = candidates.spawn()
        await queued(real, 1)
        candidate.signal(signal.SIGTERM)
        assert await ended(candidate) == -signal.SIGTERM
        await queued(real, 0, within=SOON)


async def test_a_fleet_that_gets_sigterm_at_once_leaves_nothing_behind(
    real: World, candidates: Candidates
) -> None:
    fleet = [candidates.spawn() for _ in range(4)]
    await queued(real, 3)
    for one in fleet:
        one.signal(signal.SIGTERM)
    for one in fleet:
        assert await ended(one) == -signal.SIGTERM
    started = time.monotonic()
    async with real.client().leader("x", timeout=SOON):
        assert time.monotonic() - started < SOON
    never_two(candidates)


async def test_sigterm_ends_all_terms_of_the_process_and_those_inside_others(
    real: World, candidates: Candidates
) -> None:
    leader = candidates.spawn("--do", "several", "--cleanup", "0.05")
    await settled(lambda: len(leader.events("held")) == 4, within=10)
    leader.signal(signal.SIGTERM)
    assert await ended(leader) == -signal.SIGTERM
    ends = [event["of"] for event in leader.events("leaving")]
    assert sorted(ends) == ["a", "b", "c", "d"]
    assert ends.index("d") < ends.index("c")
    client = real.client()
    for name in "abcd":
        assert await client.leader(name).leader() is None


async def test_a_body_that_does_not_care_for_sigterm_leads_until_it_ends(
    real: World, candidates: Candidates
) -> None:
    leader = candidates.spawn("--do", "stubborn", "--rounds", "10")
    await leading(leader)
    follower = candidates.spawn()
    await queued(real, 1)
    await settled(lambda: leader.did("step"))
    leader.signal(signal.SIGTERM)
    assert await ended(leader) == -signal.SIGTERM
    told = leader.events("unmoved")[0]["t"]
    assert len([event for event in leader.events("step") if event["t"] > told]) == 10
    assert (await leading(follower))["t"] < leader.events("leaving")[0]["t"] + SOON
    never_two(candidates)


async def test_a_second_sigterm_ends_the_process_at_once(candidates: Candidates) -> None:
    leader = candidates.spawn("--do", "stubborn", "--rounds", "100000")
    await settled(lambda: leader.did("step"), within=10)
    leader.signal(signal.SIGTERM)
    await settled(lambda: leader.did("unmoved"))
    leader.signal(signal.SIGTERM)
    assert await ended(leader, SOON) == -signal.SIGTERM
    assert not leader.did("leaving")


async def test_sigterm_in_the_middle_of_a_cleanup_cancels_that_and_hands_over(
    real: World, candidates: Candidates
) -> None:
    leader = candidates.spawn("--do", "failing")
    await settled(lambda: leader.did("step"), within=10)
    leader.signal(signal.SIGTERM)
    assert await ended(leader) == -signal.SIGTERM
    assert leader.did("cleaned")
    assert await real.client().leader("x").leader() is None


@pytest.mark.parametrize("loop", [[], ["--uvloop"]], ids=["asyncio", "uvloop"])
async def test_a_program_that_handles_sigterm_itself_is_not_meddled_with(
    real: World, candidates: Candidates, loop: list[str]
) -> None:
    leader = candidates.spawn("--do", "before", *loop)
    await settled(lambda: leader.did("step"), within=10)
    leader.signal(signal.SIGTERM)
    assert await ended(leader) == 7
    assert leader.did("theirs")
    assert await real.client().leader("x").leader() is None


@pytest.mark.parametrize("loop", [[], ["--uvloop"]], ids=["asyncio", "uvloop"])
async def test_a_handler_that_came_while_it_led_is_there_after_the_term(
    candidates: Candidates, loop: list[str]
) -> None:
    leader = candidates.spawn("--do", "during", *loop)
    await settled(lambda: leader.did("step"), within=10)
    leader.signal(signal.SIGTERM)
    assert await ended(leader) == 7
    assert leader.did("theirs")


async def test_after_a_term_sigterm_is_what_it_was(candidates: Candidates) -> None:
    leader = candidates.spawn("--do", "after")
    await settled(lambda: leader.did("step"), within=10)
    leader.signal(signal.SIGTERM)
    assert await ended(leader, SOON) == -signal.SIGTERM


async def test_without_sigterm_the_process_just_ends(real: World, candidates: Candidates) -> None:
    leader = candidates.spawn("--no-sigterm", "--cleanup", "5")
    held = await leading(leader)
    leader.signal(signal.SIGTERM)
    assert await ended(leader, SOON) == -signal.SIGTERM
    still = await real.client().leader("x").leader()
    assert still is not None
    assert still.fence == held["fence"]


async def test_what_a_loop_of_another_thread_leads_ends_with_the_process(
    real: World, candidates: Candidates
) -> None:
    process = candidates.spawn("--do", "thread")
    await settled(lambda: process.did("step"), within=10)
    process.signal(signal.SIGTERM)
    assert await ended(process, SOON) == -signal.SIGTERM
    assert [event["of"] for event in process.events("leaving")] == ["main"]
    client = real.client()
    assert await client.leader("main").leader() is None
    assert await client.leader("x").leader() is not None


async def test_a_loop_that_was_left_in_the_middle_of_a_term_does_not_outlive_sigterm(
    candidates: Candidates,
) -> None:
    process = candidates.spawn("--stop-loop")
    await settled(lambda: process.did("stopped"), within=10)
    process.signal(signal.SIGTERM)
    assert await ended(process, SOON) == -signal.SIGTERM


async def test_a_child_that_is_forked_in_the_middle_of_a_term_dies_of_sigterm_alone(
    real: World, candidates: Candidates
) -> None:
    parent = candidates.spawn("--do", "fork")
    await settled(lambda: bool(candidates.log.events("child")), within=10)
    os.kill(candidates.log.events("child")[0]["number"], signal.SIGTERM)
    await settled(lambda: parent.did("reaped"))
    assert parent.events("reaped")[0]["status"] == -signal.SIGTERM
    await settled(lambda: parent.did("step"), "the parent leads on")
    parent.signal(signal.SIGTERM)
    assert await ended(parent) == -signal.SIGTERM
    assert await real.client().leader("x").leader() is None


async def test_a_forked_child_that_leads_by_itself_hands_over_on_sigterm(
    real: World, candidates: Candidates
) -> None:
    parent = candidates.spawn("--do", "fork", "--cleanup", "0.01")
    await settled(lambda: bool(candidates.log.events("child")), within=10)
    child = candidates.log.events("child")[0]["number"]
    await settled(lambda: bool(candidates.log.events("step", child)))
    os.kill(child, signal.SIGTERM)
    await settled(lambda: parent.did("reaped"))
    assert parent.events("reaped")[0]["status"] == -signal.SIGTERM
    client = real.client()
    assert await client.leader("child's").leader() is None
    assert await client.leader("x").leader() is not None


async def test_a_leader_whose_server_is_gone_ends_on_sigterm_all_the_same(
    own_server: OwnServer, tmp_path: Path
) -> None:
    own_server.leftovers_allowed = True
    with Candidates(own_server.url, own_server.namespace, tmp_path / "log") as candidates:
        leader = candidates.spawn("--outage", "1")
        await leading(leader)
        own_server.kill()
        leader.signal(signal.SIGTERM)
        assert await ended(leader, 1 + 1 + SOON) == -signal.SIGTERM
        assert leader.did("leaving")
    await own_server.admin.connection_pool.disconnect()
    own_server.restart()


# -- observers -------------------------------------------------------------------------------------


@pytest.fixture
async def seen(real: World) -> AsyncIterator[list[int | None]]:
    """The fences that an observer has seen; it goes on observing."""
    client = real.client(label="observer")
    found: list[int | None] = []

    async def watch() -> None:
        async with aclosing(client.leader("x").observe()) as leaders:
            async for leader in leaders:
                found.append(leader.fence if leader else None)  # noqa: PERF401

    task = asyncio.create_task(watch())
    await settled(lambda: found == [None])
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not client._listeners


def connection(real: World) -> dsync.Client:
    return next(client for client in real.clients if client.label == "observer")


async def cut_off(real: World, client: dsync.Client) -> None:
    for each in await real.admin.client_list():
        if client.client_id in each["name"]:
            await real.admin.client_kill_filter(_id=each["id"])


async def test_an_observer_whose_connection_is_killed_sees_what_happened_meanwhile(
    real: World, seen: list[int | None]
) -> None:
    client = connection(real)
    link: Any = client.store.link  # type: ignore[attr-defined]
    open_again, dial = asyncio.Event(), link._dial

    async def gated() -> Any:
        await open_again.wait()
        return await dial()

    link._dial = gated
    await cut_off(real, client)
    await settled(lambda: link._connection is None, "it is cut off")
    async with real.client().leader("x") as term:
        assert seen == [None]
        open_again.set()
        started = time.monotonic()
        await settled(lambda: seen == [None, term.fence])
        assert time.monotonic() - started < SOON
        for _ in range(3):
            await cut_off(real, client)
            await client.check()
    await settled(lambda: seen == [None, term.fence, None])


async def test_a_release_that_has_to_be_sent_again_does_not_come_after_its_announcement(
    real: World, seen: list[int | None]
) -> None:
    """The server knows every script but the one that releases: it is sent again, with its text."""
    async with real.client().leader("x") as term:
        await settled(lambda: seen == [None, term.fence])
        await real.admin.script_flush()
        for name in ("event_set", "permit_info"):
            await real.admin.script_load(SCRIPTS[name].text)
    ended_at = time.monotonic()
    await settled(lambda: seen == [None, term.fence, None])
    assert time.monotonic() - ended_at < SOON


async def test_observers_that_hear_nothing_see_every_leader_within_a_beat(
    real: World, seen: list[int | None]
) -> None:
    connection(real).news = lambda channel, payload: None  # type: ignore[method-assign]
    election = real.client().leader("x")
    for _ in range(2):
        async with election as term:
            started = time.monotonic()
            await settled(lambda: seen[-1] == term.fence)
            assert time.monotonic() - started < 2 + SOON
    await settled(lambda: seen[-1] is None)


async def test_an_observer_that_nobody_tells_sees_that_a_dead_leaders_lease_has_ended(
    real: World, candidates: Candidates, seen: list[int | None]
) -> None:
    leader = candidates.spawn("--lease", "1")
    held = await leading(leader)
    await settled(lambda: seen[-1] == held["fence"])
    leader.signal(signal.SIGKILL)
    ends = await term_end(real)
    await settled(lambda: seen[-1] is None)
    assert -0.01 < time.monotonic() - ends < 0.25


async def test_an_observer_is_told_when_the_server_is_away_for_too_long(
    own_server: OwnServer,
) -> None:
    client = own_server.client(outage_timeout=1.0)
    leaders = client.leader("x").observe()
    assert await anext(leaders) is None
    own_server.kill()
    with pytest.raises(dsync.StoreUnavailable):
        await asyncio.wait_for(anext(leaders), 2 + 1 + SOON)
    assert not client._listeners
    await own_server.admin.connection_pool.disconnect()
    own_server.restart()
    leaders = client.leader("x").observe()
    assert await anext(leaders) is None
    await leaders.aclose()
