"""What `client.single_flight()` promises, on every store."""

import asyncio
import gc
import json
import math
import pickle
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

import dsync
from dsync.flight import MESSAGE_BYTES, Flight
from dsync.names import tag
from dsync.redis.script import SCRIPTS
from dsync.single_flight import LONGEST_TTL
from tests.conftest import World, settled


@pytest.fixture(autouse=True)
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What callbacks of the loop raised: nothing."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    yield errors
    assert not errors


class Source:
    """What is computed: a number for each time; it can be held up, and made to fail."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.open = asyncio.Event()
        self.open.set()
        self.fails: list[BaseException] = []

    async def __call__(self) -> dict[str, int]:
        self.begun += 1
        number = self.begun
        await self.open.wait()
        if self.fails:
            raise self.fails.pop(0)
        self.ended += 1
        return {"number": number}


@pytest.fixture
def source() -> Source:
    return Source()


def flight_of(client: dsync.Client, key: str = "k") -> Flight | None:
    return client._flights.get(key)


def followers(client: dsync.Client, key: str = "k") -> int:
    flight = flight_of(client, key)
    return len(flight._followers) if flight is not None else 0


async def follow(count: int, *clients: dsync.Client) -> None:
    """Until so many tasks follow the pilots of their processes."""
    await settled(lambda: sum(map(followers, clients)) == count, f"{count} follow")


async def queue(count: int, *clients: dsync.Client) -> None:
    """Until the pilots of so many processes stand in the queue for the lock."""

    def stand() -> bool:
        cohorts = [c._cohorts.get(("single_flight", "k")) for c in clients]
        queued = [any(r.queued for r in c.requests.values()) for c in cohorts if c is not None]
        return sum(queued) == count and sum(len(c._listeners) for c in clients) == count

    await settled(stand, f"{count} processes wait")


def nothing_left(*clients: dsync.Client) -> bool:
    """No flight, no subscription, no token, no lock."""
    gc.collect()
    return not any(
        client._flights
        or client._listeners
        or client.homes
        or client.keeper.holds()
        or client._cohorts
        for client in clients
    )


async def plant(world: World, value: bytes, fence: int = 1) -> None:
    """Somebody has stored this."""
    if world.admin is None:
        memory = world.clients[0].store.memory  # type: ignore[attr-defined]
        args = {"fence": fence, "value": value, "ttl": 60_000, "channel": "", "most": 0}
        memory.apply(tag(world.namespace, "flight", "k"), "flight_land", args)
    else:
        key = world.key("flight", "k", "state")
        await world.admin.hset(key, mapping={"schema": 1, "fence": fence, "value": value})
        await world.admin.pexpire(key, 60_000)


async def forget(world: World) -> None:
    """The time of the value is over."""
    if world.admin is None:
        memory = world.clients[0].store.memory  # type: ignore[attr-defined]
        memory.records.pop(tag(world.namespace, "flight", "k"), None)
    else:
        await world.admin.delete(world.key("flight", "k", "state"))


def deaf(client: dsync.Client) -> None:
    """From now on every message about values is lost."""
    client.news = lambda channel, payload: None  # type: ignore[method-assign]


async def commands(world: World) -> int:
    """How many commands the server has carried out for us, but for this question."""
    stats = await world.admin.info("commandstats")
    names = ("evalsha", "eval", "subscribe", "unsubscribe")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)


# -- one computes, all get it ----------------------------------------------------------------------


async def test_one_computes_and_everybody_in_all_processes_gets_it(
    world: World, source: Source
) -> None:
    clients = [world.client() for _ in range(3)]
    source.open.clear()
    tasks = [
        asyncio.create_task(client.single_flight("k", source, ttl=60))
        for client in clients
        for _ in range(10)
    ]
    await follow(27, *clients)
    await queue(2, *clients)
    source.open.set()
    assert await asyncio.gather(*tasks) == [{"number": 1}] * 30
    assert source.begun == 1
    del tasks
    await settled(lambda: nothing_left(*clients))


async def test_a_value_that_is_kept_is_not_computed_again(world: World, source: Source) -> None:
    one, two = world.client(), world.client()
    assert await one.single_flight("k", source, ttl=60) == {"number": 1}
    for client in (one, two):
        assert await client.single_flight("k", source, ttl=60) == {"number": 1}
        assert await client.single_flight("k", source, ttl=60, timeout=0) == {"number": 1}
    assert source.begun == 1


async def test_a_value_whose_time_is_over_is_computed_again(world: World, source: Source) -> None:
    one, two = world.client(), world.client()
    assert await one.single_flight("k", source, ttl=0.05) == {"number": 1}

    async def anew() -> bool:
        return await two.single_flight("k", source, ttl=60) == {"number": 2}

    await settled(anew)
    assert source.begun == 2


async def test_keys_and_namespaces_are_apart(world: World, source: Source) -> None:
    client = world.client()
    names = ("a", "b", "ünï 🔒", "{x}", "\x00", "x" * 5000)
    got = [await client.single_flight(name, source, ttl=60) for name in names]
    away = world.client(namespace=world.namespace + "-b")
    got.append(await away.single_flight("a", source, ttl=60))
    assert got == [{"number": i} for i in range(1, len(names) + 2)]
    assert await client.lock("a").try_acquire()
    assert await client.semaphore("a").try_acquire()
    await client.lock("b").info()
    if world.admin is not None:
        async for key in world.admin.scan_iter(match=f"{{{away.namespace}:*"):
            await world.admin.delete(key)


async def test_none_is_a_value(world: World) -> None:
    client = world.client()
    begun = 0

    async def compute() -> None:
        nonlocal begun
        begun += 1

    for _ in range(2):
        await client.single_flight("k", compute, ttl=60)
    assert begun == 1


async def test_a_value_is_kept_for_its_time_and_nothing_for_ever(real: World) -> None:
    client = real.client()

    async def compute() -> str:
        return "v"

    await client.single_flight("k", compute, ttl=60)
    await client.single_flight("j", compute, ttl=lambda value: 30 if value == "v" else 1)
    keys = await real.keys()
    assert 59_000 < keys.pop(real.key("flight", "k", "state")) <= 60_000
    assert 29_000 < keys.pop(real.key("flight", "j", "state")) <= 30_000
    # ... and the floor of the lock's fences.
    assert set(keys) == {real.key("single_flight", name, "state") for name in "kj"}
    assert all(0 < ttl <= 7 * 24 * 3600 * 1000 for ttl in keys.values())


async def test_the_computing_one_gets_what_the_codec_makes_of_it_too(world: World) -> None:
    one, two = world.client(), world.client()

    async def compute() -> Any:
        return (1, 2)

    assert await one.single_flight("k", compute, ttl=60) == [1, 2]
    assert await two.single_flight("k", compute, ttl=60) == [1, 2]
    assert await one.single_flight("p", compute, ttl=60, codec=pickle) == (1, 2)
    assert await two.single_flight("p", compute, ttl=60, codec=pickle) == (1, 2)


@pytest.mark.parametrize("size", [0, 1, MESSAGE_BYTES, MESSAGE_BYTES + 1, 2**21])
async def test_any_bytes_of_any_size_come_through(world: World, source: Source, size: int) -> None:
    clients = [world.client() for _ in range(3)]
    value = bytes(i % 256 for i in range(size))

    async def compute() -> bytes:
        await source()
        return value

    source.open.clear()
    tasks = [
        asyncio.create_task(client.single_flight("k", compute, ttl=60, codec=bytes))
        for client in clients
    ]
    await queue(2, *clients)
    source.open.set()
    assert await asyncio.gather(*tasks) == [value] * 3
    assert await clients[1].single_flight("k", compute, ttl=60, codec=bytes) == value
    assert source.begun == 1


# -- what it costs ---------------------------------------------------------------------------------


@pytest.fixture
async def loaded(real: World) -> None:
    """Every script is there, so each transition is one command."""
    for script in SCRIPTS.values():
        await real.admin.script_load(script.text)


@pytest.mark.usefixtures("loaded")
async def test_a_value_that_is_kept_costs_one_command(real: World, source: Source) -> None:
    one, two = await real.client(), await real.client()
    await one.single_flight("k", source, ttl=60)
    await one.check()
    before = await commands(real)
    for n in range(1, 4):
        await two.single_flight("k", source, ttl=60)
        assert await commands(real) - before == n
    # ... and for all tasks of a process that ask at once.
    await asyncio.gather(*(two.single_flight("k", source, ttl=60) for _ in range(50)))
    assert await commands(real) - before == 4
    assert source.begun == 1


@pytest.mark.usefixtures("loaded")
async def test_a_value_that_nobody_else_wants_costs_five_commands(
    real: World, source: Source
) -> None:
    """Look, acquire, look again, land, release; the tasks of the process add none."""
    client = await real.client()
    before = await commands(real)
    await asyncio.gather(*(client.single_flight("k", source, ttl=60) for _ in range(50)))

    async def confirmed() -> bool:
        return not await real.admin.exists(real.key("single_flight", "k", "holders"))

    await settled(confirmed)
    assert await commands(real) - before == 5


@pytest.mark.usefixtures("loaded")
async def test_a_process_that_waits_costs_six_commands(real: World, source: Source) -> None:
    """Look, try, subscribe, queue; when the message has come, leave and unsubscribe."""
    one, two = await real.client(), await real.client()
    source.open.clear()
    first = asyncio.create_task(one.single_flight("k", source, ttl=60))
    await settled(lambda: source.begun == 1)
    before = await commands(real)
    others = [asyncio.create_task(two.single_flight("k", source, ttl=60)) for _ in range(50)]
    await queue(1, two)
    assert await commands(real) - before == 4
    source.open.set()
    await asyncio.gather(first, *others)
    await two.check()
    await one.check()
    # What is not its own: the first one's landing and release.
    assert await commands(real) - before == 6 + 2


# -- failing ---------------------------------------------------------------------------------------


async def test_who_fails_gets_the_very_exception_and_the_next_one_computes(
    world: World, source: Source
) -> None:
    clients = [world.client() for _ in range(2)]
    error = LookupError("no such thing")
    source.fails = [error]
    source.open.clear()
    tasks = [
        asyncio.create_task(client.single_flight("k", source, ttl=60))
        for client in clients
        for _ in range(3)
    ]
    await follow(4, *clients)
    await queue(1, *clients)
    source.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [r for r in results if isinstance(r, BaseException)] == [error]
    assert results.count({"number": 2}) == 5
    assert source.begun == 2


async def test_if_all_fail_each_gets_its_own_and_one_tries_at_a_time(world: World) -> None:
    clients = [world.client() for _ in range(3)]
    inside = most = 0

    async def compute() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise ValueError("mine")
        finally:
            inside -= 1

    tasks = [
        asyncio.create_task(client.single_flight("k", compute, ttl=60))
        for client in clients
        for _ in range(4)
    ]
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert len({id(r) for r in results}) == 12
    assert all(type(r) is ValueError for r in results)
    assert most == 1
    results.clear()
    tasks.clear()
    await settled(lambda: nothing_left(*clients))


async def test_an_error_of_ours_that_compute_raises_is_its_own_too(
    world: World, source: Source
) -> None:
    client = world.client()
    source.fails = [dsync.StoreUnavailable("another store's")]
    source.open.clear()
    tasks = [asyncio.create_task(client.single_flight("k", source, ttl=60)) for _ in range(3)]
    await follow(2, client)
    source.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], dsync.StoreUnavailable)
    assert results[1:] == [{"number": 2}] * 2


async def test_compute_has_to_be_an_async_function(world: World) -> None:
    client = world.client()
    with pytest.raises(TypeError, match=r"compute must be an async function, but .* returned int"):
        await client.single_flight("k", lambda: 5, ttl=60)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"compute must be an async function .* got int"):
        await client.single_flight("k", 5, ttl=60)  # type: ignore[arg-type]

    async def compute() -> int:
        return 1

    assert await client.single_flight("k", compute, ttl=60) == 1


async def test_compute_that_asks_for_itself_is_told_so(world: World) -> None:
    client = world.client()

    async def compute() -> int:
        return await client.single_flight("k", compute, ttl=60)

    with pytest.raises(RuntimeError, match="asks for the value that it computes"):
        await client.single_flight("k", compute, ttl=60)
    await settled(lambda: nothing_left(client))


async def test_compute_may_ask_for_another_key(world: World, source: Source) -> None:
    client = world.client()

    async def compute() -> dict[str, int]:
        return await client.single_flight("j", source, ttl=60)

    assert await client.single_flight("k", compute, ttl=60) == {"number": 1}


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, LONGEST_TTL * 2, "1", None, True])
async def test_a_ttl_that_cannot_be_is_refused_before_or_after(
    world: World, source: Source, bad: Any
) -> None:
    client = world.client()
    with pytest.raises((ValueError, TypeError), match=r"^ttl must be"):
        await client.single_flight("k", source, ttl=bad)
    assert source.begun == 0
    with pytest.raises((ValueError, TypeError), match=r"'k': what ttl\(\) returned must be"):
        await client.single_flight("k", source, ttl=lambda value: bad)
    assert source.begun == 1
    assert await client.single_flight("k", source, ttl=60) == {"number": 2}, "it was stored"


async def test_what_the_ttl_function_raises_comes_out(world: World, source: Source) -> None:
    client = world.client()
    with pytest.raises(KeyError):
        await client.single_flight("k", source, ttl=lambda value: value["expires_in"])
    assert await client.single_flight("k", source, ttl=60) == {"number": 2}


async def test_a_value_that_cannot_be_encoded_is_an_error_that_names_the_key(
    world: World,
) -> None:
    client = world.client()

    async def compute() -> Any:
        return {1, 2}

    with pytest.raises(TypeError, match="single_flight 'k': json cannot encode its data, a set"):
        await client.single_flight("k", compute, ttl=60)
    circle: list[Any] = []
    circle.append(circle)

    async def circular() -> Any:
        return circle

    with pytest.raises(ValueError, match="single_flight 'k': json cannot encode its data, a list"):
        await client.single_flight("k", circular, ttl=60)
    if world.admin is not None:
        assert not await world.admin.exists(world.key("flight", "k", "state"))
    await settled(lambda: nothing_left(client))


@pytest.mark.parametrize(
    "change",
    [{"timeout": -1}, {"timeout": "1"}, {"lease": 0}, {"lease": math.inf}, {"codec": 5}],
)
async def test_bad_arguments_are_refused(world: World, source: Source, change: Any) -> None:
    client = world.client()
    with pytest.raises((ValueError, TypeError), match=next(iter(change))):
        await client.single_flight("k", source, **{"ttl": 60, **change})
    for key in ("", 5, "\ud800"):
        with pytest.raises((ValueError, TypeError), match="key"):
            await client.single_flight(key, source, ttl=60)  # type: ignore[arg-type]
    assert source.begun == 0


# -- what is kept and cannot be read ---------------------------------------------------------------


async def test_a_value_that_cannot_be_read_is_reported_and_computed_anew(
    world: World, source: Source
) -> None:
    one, two = world.client(), world.client()
    await one.single_flight("other", source, ttl=60)
    await plant(world, b"\xff not json")
    assert await one.single_flight("k", source, ttl=60) == {"number": 2}
    (error,) = world.errors
    world.errors.clear()
    assert isinstance(error, dsync.BadMessage)
    assert "single_flight 'k': json cannot decode" in str(error)
    assert await two.single_flight("k", source, ttl=60) == {"number": 2}


async def test_with_two_codecs_everybody_gets_a_value_that_it_can_read(world: World) -> None:
    clients = [world.client() for _ in range(2)]
    begun = 0

    async def compute() -> list[int]:
        nonlocal begun
        begun += 1
        return [1]

    tasks = [
        asyncio.create_task(client.single_flight("k", compute, ttl=60, codec=codec))
        for client in clients
        for codec in (json, pickle, json)
    ]
    async with asyncio.timeout(10):
        assert await asyncio.gather(*tasks) == [[1]] * 6
    assert 2 <= begun <= 6, "no call computes twice"
    assert world.errors
    assert all(isinstance(error, dsync.BadMessage) for error in world.errors)
    world.errors.clear()


async def test_something_else_under_the_key_is_told_to_all_and_left_alone(
    world: World, source: Source
) -> None:
    if world.admin is None:
        pytest.skip("nobody else writes in the memory of this process")
    client = world.client()
    key = world.key("flight", "k", "state")
    await world.admin.set(key, "precious", px=60_000)
    calls = (client.single_flight("k", source, ttl=60) for _ in range(3))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(r) for r in results] == [dsync.ForeignKey] * 3
    assert await world.admin.get(key) == b"precious"
    await world.admin.delete(key)
    await world.admin.hset(key, mapping={"theirs": 1})
    await world.admin.pexpire(key, 60_000)
    with pytest.raises(dsync.ForeignKey):
        await client.single_flight("k", source, ttl=60)
    await world.admin.hset(key, mapping={"schema": 2})
    with pytest.raises(dsync.SchemaMismatch):
        await client.single_flight("k", source, ttl=60)
    assert source.begun == 0
    assert await world.admin.hgetall(key) == {b"theirs": b"1", b"schema": b"2"}


async def test_who_was_given_the_lock_later_has_the_newer_value(
    world: World, source: Source
) -> None:
    """A call that outlived its lease gets what it computed, and overwrites nothing."""
    one, two = world.client(), world.client()
    source.open.clear()
    task = asyncio.create_task(one.single_flight("k", source, ttl=60))
    follower = asyncio.create_task(one.single_flight("k", source, ttl=60))
    await settled(lambda: source.begun == 1)
    await plant(world, b'{"number":99}', fence=2**52)
    source.open.set()
    assert await task == {"number": 1}
    assert await follower == {"number": 99}
    assert await two.single_flight("k", source, ttl=60) == {"number": 99}


# -- waiting and giving up -------------------------------------------------------------------------


async def test_the_time_to_wait_is_for_others_and_not_for_the_own_computation(
    world: World, source: Source
) -> None:
    one, two = world.client(), world.client()
    source.open.clear()
    own = asyncio.create_task(one.single_flight("k", source, ttl=60, timeout=0.02))
    await settled(lambda: source.begun == 1)
    for client, who in ((one, "a task of this process computes it"), (two, "another process")):
        for timeout in (0, 0.05):
            said = f"single_flight 'k' had no value within {timeout} s: {who}"
            with pytest.raises(dsync.AcquireTimeout, match=said):
                await client.single_flight("k", source, ttl=60, timeout=timeout)
    assert not own.done()
    source.open.set()
    assert await own == {"number": 1}
    assert source.begun == 1
    await settled(lambda: nothing_left(two))


async def test_a_follower_that_gives_up_takes_nobody_along(world: World, source: Source) -> None:
    one, two = world.client(), world.client()
    source.open.clear()
    tasks = {
        client: [asyncio.create_task(client.single_flight("k", source, ttl=60)) for _ in range(4)]
        for client in (one, two)
    }
    await follow(6, one, two)
    await queue(1, one, two)
    for client in (one, two):
        tasks[client][2].cancel()
    source.open.set()
    results = await asyncio.gather(*tasks[one], *tasks[two], return_exceptions=True)
    assert results.count({"number": 1}) == 6
    assert sum(isinstance(r, asyncio.CancelledError) for r in results) == 2
    assert source.begun == 1


async def test_a_pilot_that_is_cancelled_while_it_computes_has_a_successor(
    world: World, source: Source
) -> None:
    client = world.client()
    source.open.clear()
    tasks = [asyncio.create_task(client.single_flight("k", source, ttl=60)) for _ in range(4)]
    await follow(3, client)
    await settled(lambda: source.begun == 1)
    tasks[0].cancel()
    tasks[1].cancel()  # at the moment at which it would be its turn
    await settled(lambda: source.begun == 2)
    source.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[2:] == [{"number": 2}] * 2
    assert all(isinstance(r, asyncio.CancelledError) for r in results[:2])


async def test_a_pilot_that_is_cancelled_while_it_waits_has_a_successor_and_leaves_the_queue(
    world: World, source: Source
) -> None:
    one, two = world.client(), world.client()
    source.open.clear()
    first = asyncio.create_task(one.single_flight("k", source, ttl=60))
    await settled(lambda: source.begun == 1)
    tasks = [asyncio.create_task(two.single_flight("k", source, ttl=60)) for _ in range(3)]
    await queue(1, two)
    tasks[0].cancel()
    await follow(1, two)
    await queue(1, two)
    source.open.set()
    assert await asyncio.gather(first, *tasks[1:]) == [{"number": 1}] * 3
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_followers_of_the_last_one_who_may_cancel_are_not_lost(
    world: World, source: Source
) -> None:
    """One after the other is cancelled as the pilot; the last one computes."""
    client = world.client()
    source.open.clear()
    tasks = [asyncio.create_task(client.single_flight("k", source, ttl=60)) for _ in range(6)]
    for number, task in enumerate(tasks[:-1], 1):
        await settled(lambda: source.begun == number)  # noqa: B023
        task.cancel()
    await settled(lambda: source.begun == 6)
    source.open.set()
    assert await tasks[-1] == {"number": 6}
    await asyncio.gather(*tasks, return_exceptions=True)


def cancel_in(task: "asyncio.Task[Any]", ticks: int, times: int) -> None:
    """Cancel it after so many turns of the event loop, and again in the turns after that."""
    loop = asyncio.get_running_loop()

    def tick(left: int) -> None:
        if left <= 0:
            task.cancel()
        if left > 1 - times:
            loop.call_soon(tick, left - 1)

    tick(ticks)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("role", ["first", "waiting", "following"])
async def test_cancelled_at_any_point_nothing_is_left_and_the_others_get_it(
    world: World, role: str, twice: bool
) -> None:
    """Each turn of the loop from the call to its end, and, once more, the turn after it."""
    one, two = await world.client(), await world.client()
    ticks, ended = 0, False
    step = 1 if world.kind == "memory" else 3
    while not ended:
        await forget(world)
        begun = 0

        async def compute() -> int:
            nonlocal begun
            begun += 1
            for _ in range(3):
                await asyncio.sleep(0)
            return 5

        def call(client: dsync.Client) -> "asyncio.Task[int]":
            return asyncio.create_task(client.single_flight("k", compute, ttl=60))

        tasks = [call(one)]
        if role != "first":
            tasks.append(call(two if role == "waiting" else one))
        victim = tasks[-1]
        tasks += [call(one), call(two)]
        cancel_in(victim, ticks, 1 + twice)
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        ended = results[tasks.index(victim)] == 5
        others = [r for t, r in zip(tasks, results, strict=True) if t is not victim]
        assert others == [5] * len(others), ticks
        assert begun <= 2
        del victim, tasks
        await settled(lambda: nothing_left(one, two), f"something is left, {ticks}")
        ticks += step
        assert ticks < 5000
    assert ticks > step


# -- messages that are lost ------------------------------------------------------------------------


async def test_without_messages_the_queue_brings_everybody_the_value(
    world: World, source: Source
) -> None:
    clients = [world.client() for _ in range(4)]
    for client in clients:
        deaf(client)
    source.open.clear()
    tasks = [
        asyncio.create_task(client.single_flight("k", source, ttl=60))
        for client in clients
        for _ in range(2)
    ]
    await queue(3, *clients)
    source.open.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*tasks) == [{"number": 1}] * 8
    assert source.begun == 1


async def test_garbage_on_the_channel_changes_nothing(real: World, source: Source) -> None:
    one, two = real.client(), real.client()
    source.open.clear()
    tasks = [
        asyncio.create_task(client.single_flight("k", source, ttl=60)) for client in (one, two)
    ]
    await queue(1, one, two)
    channel = tag(real.namespace, "flight", "k")[1:-1]
    for payload in (b"", b"what", b"look", b"v{", b"\xff"):
        await real.admin.publish(channel, payload)
    await settled(lambda: bool(real.errors))
    await one.check()
    await two.check()
    assert not any(task.done() for task in tasks)
    (error,) = real.errors
    assert isinstance(error, dsync.BadMessage)
    real.errors.clear()
    source.open.set()
    assert await asyncio.gather(*tasks) == [{"number": 1}] * 2


# -- the end ---------------------------------------------------------------------------------------


async def test_closing_the_client_ends_those_who_wait(world: World, source: Source) -> None:
    one, two = world.client(), world.client()
    source.open.clear()
    first = asyncio.create_task(one.single_flight("k", source, ttl=60))
    await settled(lambda: source.begun == 1)
    tasks = [asyncio.create_task(two.single_flight("k", source, ttl=60)) for _ in range(3)]
    follower = asyncio.create_task(one.single_flight("k", source, ttl=60))
    await queue(1, two)
    await follow(3, one, two)
    await two.aclose()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [dsync.ClientClosed] * 3
    assert not first.done()
    await one.aclose()
    with pytest.raises(dsync.ClientClosed):
        await follower
    source.open.set()
    assert await first == {"number": 1}, "what was computed is not lost"
    (error,) = world.errors
    assert isinstance(error, dsync.ClientClosed)
    world.errors.clear()
    with pytest.raises(dsync.ClientClosed):
        await one.single_flight("k", source, ttl=60)


async def test_a_flight_lives_no_longer_than_somebody_asks(world: World, source: Source) -> None:
    client = world.client()
    source.open.clear()
    tasks = [asyncio.create_task(client.single_flight(f"k{i}", source, ttl=60)) for i in range(100)]
    await settled(lambda: source.begun == 100)
    assert len(client._flights) == 100
    flight = weakref.ref(client._flights["k0"])
    source.open.set()
    await asyncio.gather(*tasks)
    tasks.clear()
    await settled(lambda: nothing_left(client))
    assert flight() is None
