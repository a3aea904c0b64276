"""Conditions when processes die and stand still, connections break, and answers get lost."""

import asyncio
import gc
import random
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import dsync
from dsync.beat import BEAT
from dsync.line import Sleeper
from dsync.redis.script import SCRIPTS
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer, Through
from tests.fault.workers import Workers

LEASE = 1.0  # so a claim is as long
YIELD, WAKE, RELEASE = (
    SCRIPTS[f"permit_{name}"].sha.encode() for name in ("yield", "wake", "release")
)


@pytest.fixture
async def store(real: World) -> "Store":
    """What the store knows of condition "x"; every script is there, so requests are what counts."""
    for script in SCRIPTS.values():
        await real.admin.script_load(script.text)
    return Store(real)


class Store:
    def __init__(self, world: World) -> None:
        self.world = world

    async def count(self, part: str) -> int:
        found: int = await self.world.admin.zcard(self.world.key("condition", "x", part))
        return found

    async def holder(self) -> str:
        tokens = await self.world.admin.zrange(self.world.key("condition", "x", "holders"), 0, -1)
        return tokens[0].decode() if tokens else ""

    async def until(self, within: float = 5.0, **parts: int) -> None:
        """So many in each part: `sleepers` of a condition of this name, `waiters`, `holders`."""
        found: dict[str, int] = {}

        async def stand() -> bool:
            for part in parts:
                found[part] = await self.count(part.replace("sleepers", "sleepers:x"))
            return found == parts

        await settled(stand, lambda: f"{parts}, but {found}", within)


class Sleepers:
    """Tasks that wait for condition "x", each by a client of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.inside = 0
        self.woken: list[int] = []  # who returned from wait(), in order
        self.tasks: list[asyncio.Task[Any]] = []
        self.clients: list[dsync.Client] = []

    async def add(self, client: dsync.Client, **terms: Any) -> asyncio.Task[Any]:
        condition = client.condition("x", lease=5.0)
        task = asyncio.create_task(self._sleep(condition, len(self.tasks), **terms))
        self.tasks.append(task)
        self.clients.append(client)
        await self.store.until(sleepers=len(self.tasks))
        return task

    async def _sleep(self, condition: dsync.Condition, number: int, **terms: Any) -> None:
        async with condition:
            try:
                await condition.wait(**terms)
                self.woken.append(number)
            finally:
                lease = condition.lock.lease
                assert lease is not None
                assert lease.held
                assert self.inside == 0, "two hold the lock"
                self.inside += 1
                await asyncio.sleep(0)
                self.inside -= 1

    async def end(self, notifier: dsync.Client) -> None:
        """Each of those left wakes once for one notification, and nothing is left."""
        condition = notifier.condition("x")
        left = [task for task in self.tasks if not task.done()]
        for count in range(len(left) - 1, -1, -1):
            async with condition:
                condition.notify()
            await settled(lambda: sum(not task.done() for task in left) == count, "one")  # noqa: B023
            await self.store.until(sleepers=count, waiters=0, holders=0)
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def ended(task: asyncio.Task[Any], within: float = 3.0) -> None:
    """The task has ended; if not, it is set free, for no cancellation gets it out of a wait."""
    await asyncio.wait([task], timeout=within)
    stuck = not task.done()
    while not task.done():
        for found in gc.get_objects():
            if isinstance(found, Sleeper) and found.lease is None and found.error is None:
                found.fail(dsync.LeaseLost("set free by the test"))
        await asyncio.wait([task], timeout=0.01)
    assert not stuck, "it never got its lock back"


@pytest.fixture
def sleepers(store: Store) -> Sleepers:
    return Sleepers(store)


# -- processes that die and stand still ------------------------------------------------------------


@pytest.mark.parametrize("seen", [False, True], ids=["at once", "silent for long"])
async def test_a_notification_finds_a_living_waiter_when_the_first_was_killed_asleep(
    workers: Workers, store: Store, sleepers: Sleepers, real: World, seen: bool
) -> None:
    killed = workers.spawn("--do", "wait", "--lease", str(LEASE))
    await store.until(sleepers=1)
    killed.process.kill()
    killed.process.wait()
    if seen:  # as it is six seconds later
        await real.admin.delete(real.key("condition", "x", "alive"))
    living = asyncio.create_task(sleepers._sleep(real.client().condition("x"), 1))
    await store.until(sleepers=2)
    began = time.monotonic()
    condition = real.client().condition("x")
    async with condition:
        condition.notify()
    await asyncio.wait_for(living, LEASE + 2)
    # A claim, and by the message of nobody: who sleeps looks in each heartbeat, and hears then when
    # the claim ends.
    assert time.monotonic() - began < (0.3 if seen else max(LEASE, BEAT) + 0.5)
    assert sleepers.woken == [1]
    await store.until(sleepers=0, waiters=0, holders=0)


async def test_a_process_killed_with_its_notification_passes_it_on(
    workers: Workers, store: Store, sleepers: Sleepers, real: World
) -> None:
    """Whether it had used it nobody can know, so one of those who sleep has to look."""
    killed = workers.spawn("--do", "wait", "--lease", str(LEASE))
    await store.until(sleepers=1)
    living = [asyncio.create_task(sleepers._sleep(real.client().condition("x"), n)) for n in (1, 2)]
    await store.until(sleepers=3)
    condition = real.client().condition("x")
    async with condition:
        condition.notify()
    await settled(lambda: killed.did("held"), "the first one has woken")
    killed.signal(signal.SIGKILL)
    began = time.monotonic()
    await asyncio.wait(living, timeout=LEASE + 3, return_when=asyncio.FIRST_COMPLETED)
    assert time.monotonic() - began < max(LEASE, BEAT) + 0.5
    await store.until(sleepers=1, waiters=0, holders=0)
    assert len(sleepers.woken) == 1
    sleepers.tasks = living
    await sleepers.end(real.client())


async def test_a_notifier_killed_before_its_release_has_notified_nobody(
    workers: Workers, store: Store, sleepers: Sleepers, real: World
) -> None:
    for _ in range(2):
        await sleepers.add(real.client())
    notifier = workers.spawn("--do", "notify", "--lease", str(LEASE))
    await settled(lambda: notifier.did("notified"), "notified")
    killed = notifier.signal(signal.SIGKILL)
    lock = real.client().condition("x").lock
    assert await lock.acquire(timeout=LEASE + 1)
    assert time.monotonic() - killed < LEASE + 0.5
    await store.until(sleepers=2, waiters=0, holders=1)
    await lock.release()
    assert not sleepers.woken
    await sleepers.end(real.client())


@pytest.mark.parametrize("long", [False, True], ids=["claim", "claim and silence"])
async def test_a_stopped_sleeper_gives_its_turn_to_another_and_ends_well(
    workers: Workers, store: Store, sleepers: Sleepers, real: World, long: bool
) -> None:
    stopped = workers.spawn("--do", "wait", "--lease", str(LEASE), "--rounds", "1")
    await store.until(sleepers=1)
    process = (await real.admin.zrange(real.key("condition", "x", "alive"), 0, -1))[0]
    stopped.signal(signal.SIGSTOP)
    waiting = asyncio.create_task(sleepers._sleep(real.client().condition("x"), 1))
    await store.until(sleepers=2)
    if long:  # the server has not heard of it for ten seconds
        alive = real.key("condition", "x", "alive")
        await real.admin.zincrby(alive, -10_000, process)
    condition = real.client().condition("x")
    async with condition:
        condition.notify()
    await asyncio.wait_for(waiting, LEASE + 2)
    # It goes on while somebody holds: it has to ask, and to wait.
    async with condition:
        stopped.signal(signal.SIGCONT)
        await store.until(waiters=1, holders=1)
        assert not stopped.did("held")
    await settled(lambda: stopped.did("done"), "the stopped one has ended")
    assert [event["what"] for event in stopped.events()] == ["asleep", "held", "leaving", "done"]
    await store.until(sleepers=0, waiters=0, holders=0)


# -- connections that break ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "reset", "black hole"])
async def test_a_sleeper_that_was_notified_while_cut_off_wakes_after_the_reconnect(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through, how: str
) -> None:
    task = await sleepers.add(through(outage_timeout=3.0))
    other = await sleepers.add(real.client())
    proxy.black_hole()
    condition = real.client().condition("x")
    async with condition:
        condition.notify()
    assert await store.holder()  # given to one who does not know
    if how != "black hole":
        getattr(proxy, how)()
        proxy.heal()
    else:
        proxy.heal()
    await asyncio.wait_for(task, 3)
    assert sleepers.woken == [0]
    assert not other.done()
    await store.until(sleepers=1, waiters=0, holders=0)
    await sleepers.end(real.client())


async def test_a_body_does_not_go_on_without_the_lock_when_a_timeout_takes_the_cancellation(
    store: Store, real: World, proxy: Proxy, through: Through
) -> None:
    """The wait is over by asyncio.timeout(), and the store cannot be asked for the lock."""
    condition, other = through(outage_timeout=0.3).condition("x"), real.client().condition("x")
    timeout = asyncio.timeout(None)
    went_on: list[BaseException] = []

    async def body() -> None:
        async with condition:
            try:
                async with timeout:
                    await condition.wait()
            except TimeoutError as exc:
                went_on.append(exc)

    task = asyncio.create_task(body())
    await store.until(sleepers=1, holders=0)
    proxy.black_hole()
    proxy.cut()
    timeout.reschedule(0)
    async with other:
        with pytest.raises(dsync.LeaseLost, match="could not get it back"):
            await asyncio.wait_for(task, 3)
    assert not went_on, "without the lock, which the other had"
    assert task.cancelling() == 0


WHICH = pytest.mark.parametrize("which", ["wait", "keep", "release", "acquire"])


@WHICH
async def test_a_lost_reply_wakes_as_many_as_were_notified_and_each_once(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through, which: str
) -> None:
    """At each command of a wait and a notification: carried out, and nobody told."""
    condition = through().condition("x", lease=5.0)
    await condition.lock._cohort.client.check()
    lost: asyncio.Future[None] | None = None
    for number in range(3):
        client = through()
        await client.check()
        if which == "wait" and number == 1:
            lost = proxy.swallow_replies_then_cut(YIELD)
        await sleepers.add(client)
    if which == "keep":
        lost = proxy.swallow_replies_then_cut(WAKE)
        proxy.cut()  # so all ask
        await asyncio.wait_for(lost, 3)
    if which == "acquire":
        lost = proxy.swallow_replies_then_cut()
    for count in (1, 2, 3):
        async with condition:
            condition.notify()
            if which == "release" and count == 1:
                lost = proxy.swallow_replies_then_cut(YIELD)
        assert lost is not None
        assert lost.done()
        await settled(lambda: len(sleepers.woken) == count, f"{count} woken")  # noqa: B023
        await store.until(sleepers=3 - count, waiters=0, holders=0)
    await asyncio.gather(*sleepers.tasks)
    assert sleepers.woken == [0, 1, 2]


async def test_a_lost_reply_notifies_nobody_twice_for_either_of_two_conditions_of_one_lock(
    real: World, proxy: Proxy, through: Through, store: Store
) -> None:
    """The first of the two is told while the lock is kept: a repeated call must not count."""
    woken: list[str] = []

    async def sleep(client: dsync.Client, name: str) -> None:
        lock = client.lock("x")
        async with lock:
            await client.condition(name, lock).wait()
            woken.append(name)

    tasks = [asyncio.create_task(sleep(real.client(), name)) for name in "aabb"]

    async def asleep() -> bool:
        counts = [await real.admin.zcard(real.key("lock", "x", f"sleepers:{n}")) for n in "ab"]
        return counts == [2, 2]

    await settled(asleep, "all four sleep")
    client = through()
    lock = client.lock("x")
    conditions = [client.condition(name, lock) for name in "ab"]
    async with lock:
        for condition in conditions:
            condition.notify()
        lost = proxy.swallow_replies_then_cut(YIELD)
    assert lost.done()
    await settled(lambda: len(woken) >= 2, "two wake")
    async with lock:  # behind all who were notified
        assert sorted(woken) == ["a", "b"]
        for condition in conditions:
            condition.notify_all()
    await asyncio.wait_for(asyncio.gather(*tasks), 3)


ROUSED = pytest.mark.parametrize("how", ["cancel", "timeout"])


@ROUSED
async def test_a_roused_sleeper_whose_reply_was_lost_ends_once_with_the_lock(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through, how: str
) -> None:
    client = through()
    await client.check()
    lost = proxy.swallow_replies_then_cut(WAKE)
    task = await sleepers.add(client, **({"timeout": 0.05} if how == "timeout" else {}))
    if how == "cancel":
        task.cancel()
    await ended(task)
    assert lost.done()
    expected = asyncio.CancelledError if how == "cancel" else dsync.WaitTimeout
    with pytest.raises(expected):
        await task
    await store.until(sleepers=0, waiters=0, holders=0)


@pytest.mark.parametrize("first", ["yield", "keep"])
async def test_a_sleeper_cancelled_while_its_question_is_unanswered_ends_over_a_new_connection(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through, first: str
) -> None:
    """Its question is asked again and so is its waking, and the answer to each may come twice."""
    client = through()
    condition = client.condition("x", lease=5.0)
    holder = real.client().condition("x").lock
    if first == "keep":
        task = await sleepers.add(client)
        await client.check()
        await holder.acquire()
        proxy.black_hole("replies")
        condition.lock._cohort.ask_all()  # as a beat does
    else:
        await condition.acquire()

        async def sleep() -> None:
            try:
                await condition.wait()
            finally:
                condition.release()

        proxy.black_hole("replies")
        task = asyncio.create_task(sleep())
        await store.until(sleepers=1)
        await holder.acquire()
    task.cancel()
    await asyncio.sleep(0)  # its task has heard of it
    proxy.cut()
    proxy.heal()
    await client.check()
    await store.until(sleepers=0, waiters=1)  # its heir waits
    await client.check()
    await client.check()
    await holder.release()
    await ended(task)
    assert task.cancelled()
    await store.until(sleepers=0, waiters=0, holders=0)


async def test_a_sleeper_roused_after_its_notification_hears_of_a_grant_that_got_lost(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through
) -> None:
    """Cancelled while it stands in the lock's queue, notified: it has no heir, and asks on."""
    client = through()
    task = await sleepers.add(client)
    notifier, holder = real.client().condition("x"), real.client().condition("x").lock
    await notifier.acquire()
    acquiring = asyncio.create_task(holder.acquire())
    await store.until(waiters=1)
    notifier.notify()
    await notifier.release()
    await acquiring
    await store.until(sleepers=0, waiters=1, holders=1)
    task.cancel()
    await asyncio.sleep(0)
    await client.check()  # behind the question whether it had been notified
    proxy.black_hole("replies")
    await holder.release()
    await store.until(sleepers=0, waiters=0, holders=1)
    proxy.cut()  # and so the grant is lost
    proxy.heal()
    await ended(task, 4)
    assert task.cancelled()
    await store.until(sleepers=0, waiters=0, holders=0)


async def test_an_heir_that_is_served_before_its_waking_is_answered_leaves_no_ghost(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through
) -> None:
    """A copy of its waking was carried out, the grant comes, and then the waking once more."""
    client = through()
    condition = client.condition("x", lease=5.0)
    task = await sleepers.add(client)
    await client.check()
    holder = real.client().condition("x").lock
    await holder.acquire()
    proxy.black_hole("requests")
    task.cancel()
    await settled(lambda: WAKE in proxy.held("requests"), "the waking is under way")
    server = urlsplit(real.url)
    _, writer = await asyncio.open_connection(server.hostname, server.port)
    writer.write(proxy.held("requests"))
    await store.until(sleepers=0, waiters=1, holders=1)
    writer.close()
    await writer.wait_closed()
    cohort: Any = condition.lock._cohort
    await holder.release()
    await settled(lambda: RELEASE in proxy.held("requests"), "the heir had the lock")
    proxy.heal()
    await ended(task)
    await client.check()
    assert not cohort.requests
    assert not cohort.asleep
    await store.until(sleepers=0, waiters=0, holders=0)


async def test_a_notification_passed_on_too_late_is_passed_on_all_the_same(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through
) -> None:
    """Cancelled, notified, and its release comes when its lease has just ended."""
    task = await sleepers.add(through())
    other = await sleepers.add(real.client())
    notifier, holder = real.client().condition("x"), real.client().condition("x").lock
    await notifier.acquire()
    acquiring = asyncio.create_task(holder.acquire())
    await store.until(waiters=1)
    notifier.notify()
    await notifier.release()
    await acquiring
    await store.until(sleepers=1, waiters=1, holders=1)
    task.cancel()
    cohort: Any = sleepers.clients[0]._cohorts["condition", "x"]
    await settled(
        lambda: any(r.waiter.notified for r in cohort.requests.values()), "it knows of it"
    )
    proxy.black_hole("requests")
    await holder.release()
    await settled(lambda: YIELD in proxy.held("requests"), "it passes on")
    await real.expire("condition", "x")
    proxy.heal()
    await asyncio.wait([other], timeout=4)
    stuck = not other.done()
    await sleepers.end(real.client())
    assert not stuck, "the notification is lost"


async def late_copy_arrives(real: World, proxy: Proxy) -> None:
    """What a stranded connection still had to say reaches the server, and is carried out."""
    before = len(await real.admin.client_list())
    proxy.heal()

    async def gone() -> bool:
        return len(await real.admin.client_list()) < before

    await settled(gone, "the server has read it to its end")


@pytest.mark.parametrize("ends", ["notified", "cancelled"])
@pytest.mark.parametrize("which", ["wait", "keep", "rouse"])
async def test_a_late_copy_of_a_sleepers_command_gets_nothing_and_wakes_nobody(
    store: Store, sleepers: Sleepers, real: World, proxy: Proxy, through: Through,
    which: str, ends: str,
) -> None:  # fmt: skip
    client = through(outage_timeout=1.5)
    condition = client.condition("x", lease=5.0)
    await client.check()
    other: asyncio.Task[Any] | None = None

    async def sleep() -> None:
        async with condition:
            if which == "wait":
                proxy.strand()
            await condition.wait()

    task = asyncio.create_task(sleep())
    await store.until(sleepers=1)
    await settled(lambda: bool(condition.lock._cohort.asleep))
    if which == "keep":
        await client.check()
        proxy.strand()
        connections = proxy.connections
        condition.lock._cohort.ask_all()  # as a beat does
        await settled(lambda: proxy.connections > connections, "given up")
    if which == "rouse":
        await client.check()
        proxy.strand()
        task.cancel()
        await ended(task)
    await client.check()
    sleepers.tasks = []
    if not task.done():
        if ends == "notified":
            notifier = real.client().condition("x")
            async with notifier:
                notifier.notify()
        else:
            task.cancel()
        await ended(task)
    await store.until(sleepers=0, waiters=0, holders=0)
    other = await Sleepers.add(sleepers, real.client())
    await late_copy_arrives(real, proxy)
    assert await store.holder() == ""
    await store.until(sleepers=1, waiters=0, holders=0)
    assert not other.done()
    await sleepers.end(real.client())


# -- storms ----------------------------------------------------------------------------------------


async def kill_connections(world: World) -> None:
    for kind in ("normal", "pubsub"):
        await world.admin.client_kill_filter(_type=kind, skipme=True)


async def flush_scripts(world: World) -> None:
    await world.admin.script_flush()


@pytest.mark.parametrize("fault", [kill_connections, flush_scripts])
async def test_two_processes_take_turns_through_a_storm(
    own_server: OwnServer, tmp_path: Path, fault: Callable[[World], Awaitable[None]]
) -> None:
    own_server.leftovers_allowed = True
    counter = tmp_path / "counter"
    counter.write_text("0")
    turns = 150
    with Workers(own_server.url, own_server.namespace, tmp_path / "log") as workers:
        for mine in ("0", "1"):
            workers.spawn(
                "--do", "turns", "--count", str(counter), "--rounds", str(turns), "--lease", "30",
                "--step", mine,
            )  # fmt: skip
        log = workers.log
        await settled(lambda: len(log.events("turn")) > 4, "both are there")
        while len(log.events("done")) < 2:
            before = len(log.events("turn"))
            await fault(own_server)
            # Well below a heartbeat: nothing was lost for good, so nobody waits for one.
            await settled(
                lambda: len(log.events("turn")) > before + 3 or len(log.events("done")) == 2,  # noqa: B023
                "turns go on",
                1.9,
            )
        assert not log.events("failed")
        assert not log.events("lost")
        assert counter.read_text() == str(2 * turns)
        pids = [event["pid"] for event in log.events("turn")]
        assert all(a != b for a, b in pairwise(pids))


async def test_sleepers_on_a_server_that_came_back_empty_end_and_the_condition_works_again(
    own_server: OwnServer,
) -> None:
    conditions = [own_server.client().condition("x", lease=2.0) for _ in range(4)]
    inside = most = woken = 0

    async def sleep(condition: dsync.Condition) -> None:
        nonlocal inside, most, woken
        async with condition:
            await condition.wait()
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1
            woken += 1

    store = Store(own_server)
    tasks = [asyncio.create_task(sleep(condition)) for condition in conditions]
    await store.until(sleepers=4)
    own_server.restart()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 1
    await own_server.admin.connection_pool.disconnect()  # the test's own
    woken = 0
    tasks = [asyncio.create_task(sleep(condition)) for condition in conditions]
    await store.until(sleepers=4)
    for count in (1, 2, 3, 4):
        async with conditions[0]:
            conditions[0].notify()
        await settled(lambda: woken == count)  # noqa: B023
        await store.until(sleepers=4 - count, waiters=0, holders=0)
    await asyncio.gather(*tasks)


async def test_all_sleepers_of_a_process_end_within_a_heartbeat_when_the_server_has_forgotten_them(
    own_server: OwnServer,
) -> None:
    """FLUSHALL breaks no connection: the first of them that asks finds out for all."""
    condition = own_server.client().condition("x")

    async def sleep() -> None:
        async with condition:
            await condition.wait()

    tasks = [asyncio.create_task(sleep()) for _ in range(5)]
    await Store(own_server).until(sleepers=5)
    await own_server.admin.flushall()
    async with asyncio.timeout(2 + 1):
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_cancellations_over_flaky_connections_leaves_a_working_condition(
    store: Store, real: World, proxy: Proxy, through: Through, seed: int
) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    clients = [through() for _ in range(3)]
    inside = most = 0

    async def sleep(client: dsync.Client) -> None:
        nonlocal inside, most
        condition = client.condition("x", lease=10.0)
        try:
            async with condition:
                try:
                    await condition.wait(timeout=dice.choice((None, 0.005, 0.05)))
                finally:
                    inside += 1
                    most = max(most, inside)
                    try:
                        await asyncio.sleep(0)
                    finally:
                        inside -= 1
        except dsync.WaitTimeout:
            pass

    notifier = real.client().condition("x")
    for _ in range(6):
        tasks = [asyncio.create_task(sleep(dice.choice(clients))) for _ in range(15)]
        loop = asyncio.get_running_loop()
        for task in dice.sample(tasks, 8):
            loop.call_later(dice.uniform(0, 0.08), task.cancel)
        for _ in range(4):
            loop.call_later(dice.uniform(0, 0.08), dice.choice((proxy.cut, proxy.reset)))
        await asyncio.sleep(dice.uniform(0.02, 0.08))  # a dice's moment, not a hope
        deadline = time.monotonic() + 8
        while not all(task.done() for task in tasks):
            async with notifier:
                notifier.notify_all()
            await asyncio.wait(tasks, timeout=0.05)
            if time.monotonic() > deadline:
                await asyncio.gather(*(ended(task, 0.01) for task in tasks))
        for task in tasks:
            assert task.cancelled() or task.exception() is None
    assert most == 1
    await store.until(sleepers=0, waiters=0, holders=0)
    # And it still counts.
    sleepers = Sleepers(store)
    for client in clients:
        await sleepers.add(client)
    await sleepers.end(real.client())
    assert sleepers.woken == [0, 1, 2]


async def test_a_notification_after_a_cut_wakes_one(real: World) -> None:
    async with Proxy.to(real.url) as proxy:
        far = dsync.Client(proxy.url, namespace=real.namespace)
        async with far:
            woken: list[str] = []

            async def sleep(name: str, client: dsync.Client) -> None:
                condition = client.condition("x", lease=20)
                async with condition:
                    await condition.wait()
                    woken.append(name)

            async def asleep(count: int) -> None:
                while True:
                    keys = await real.admin.keys("*sleepers*")
                    if keys and await real.admin.zcard(keys[0]) == count:
                        return

            tasks = [asyncio.create_task(sleep("far", far))]
            await asleep(1)
            tasks.append(asyncio.create_task(sleep("near", real.client())))
            await asleep(2)
            proxy.refusing = True
            proxy.cut()
            await asyncio.sleep(3.5)  # the cut itself: less than 6 s since it was heard of
            third = real.client().condition("x", lease=20)
            async with third:
                third.notify(1)
            proxy.heal()
            done, _ = await asyncio.wait(tasks, timeout=4)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert len(done) == 1, woken
