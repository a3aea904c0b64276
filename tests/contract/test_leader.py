"""What an Election promises, on every store."""

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

import dsync
from dsync.leader import Election, Leader
from tests.conftest import ONE_CONNECTION, World, settled
from tests.contract.test_cancellation import at_every_step

RGX_REPR = re.compile(
    r"^<dsync\.leader\.Election object at 0x[0-9a-f]+ 'x' \[(?P<state>[^]]*)\]>\Z"
)


async def candidates(world: World, count: int, name: str = "x") -> None:
    """Until so many wait to be elected, as the store knows."""
    seat = world.clients[0].leader(name)._seat

    async def stand() -> bool:
        return len((await seat.info()).waiters) == count

    await settled(stand, f"{count} candidates")


class Watching:
    """An observer that notes what it sees."""

    def __init__(self, election: Election) -> None:
        self.seen: list[Leader | None] = []
        self.task = asyncio.create_task(self._watch(election))

    async def _watch(self, election: Election) -> None:
        async with aclosing(election.observe()) as leaders:
            async for leader in leaders:
                self.seen.append(leader)

    @property
    def fences(self) -> list[int]:
        """Of those seen; 0 for nobody."""
        return [leader.fence if leader else 0 for leader in self.seen]


@asynccontextmanager
async def watching(*elections: Election) -> AsyncIterator[list[Watching]]:
    """Observers that have seen that nobody leads; they leave nothing behind."""
    made = [Watching(election) for election in elections]
    try:
        await settled(lambda: all(one.seen == [None] for one in made), "they have looked")
        yield made
    finally:
        for one in made:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in made), return_exceptions=True)
        for election in elections:
            assert not election._client._listeners


# -- leading ---------------------------------------------------------------------------------------


async def test_one_leads_at_a_time_in_the_order_of_candidacy_over_all_processes(
    world: World,
) -> None:
    clients = [world.client() for _ in range(3)]
    leads: list[int] = []
    fences: list[int] = []
    inside = 0

    async def run(number: int) -> None:
        nonlocal inside
        async with clients[number % 3].leader("x") as term:
            inside += 1
            assert inside == 1
            leads.append(number)
            assert term.fence is not None
            fences.append(term.fence)
            await asyncio.sleep(0)
            inside -= 1

    async with clients[0].leader("x") as first:
        tasks = []
        for number in range(9):
            tasks.append(asyncio.create_task(run(number)))
            await candidates(world, number + 1)
        assert first.fence is not None
        fences.append(first.fence)
    await asyncio.gather(*tasks)
    assert leads == list(range(9))
    assert fences == sorted(set(fences))


async def test_it_resigns_when_the_body_has_ended_and_not_before(world: World) -> None:
    one, two = world.client().leader("x"), world.client().leader("x")
    order: list[str] = []

    async def follow() -> None:
        async with two:
            order.append("next")

    with pytest.raises(ZeroDivisionError):
        async with one:
            task = asyncio.create_task(follow())
            await candidates(world, 1)
            try:
                raise ZeroDivisionError
            finally:
                await asyncio.sleep(0.02)
                order.append("cleaned up")
    await task
    assert order == ["cleaned up", "next"]


async def test_a_lost_term_cancels_the_body_and_leaves_as_lease_lost(world: World) -> None:
    world.leftovers_allowed = True
    one, two = world.client().leader("x", lease=1.0), world.client().leader("x")
    lost = None
    with pytest.raises(dsync.LeaseLost, match=r"^leader 'x' was lost: "):
        async with one as term:
            assert term.held
            await world.expire("leader", "x")
            async with two as later:
                assert later.fence is not None
                assert term.fence is not None
                assert later.fence > term.fence
                lost = term.lost
                await asyncio.sleep(10)
    assert lost is not None
    assert lost.is_set()
    assert not term.held


async def test_an_election_is_made_without_a_loop_and_entered_again_and_again(
    world: World,
) -> None:
    client = world.client()
    election = await asyncio.to_thread(client.leader, "x")
    assert election.name == "x"
    fences = []
    for _ in range(3):
        async with election as term:
            fences.append(term.fence)
    assert fences == sorted(set(fences))  # type: ignore[type-var]


async def test_two_tasks_that_enter_one_election_are_two_candidates(world: World) -> None:
    election = world.client().leader("x")
    inside = most = 0

    async def run() -> None:
        nonlocal inside, most
        async with election:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(run() for _ in range(5)))
    assert most == 1


async def test_a_candidacy_may_have_an_end(world: World) -> None:
    one, two = world.client().leader("x"), world.client().leader("x", timeout=0.05)
    async with one:
        with pytest.raises(dsync.AcquireTimeout, match=r"leader 'x' .* within 0.05 s"):
            await two.__aenter__()
        await candidates(world, 0)
    async with two:
        pass


async def test_an_election_is_no_lock_and_no_event_of_its_name(world: World) -> None:
    client = world.client()
    event = client.event("x")
    async with client.leader("x"), client.lock("x"), client.leader("y"):
        assert not await event.is_set()
    away = world.client(namespace=world.namespace + "-b")
    async with client.leader("x"), away.leader("x"):
        pass
    assert not event.is_set()


@pytest.mark.parametrize("late", [False, True], ids=["before", "just after"])
async def test_a_candidacy_that_is_cancelled_at_any_point_leaves_nothing(
    world: World, late: bool
) -> None:
    one, two, three = (world.client().leader("x") for _ in range(3))

    async def lead() -> None:
        async with one:
            await asyncio.sleep(0)

    async def nothing_left() -> None:
        async with two:
            pass
        assert await three.leader() is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        one._seat._held.clear()  # it may have been cancelled between __aenter__ and the body

    # The memory store never makes anybody wait: there is nothing to be cancelled but the body.
    assert await at_every_step(lead, nothing_left, late) >= 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": 3}, TypeError, "name must be a str"),
        ({"lease": 0}, ValueError, "lease must be > 0 seconds, got 0"),
        ({"lease": "1"}, TypeError, "lease must be a number"),
        ({"timeout": -1}, ValueError, "timeout must be >= 0 seconds, got -1"),
        ({"sigterm": 1}, TypeError, "sigterm must be True or False, got 1"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    client = dsync.Client("memory://")
    with pytest.raises(error, match=re.escape(text)):
        client.leader(**{"name": "x", **arguments})


async def test_the_repr_shows_how_things_stand(world: World) -> None:
    election, other = world.client().leader("x"), world.client().leader("x")

    def state(of: Election) -> str:
        match = RGX_REPR.match(repr(of))
        assert match is not None, repr(of)
        return match["state"]

    assert state(election) == "not leading"
    async with election as term:
        assert state(election) == f"leading, fence:{term.fence}"
        task = asyncio.create_task(other.__aenter__())
        await settled(lambda: state(other) == "not leading, candidates:1")
    await task
    await other.__aexit__(None, None, None)
    assert state(other) == "not leading"


# -- who leads -------------------------------------------------------------------------------------


async def test_the_leader_is_known_to_all(world: World) -> None:
    one = world.client(label="first").leader("x")
    two = world.client(label="second").leader("x")
    assert await two.leader() is None
    async with one as term:
        leader = await two.leader()
        assert leader is not None
        assert (leader.label, leader.host, leader.pid) == (
            "first",
            socket.gethostname(),
            os.getpid(),
        )
        assert leader.fence == term.fence
        assert 0 <= leader.held < 5
        assert not leader.is_me
        mine = await one.leader()
        assert mine is not None
        assert mine.is_me
    assert await one.leader() is None


async def test_observers_see_who_leads_at_once_and_then_each_change(world: World) -> None:
    elections = [world.client().leader("x") for _ in range(3)]
    leading = world.client().leader("x")
    async with watching(*elections, elections[0]) as observers:
        fences: list[int | None] = [0]
        for _ in range(3):
            async with leading as term:
                fences.append(term.fence)
                started = time.monotonic()
                await settled(lambda: all(one.fences == fences for one in observers))
            fences.append(0)
            await settled(lambda: all(one.fences == fences for one in observers))
            assert time.monotonic() - started < 1, "they had to wait for a beat"
    async with leading as term, aclosing(elections[0].observe()) as leaders:
        leader = await anext(leaders)
        assert leader is not None
        assert leader.fence == term.fence


async def test_a_hand_over_is_one_change(world: World) -> None:
    one, two = world.client().leader("x"), world.client().leader("x")
    async with watching(world.client().leader("x")) as (observer,):
        async with one as first:
            await settled(lambda: len(observer.seen) == 2)
            task = asyncio.create_task(two.__aenter__())
            await candidates(world, 1)
        second = await task
        await settled(lambda: observer.fences == [0, first.fence, second.fence])
        await two.__aexit__(None, None, None)
        await settled(lambda: observer.fences == [0, first.fence, second.fence, 0])


async def test_who_iterates_slowly_sees_the_newest_state_and_no_backlog(world: World) -> None:
    election = world.client().leader("x")
    async with aclosing(world.client().leader("x").observe()) as leaders:
        assert await anext(leaders) is None
        for _ in range(5):
            async with election:
                pass
        async with election as term:
            leader = await anext(leaders)
            assert leader is not None
            assert leader.fence == term.fence
        assert await anext(leaders) is None


async def test_an_observer_that_was_told_nothing_looks_at_the_next_beat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.beat.BEAT", 0.1)
    deaf = world.client()
    async with watching(deaf.leader("x")) as (observer,):
        deaf.news = lambda channel, payload: None  # type: ignore[method-assign]
        async with world.client().leader("x") as term:
            await settled(lambda: observer.fences == [0, term.fence])
        await settled(lambda: observer.fences == [0, term.fence, 0])


async def test_observers_see_the_end_of_a_lease_that_nobody_renewed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.leftovers_allowed = True
    monkeypatch.setattr("dsync.beat.BEAT", 60.0)
    silent, deaf = world.client(), world.client()
    silent.keeper._renew = lambda due: None  # type: ignore[method-assign]
    async with watching(deaf.leader("x")) as (observer,):
        with pytest.raises(dsync.LeaseLost):
            async with silent.leader("x", lease=0.4):
                await settled(lambda: len(observer.seen) == 2)
                deaf.news = lambda channel, payload: None  # type: ignore[method-assign]
                await asyncio.sleep(10)
        await settled(lambda: observer.seen[-1] is None)


@ONE_CONNECTION
@pytest.mark.parametrize("how", ["break", "aclose", "cancel", "exception"])
async def test_an_observer_that_stops_leaves_nothing(world: World, how: str) -> None:
    client = world.client()
    election = client.leader("x")
    before = asyncio.all_tasks()

    async def watch() -> None:
        async for leader in election.observe():
            assert leader is None
            if how == "break":
                break
            if how == "exception":
                raise ZeroDivisionError

    if how == "aclose":
        leaders = election.observe()
        assert await anext(leaders) is None
        assert len(client._listeners) == 1
        await leaders.aclose()
    else:
        task = asyncio.create_task(watch())
        if how == "cancel":
            await settled(lambda: bool(client._listeners))
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await settled(lambda: not client._listeners)
    if world.kind != "fakeredis":  # whose link has a task of its own
        await settled(lambda: asyncio.all_tasks() == before)
    if world.admin is not None:
        channel = election._channel
        await settled(lambda: nobody_listens(world, channel))


async def nobody_listens(world: World, channel: str) -> bool:
    ((_, count),) = await world.admin.pubsub_numsub(channel)
    return bool(count == 0)


async def test_one_of_two_observers_of_a_process_goes_on_without_the_other(world: World) -> None:
    client = world.client()
    election = client.leader("x")
    other = election.observe()
    assert await anext(other) is None
    async with watching(election) as (observer,):
        await other.aclose()
        async with world.client().leader("x") as term:
            await settled(lambda: observer.fences == [0, term.fence])


async def test_observers_of_a_client_that_closes_are_told(world: World) -> None:
    client = world.client()
    observer = Watching(client.leader("x"))
    await settled(lambda: observer.seen == [None])
    await client.aclose()
    with pytest.raises(dsync.ClientClosed):
        await observer.task
    assert not client._listeners


# -- SIGTERM ---------------------------------------------------------------------------------------


def handler() -> Any:
    return signal.getsignal(signal.SIGTERM)


async def test_sigterm_is_handled_while_there_is_a_candidate_or_a_leader(world: World) -> None:
    one, two = world.client().leader("x"), world.client().leader("x")
    assert handler() is signal.SIG_DFL
    async with one:
        task = asyncio.create_task(two.__aenter__())
        await candidates(world, 1)
        assert handler() is not signal.SIG_DFL
    await task
    assert handler() is not signal.SIG_DFL
    await two.__aexit__(None, None, None)
    assert handler() is signal.SIG_DFL


async def test_sigterm_false_leaves_the_signal_alone(world: World) -> None:
    async with world.client().leader("x", sigterm=False):
        assert handler() is signal.SIG_DFL


@pytest.fixture
def theirs() -> Any:
    """Somebody else's handler, put in place when it is called."""

    def heard(number: int, frame: object) -> None: ...

    def put() -> Callable[[int, object], None]:
        signal.signal(signal.SIGTERM, heard)
        return heard

    yield put
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("when", ["before", "during"])
async def test_somebody_elses_handler_stays(world: World, theirs: Any, when: str) -> None:
    if when == "before":
        theirs()
    async with world.client().leader("x"):
        heard = theirs() if when == "during" else handler()
        async with world.client().leader("y"):
            assert handler() is heard
    assert handler() is heard
