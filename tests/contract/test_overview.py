"""The overview and the roll call: what is shown is so, costs who is not watched nothing, and what
others say does no harm."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import dsync
from dsync import overview, roll
from dsync.names import tag
from dsync.overview import Overview, Snapshot
from dsync.overview.roll_call import RollCall
from dsync.overview.rows import Row
from dsync.telemetry import Watch
from tests.conftest import World, settled

Making = Callable[..., dsync.Client]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for processes each time, and be answered each time."""
    monkeypatch.setattr(overview, "RECOUNT", -1.0)
    monkeypatch.setattr(roll, "PAUSE", 0.0)


def row(snapshot: Snapshot, kind: str, name: str) -> Row:
    (found,) = (each for each in snapshot.rows if (each.kind, each.name) == (kind, name))
    return found


async def until(
    view: Overview, condition: Callable[[Snapshot], Any], within: float = 8.0
) -> Snapshot:
    """Look until it is so.  -> what was seen"""
    snapshot = await view.look()
    async with asyncio.timeout(within):
        while not condition(snapshot):
            await asyncio.sleep(0.05)
            snapshot = await view.look()
    return snapshot


@asynccontextmanager
async def tasks(*made: "asyncio.Task[Any]") -> AsyncIterator[None]:
    try:
        yield
    finally:
        for task in made:
            task.cancel()
        await asyncio.gather(*made, return_exceptions=True)


async def hold(lock: Any) -> None:
    async with lock:
        await asyncio.Event().wait()


def named(name: str, of: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(of, name=name)


# -- what is told ---------------------------------------------------------------------------------


async def test_which_task_holds_and_which_wait_in_order_is_told(world: World) -> None:
    one, two, watching = (world.client(label=label) for label in ("one", "two", "top"))
    holder = named("the holder", hold(one.lock("x")))
    async with Overview(watching) as view, tasks(holder):
        await settled(lambda: one.lock("x").locked())
        second = named("the second", hold(two.lock("x")))
        async with tasks(second):
            await until(view, lambda seen: row(seen, "lock", "x").waiting == 1)
            third, fourth = (named(name, hold(two.lock("x"))) for name in ("third", "fourth"))
            async with tasks(third, fourth):
                seen = await until(view, lambda seen: row(seen, "lock", "x").waiting == 3)
                lock = row(seen, "lock", "x")
                (held,) = lock.holders
                assert (held.label, held.task) == ("one", "the holder")
                assert held.held < 60
                assert 0 < held.lease_left <= 30
                assert held.fence
                assert [each.task for each in lock.waiters] == ["the second", "third", "fourth"]
                assert {each.label for each in lock.waiters} == {"two"}
                assert lock.state.startswith("held by one: the holder for ")
                assert lock.state.endswith(", 3 waiting")
                assert json.loads(json.dumps(seen.as_dict()))["rows"][0]["waiting"] == 3
                assert (seen.answered, seen.cut, seen.unread) == (seen.processes, False, False)


async def test_every_kind_has_its_row(world: World) -> None:
    one, watching = world.client(label="one"), world.client()
    permits = one.semaphore("permits", 3)
    limiter = one.rate_limiter("limit", 5, per=60)
    bus = one.event_bus("bus")
    await one.event("set").set()
    busy = (
        named("permit", hold(permits)),
        named("party", one.barrier("parties", 2).wait()),
        named("waits", one.event("never set").wait()),
        named("leads", hold(one.leader("office", sigterm=False))),
        named("in it", hold(one.condition("cond"))),
        named("computes", one.single_flight("key", asyncio.Event().wait, ttl=60)),
    )
    async with Overview(watching) as view, tasks(*busy):
        for _ in range(2):
            assert await limiter.try_acquire()
        await bus.trigger("x")
        seen = await until(
            view,
            lambda seen: len(seen.rows) == 9
            and all(each.waiting for each in seen.rows if each.kind in ("event", "barrier")
                    and each.name != "set")
            and sum(len(each.holders) for each in seen.rows) == 4,
        )  # fmt: skip
        rows = {each.kind: each for each in seen.rows if each.name != "never set"}
        assert (rows["semaphore"].held, rows["semaphore"].limit) == (1, 3)
        assert rows["semaphore"].holders[0].task == "permit"
        assert rows["semaphore"].holders[0].fence is None
        assert (rows["barrier"].held, rows["barrier"].limit) == (1, 2)
        assert (rows["event"].held, rows["event"].state) == (1, "set")
        assert row(seen, "event", "never set").waiting == 1
        assert (rows["rate"].held, rows["rate"].limit, rows["rate"].unit) == (2, 5, "units")
        assert rows["leader"].holders[0].task == "leads"
        assert rows["condition"].holders[0].task == "in it"
        assert rows["single_flight"].busy
        assert rows["bus"].unit == "messages"


async def test_tasks_that_wait_to_be_notified_are_told(world: World) -> None:
    one, watching = world.client(), world.client()

    async def sleep() -> None:
        async with (condition := one.condition("orders")):
            await condition.wait()

    sleeping = [asyncio.create_task(sleep()) for _ in range(3)]
    async with Overview(watching) as view, tasks(*sleeping):
        # The last of them may have given the lock back after the store was looked at.
        asleep = "free, 3 wait to be notified"
        seen = await until(view, lambda seen: seen.rows and seen.rows[0].state == asleep)
        assert seen.rows[0].busy
        assert seen.rows[0].waiting == 0
        assert seen.rows[0].asleep == 3


async def test_passes_from_task_to_task_are_counted_and_so_is_how_long_they_wait(
    world: World,
) -> None:
    one, watching = world.client(), world.client()
    lock = one.lock("x")

    async def work() -> None:
        while True:
            async with lock:
                await asyncio.sleep(0.001)

    async with Overview(watching) as view:
        await view.look()
        async with tasks(*(named(f"w{number}", work()) for number in range(4))):
            seen = await until(view, lambda seen: seen.rows and (seen.rows[0].rate or 0) > 20)
        lately = seen.rows[0]
        assert lately.wait_p50 is not None
        assert lately.wait_p99 is not None
        assert 0.0005 < lately.wait_p50 <= lately.wait_p99 < 5
        # In memory a free lock is forgotten.
        await until(
            view, lambda seen: not seen.rows or (seen.rows[0].rate, seen.rows[0].busy) == (0, False)
        )


async def test_of_a_process_that_does_not_answer_all_but_the_task_is_told(world: World) -> None:
    old, watching = world.client(label="old"), world.client()
    old._called = lambda *_: None  # type: ignore[method-assign]  # of a version without it
    holder = named("unknown", hold(old.lock("x")))
    async with Overview(watching) as view, tasks(holder):
        await settled(lambda: old.lock("x").locked())
        seen = await view.look(patience=0.05)
        (held,) = row(seen, "lock", "x").holders
        assert (held.label, held.task) == ("old", None)
        assert seen.answered < seen.processes


async def test_more_processes_than_are_asked_are_counted_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "ASKED", 2)
    clients = [world.client() for _ in range(4)]
    async with Overview(world.client()) as view:
        locks = [client.lock(f"x{number}") for number, client in enumerate(clients)]
        for lock in locks:
            await lock.acquire()
        seen = await until(view, lambda seen: seen.answered == 2)
        assert seen.processes >= 4
        assert sum(each.holders[0].task is not None for each in seen.rows) <= 2
        for lock in locks:
            await lock.release()


async def test_what_cannot_be_read_is_said_and_the_rest_is_told(real: World) -> None:
    one, watching = real.client(), real.client()
    await real.admin.set(real.key("lock", "theirs", "state"), "x", ex=60)
    async with Overview(watching) as view, one.lock("ours"):
        seen = await view.look()
        assert row(seen, "lock", "theirs").error
        assert "holds something else than dsync's state" in row(seen, "lock", "theirs").state
        assert row(seen, "lock", "ours").held == 1
    await real.admin.delete(real.key("lock", "theirs", "state"))


async def test_who_may_not_list_channels_asks_those_that_hold(real: World) -> None:
    user = real.namespace
    one = real.client(label="one")
    await real.admin.execute_command("ACL", "SETUSER", user, "-pubsub|channels")
    watching = real.client()
    async with one.lock("x"), Overview(watching) as view:
        await until(view, lambda seen: row(seen, "lock", "x").holders[0].task)


async def test_other_namespaces_are_neither_told_nor_asked(world: World) -> None:
    one, other = world.client(), world.client(namespace=f"{world.namespace}-2")
    async with one.lock("x"), Overview(other) as view:
        for _ in range(2):
            seen = await view.look()
            assert (seen.rows, seen.processes <= 1) == ((), True)
        assert one.watch.hooks == ()


async def test_a_pattern_leaves_out_the_others(world: World) -> None:
    one, watching = world.client(), world.client()
    view = Overview(watching, "in *")
    async with one.lock("in a"), one.lock("in b"), one.lock("out"), view:
        assert [each.name for each in (await view.look()).rows] == ["in a", "in b"]


# -- what it costs --------------------------------------------------------------------------------


async def test_many_are_looked_at_in_turns_and_the_busy_ones_each_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "LOOKS", 10)
    one, watching = world.client(), world.client()
    for number in range(40):
        async with one.lock(f"idle {number}"):
            pass
    async with one.lock("busy a"), one.lock("busy b"), Overview(watching) as view:
        if world.kind == "memory":  # a free lock is forgotten there
            for number in range(40):
                await one.event(f"idle {number}").set()
        seen = await until(view, lambda seen: len(seen.rows) == 42)
        assert seen.left_out == 32
        view.first = [seen.rows[7].key, seen.rows[9].key]
        for _ in range(3):
            seen = await view.look()
            newest = sorted(seen.rows, key=lambda each: each.age)[:10]
            assert set(view.first) <= {each.key for each in newest}
        assert sum(each.busy for each in seen.rows if each.name.startswith("busy")) == 2
        newest = sorted(seen.rows, key=lambda each: each.age)[:10]
        if world.kind != "memory":
            assert {"busy a", "busy b"} <= {each.name for each in newest}


async def test_who_is_not_watched_has_no_hook_and_who_was_has_none_soon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "WATCH", 0.2)
    one, watching = world.client(), world.client()
    async with one.lock("x"):
        assert one.watch.hooks == ()
        async with Overview(watching) as view:
            await until(view, lambda seen: row(seen, "lock", "x").holders[0].task)
            assert len(one.watch.hooks) == 1
        await settled(lambda: one.watch.hooks == ())
        assert isinstance(one.watch, Watch)
        assert set(map(id, one.homes.values())) == {id(c) for c in one.cohorts() if c.holds}


async def test_the_hooks_of_others_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll, "WATCH", 0.1)
    heard: list[Any] = []
    one, watching = world.client(on_event=heard.append), world.client()
    for _ in range(2):
        async with one.lock("x"), Overview(watching) as view:
            await until(view, lambda seen: row(seen, "lock", "x").holders[0].task)
        await settled(lambda: len(one.watch.hooks) == 1)
    assert heard


async def test_nothing_is_stored_by_asking_or_answering(world: World) -> None:
    one, watching = world.client(), world.client()
    async with one.lock("x"), Overview(watching) as view:
        await until(view, lambda seen: row(seen, "lock", "x").holders[0].task)
        assert not [key for key in await world.keys() if ":roll:" in key]
        assert not [name for name in _records(world) if ":roll:" in name]


def _records(world: World) -> list[str]:
    memory = getattr(world.clients[0].store, "memory", None)
    return [] if memory is None else list(memory.records)


async def test_a_client_that_closes_while_it_is_asked_ends_well(world: World) -> None:
    one, watching = world.client(), world.client()
    async with Overview(watching) as view:
        async with one.lock("x"):
            await view.look(patience=0)
        await one.aclose()
        assert one.watch.hooks == ()
        assert not one.homes
        await view.look(patience=0)


async def test_an_answer_is_bounded_and_has_what_was_asked_for(
    memory: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    one, watching = memory.client(), memory.client()
    locks = [one.lock(f"{number} " + "long " * 20) for number in range(600)]
    await asyncio.gather(*(lock.acquire() for lock in locks))
    calls = RollCall(watching)
    monkeypatch.setattr(calls, "heard", heard.append)
    wanted = tag(memory.namespace, "lock", locks[-1].name)
    await calls.ask({one.client_id: None}, [wanted])
    await settled(lambda: len(heard) == 1)
    answer = json.loads(heard[0])
    assert len(heard[0]) <= 32_000
    assert len(answer["at"]) < 600 == answer["of"]
    assert answer["at"][0]["p"] == wanted.partition(":")[2][:-1]
    calls.close()
    await asyncio.gather(*(lock.release() for lock in locks))


async def test_who_asks_too_often_or_with_too_many_is_answered_all_the_same_but_not_more(
    memory: World,
) -> None:
    one, watching = memory.client(), memory.client()
    async with one.lock("x"):
        calls = [RollCall(watching) for _ in range(20)]
        for _ in range(3):
            for each in calls:
                await each.ask({one.client_id: None})
        await asyncio.gather(*(each.answers(0.5) for each in calls))
        assert sum(each.present[0] for each in calls) == roll.ASKERS
        for each in calls:
            each.close()


async def test_who_has_gone_makes_room_for_others_who_ask(
    memory: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "GONE", 0.0)
    one, watching = memory.client(), memory.client()
    async with one.lock("x"):
        for _ in range(roll.ASKERS + 5):
            calls = RollCall(watching)
            await calls.ask({one.client_id: None})
            await calls.answers(5)
            assert calls.present == (1, 1)
            calls.close()


# -- what others say ------------------------------------------------------------------------------

NO_QUESTIONS = (
    [b"?", b"../../x", b"1"],
    [b"?", b"", b"1"],
    [b"?", b"a b", b"1"],
    [b"?", b"abc"],
    [b"?", b"abc", b"x"],
    [b"?", b"ab" * 200, b"1"],
    [b"?", b"abc", *[b"1"] * 100],
    [b"?"],
    [b"?", b"\xff\xfe", b"1"],
)


@pytest.mark.parametrize("message", NO_QUESTIONS)
async def test_what_is_no_question_is_logged_and_asks_nothing(
    memory: World, caplog: pytest.LogCaptureFixture, message: list[bytes]
) -> None:
    one = memory.client()
    async with one.lock("x"):
        one.pushed(message, 0.0)
        assert one.watch.hooks == ()
    (record,) = caplog.records
    assert "somebody else wrote on our channel" in record.getMessage()
    caplog.clear()


def answer(**more: Any) -> dict[str, Any]:
    entry = {"p": "lock:x", "h": [], "n": 1, "w": [["\x1b[31mred", 1.0]], "z": 0}
    return {"v": 1, "by": "", "q": 1, "age": 1.0, "of": 1, "at": [entry]} | more


def entry(**more: Any) -> dict[str, Any]:
    return answer(at=[{"p": "lock:x"} | more])


NO_ANSWERS: tuple[Any, ...] = (
    b"", b"\xff", b"[", b"[" * 50_000, b"{}", b"null", b"7", b'{"by": []}', b'"' + b"x" * 100_000,
    answer(q="x"), answer(q=None), answer(age="nan"), answer(age=-1), answer(age=[]),
    answer(at=None), answer(at={}), answer(at=[7]), answer(at=[{}]), answer(of="many"),
    entry(p=7), entry(p="lock:\ud800"), entry(p="lock:ü"), entry(p="lock:" + "x" * 2000),
    entry(h=[[1]]), entry(h=7), entry(h=[["t", "task", float("inf"), 1]]), entry(n="x"),
    entry(w=[7]), entry(w=[["t", float("nan")]]), entry(c=float("nan")), entry(c=1, s=[[1]]),
    entry(c=1, s={"a": 1}), entry(z=float("inf")), entry(h=[["t", None, 1, "fence"]]),
)  # fmt: skip


async def test_what_is_no_answer_is_logged_once_and_changes_nothing(
    memory: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, watching = memory.client(label="one"), memory.client()
    holder = named("holder", hold(one.lock("x")))
    async with Overview(watching) as view, tasks(holder):
        await settled(lambda: one.lock("x").locked())
        await until(view, lambda seen: row(seen, "lock", "x").holders[0].task == "holder")
        for nonsense in NO_ANSWERS:
            if isinstance(nonsense, dict):
                nonsense = nonsense | ({"by": one.client_id} if nonsense["by"] == "" else {})
                if nonsense["q"] == 1:
                    nonsense["q"] = view.roll._number + 1
                nonsense = json.dumps(nonsense).encode()
            watching.news(view.roll.channel, nonsense)
        (record,) = caplog.records
        assert "somebody else wrote on our channel" in record.getMessage()
        (held,) = row(await view.look(), "lock", "x").holders
        assert held.task == "holder"
    caplog.clear()


async def test_a_task_may_have_any_name(memory: World) -> None:
    one, watching = memory.client(), memory.client()
    for name in ("", "\ud800 \x00 \x1b[2J", "n" * 5000, "\N{SNOWMAN}" * 300):
        holder = named(name, hold(one.lock("x")))
        async with Overview(watching) as view, tasks(holder):
            await settled(lambda: one.lock("x").locked())
            seen = await until(
                view, lambda seen: row(seen, "lock", "x").holders[0].task is not None
            )
            told = row(seen, "lock", "x").holders[0].task
            assert told == name[:80].replace("\ud800", "?")
            json.dumps(seen.as_dict(), ensure_ascii=False).encode()


async def test_who_was_not_asked_and_what_comes_from_tomorrow_is_not_believed(
    memory: World,
) -> None:
    one, watching = memory.client(label="one"), memory.client()
    async with Overview(watching) as view, one.lock("x"):
        await view.look()
        number = view.roll._number
        forged = (
            answer(by="stranger:host:1:abc", q=number),
            answer(by=one.client_id, q=number + 1),
            answer(by=one.client_id, q=0),
            answer(by=one.client_id, q=number, v=2),
        )
        for each in forged:
            watching.news(view.roll.channel, json.dumps(each).encode())
        assert row(await view.look(), "lock", "x").waiting == 0


@pytest.fixture
async def memory(caplog: pytest.LogCaptureFixture) -> AsyncIterator[World]:
    """The memory store only: for what is the same on all of them."""
    caplog.set_level(logging.WARNING, "dsync")
    made = World("memory", "memory://overview")
    yield made
    await made.close()


# -- waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("waited", [3e-6, 0.0021, 0.5, 7.0, 3600.0])
def test_a_wait_is_told_to_a_tenth(waited: float) -> None:
    waits = roll.Waits()
    for _ in range(100):
        waits.add(waited)
    for share in (0.01, 0.5, 0.99):
        told = waits.quantile(share)
        assert told is not None
        assert abs(told / waited - 1) < 0.1


def test_quantiles_are_in_order_and_what_is_long_past_is_forgotten() -> None:
    waits = roll.Waits()
    assert waits.quantile(0.5) is None
    for number in range(1, 1001):
        waits.add(number / 1000)
    half, most = waits.quantile(0.5), waits.quantile(0.99)
    assert half is not None
    assert most is not None
    assert abs(half / 0.5 - 1) < 0.1
    assert abs(most / 0.99 - 1) < 0.1
    for _ in range(200):
        waits.fade(0.9)
    assert waits.quantile(0.5) is None
    waits.add(float(10**12))  # later than anybody has waited
    assert waits.quantile(1.0)


async def test_a_record_that_cannot_be_read_hides_no_other(real: World) -> None:
    client = real.client()
    await client.event("well").set()
    key = tag(real.namespace, "barrier", "ill")
    await real.admin.hset(f"{key}:state", "schema", 1)
    await real.admin.zadd(f"{key}:arrivals", {"garbage": 1})
    view = Overview(client)
    snapshot = await view.look()
    assert row(snapshot, "event", "well").busy
    assert "refused" in row(snapshot, "barrier", "ill").state
    await view.aclose()
    await client.event("well").clear()
    await real.admin.delete(f"{key}:state", f"{key}:arrivals")


async def test_what_is_used_last_is_counted_whatever_was_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "COUNTED", 10)
    client, view = world.client(), Overview(world.client())
    async with client.lock("first"):
        await until(view, lambda snapshot: row(snapshot, "lock", "first").holders)
    for n in range(25):
        async with client.lock(f"{n}"):
            pass

    async def use() -> None:
        while True:
            async with client.lock("last"):
                await asyncio.sleep(0)

    async with tasks(asyncio.create_task(use())):
        await until(view, lambda s: any(r.name == "last" and r.rate for r in s.rows))
    await view.aclose()
