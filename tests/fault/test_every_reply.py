"""Each public operation, with the reply to each of its commands lost, one after the other.

The server carries the command out, its reply and all that comes behind it is lost, and the
connection is cut.  Whatever is asked again: it is as if nothing had happened, exactly once.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import hiredis
import pytest

import dsync
from dsync.redis.script import SCRIPTS
from tests.conftest import LIVELY, World, settled

MOST = 25  # more commands than any operation here needs
MORE = object()


class Relay:
    """Passes connections on, and cuts the one on which the reply of a given number would come.

    Attributes:
        url: where clients connect.
        seen: replies so far; a confirmed subscription is one, a message is none.
        lose: which replies are lost, each counted from the one before.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.url = ""
        self.seen = 0
        self.lose: list[int] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user, at, _ = self._target.netloc.rpartition("@")
        self.url = self._target._replace(netloc=f"{user}{at}127.0.0.1:{port}").geturl()
        return self

    async def __aexit__(self, *args: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        server = self._target.hostname, self._target.port
        from_server, to_server = await asyncio.open_connection(*server)
        try:
            requests = asyncio.create_task(self._requests(reader, to_server))
            await self._replies(from_server, writer)
            requests.cancel()
            await asyncio.gather(requests, return_exceptions=True)
        except ConnectionError:
            pass
        finally:
            self._serving.discard(task)
            for each in (writer, to_server):
                each.close()
                with suppress(ConnectionError):
                    await each.wait_closed()

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            to.write(data)
        to.close()

    async def _replies(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader(notEnoughData=MORE)
        whole = bytearray()
        while data := await reader.read(2**16):
            for byte in data:
                whole.append(byte)
                parser.feed(bytes((byte,)))
                reply = parser.gets()
                if reply is MORE:
                    continue
                if not isinstance(reply, hiredis.PushNotification) or reply[0] == b"subscribe":
                    self.seen += 1
                    if self.lose and self.seen == self.lose[0]:
                        del self.lose[0]
                        self.seen = 0
                        return
                to.write(bytes(whole))
                whole.clear()


class Scene:
    """One run of an operation: a client whose reply may be lost, and another that is well."""

    def __init__(self, world: World, relay: Relay, number: int, again: bool) -> None:
        self.world = world
        self.relay = relay
        self.number = number  # of the reply that is lost
        self.again = again  # lose the answer to what is asked again, too
        self.name = f"x{number}"
        self.other = world.client()
        # A lost connection is no loss: whatever cannot be awaited goes here.
        self.errors: list[BaseException] = []
        self.client = self._another()
        self.lost = False
        self._greetings = 0  # replies that a new connection begins with

    async def open(self) -> None:
        """The connection is there: the next reply is one that counts."""
        self.relay.seen = 0
        await self.client.check()
        await settled(self.client.listening)
        self._greetings = self.relay.seen - 1

    def _another(self, **kwargs: Any) -> dsync.Client:
        return dsync.Client(
            self.relay.url, namespace=self.world.namespace, on_error=self.errors.append, **kwargs
        )

    @contextmanager
    def losing(self) -> Iterator[None]:
        """The commands in here are those that count."""
        self.relay.seen = 0
        self.relay.lose = [self.number, *([self._greetings + 1] if self.again else [])]
        try:
            yield
        finally:
            self.lost = len(self.relay.lose) <= self.again
            self.relay.lose = []

    async def count(self, part: str, kind: str = "lock") -> int:
        found: int = await self.world.admin.zcard(self.world.key(kind, self.name, part))
        return found

    async def until(self, kind: str = "lock", **parts: int) -> None:
        """So many hold, wait ... in the store."""

        async def stand() -> bool:
            return all([await self.count(p, kind) == n for p, n in parts.items()])

        await settled(stand, f"{parts} of the {kind}")

    async def state(self, kind: str, field: str) -> int:
        found = await self.world.admin.hget(self.world.key(kind, self.name, "state"), field)
        return int(found or 0)

    async def check(self) -> None:
        """Nobody is left, and nothing."""
        await self.client.store.drain()
        gc.collect()
        assert not self.client.homes, f"tokens of {set(self.client.homes.values())}"
        assert not self.client.keeper.holds()
        await self.close()
        assert not self.errors
        for key, ttl in (await self.world.keys()).items():
            part = key.partition("}:")[2].partition(":")[0]
            assert part not in LIVELY, f"{key} was left behind"
            assert ttl != -1 or ":event:" in key, f"{key} has no time to live"

    async def close(self) -> None:
        await self.client.aclose()
        await self.other.aclose()


@pytest.fixture
async def relay(real: World) -> AsyncIterator[Relay]:
    for script in SCRIPTS.values():
        await real.admin.script_load(script.text)
    async with Relay(real.url) as made:
        yield made


Operation = Callable[[Scene], Awaitable[None]]
OPERATIONS: dict[str, Operation] = {}


def operation(function: Operation) -> Operation:
    OPERATIONS[function.__name__.replace("_", " ")] = function
    return function


# -- locks and semaphores --------------------------------------------------------------------------


@operation
async def acquire(scene: Scene) -> None:
    lock = scene.client.lock(scene.name)
    with scene.losing():
        assert await lock.acquire()
    assert lock.lease is not None
    assert lock.lease.held
    assert await scene.count("holders") == 1
    await lock.release()


@operation
async def fair_acquire(scene: Scene) -> None:
    lock = scene.client.lock(scene.name, fair=True)
    with scene.losing():
        assert await lock.acquire()
    assert await scene.count("holders") == 1
    await lock.release()


@operation
async def try_acquire(scene: Scene) -> None:
    lock = scene.client.lock(scene.name)
    with scene.losing():
        assert await lock.try_acquire()
    assert await scene.count("holders") == 1
    await lock.release()


@operation
async def try_acquire_of_what_is_held(scene: Scene) -> None:
    async with scene.other.lock(scene.name):
        with scene.losing():
            assert not await scene.client.lock(scene.name).try_acquire()


@operation
async def release(scene: Scene) -> None:
    lock = scene.client.lock(scene.name)
    await lock.acquire()
    with scene.losing():
        await lock.release()
    assert await scene.other.lock(scene.name).try_acquire()
    await scene.client.check()
    assert await scene.count("holders") == 1, "the successor's"


@operation
async def release_that_nobody_awaits(scene: Scene) -> None:
    lock = scene.client.lock(scene.name)
    await lock.acquire()
    with scene.losing():
        lock.release()
        await scene.client.store.drain()
    assert await scene.count("holders") == 0


@operation
async def release_to_a_waiter(scene: Scene) -> None:
    lock, next_one = scene.client.lock(scene.name), scene.other.lock(scene.name)
    await lock.acquire()
    waiting = asyncio.create_task(next_one.acquire())
    await scene.until(waiters=1)
    with scene.losing():
        await lock.release()
    await waiting
    assert await scene.count("holders") == 1
    await next_one.release()


@operation
async def async_with(scene: Scene) -> None:
    with scene.losing():
        async with scene.client.lock(scene.name) as lease:
            assert lease.held
            assert await scene.count("holders") == 1
    assert await scene.count("holders") == 0


@operation
async def acquire_that_waits(scene: Scene) -> None:
    holder, lock = scene.other.lock(scene.name), scene.client.lock(scene.name)
    await holder.acquire()
    with scene.losing():
        waiting = asyncio.create_task(lock.acquire())
        await scene.until(waiters=1)
        await holder.release()
        await waiting
        await scene.client.store.drain()
    assert await scene.count("holders") == 1
    await lock.release()


@operation
async def acquire_that_times_out(scene: Scene) -> None:
    async with scene.other.lock(scene.name):
        with scene.losing():
            with pytest.raises(dsync.AcquireTimeout):
                await scene.client.lock(scene.name).acquire(timeout=0.02)
            await scene.client.store.drain()
        await scene.until(waiters=0, holders=1)


@operation
async def acquire_that_is_cancelled(scene: Scene) -> None:
    async with scene.other.lock(scene.name):
        with scene.losing():
            waiting = asyncio.create_task(scene.client.lock(scene.name).acquire())
            await scene.until(waiters=1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await scene.client.store.drain()
        await scene.until(waiters=0, holders=1)


@operation
async def renewal(scene: Scene) -> None:
    lock = scene.client.lock(scene.name, lease=0.8)
    async with lock as lease:
        assert lease.hold is not None
        before = lease.hold.deadline
        with scene.losing():
            await settled(lambda: lease.hold is not None and lease.hold.deadline > before)
        assert lease.held


@operation
async def info(scene: Scene) -> None:
    async with scene.other.lock(scene.name) as lease:
        with scene.losing():
            assert (await scene.client.lock(scene.name).info()).fence == lease.fence


@operation
async def locked(scene: Scene) -> None:
    async with scene.other.lock(scene.name):
        with scene.losing():
            assert await scene.client.lock(scene.name).locked()


@operation
async def force_release(scene: Scene) -> None:
    held, waiter = scene.other.lock(scene.name), scene.world.client().lock(scene.name)
    await held.acquire()
    lease = held.lease
    assert lease is not None
    waiting = asyncio.create_task(waiter.acquire())
    await scene.until(waiters=1)
    with scene.losing():
        taken = await scene.client.lock(scene.name).force_release()
    await waiting
    await asyncio.wait_for(lease.lost.wait(), 2)
    with suppress(dsync.LeaseLost):
        await held.release()
    assert await scene.count("holders") == 1, "the next one's is not touched"
    await waiter.release()
    assert taken


@operation
async def semaphore(scene: Scene) -> None:
    permits = scene.client.semaphore(scene.name, 3)
    with scene.losing():
        await permits.acquire()
        assert await permits.try_acquire()
        await permits.release()
    assert (await permits.info()).held == 1
    await permits.release()
    after = await permits.info()
    assert (after.value, after.held, after.waiting) == (3, 0, 0)


@operation
async def signal(scene: Scene) -> None:
    permits = scene.client.semaphore(scene.name, 2)
    with scene.losing():
        await permits.release()
    assert (await permits.info()).value == 3


@operation
async def resize(scene: Scene) -> None:
    permits = scene.client.semaphore(scene.name, 2)
    with scene.losing():
        await permits.resize(5)
    assert (await permits.info()).value == 5


@operation
async def semaphore_info_and_locked(scene: Scene) -> None:
    permits = scene.other.bounded_semaphore(scene.name, 1)
    async with permits:
        with scene.losing():
            mine = scene.client.bounded_semaphore(scene.name, 1)
            assert await mine.locked()
            assert (await mine.info()).held == 1


@operation
async def limited(scene: Scene) -> None:
    calls = 0

    @scene.client.limited(scene.name, 2)
    async def call() -> None:
        nonlocal calls
        calls += 1
        assert await scene.count("holders", "semaphore") == 1

    with scene.losing():
        await call()
    assert calls == 1
    assert await scene.count("holders", "semaphore") == 0


# -- events, conditions, barriers ------------------------------------------------------------------


@operation
async def event_set(scene: Scene) -> None:
    event = scene.client.event(scene.name)
    await scene.other.event(scene.name).clear()
    before = await scene.state("event", "generation")
    with scene.losing():
        await event.set()
    late = await scene.state("event", "generation")
    assert await event.is_set()
    await scene.other.event(scene.name).clear()
    await scene.client.check()
    assert not await event.is_set(), "no copy came late"
    assert late > before


@operation
async def event_clear(scene: Scene) -> None:
    await scene.other.event(scene.name).set()
    event = scene.client.event(scene.name)
    with scene.losing():
        await event.clear()
    assert not await event.is_set()


@operation
async def event_pulse(scene: Scene) -> None:
    waiting = asyncio.create_task(scene.other.event(scene.name).wait())
    event = scene.client.event(scene.name)
    await scene.other.check()
    with scene.losing():
        event.set()
        await event.clear()
    assert await asyncio.wait_for(waiting, 3)
    assert not await event.is_set()


@operation
async def is_set(scene: Scene) -> None:
    await scene.other.event(scene.name).set()
    with scene.losing():
        event = scene.client.event(scene.name)
        assert await event.is_set()
        await settled(lambda: bool(event.is_set()))
        await scene.client.store.drain()
    await event.clear()


@operation
async def event_wait(scene: Scene) -> None:
    """The pulse comes when the wait has been heard of, whatever is lost of the answers."""
    with scene.losing():
        waiting = asyncio.create_task(scene.client.event(scene.name).wait())
        await asyncio.sleep(0)
        await scene.client.check()
        await scene.other.event(scene.name).set()
        await scene.other.event(scene.name).clear()
        assert await asyncio.wait_for(waiting, 3)
        await scene.client.store.drain()


@operation
async def notify(scene: Scene) -> None:
    """One of two that sleep wakes, once."""
    woken = 0

    async def sleep() -> None:
        nonlocal woken
        async with (condition := scene.other.condition(scene.name)):
            await condition.wait()
            woken += 1

    asleep = [asyncio.create_task(sleep()) for _ in range(2)]
    sleepers = f"sleepers:{scene.name}"
    await scene.until("condition", **{sleepers: 2})
    condition = scene.client.condition(scene.name)
    with scene.losing():
        async with condition:
            condition.notify()
    await settled(lambda: woken == 1)
    await scene.client.check()
    await scene.until("condition", **{sleepers: 1, "waiters": 0, "holders": 0})
    async with condition:
        condition.notify_all()
    await asyncio.gather(*asleep)


@operation
async def condition_wait(scene: Scene) -> None:
    condition, others = scene.client.condition(scene.name), scene.other.condition(scene.name)
    awake = False

    async def sleep() -> None:
        nonlocal awake
        with scene.losing():
            async with condition:
                await condition.wait()
                awake = True
                assert await scene.count("holders", "condition") == 1

    asleep = asyncio.create_task(sleep())
    sleepers = f"sleepers:{scene.name}"
    await scene.until("condition", **{sleepers: 1})
    async with others:
        assert not awake
        others.notify()
    await asyncio.wait_for(asleep, 4)
    await scene.until("condition", **{sleepers: 0, "waiters": 0, "holders": 0})


@operation
async def condition_wait_that_times_out(scene: Scene) -> None:
    condition = scene.client.condition(scene.name)
    with scene.losing():
        async with condition:
            with pytest.raises(dsync.WaitTimeout):
                await condition.wait(timeout=0.02)
            assert await scene.count("holders", "condition") == 1
    await scene.until("condition", **{f"sleepers:{scene.name}": 0, "waiters": 0, "holders": 0})


@operation
async def condition_wait_that_is_cancelled(scene: Scene) -> None:
    condition = scene.client.condition(scene.name)

    async def sleep() -> None:
        async with condition:
            await condition.wait()

    with scene.losing():
        asleep = asyncio.create_task(sleep())
        await scene.until("condition", **{f"sleepers:{scene.name}": 1})
        asleep.cancel()
        await asyncio.gather(asleep, return_exceptions=True)
        await scene.client.store.drain()
    assert asleep.cancelled()
    await scene.until("condition", **{f"sleepers:{scene.name}": 0, "waiters": 0, "holders": 0})


@operation
async def barrier_wait(scene: Scene) -> None:
    """The first party's replies, and then the second's, twice around."""
    with scene.losing():
        for first, second in ((scene.client, scene.other), (scene.other, scene.client)):
            waiting = asyncio.create_task(first.barrier(scene.name, 2).wait())
            await scene.until("barrier", arrivals=1)
            index = await asyncio.wait_for(second.barrier(scene.name, 2).wait(), 3)
            assert [await asyncio.wait_for(waiting, 3), index] == [0, 1]
            await scene.client.store.drain()
    await scene.other.store.drain()
    assert await scene.state("barrier", "generation") == 2


@operation
async def barrier_wait_of_the_last(scene: Scene) -> None:
    waiting = asyncio.create_task(scene.other.barrier(scene.name, 2).wait())
    await scene.until("barrier", arrivals=1)
    with scene.losing():
        assert await scene.client.barrier(scene.name, 2).wait() == 1
        await scene.client.store.drain()
    assert await asyncio.wait_for(waiting, 3) == 0


@operation
async def barrier_wait_that_times_out(scene: Scene) -> None:
    with scene.losing():
        with pytest.raises(dsync.WaitTimeout):
            await scene.client.barrier(scene.name, 2).wait(timeout=0.02)
        await scene.client.store.drain()
    await scene.until("barrier", arrivals=0)


@operation
async def barrier_reset(scene: Scene) -> None:
    """Who arrives after it is not broken by a copy of it."""
    barrier = scene.other.barrier(scene.name, 2)
    waiting = asyncio.create_task(barrier.wait())
    await scene.until("barrier", arrivals=1)
    with scene.losing():
        await scene.client.barrier(scene.name, 2).reset()
    with pytest.raises(asyncio.BrokenBarrierError):
        await asyncio.wait_for(waiting, 3)
    both = [scene.client.barrier(scene.name, 2).wait(), barrier.wait()]
    assert sorted(await asyncio.wait_for(asyncio.gather(*both), 3)) == [0, 1]


@operation
async def barrier_abort(scene: Scene) -> None:
    barrier = scene.client.barrier(scene.name, 2)
    with scene.losing():
        await barrier.abort()
        assert (await barrier.info()).broken
    await scene.other.barrier(scene.name, 2).reset()
    await scene.client.check()
    assert not (await barrier.info()).broken


# -- buses, rates, jobs ----------------------------------------------------------------------------


@operation
async def trigger(scene: Scene) -> None:
    async with scene.other.event_bus(scene.name).subscribe() as events:
        bus = scene.client.event_bus(scene.name)
        with scene.losing():
            bus.trigger("n", 0)
            await bus.trigger("n", 1)
        await bus.trigger("n", 2)
        async with asyncio.timeout(3):
            assert [getattr(await anext(events), "data", None) for _ in range(3)] == [0, 1, 2]


@operation
async def subscribe(scene: Scene) -> None:
    publisher = scene.other.event_bus(scene.name)
    with scene.losing():
        async with scene.client.event_bus(scene.name).subscribe() as events:
            await publisher.trigger("n", 0)
            first = await asyncio.wait_for(anext(events), 4)
            # Where the connection broke behind the confirmation, it is told as a gap.
            assert getattr(first, "data", None) == 0 or first == dsync.Gap(1)
        await scene.client.store.drain()


@operation
async def on(scene: Scene) -> None:
    heard: list[Any] = []
    gaps: list[dsync.Gap] = []
    bus = scene.client.event_bus(scene.name)
    with scene.losing():
        await bus.on("n", heard.append, on_gap=gaps.append)
        await scene.other.event_bus(scene.name).trigger("n", 0)
        await settled(lambda: len(heard) + len(gaps) == 1)
        assert bus.off("n") == 1
        await scene.client.store.drain()
    assert heard == [0] or gaps == [dsync.Gap(1)]


@operation
async def bus_wait_for(scene: Scene) -> None:
    bus = scene.other.event_bus(scene.name)
    with scene.losing():
        waiting = asyncio.create_task(scene.client.event_bus(scene.name).wait_for("n"))
        async with asyncio.timeout(5):
            while not waiting.done():
                await bus.trigger("n", 7)
                await asyncio.wait([waiting], timeout=0.01)
        await scene.client.store.drain()
    assert waiting.result().data == 7


@operation
async def rate_acquire(scene: Scene) -> None:
    rate = scene.client.rate_limiter(scene.name, 10, per=10_000)
    with scene.losing():
        await rate.acquire(3)
        assert await rate.try_acquire(2)
        assert (await rate.info()).remaining == 5
    assert (await rate.info()).remaining == 5


@operation
async def rate_acquire_that_is_cancelled(scene: Scene) -> None:
    rate = scene.client.rate_limiter(scene.name, 10, per=10_000)
    await rate.acquire(8)
    with scene.losing():
        waiting = asyncio.create_task(rate.acquire(6))
        await asyncio.sleep(0)
        await scene.client.check()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await scene.client.store.drain()
    await asyncio.sleep(0)
    await scene.client.store.drain()
    assert (await rate.info()).remaining == 2


@operation
async def single_flight(scene: Scene) -> None:
    computed = 0

    async def compute() -> int:
        nonlocal computed
        computed += 1
        return computed

    with scene.losing():
        assert await scene.client.single_flight(scene.name, compute, ttl=60) == 1
        assert await scene.client.single_flight(scene.name, compute, ttl=60) == 1
        await scene.client.store.drain()
    assert await scene.other.single_flight(scene.name, compute, ttl=60) == 1
    assert await scene.count("holders", "single_flight") == 0


@operation
async def single_flight_of_another(scene: Scene) -> None:
    ready = asyncio.Event()

    async def compute() -> str:
        await ready.wait()
        return "theirs"

    async def none() -> str:
        raise AssertionError("one computes")

    computing = asyncio.create_task(scene.other.single_flight(scene.name, compute, ttl=60))
    await scene.until("single_flight", holders=1)
    with scene.losing():
        waiting = asyncio.create_task(scene.client.single_flight(scene.name, none, ttl=60))
        await scene.until("single_flight", waiters=1)
        ready.set()
        assert await asyncio.wait_for(waiting, 4) == "theirs"
        await scene.client.store.drain()
    await computing


@operation
async def leader(scene: Scene) -> None:
    election = scene.client.leader(scene.name, sigterm=False)
    with scene.losing():
        async with election as term:
            assert term.held
            found = await election.leader()
            assert found is not None
            assert found.fence == term.fence
        await scene.client.store.drain()
    assert await scene.other.leader(scene.name).leader() is None


@operation
async def exclusive_with_every(scene: Scene) -> None:
    calls = 0

    @scene.client.exclusive(scene.name, every=1000)
    async def call() -> None:
        nonlocal calls
        calls += 1

    with scene.losing():
        assert await call() is None
        assert await call() is dsync.SKIPPED
        await scene.client.store.drain()
    assert calls == 1


@operation
async def closing(scene: Scene) -> None:
    client = scene._another()
    await client.lock(scene.name).acquire()
    with scene.losing():
        await client.aclose()
    assert await scene.count("holders") == 0


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_a_lost_reply_changes_nothing(
    real: World, relay: Relay, name: str, again: bool
) -> None:
    number = 0
    for number in range(1, MOST):
        scene = Scene(real, relay, number, again)
        await scene.open()
        try:
            async with asyncio.timeout(10):
                await OPERATIONS[name](scene)
            await scene.check()
        finally:
            await scene.close()
        if not scene.lost:
            break
        print(f"{name}: reply {number} was lost")
    assert 1 < number < MOST - 1, "at least one was lost, and one run needed no more"
