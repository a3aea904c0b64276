"""What the primitives cost, in things that can be counted: on the wire, and in the process.

A count does not depend on the machine or on its load, so what has become dearer fails here, and
nothing else does.  `make bench` tells what it means in time.
"""

import asyncio
import gc
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import hiredis
import pytest

import dsync
from dsync import local
from dsync.cohort import Cohort
from dsync.lease import Hold
from dsync.redis.wire import Wire
from tests.conftest import World, settled

LEASE = 3600.0  # seconds: nothing is renewed while we count
MORE = object()


@dataclass
class Cost:
    """What has passed: commands by name, bytes each way, and how often one waited for the other."""

    commands: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0
    round_trips: int = 0  # requests that were sent after an answer had come


class Tap:
    """A relay to a server that counts what passes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self._url = parts
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._answered = True
        self.cost = Cost()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        user, at, _ = self._url.netloc.rpartition("@")
        return self._url._replace(netloc=f"{user}{at}127.0.0.1:{port}").geturl()

    async def __aenter__(self) -> "Tap":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._serving)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        from_server, to_server = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(
                self._requests(reader, to_server), self._replies(from_server, writer)
            )
        finally:
            for each in (writer, to_server):
                each.close()
            self._serving.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader(notEnoughData=MORE)
        while data := await reader.read(2**16):
            parser.feed(data)
            self.cost.sent += len(data)
            self.cost.round_trips += self._answered
            self._answered = False
            while (command := parser.gets()) is not MORE:
                self.cost.commands[command[0].decode()] += 1
            to.write(data)
        to.write_eof()

    async def _replies(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            self.cost.received += len(data)
            self._answered = True
            to.write(data)

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[Cost]:
        """What passes until the body ends."""
        self.cost, self._answered = Cost(), True
        yield self.cost


@pytest.fixture
async def tap(real: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tap]:
    """Clients of `real` go through it, and send nothing by the clock."""
    monkeypatch.setattr("dsync.beat.BEAT", LEASE)
    monkeypatch.setattr("dsync.lease.CLAIM", LEASE)
    async with Tap(real.url) as tap:
        real.url = tap.url
        yield tap
        await real.close()
        real.clients.clear()


async def connected(real: World, **kwargs: Any) -> dsync.Client:
    """A client that is well, and does nothing by itself for an hour."""
    client = real.client(label="x", outage_timeout=LEASE, **kwargs)
    client.phase = time.monotonic()
    await client
    await settled(client.listening)
    return client


# -- on the wire ----------------------------------------------------------------------------------

Operation = Callable[[dsync.Client, dsync.Client], Awaitable[object]]


async def lock(one: dsync.Client, other: dsync.Client) -> None:
    mine = one.lock("x", lease=LEASE)
    await mine.acquire()
    await mine.release()


async def body(one: dsync.Client, other: dsync.Client) -> None:
    async with one.lock("x", lease=LEASE):
        pass


async def passing(one: dsync.Client, other: dsync.Client) -> None:
    mine, theirs = one.lock("x", lease=LEASE), other.lock("x", lease=LEASE)
    await mine.acquire()
    waiting = asyncio.create_task(theirs.acquire())
    await settled(lambda: any(r.queued for r in theirs._cohort.requests.values()))
    await mine.release()
    await waiting
    await theirs.release()


async def semaphore(one: dsync.Client, other: dsync.Client) -> None:
    permits = one.semaphore("x", 10, lease=LEASE)
    await permits.acquire()
    await permits.release()


async def look(one: dsync.Client, other: dsync.Client) -> None:
    await one.lock("x").locked()
    await one.semaphore("x").locked()


async def event(one: dsync.Client, other: dsync.Client) -> None:
    flag = one.event("x")
    await flag.set()
    await flag.wait()
    await flag.clear()


async def notification(one: dsync.Client, other: dsync.Client) -> None:
    mine = one.condition("x", lease=LEASE)
    theirs = other.condition("x", lease=LEASE)

    async def wait() -> None:
        async with mine:
            await mine.wait()

    waiting = asyncio.create_task(wait())
    await settled(lambda: mine._waiting() == 1)
    async with theirs:
        theirs.notify()
    await waiting


async def barrier(one: dsync.Client, other: dsync.Client) -> None:
    await asyncio.gather(one.barrier("x", 2).wait(), other.barrier("x", 2).wait())


async def limiter(one: dsync.Client, other: dsync.Client) -> None:
    limit = one.rate_limiter("x", 1000, burst=10**6)
    await limit.acquire()
    await limit.try_acquire()


async def bus(one: dsync.Client, other: dsync.Client) -> None:
    await one.event_bus().trigger("x", {"id": 1})


# Commands, round trips, and bytes at most: sent, received.  Before they are counted once, all have
# run once: the server knows the scripts, and what has to be subscribed to is.
COSTS: dict[Operation, tuple[int, int, int, int]] = {
    lock: (2, 2, 1300, 40),
    body: (2, 2, 1300, 40),
    semaphore: (2, 2, 1400, 80),
    look: (2, 2, 700, 120),
    event: (3, 3, 1200, 300),
    limiter: (2, 2, 500, 250),
    bus: (1, 1, 400, 50),
}


@pytest.mark.parametrize("operation", COSTS, ids=lambda operation: operation.__name__)
async def test_an_operation_costs_so_much_on_the_wire(
    real: World, tap: Tap, operation: Operation
) -> None:
    commands, round_trips, sent, received = COSTS[operation]
    one, other = await connected(real), await connected(real)
    for _ in range(2):
        await operation(one, other)
    async with tap.counting() as cost:
        await operation(one, other)
    print(cost)
    assert cost.commands == {"EVALSHA": commands}
    assert cost.round_trips == round_trips
    assert cost.sent <= sent
    assert cost.received <= received


# Of operations that take two processes: commands of both together.
TOGETHER: dict[Operation, int] = {passing: 4, notification: 5, barrier: 4}


@pytest.mark.parametrize("operation", TOGETHER, ids=lambda operation: operation.__name__)
async def test_what_takes_two_processes_takes_so_many_commands(
    real: World, tap: Tap, operation: Operation
) -> None:
    one, other = await connected(real), await connected(real)
    for _ in range(2):
        await operation(one, other)
    for client in (one, other):
        await client.store.drain()
    async with tap.counting() as cost:
        await operation(one, other)
        for client in (one, other):
            await client.store.drain()
    print(cost)
    assert cost.commands == {"EVALSHA": TOGETHER[operation]}


async def test_five_hundred_waiting_tasks_cost_one_command(real: World, tap: Tap) -> None:
    one, other = await connected(real), await connected(real)
    await one.lock("x", lease=LEASE).acquire()
    async with tap.counting() as cost:
        lock = other.lock("x", lease=LEASE)
        waiting = [asyncio.create_task(lock.acquire()) for _ in range(500)]
        await settled(lambda: any(r.queued for r in lock._cohort.requests.values()))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(cost.commands.values()) <= 2  # the script may have been unknown


async def test_tasks_of_one_process_pass_a_lock_on_without_the_network(
    real: World, tap: Tap
) -> None:
    """32 tasks, 20 turns each; a command for each block of fences."""
    client = await connected(real)
    lock = client.lock("x", lease=LEASE)

    async def turns() -> None:
        for _ in range(20):
            async with lock:
                await asyncio.sleep(0)

    async with tap.counting() as cost:
        await asyncio.gather(*(turns() for _ in range(32)))
    assert sum(cost.commands.values()) <= 0.05 * 640


async def test_tasks_that_ask_in_one_tick_share_two_writes(
    real: World, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first leaves at once, the rest together."""
    client = await connected(real)
    link = client.store.link  # type: ignore[attr-defined]
    assert isinstance(link, Wire)
    assert link._connection is not None
    transport = link._connection._transport
    writes: list[int] = []

    class Counted:
        def write(self, data: bytes) -> None:
            writes.append(len(data))
            transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

    monkeypatch.setattr(link._connection, "_transport", Counted())
    locks = [client.lock(f"x{i}", lease=LEASE) for i in range(200)]
    asking = [asyncio.create_task(lock.acquire()) for lock in locks]
    await asyncio.sleep(0)  # all of them ask
    await asyncio.sleep(0)
    assert len(writes) == 2, writes
    await asyncio.gather(*asking)


# -- in the process -------------------------------------------------------------------------------


@contextmanager
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts the tasks, futures and timers that are made."""
    loop = asyncio.get_running_loop()
    count: Counter[str] = Counter()

    def counted(what: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            count[what] += 1
            return make(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_future", counted("futures", loop.create_future))
        patch.setattr(loop, "call_at", counted("timers", loop.call_at))
        patch.setattr(loop, "create_task", counted("tasks", loop.create_task))
        yield count


async def with_timeout(one: dsync.Client, other: dsync.Client) -> None:
    mine = one.lock("x", lease=LEASE)
    await mine.acquire(timeout=60)
    await mine.release()


async def in_memory(one: dsync.Client, other: dsync.Client) -> None:
    mine = local.Lock()
    await mine.acquire()
    mine.release()
    async with local.Semaphore(2):
        pass


# What a task waits on is a future; nothing else is needed where nobody has to be waited for.
MADE: dict[Operation, dict[str, int]] = {
    lock: {"futures": 2},
    body: {"futures": 2},
    with_timeout: {"futures": 2, "timers": 1},
    semaphore: {"futures": 2},
    limiter: {"futures": 2},
    in_memory: {},
}


@pytest.mark.parametrize("operation", MADE, ids=lambda operation: operation.__name__)
async def test_an_operation_makes_no_tasks_and_no_timers_but_for_a_timeout(
    real: World, monkeypatch: pytest.MonkeyPatch, operation: Operation
) -> None:
    one, other = await connected(real), await connected(real)
    for _ in range(2):
        await operation(one, other)
    with made(monkeypatch) as count:
        for _ in range(10):
            await operation(one, other)
    assert count == {what: 10 * number for what, number in MADE[operation].items()}


async def test_many_leases_are_renewed_fifty_in_a_turn_of_the_loop(
    real: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await connected(real)
    locks = [client.lock(f"x{i}", lease=LEASE) for i in range(250)]
    await asyncio.gather(*(lock.acquire() for lock in locks))
    renewed: list[str] = []
    renew = Cohort.renew

    def counted(cohort: Cohort, hold: Hold, block: int = 0) -> None:
        renewed.append(hold.token)
        renew(cohort, hold, block)

    monkeypatch.setattr(Cohort, "renew", counted)
    client.keeper.renew_now()  # as after a reconnect
    assert len(renewed) == 50
    most, before = 0, len(renewed)
    async with asyncio.timeout(10):
        while before < 250:
            await asyncio.sleep(0)
            most, before = max(most, len(renewed) - before), len(renewed)
    assert most == 50
    assert sorted(renewed) == sorted(hold.token for hold in client.keeper.holds())


async def test_what_comes_to_be_due_meanwhile_waits_and_each_is_renewed_once(
    real: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await connected(real)
    locks = [client.lock(f"x{i}", lease=LEASE) for i in range(250)]
    await asyncio.gather(*(lock.acquire() for lock in locks))
    renewed: list[str] = []
    renew = Cohort.renew

    def counted(cohort: Cohort, hold: Hold, block: int = 0) -> None:
        renewed.append(hold.token)
        renew(cohort, hold, block)

    monkeypatch.setattr(Cohort, "renew", counted)
    keeper = client.keeper
    holds = keeper.holds()
    for hold in holds[:150]:
        hold.renew_at = 0.0
    keeper._wake()
    for hold in holds[150:]:
        hold.renew_at = 0.0
    keeper._wake()  # its timer fires again
    assert len(renewed) == 50
    await settled(lambda: len(renewed) >= 250 and not any(hold.renewing for hold in holds))
    assert sorted(renewed) == sorted(hold.token for hold in holds)


def held_memory() -> int:
    """Bytes, of what Python has allocated since it is traced."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextmanager
def traced() -> Any:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def test_what_was_used_and_given_back_leaves_no_memory_behind(real: World) -> None:
    one, other = await connected(real), await connected(real)

    async def use() -> None:
        for operation in (lock, semaphore, passing, notification, limiter, bus):
            await operation(one, other)

    # Whoever has waited beats once more: what is made anew for each use would still be there.
    known = [(c.lock("x"), c.condition("x"), c.event_bus()) for c in (one, other)]
    for _ in range(5):
        await use()
    with traced():
        await use()
        before = held_memory()
        for _ in range(50):
            await use()
        assert held_memory() - before < 50 * 200  # an object for each use would be more
    del known


async def test_a_lease_a_waiting_task_and_a_lock_take_little_memory(real: World) -> None:
    """Twice of what they take, so that it fails where something is kept for each that was not."""
    one, other = await connected(real), await connected(real)
    many = 200
    with traced():
        before = held_memory()
        locks = [one.lock(f"x{i}", lease=LEASE) for i in range(many)]
        made_, before = held_memory() - before, held_memory()
        await asyncio.gather(*(lock.acquire() for lock in locks))
        holding, before = held_memory() - before, held_memory()
        theirs = other.lock("x0", lease=LEASE)
        waiting = [asyncio.create_task(theirs.acquire()) for _ in range(many)]
        await settled(lambda: any(r.queued for r in theirs._cohort.requests.values()))
        waits = held_memory() - before
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.gather(*(lock.release() for lock in locks))
    print(f"bytes: a lock {made_ / many:.0f}, a lease {holding / many:.0f}, "
          f"a waiting task {waits / many:.0f}")  # fmt: skip
    assert made_ / many < 16_000
    assert holding / many < 8_000
    assert waits / many < 6_000
