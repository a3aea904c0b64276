"""With `replicas=n` nothing is held that n replicas do not know, and what that closes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import fakeredis
import pytest

import dsync
from tests.conftest import RIGHTS, settled
from tests.fault.test_documented import LEASE, SOON, Replicated, Rivals
from tests.servers.conftest import Made

SHORT = 3.0  # seconds of outage_timeout: replicas are waited for a sixth of it


@pytest.fixture
async def replicated() -> AsyncIterator[Replicated]:
    async with AsyncExitStack() as stack:
        made = Replicated(stack)
        await made.start()
        yield made


async def holders(replicated: Replicated, which: int, key: str = "lock:x") -> int:
    """How many hold it, as the primary (0) or its replica (1) knows."""
    found: int = await replicated.admins[which].zcard(f"{{dsync:{key}}}:holders")
    return found


async def waits(replicated: Replicated) -> int:
    """How often the primary was asked what its replica has."""
    found = await replicated.admins[0].info("commandstats")
    return int(found.get("cmdstat_wait", {"calls": 0})["calls"])


# -- what is held is known -------------------------------------------------------------------------


async def in_body(holder: Any, then: Callable[[], Awaitable[None]]) -> None:
    async with holder:
        await then()


async def in_flight(client: dsync.Client, then: Callable[[], Awaitable[None]]) -> None:
    async def compute() -> int:
        await then()
        return 1

    await client.single_flight("x", compute, ttl=1)


async def by_trying(client: dsync.Client, then: Callable[[], Awaitable[None]]) -> None:
    lock = client.lock("x")
    assert await lock.try_acquire()
    await then()
    await lock.release()


async def after_a_wait(client: dsync.Client, then: Callable[[], Awaitable[None]]) -> None:
    condition = client.condition("x")
    async with condition:
        waking = asyncio.create_task(wake(client))
        await condition.wait()
        await then()
    await waking


async def wake(client: dsync.Client) -> None:
    condition = client.condition("x")
    async with condition:
        condition.notify()


Then = Callable[[], Awaitable[None]]
HELD: dict[str, tuple[str, Callable[[dsync.Client, Then], Awaitable[None]]]] = {
    "lock": ("lock:x", lambda client, then: in_body(client.lock("x"), then)),
    "fair": ("lock:x", lambda client, then: in_body(client.lock("x", fair=True), then)),
    "capped": ("lock:x", lambda client, then: in_body(client.lock("x", max_hold=9), then)),
    "not renewed": ("lock:x", lambda client, then: in_body(client.lock("x", renew=False), then)),
    "tried": ("lock:x", by_trying),
    "semaphore": ("semaphore:x", lambda client, then: in_body(client.semaphore("x", 2), then)),
    "condition": ("condition:x", lambda client, then: in_body(client.condition("x"), then)),
    "wait": ("condition:x", after_a_wait),
    "term": ("leader:x", lambda client, then: in_body(client.leader("x", sigterm=False), then)),
    "flight": ("single_flight:x", in_flight),
}


async def test_what_is_held_is_known_to_the_replica_before_the_body_begins(
    replicated: Replicated, client: Made
) -> None:
    one = client(replicated.primary.url, replicas=1)
    looked: list[str] = []
    for what, (key, hold) in HELD.items():

        async def look() -> None:
            replicated.lag()
            assert await holders(replicated, 1, key) == 1, what  # noqa: B023
            looked.append(what)  # noqa: B023
            replicated.between.heal()

        await hold(one, look)
    assert looked == list(HELD)


async def test_what_another_process_hands_over_is_known_as_well(
    replicated: Replicated, client: Made
) -> None:
    one, two = (client(replicated.primary.url, replicas=1).lock("x") for _ in range(2))
    await one.acquire()
    waiting = asyncio.create_task(two.acquire())
    await settled(lambda: "waiters:1" in repr(two))
    mine = await replicated.admins[0].zrange("{dsync:lock:x}:holders", 0, -1)
    one.release()
    await waiting
    replicated.lag()
    theirs = await replicated.admins[1].zrange("{dsync:lock:x}:holders", 0, -1)
    assert theirs
    assert theirs != mine
    assert two.lease is not None
    assert int(await replicated.admins[1].hget("{dsync:lock:x}:state", "fence")) >= (
        two.lease.fence or 0
    )
    await two.release()


async def test_tasks_of_one_process_pass_on_what_is_known_and_ask_once(
    replicated: Replicated, client: Made
) -> None:
    lock = client(replicated.primary.url, replicas=1).lock("x")
    served = 0

    async def work() -> None:
        nonlocal served
        for _ in range(5):
            async with lock:
                served += 1

    before = await waits(replicated)
    await asyncio.gather(*(work() for _ in range(10)))
    assert served == 50
    assert await waits(replicated) - before <= 8


async def test_many_leases_are_asked_for_together(replicated: Replicated, client: Made) -> None:
    one = client(replicated.primary.url, replicas=1)
    locks = [one.lock(str(number)) for number in range(100)]
    before = await waits(replicated)
    await asyncio.gather(*(lock.acquire() for lock in locks))
    # One for all that leave in one tick; answers, and so renewals, come in a few ticks.
    assert await waits(replicated) - before < 50
    await asyncio.gather(*(lock.release() for lock in locks))


async def test_without_it_no_replica_is_asked(replicated: Replicated, client: Made) -> None:
    before = await waits(replicated)
    async with client(replicated.primary.url).lock("x"):
        pass
    assert await waits(replicated) == before


# -- what replicas do not know is not held ---------------------------------------------------------


async def test_what_no_replica_confirms_is_given_back_and_said(
    replicated: Replicated, client: Made
) -> None:
    async def never() -> None:
        raise AssertionError("it is held")

    async def fine() -> None:
        pass

    one = client(replicated.primary.url, replicas=1, outage_timeout=SHORT)
    await one
    for what in ("lock", "fair", "tried", "semaphore", "condition", "term"):
        key, hold = HELD[what]
        replicated.lag()
        began = time.monotonic()
        with pytest.raises(dsync.StoreUnavailable, match=r"given back: 0 of 1 replicas .* 0\.5 s"):
            await hold(one, never)
        assert 0.49 < time.monotonic() - began < 0.5 + SOON, what
        await one.store.drain()
        assert await holders(replicated, 0, key) == 0, what
        replicated.between.heal()
        await hold(one, fine)


async def test_what_replicas_know_lingers_and_what_they_do_not_is_given_back(
    replicated: Replicated, client: Made
) -> None:
    one = client(replicated.primary.url, replicas=1, outage_timeout=SHORT)
    lock = one.lock("x", linger=60)
    await settled((await one).listening)
    replicated.lag()
    with pytest.raises(dsync.StoreUnavailable, match="given back"):
        await lock.acquire()
    assert not lock._cohort.holds
    replicated.between.heal()
    async with lock:
        token = list(lock._cohort.holds)
    before = await waits(replicated)
    async with lock:
        assert list(lock._cohort.holds) == token
    assert await waits(replicated) == before
    await one.aclose()
    assert await holders(replicated, 0) == 0


async def test_a_timeout_is_kept_while_replicas_are_silent(
    replicated: Replicated, client: Made
) -> None:
    lock = client(replicated.primary.url, replicas=2).lock("x")
    with pytest.raises(dsync.AcquireTimeout):
        async with asyncio.timeout(0.9):  # they are waited for a second
            await lock.acquire(timeout=0.1)
    assert lock.lease is None


async def test_a_replica_too_few_is_one_too_few(replicated: Replicated, client: Made) -> None:
    one = client(replicated.primary.url, replicas=2, outage_timeout=SHORT)
    with pytest.raises(dsync.StoreUnavailable, match="1 of 2 replicas"):
        await one.lock("x").acquire()


async def test_when_the_connection_breaks_before_the_replica_has_it_nobody_is_deceived(
    replicated: Replicated, client: Made
) -> None:
    """On a new connection WAIT speaks of nothing that was written, and says yes at once."""
    one = client(replicated.front.url, replicas=1)
    async with one.lock("y"):  # the server knows the scripts
        pass
    replicated.lag()
    acquiring = asyncio.create_task(one.lock("x").acquire())

    async def blocked() -> bool:
        return bool((await replicated.admins[0].info("clients"))["blocked_clients"])

    await settled(blocked, "all is answered but WAIT")
    replicated.front.cut()
    with pytest.raises(dsync.StoreUnavailable, match="0 of 1 replicas"):
        await acquiring
    await one.store.drain()
    assert await holders(replicated, 0) == 0


async def test_a_lease_shorter_than_the_patience_with_replicas_is_no_endless_wait(
    replicated: Replicated, client: Made
) -> None:
    one = client(replicated.primary.url, replicas=1)
    await one
    replicated.lag()
    with pytest.raises(dsync.StoreUnavailable, match=r"0\.2 s ended before replicas had it"):
        await one.lock("x", lease=0.2).acquire()


async def test_what_is_lost_while_the_replica_is_asked_is_acquired_anew(
    replicated: Replicated, client: Made
) -> None:
    one, two = client(replicated.primary.url, replicas=1), client(replicated.primary.url)
    lock = one.lock("x")
    await one
    replicated.lag()
    acquiring = asyncio.create_task(lock.acquire())
    other = two.lock("x")

    async def revoked() -> bool:
        return await other.force_release()

    await settled(revoked)
    replicated.between.heal()
    await acquiring
    assert await holders(replicated, 1) == 1
    await lock.release()


async def test_a_renewal_that_no_replica_confirms_is_none(
    replicated: Replicated, client: Made
) -> None:
    """So an old primary that is cut off from its replicas keeps nobody beside the new one."""
    lock = client(replicated.primary.url, replicas=1).lock("x", lease=LEASE)
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    replicated.lag()
    async with asyncio.timeout(LEASE + SOON):
        await lease.lost.wait()
    with pytest.raises(dsync.LeaseLost, match="was not renewed"):
        lock.release()


async def test_a_wait_that_no_replica_confirms_ends_the_body(
    replicated: Replicated, client: Made
) -> None:
    one = client(replicated.primary.url, replicas=1, outage_timeout=SHORT)
    two = client(replicated.primary.url)  # which asks no replica
    condition, other = one.condition("x"), two.condition("x")

    async def body() -> None:
        async with condition:
            await condition.wait()

    waiting = asyncio.create_task(body())
    await settled(lambda: "waiters:1" in repr(condition))
    await one.store.drain()
    replicated.lag()
    async with other:
        other.notify()
    with pytest.raises(dsync.StoreUnavailable, match="0 of 1 replicas"):
        await waiting
    await one.store.drain()
    assert await holders(replicated, 0, "condition:x") == 0


async def test_who_gives_up_while_the_replica_is_asked_leaves_nothing(
    replicated: Replicated, client: Made
) -> None:
    one = client(replicated.primary.url, replicas=1)
    lock = one.lock("x")
    await one
    replicated.lag()

    async def granted() -> bool:
        return await holders(replicated, 0) == 1

    acquiring = asyncio.create_task(lock.acquire())
    await settled(granted)
    acquiring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await lock.acquire()
    assert not lock.locked()
    await one.store.drain()
    assert await holders(replicated, 0) == 0


# -- what that closes ------------------------------------------------------------------------------


async def test_a_failover_to_a_replica_that_has_it_takes_no_grant_from_anybody(
    replicated: Replicated, client: Made, tasks: Any
) -> None:
    holder = client(replicated.front.url, replicas=1).lock("x", lease=6)
    await holder.acquire()
    lease = holder.lease
    await replicated.fail_over()  # at once: what is granted has been replicated by now
    other = client(replicated.front.url).lock("x")
    assert lease is not None
    assert lease.held
    assert not await other.try_acquire()
    await holder.release()
    async with other:
        assert other.lease is not None
        assert (other.lease.fence or 0) > (lease.fence or 0)


async def test_an_isolated_primary_ends_what_is_held_there_with_the_lease(
    replicated: Replicated, client: Made, tasks: Any, rivals: Rivals
) -> None:
    one = client((await replicated.way()).url, replicas=1)
    two = client(replicated.replica.url)
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    replicated.lag()
    await replicated.promote()
    tasks(rivals.hold(two, "new"))
    async with asyncio.timeout(2 * LEASE + SOON):
        await old
    await settled(lambda: rivals.held("new"))
    first, second = (rivals.history.events("held")[number]["t"] for number in (0, 1))
    assert second > first
    assert rivals.overlap() < 0, "the old one has been told before the new one holds it"


# -- what cannot be --------------------------------------------------------------------------------


async def test_a_user_who_may_not_wait_is_told(replicated: Replicated, client: Made) -> None:
    await replicated.admins[0].execute_command(
        "ACL", "SETUSER", "app", "reset", "on", ">x", *RIGHTS, "~{dsync:*", "&dsync:*"
    )
    one = client(replicated.primary.url.replace("//", "//app:x@"), replicas=1)
    with pytest.raises(dsync.StoreUnavailable, match=r"'wait'.*\+client\|setname \+wait"):
        await one.lock("x").acquire()
    await replicated.admins[0].execute_command("ACL", "SETUSER", "app", "+wait")
    async with one.lock("x"):
        pass


async def test_too_few_replicas_are_told_when_connecting(
    replicated: Replicated, client: Made, caplog: pytest.LogCaptureFixture
) -> None:
    await client(replicated.primary.url, replicas=1)
    assert caplog.records == []
    await client(replicated.primary.url, replicas=2)
    [record] = caplog.records
    assert "has 1 replicas, and this client wants 2" in record.getMessage()


def test_a_store_without_replicas_says_so() -> None:
    with pytest.raises(ValueError, match="replicas"):
        dsync.Client("memory://", replicas=1)
    with pytest.raises(ValueError, match="replicas"):
        dsync.Client(redis=fakeredis.FakeAsyncRedis(), replicas=1)
    for wrong in (-1, True, 1.0, "1"):
        with pytest.raises((TypeError, ValueError), match="replicas must be"):
            dsync.Client("redis://h", replicas=wrong)  # type: ignore[arg-type]
