"""Where the promise cannot hold, what docs/guarantees.md says is what happens.

The server loses what it has confirmed, goes back in time, or tells the time wrongly.  Who learns of
it and when, how long two hold at once, and that the fence keeps them apart.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions

import dsync
from chaos.servers import Backend, Clock
from dsync.lease import margin
from dsync.testing import History, Proxy, fences, holds, stale_writes
from tests.conftest import settled

LEASE = 1.5  # seconds
SOON = 0.6  # seconds for a client to come back and ask, beside other tests
HOLDERS = "{dsync:lock:x}:holders"


def admin_of(backend: Backend) -> Any:
    return redis.asyncio.Redis.from_url(backend.url)


class Rivals:
    """Two that may hold one lock at a time, and a store that both write to under their fences."""

    def __init__(self, path: Path) -> None:
        self.history = History(path)

    async def hold(self, client: dsync.Client, task: str, *, insist: bool = False) -> None:
        """Hold it, writing on and on, until it is lost or this is cancelled.

        `insist`: write once more after the loss, when the other has it: that was under way.
        """
        lock = client.lock("x", lease=LEASE)
        who = {"of": "x", "task": task}
        fence: int | None = None
        try:
            async with lock as lease:
                fence = lease.fence
                self.history.write("held", fence=fence, **who)
                while True:
                    await asyncio.sleep(0.01)
                    self.history.write("step", fence=fence, **who)
        except dsync.LeaseLost as lost:
            self.history.write("lost", why=str(lost), **who)
            if insist:
                await settled(lambda: self.held("new"))
                self.history.write("step", fence=fence, **who)

    def held(self, task: str) -> bool:
        return any(event["task"] == task for event in self.history.events("held"))

    def overlap(self) -> float:
        """Seconds for which the first believed to hold it while the second held it."""
        first, second = holds(self.history.events())
        return first.ends - second.starts

    def check_fences(self) -> None:
        """They grow with each hold, and under them no write is late."""
        events = self.history.events()
        assert fences(events) == []
        assert stale_writes(events) == []

    def check_that_the_fence_separates_them(self) -> None:
        """A store that refuses smaller fences refuses the late write of the first, and no other."""
        self.check_fences()
        events = self.history.events()
        unfenced = [{**event, "fence": 1} for event in events]
        assert stale_writes(unfenced) != [], "there was nothing to refuse"


@pytest.fixture
def rivals(tmp_path: Path) -> Rivals:
    return Rivals(tmp_path / "history")


Made = Callable[..., dsync.Client]


@pytest.fixture
async def client() -> AsyncIterator[Made]:
    """Makes clients, closed when the test ends."""
    async with AsyncExitStack() as stack:

        def make(url: str, **kwargs: Any) -> dsync.Client:
            made = dsync.Client(url, **kwargs)
            stack.push_async_callback(made.aclose)
            return made

        yield make


@pytest.fixture
async def tasks() -> AsyncIterator[Callable[..., "asyncio.Task[Any]"]]:
    """Starts tasks, cancelled when the test ends."""
    made: list[asyncio.Task[Any]] = []

    def start(coroutine: Any) -> "asyncio.Task[Any]":
        made.append(asyncio.create_task(coroutine))
        return made[-1]

    yield start
    for task in made:
        task.cancel()
    for result in await asyncio.gather(*made, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


# -- a primary and its replica ---------------------------------------------------------------------


class Replicated:
    """A primary and an asynchronous replica, with a proxy between them and one before both."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self) -> None:
        enter = self._stack.enter_context
        self.primary = enter(await asyncio.to_thread(Backend, "--repl-diskless-sync-delay", "0"))
        self.replica = enter(await asyncio.to_thread(Backend))
        self.between = await self._stack.enter_async_context(Proxy.to(self.primary.url))
        self.front = await self.way()
        self.admins = admin_of(self.primary), admin_of(self.replica)
        for admin in self.admins:
            self._stack.push_async_callback(admin.aclose)
        host, port = self.between.url.removeprefix("redis://").partition("/")[0].split(":")
        await self.admins[1].replicaof(host, port)

        async def in_sync() -> bool:
            found = await self.admins[1].info("replication")
            return bool(found["master_link_status"] == "up")

        await settled(in_sync, "the replica is in sync")

    async def way(self) -> Proxy:
        """A way for clients to what is the primary now."""
        return await self._stack.enter_async_context(Proxy.to(self.primary.url))

    async def caught_up(self) -> None:
        """The replica knows all that the primary has confirmed."""
        sent = (await self.admins[0].info("replication"))["master_repl_offset"]

        async def known() -> bool:
            found = await self.admins[1].info("replication")
            return bool(found["slave_repl_offset"] >= sent)

        await settled(known, "the replica has caught up")

    def lag(self) -> None:
        """From now on nothing reaches the replica."""
        self.between.black_hole("replies")

    async def promote(self) -> None:
        """The replica is the primary, whatever has become of the other."""
        self.between.refusing = True
        self.between.reset()  # and what was under way is lost
        await self.admins[1].replicaof("NO", "ONE")

    async def fail_over(self) -> None:
        """The primary is dead, long live the replica; who comes by the front is led there."""
        await asyncio.to_thread(self.primary.kill)
        await self.promote()
        self.front.retarget(self.replica.url)
        self.front.cut()


@pytest.fixture
async def replicated() -> AsyncIterator[Replicated]:
    async with AsyncExitStack() as stack:
        made = Replicated(stack)
        await made.start()
        yield made


async def queue_of(lock: dsync.Lock, length: int) -> bool:
    """Whether so many stand in the server's queue."""
    return len((await lock.info()).waiters) == length


async def test_a_failover_after_all_was_replicated_takes_nothing_from_anybody(
    replicated: Replicated, client: Made, tasks: Any
) -> None:
    holder = client(replicated.front.url).lock("x", lease=6)
    waiters = [client(replicated.front.url).lock("x", lease=6) for _ in range(3)]
    served: list[int] = []

    async def take(number: int) -> None:
        async with waiters[number]:
            served.append(number)

    await holder.acquire()
    lease = holder.lease
    assert lease is not None
    queued = [tasks(take(0))]
    for number in (1, 2):
        await settled(lambda: queue_of(holder, number))  # noqa: B023
        queued.append(tasks(take(number)))
    await replicated.caught_up()
    await replicated.fail_over()
    async with asyncio.timeout(5):
        assert await holder.locked()
        assert lease.held
        await holder.release()
        await asyncio.gather(*queued)
    assert served == [0, 1, 2]


async def test_after_a_failover_that_lost_a_grant_the_holder_learns_it_when_it_is_back(
    replicated: Replicated, client: Made, tasks: Any, rivals: Rivals
) -> None:
    one, two = (client(replicated.front.url) for _ in range(2))
    await two.check()
    replicated.lag()
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    await replicated.fail_over()
    tasks(rivals.hold(two, "new"))
    async with asyncio.timeout(LEASE + SOON):
        await old
    await settled(lambda: rivals.held("new"))
    assert rivals.overlap() < SOON
    [lost] = rivals.history.events("lost")
    assert "forgotten" in lost["why"]
    rivals.check_that_the_fence_separates_them()


async def test_after_a_failover_that_lost_a_grant_a_holder_that_stays_away_ends_with_its_lease(
    replicated: Replicated, client: Made, tasks: Any, rivals: Rivals
) -> None:
    away = await replicated.way()
    one, two = client(away.url), client(replicated.front.url)
    replicated.lag()
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    away.refusing = True
    away.cut()
    await replicated.fail_over()
    tasks(rivals.hold(two, "new"))
    await settled(lambda: rivals.held("new"))
    async with asyncio.timeout(LEASE + SOON):
        await old
    assert 0 < rivals.overlap() <= LEASE - margin(LEASE) + 0.1
    away.retarget(replicated.replica.url)
    away.heal()  # its late renewals and its release touch nobody
    await one.check()
    async with admin_of(replicated.replica) as admin:
        assert await admin.zcard(HOLDERS) == 1
    [lost] = rivals.history.events("lost")
    assert "ran out" in lost["why"]
    rivals.check_that_the_fence_separates_them()


async def test_an_isolated_primary_that_goes_on_keeps_its_holder_beside_the_new_one(
    replicated: Replicated, client: Made, tasks: Any, rivals: Rivals
) -> None:
    """No lease bounds that, but the partition does; or a primary that demands a replica."""
    one, two = client((await replicated.way()).url), client(replicated.replica.url)
    replicated.lag()
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    await replicated.promote()
    tasks(rivals.hold(two, "new"))
    await settled(lambda: rivals.held("new"))
    done, _ = await asyncio.wait([old], timeout=1.4 * LEASE)
    assert not done, "both hold it"
    # With this from the beginning it would have ended a lease after the replica's last word.
    await replicated.admins[0].config_set("min-replicas-to-write", 1)
    async with asyncio.timeout(LEASE + SOON):
        await old
    [lost] = rivals.history.events("lost")
    assert "ran out" in lost["why"]
    await replicated.admins[0].config_set("min-replicas-to-write", 0)
    rivals.check_that_the_fence_separates_them()


async def test_who_is_still_with_a_demoted_primary_is_led_to_the_new_one_and_loses_nothing(
    replicated: Replicated, client: Made, tasks: Any
) -> None:
    holder, waiter = (client(replicated.front.url).lock("x", lease=LEASE) for _ in range(2))
    await holder.acquire()
    lease = holder.lease
    assert lease is not None
    waiting = tasks(waiter.acquire())
    await settled(lambda: "waiters:1" in repr(waiter))
    port = replicated.replica.port
    await replicated.caught_up()
    await replicated.admins[0].replicaof("127.0.0.1", port)
    with pytest.raises(redis.exceptions.ReadOnlyError):
        await replicated.admins[0].set("x", 1)
    await replicated.promote()
    replicated.front.retarget(replicated.replica.url)
    before = replicated.front.connections
    async with asyncio.timeout(LEASE + SOON):
        await holder.release()
        await waiting
    assert replicated.front.connections > before, "READONLY made them look for the new one"
    assert waiter.lease is not None
    assert waiter.lease.fence is not None
    assert lease.fence is not None
    assert waiter.lease.fence > lease.fence
    await waiter.release()


async def test_a_primary_that_stays_read_only_is_reported_after_the_outage_timeout(
    replicated: Replicated, client: Made
) -> None:
    lock = client(replicated.replica.url, outage_timeout=0.6).lock("x")
    began = time.monotonic()
    with pytest.raises(dsync.StoreUnavailable, match="READONLY"):
        await lock.acquire()
    assert 0.3 < time.monotonic() - began < 0.6 + SOON


# -- a server of one's own -------------------------------------------------------------------------


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    made = await asyncio.to_thread(Backend)
    yield made
    await asyncio.to_thread(made.close)


async def restart(backend: Backend) -> None:
    """With the data of its last snapshot."""
    await asyncio.to_thread(backend.restart, empty=False)


async def snapshot(backend: Backend) -> None:
    async with admin_of(backend) as admin:
        await admin.save()


async def test_a_server_that_loads_its_data_is_waited_for_and_nothing_is_lost(
    backend: Backend, client: Made, tasks: Any
) -> None:
    holder, waiter = (client(backend.url).lock("x", lease=6) for _ in range(2))
    await holder.acquire()
    lease = holder.lease
    assert lease is not None
    waiting = tasks(waiter.acquire())
    await settled(lambda: "waiters:1" in repr(waiter))
    async with admin_of(backend) as admin:
        await admin.mset({f"key:{number}": "" for number in range(1000)})
    await snapshot(backend)
    slowly = ("--key-load-delay", "1000")  # µs: a second in all
    backend.options = (*slowly, "--loading-process-events-interval-bytes", "1024")
    await asyncio.to_thread(backend.kill)
    started = tasks(restart(backend))
    assert await loading(backend)
    await started
    async with asyncio.timeout(3):
        assert await holder.locked()
        assert lease.held
        await holder.release()
        await waiting
    await waiter.release()


async def loading(backend: Backend) -> bool:
    """Whether it says LOADING when it answers first."""
    while True:
        try:
            async with admin_of(backend) as admin:
                await admin.get("x")
        except redis.exceptions.BusyLoadingError:
            return True
        except redis.exceptions.ConnectionError:
            await asyncio.sleep(0.002)
        else:
            return False


async def test_who_holds_since_the_snapshot_loses_it_when_the_server_is_back(
    backend: Backend, client: Made, tasks: Any, rivals: Rivals
) -> None:
    one, two = client(backend.url), client(backend.url)
    await one.check()
    await snapshot(backend)
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    await restart(backend)
    tasks(rivals.hold(two, "new"))
    async with asyncio.timeout(LEASE + SOON):
        await old
    await settled(lambda: rivals.held("new"))
    assert rivals.overlap() < SOON
    rivals.check_that_the_fence_separates_them()


async def test_who_held_at_the_snapshot_blocks_it_again_until_its_lease_of_then_ends(
    backend: Backend, client: Made
) -> None:
    former, next_ = (client(backend.url).lock("x", lease=LEASE) for _ in range(2))
    await former.acquire()
    began = time.monotonic()
    await snapshot(backend)
    await former.release()
    await next_.acquire()
    lease = next_.lease
    assert lease is not None
    await restart(backend)
    await asyncio.wait_for(lease.lost.wait(), SOON)
    with pytest.raises(dsync.LeaseLost):
        next_.release()
    async with asyncio.timeout(LEASE + SOON), next_ as again:
        assert time.monotonic() - began > LEASE - 0.1
        assert again.fence is not None
        assert lease.fence is not None
        assert again.fence > lease.fence


async def test_who_waited_at_the_snapshot_and_does_not_any_more_keeps_nobody_waiting(
    backend: Backend, client: Made, tasks: Any
) -> None:
    """Its process lives, and hears that it was granted what it does not want: it gives it back."""
    holder, *others = (client(backend.url).lock("x", lease=LEASE) for _ in range(4))

    async def take(lock: dsync.Lock) -> None:
        async with lock:
            pass

    await holder.acquire()
    waiting = [tasks(take(other)) for other in others]
    async with admin_of(backend) as admin:

        async def queued() -> bool:
            return bool(await admin.zcard("{dsync:lock:x}:waiters") == len(others))

        await settled(queued, "all wait")
        await admin.save()
    await holder.release()
    await asyncio.gather(*waiting)
    await restart(backend)
    began = time.monotonic()
    async with asyncio.timeout(20):
        await asyncio.gather(*map(take, others))
    took = time.monotonic() - began
    assert took < LEASE + SOON, "beyond the lease of then there is nothing to be waited for"


async def forget(backend: Backend) -> None:
    async with admin_of(backend) as admin:
        await admin.flushall()


async def evict(backend: Backend) -> None:
    """Others write, with too little memory for all, until who holds the lock is forgotten."""
    async with admin_of(backend) as admin:
        await admin.config_set("maxmemory-policy", "allkeys-random")
        used = (await admin.info("memory"))["used_memory"]
        await admin.config_set("maxmemory", used + 300_000)
        number = 0
        while await admin.exists(HOLDERS):
            await admin.set(f"junk:{number % 200}", "x" * 5000)
            number += 1


@pytest.mark.parametrize("harm", [forget, evict], ids=["flushall", "eviction"])
async def test_who_was_forgotten_learns_it_at_the_next_renewal(
    backend: Backend,
    client: Made,
    tasks: Any,
    rivals: Rivals,
    harm: Callable[[Backend], Awaitable[None]],
) -> None:
    one, two = client(backend.url), client(backend.url)
    await two.check()
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    await harm(backend)
    tasks(rivals.hold(two, "new"))
    await settled(lambda: rivals.held("new"))
    await asyncio.wait_for(old, LEASE)
    assert 0 < rivals.overlap() < 0.34 * LEASE + 0.2
    [lost] = rivals.history.events("lost")
    assert "the store gave it to" in lost["why"]
    rivals.check_that_the_fence_separates_them()


async def test_a_barrier_whose_record_was_evicted_still_lets_its_parties_pass(
    backend: Backend, client: Made, tasks: Any
) -> None:
    one, two = (client(backend.url).barrier("x", 2) for _ in range(2))
    waiting = tasks(one.wait())
    async with admin_of(backend) as admin:

        async def arrived() -> bool:
            return bool(await admin.zcard("{dsync:barrier:x}:arrivals"))

        await settled(arrived, "one waits")
        await admin.delete("{dsync:barrier:x}:state")
    async with asyncio.timeout(3):
        index = await two.wait()
        assert {index, await waiting} == {0, 1}


async def test_out_of_memory_releases_and_renewals_go_on_and_acquires_wait_then_fail(
    backend: Backend, client: Made, tasks: Any
) -> None:
    holder, releaser = client(backend.url), client(backend.url)
    lock, other = holder.lock("x", lease=LEASE), releaser.lock("y")
    await lock.acquire()
    await other.acquire()
    lease = lock.lease
    assert lease is not None
    patient = client(backend.url).lock("y")
    hasty = client(backend.url, outage_timeout=0.5).lock("z")
    async with admin_of(backend) as admin:
        await admin.config_set("maxmemory", 1_000_000)
        with pytest.raises(dsync.StoreUnavailable, match="OOM"):
            await hasty.acquire()
        await other.release()
        waiting = tasks(patient.acquire())
        done, _ = await asyncio.wait([waiting, tasks(lease.lost.wait())], timeout=1.2 * LEASE)
        assert not done
        assert lease.held
        await lock.release()
        await admin.config_set("maxmemory", 0)
    await asyncio.wait_for(waiting, 1)
    await patient.release()


# -- the server's clock ----------------------------------------------------------------------------


@pytest.fixture
def clock() -> Iterator[Clock]:
    if Clock.library() is None:
        pytest.skip("there is no libfaketime here: apt-get install libfaketime")
    with Clock() as made:
        yield made


@pytest.fixture
async def clocked(clock: Clock) -> AsyncIterator[Backend]:
    made = await asyncio.to_thread(Backend, binary=clock.binary)
    yield made
    await asyncio.to_thread(made.close)


async def step(clock: Clock, backend: Backend, seconds: float) -> None:
    """Step the server's clock, and wait until it runs by it."""
    async with admin_of(backend) as admin:
        before = (await admin.time())[0]
        clock.step(seconds)

        async def stepped() -> bool:
            now: float = (await admin.time())[0]
            return bool(abs(now - before - seconds) < abs(seconds) / 2)

        await settled(stepped, "the clock has stepped")


async def test_a_clock_that_steps_forward_ends_leases_and_the_holder_learns_it_at_its_renewal(
    clock: Clock, clocked: Backend, client: Made, tasks: Any, rivals: Rivals
) -> None:
    one, two = client(clocked.url), client(clocked.url)
    await two.check()
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    await step(clock, clocked, 3600)
    tasks(rivals.hold(two, "new"))
    async with asyncio.timeout(LEASE):
        await old
    await settled(lambda: rivals.held("new"))
    assert rivals.overlap() < 0.34 * LEASE + 0.2
    rivals.check_that_the_fence_separates_them()


async def test_a_clock_that_steps_back_takes_nothing_and_fences_still_grow(
    clock: Clock, clocked: Backend, client: Made, tasks: Any
) -> None:
    one, two = (client(clocked.url).lock("x", lease=LEASE) for _ in range(2))
    seen: list[int] = []

    def held(lock: dsync.Lock) -> dsync.Lease:
        assert lock.lease is not None
        assert lock.lease.fence is not None
        seen.append(lock.lease.fence)
        return lock.lease

    for holder, waiter in ((one, two), (two, one)):
        await holder.acquire()
        lease = held(holder)
        waiting = tasks(waiter.acquire())
        await settled(lambda: "waiters:1" in repr(waiter))  # noqa: B023
        await step(clock, clocked, -3600)
        done, _ = await asyncio.wait([waiting, tasks(lease.lost.wait())], timeout=1.2 * LEASE)
        assert not done, "it is renewed"
        await holder.release()
        await asyncio.wait_for(waiting, SOON)
        held(waiter)
        await waiter.release()
        await step(clock, clocked, 7200)
    async with asyncio.timeout(SOON), one:
        held(one)
    assert seen == sorted(set(seen))


async def test_after_a_step_back_a_dead_holders_lease_ends_later_by_as_much(
    clock: Clock, clocked: Backend, client: Made
) -> None:
    holder = client(clocked.url).lock("x", lease=0.5, renew=False, on_lost="flag")
    await holder.acquire()
    began = time.monotonic()
    await step(clock, clocked, -1.5)
    async with client(clocked.url).lock("x"):
        took = time.monotonic() - began
    assert 1.5 < took < 0.5 + 1.5 + SOON
    with pytest.raises(dsync.LeaseLost):
        holder.release()
