"""What hooks are told, and who is named in errors and warnings."""

import asyncio
import contextlib
import gc
import logging
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import dsync
from dsync import telemetry
from dsync.testing import cut, heal
from tests.conftest import World, settled


class Ear:
    """A hook that remembers."""

    def __init__(self) -> None:
        self.told: list[telemetry.Happening] = []

    def __call__(self, happening: telemetry.Happening) -> None:
        self.told.append(happening)

    def of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.told if type(each) is kind]

    def names(self) -> list[str]:
        return [type(each).__name__ for each in self.told]


@pytest.fixture
def ear() -> Ear:
    return Ear()


async def test_a_lock_tells_who_acquired_it_and_who_gave_it_back(world: World, ear: Ear) -> None:
    async def work() -> int:
        async with client.lock("x") as lease:
            assert lease.fence is not None
            return lease.fence

    client = world.client(on_event=ear)
    fence = await asyncio.create_task(work(), name="worker 7")
    acquired, released = ear.told
    assert isinstance(acquired, telemetry.Acquired)
    assert isinstance(released, telemetry.Released)
    for each in (acquired, released):
        assert (each.kind, each.name, each.task, each.fence) == ("lock", "x", "worker 7", fence)
    assert acquired.waited >= 0
    assert released.held >= 0


async def test_waits_and_holds_are_told_in_seconds(world: World, ear: Ear) -> None:
    client, lock = world.client(on_event=ear), world.client().lock("x")
    await lock.acquire()
    waiting = asyncio.create_task(client.lock("x").acquire())
    await asyncio.sleep(0.05)
    await lock.release()
    await waiting
    (acquired,) = ear.told
    assert isinstance(acquired, telemetry.Acquired)
    assert 0.04 < acquired.waited < 10


async def test_a_pass_within_a_process_and_one_to_another_are_told_apart(
    world: World, ear: Ear
) -> None:
    client, other = world.client(on_event=ear), world.client()
    lock = client.lock("x")
    await lock.acquire()
    here = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)
    await lock.release()
    await here
    there = asyncio.create_task(other.lock("x").acquire())
    await settled(lambda: client._cohorts["lock", "x"]._contended is not None, "it is told")
    await lock.release()
    await there
    assert [each.to for each in ear.of(telemetry.HandedOver)] == ["task", "store"]


async def test_tries_and_timeouts_are_told(world: World, ear: Ear) -> None:
    client, holder = world.client(on_event=ear), world.client().semaphore("x")
    semaphore = client.semaphore("x")
    assert await semaphore.try_acquire()
    await semaphore.release()
    await holder.acquire()
    assert not await semaphore.try_acquire()
    for timeout in (0, 0.02):
        with pytest.raises(dsync.AcquireTimeout):
            await semaphore.acquire(timeout=timeout)
    assert ear.names() == ["Acquired", "Released", "Refused", "TimedOut", "TimedOut"]
    assert {(each.kind, each.name) for each in ear.told} == {("semaphore", "x")}
    assert ear.of(telemetry.TimedOut)[1].waited >= 0.015


async def revoked(world: World, client: dsync.Client, lock: dsync.Lock) -> None:
    assert await world.client().lock("x").force_release()


async def closed(world: World, client: dsync.Client, lock: dsync.Lock) -> None:
    await client.aclose()


@pytest.mark.parametrize(("lose", "reason"), [(revoked, "by force"), (closed, "closed")])
async def test_a_loss_is_told_once_with_its_reason(
    world: World,
    ear: Ear,
    lose: Callable[[World, dsync.Client, dsync.Lock], Awaitable[None]],
    reason: str,
) -> None:
    client = world.client(on_event=ear)
    lock = client.lock("x")
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    await lose(world, client, lock)
    await lease.lost.wait()
    with pytest.raises(dsync.DsyncError):
        await lock.release()
    _, lost = ear.told
    assert isinstance(lost, telemetry.Lost)
    assert reason in lost.reason
    assert not lost.late


async def test_a_loss_that_the_release_finds_follows_it(world: World, ear: Ear) -> None:
    client, thief = world.client(on_event=ear), world.client()
    lock = client.lock("x")
    await lock.acquire()
    await thief._cohort("lock", "x", 1, fences=True).answer(
        "permit_release", token=lock.lease.hold.token, tombstone=0  # type: ignore[union-attr]
    )  # fmt: skip
    await thief.lock("x").acquire()
    with pytest.raises(dsync.LeaseLost, match=r"the store gave it to .+ \(.+:\d+\)"):
        await lock.release()
    if world.kind == "memory":  # it answers within the call
        assert ear.names() == ["Acquired", "Lost"]
    else:
        assert ear.names() == ["Acquired", "Released", "Lost"]
        assert ear.told[-1].late  # type: ignore[attr-defined]


async def test_a_condition_tells_that_its_lock_was_given_back_meanwhile(
    world: World, ear: Ear
) -> None:
    client = world.client(on_event=ear)
    condition = client.condition("x")
    async with condition:
        with pytest.raises(dsync.WaitTimeout):
            await condition.wait(timeout=0.02)
        waiting = asyncio.create_task(notify(world.client().condition("x")))
        await condition.wait()
        await waiting
    assert ear.names() == [
        *("Acquired", "Released", "Acquired", "TimedOut"),
        *("Released", "Acquired", "Woken", "Released"),
    ]


async def notify(condition: dsync.Condition) -> None:
    async with condition:
        condition.notify()


async def test_events_barriers_and_flights_tell_how_their_waits_ended(
    world: World, ear: Ear
) -> None:
    client = world.client(on_event=ear)
    event, barrier = client.event("x"), client.barrier("x", 1)
    with pytest.raises(dsync.WaitTimeout):
        await event.wait(timeout=0.02)
    await event.set()
    await event.wait()
    await barrier.wait()

    async def compute() -> int:
        return 7

    assert await client.single_flight("x", compute, ttl=60) == 7
    assert [(type(each).__name__, each.kind) for each in ear.told] == [
        ("TimedOut", "event"), ("Woken", "event"), ("Woken", "barrier"),
        ("Acquired", "single_flight"), ("Released", "single_flight"),
    ]  # fmt: skip


async def test_a_rate_limiter_tells_what_was_taken_and_refused(world: World, ear: Ear) -> None:
    limiter = world.client(on_event=ear).rate_limiter("x", 1, per=3600, burst=3)
    await limiter.acquire(2)
    assert await limiter.try_acquire()
    assert not await limiter.try_acquire()
    with pytest.raises(dsync.AcquireTimeout):
        await limiter.acquire(timeout=0.02)
    first, second, refused, late = ear.told
    assert isinstance(first, telemetry.Taken)
    assert isinstance(second, telemetry.Taken)
    assert (first.amount, second.amount) == (2, 1)
    assert isinstance(refused, telemetry.Refused)
    assert refused.retry_after is not None
    assert refused.retry_after > 3000
    assert isinstance(late, telemetry.TimedOut)


async def test_a_bus_tells_what_it_sent_what_came_and_what_was_missed(
    world: World, ear: Ear
) -> None:
    client = world.client(on_event=ear)
    bus = client.event_bus()
    async with bus.subscribe("a.*", maxsize=1) as messages:
        for _ in range(3):
            await bus.trigger("a.b", 1)
        await settled(lambda: len(ear.of(telemetry.Received)) == 3, "all came")
        await anext(messages)
    assert [each.event for each in ear.of(telemetry.Published)] == ["a.b"] * 3
    assert [each.missed for each in ear.of(telemetry.Missed)] == [2]


async def test_a_broken_connection_is_told_and_how_long_it_took(real: World, ear: Ear) -> None:
    client = real.client(on_event=ear)
    await client
    await settled(client.listening)
    cut(client)
    await settled(lambda: bool(ear.of(telemetry.Disconnected)), "it is told")
    heal(client)
    await settled(lambda: bool(ear.of(telemetry.Reconnected)), "it is told")
    assert 0 < ear.of(telemetry.Reconnected)[0].outage < 10
    real.leftovers_allowed = True


async def test_what_begins_ends_exactly_once_whatever_happens(world: World, ear: Ear) -> None:
    """Tasks that acquire, wait, are cancelled, time out and are robbed, at once."""
    one, two = world.client(on_event=ear), world.client(on_event=ear)
    thief = world.client()

    async def work(client: dsync.Client, n: int) -> None:
        for step in range(6):
            condition = client.condition("x")
            try:
                async with asyncio.timeout(0.003 * (1 + (n * step) % 5)), condition:
                    await asyncio.sleep(0.001 * (n % 3))
                    condition.notify(n % 3)
                    if n % 2:
                        await condition.wait(0.002)
            except (TimeoutError, dsync.DsyncError):
                pass

    stolen = thief.condition("x")._lock
    while len(ear.of(telemetry.Acquired)) < 20 or not ear.of(telemetry.Lost):
        tasks = [asyncio.create_task(work(client, n)) for n in range(8) for client in (one, two)]
        for _ in range(5):
            await asyncio.sleep(0.003)
            await stolen.force_release()
        await asyncio.gather(*tasks)
    await one.aclose()
    await two.aclose()
    # Of releases whose tasks were cancelled while they awaited the answer.
    assert all(isinstance(error, dsync.LeaseLost) for error in world.errors)
    world.errors.clear()
    names = Counter(ear.names())
    lost_late = sum(each.late for each in ear.of(telemetry.Lost))
    assert names["Acquired"] == names["Released"] + names["Lost"] - lost_late


async def test_a_hook_that_fails_is_reported_and_harms_nobody(
    world: World, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(happening: telemetry.Happening) -> None:
        raise RuntimeError("not today")

    async with world.client(on_event=[broken, ear]).lock("x"):
        pass
    assert ear.names() == ["Acquired", "Released"]
    assert "the on_event hook" in caplog.text


@pytest.mark.parametrize("hook", [7, [print, 7]])
def test_what_is_no_hook_is_refused(hook: Any) -> None:
    with pytest.raises(TypeError, match="on_event must be"):
        dsync.connect("memory://", on_event=hook)


# -- who is named ----------------------------------------------------------------------------------


async def test_a_timeout_names_the_process_that_holds(world: World) -> None:
    holder = world.client(label="night shift")
    async with holder.lock("x"):
        with pytest.raises(dsync.AcquireTimeout, match=r"held by night shift \(.+:\d+\), as it"):
            await world.client().lock("x").acquire(timeout=0.5)


async def test_a_timeout_names_the_task_that_holds(world: World) -> None:
    lock = world.client().lock("x")

    async def hold() -> None:
        await lock.acquire()

    await asyncio.create_task(hold(), name="sender")
    with pytest.raises(dsync.AcquireTimeout, match="task 'sender' of this process has held it for"):
        await lock.acquire(timeout=0.02)


async def test_a_loss_names_the_task_and_how_long_it_held(world: World) -> None:
    lock = world.client().lock("x")
    await asyncio.create_task(lock.acquire(), name="sender")
    lease = lock.lease
    assert lease is not None
    await world.client().lock("x").force_release()
    await lease.lost.wait()
    with pytest.raises(dsync.LeaseLost, match=r"\(held for \d+\.\d s by task 'sender'\)"):
        await lock.release()


async def test_a_slow_wait_is_logged_once_and_names_the_holder(
    world: World, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    holder = world.client(label="night shift")
    client = world.client(slow_wait=0.2, on_event=ear)
    async with holder.lock("x"):
        waiting = asyncio.create_task(client.lock("x").acquire(), name="day shift")
        leading = asyncio.create_task(lead(client))  # waiting is what candidates do
        await settled(lambda: bool(ear.of(telemetry.SlowWait)), "it is noticed")
        await asyncio.sleep(0.3)
    await waiting
    await leading
    (slow,) = ear.of(telemetry.SlowWait)
    assert (slow.kind, slow.name, slow.task) == ("lock", "x", "day shift")
    assert slow.waited >= 0.2
    assert slow.holder.startswith("held by night shift (")
    said = [record for record in caplog.records if "has waited for" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]
    await client.lock("x").force_release()


async def lead(client: dsync.Client) -> None:
    async with client.leader("x"):
        pass


async def test_a_task_that_waits_for_itself_is_named_as_the_holder(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    lock = world.client(slow_wait=0.1).lock("x")

    async def twice() -> None:
        async with lock, lock:
            pass

    task = asyncio.create_task(twice(), name="ouroboros")
    await settled(lambda: "task 'ouroboros' has waited for" in caplog.text, "it is noticed")
    assert "task 'ouroboros' of this process has held it for" in caplog.text
    task.cancel()
    await asyncio.wait([task])


async def test_nobody_is_warned_of_who_asked_not_to_be(
    world: World, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    client = world.client(slow_wait=None, on_event=ear)
    async with world.client().lock("x"):
        with pytest.raises(dsync.AcquireTimeout):
            await client.lock("x").acquire(timeout=0.2)
    assert not ear.of(telemetry.SlowWait)
    assert "has waited for" not in caplog.text


async def test_a_timeout_of_nothing_names_who_holds_now(world: World) -> None:
    lock = world.client().lock("x")
    for name in ("first", "second"):
        holder = world.client(label=name).lock("x")
        await holder.acquire()
        with pytest.raises(dsync.AcquireTimeout, match=f"held by {name} "):
            await lock.acquire(timeout=0)
        await holder.release()


async def test_of_a_semaphore_one_holder_is_named_as_one(world: World) -> None:
    theirs, mine = world.client(label="night").semaphore("x", 2), world.client().semaphore("x", 2)
    await theirs.acquire()
    await theirs.acquire()
    with pytest.raises(dsync.AcquireTimeout, match="one is held by night "):
        await mine.acquire(timeout=0)
    await theirs.release()
    await mine.acquire()
    with pytest.raises(dsync.AcquireTimeout, match="of this process has held one for"):
        await mine.acquire(timeout=0)


async def test_a_label_cannot_forge_lines_of_a_log(world: World) -> None:
    async with world.client(label="me\nERROR all is lost").lock("x"):
        with pytest.raises(dsync.AcquireTimeout) as caught:
            await world.client().lock("x").acquire(timeout=0)
    assert "\n" not in str(caught.value)


async def stolen(world: World, condition: dsync.Condition) -> None:
    """Another process has its lock now, and it does not know."""
    lease = condition._lock.lease
    assert lease is not None
    assert lease.hold is not None
    thief = world.client(label="thief")
    await thief._cohort("condition", "x", 1, fences=True).answer(
        "permit_release", token=lease.hold.token, tombstone=0
    )
    await thief.condition("x").acquire()


async def test_who_has_notified_hears_who_took_the_lock(world: World) -> None:
    condition = world.client().condition("x")
    await condition.acquire()
    await stolen(world, condition)
    condition.notify()
    with pytest.raises(dsync.LeaseLost, match=r"the store gave it to thief \("):
        await condition.release()


async def test_a_lock_stolen_and_closed_is_lost_once(world: World, ear: Ear) -> None:
    client = world.client(on_event=ear)
    condition = client.condition("x")
    await condition.acquire()
    await stolen(world, condition)
    condition.notify()
    await client.aclose()
    assert ear.names() == ["Acquired", "Lost"]
    world.errors.clear()  # its release came too late, and nobody awaited it


async def test_what_was_held_before_a_hook_came_is_not_told(world: World, ear: Ear) -> None:
    client = world.client()
    lock = client.lock("x")
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    client.watch.add(ear)
    await world.client().lock("x").force_release()
    await lease.lost.wait()
    assert ear.names() == []
    client.watch.remove(ear)
    assert not client.watch.hooks


async def test_a_notification_that_nobody_waits_for_hands_nothing_over(
    world: World, ear: Ear
) -> None:
    condition = world.client(on_event=ear).condition("x")
    async with condition:
        condition.notify()
    assert ear.names() == ["Acquired", "Released"]


async def test_a_hook_that_is_cancelled_leaves_nothing_held(world: World, ear: Ear) -> None:
    def cancelled(happening: telemetry.Happening) -> None:
        raise asyncio.CancelledError

    lock = world.client(on_event=cancelled).lock("x")
    other = world.client(on_event=[ear, cancelled]).lock("x")
    for _ in range(2):
        async with lock:
            waiting = asyncio.create_task(other.acquire())
            await asyncio.sleep(0)
        await asyncio.wait_for(waiting, 5)
        await other.release()


async def test_a_hook_sees_the_lease_and_may_give_others_back(world: World) -> None:
    fences = []

    def on_event(happening: telemetry.Happening) -> None:
        match happening:
            case telemetry.Acquired(name="a"):
                fences.append(first.fence)
            case telemetry.Lost(name="a"):
                second.release()

    client = world.client(on_event=on_event)
    first, second = client.lock("a"), client.lock("b")
    await first.acquire()
    await second.acquire()
    assert fences == [first.fence]
    await client.aclose()
    assert await world.client().lock("b").try_acquire()


async def test_a_wait_that_failed_keeps_its_task_from_nothing(world: World) -> None:
    if world.kind == "fakeredis":
        pytest.skip("it makes cycles of its own")
    async with world.client().lock("x"):
        lock, refs = world.client().lock("x"), []

        async def wait() -> None:
            with contextlib.suppress(dsync.AcquireTimeout):
                await lock.acquire(timeout=0.01)

        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                task = asyncio.create_task(wait())
                refs.append(weakref.ref(task))
                await task
                del task
            assert sum(ref() is not None for ref in refs) <= 1
        finally:
            gc.enable()


async def test_a_sleeper_that_cannot_get_its_lock_back_is_noticed(world: World, ear: Ear) -> None:
    client, other = world.client(on_event=ear, slow_wait=0.1), world.client(label="hog")
    condition = client.condition("x")

    async def wait() -> None:
        async with condition:
            with pytest.raises(dsync.WaitTimeout):
                await condition.wait(0.02)

    waiting = asyncio.create_task(wait(), name="sleepy")
    await settled(lambda: condition._waiting() == 1, "it sleeps")
    async with other.condition("x"):
        await settled(lambda: bool(ear.of(telemetry.SlowWait)), "it is noticed")
    await waiting
    (slow,) = ear.of(telemetry.SlowWait)
    assert (slow.task, slow.holder.startswith("held by hog (")) == ("sleepy", True)


async def test_a_client_that_waits_for_nothing_leaves_the_loop_alone(world: World) -> None:
    client = world.client(slow_wait=0.2)
    async with client.lock("x"):
        with pytest.raises(dsync.AcquireTimeout):
            await client.lock("x").acquire(timeout=0.02)
    assert client.patience is not None
    await settled(lambda: client.patience._timer is None)  # type: ignore[union-attr]
