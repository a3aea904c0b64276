"""A server in a container: what is promised holds there, also when the container is killed."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dsync
from tests.conftest import World, settled
from tests.containers.conftest import Contained

ROOT = Path(__file__).parents[2]
CONTRACT = ("test_lock.py", "test_semaphore.py", "test_event.py")


@pytest.mark.timeout(240)
def test_the_contract_holds_on_a_server_in_a_container(server_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "server",
         *(f"tests/contract/{name}" for name in CONTRACT)],
        env={**os.environ, "DSYNC_TEST_URL": server_url, "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    [passed] = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 100, "it was the contract that ran"


async def test_processes_take_turns_at_a_server_in_a_container(real: World) -> None:
    one, two = real.client().lock("x"), real.client().lock("x")
    async with one as lease:
        waiting = asyncio.create_task(two.acquire())
        await settled(lambda: queued(two), "it waits")
        first = lease.fence
    await waiting
    assert first is not None
    assert two.fence is not None
    assert two.fence > first
    await two.release()


async def queued(lock: dsync.Lock, waiting: int = 1) -> bool:
    return len((await lock.info()).waiters) == waiting


async def test_a_container_that_is_killed_under_held_locks_takes_them_and_strands_nobody(
    contained: Contained,
) -> None:
    holder, waiter, other = (contained.client() for _ in range(3))
    held = [holder.lock(f"x{number}") for number in range(10)]
    fences: dict[str, int] = {}
    told: list[str] = []
    may_end = asyncio.Event()

    async def hold(lock: dsync.Lock) -> None:
        try:
            async with lock as lease:
                assert lease.fence is not None
                fences[lock.name] = lease.fence
                await may_end.wait()
        except dsync.LeaseLost:
            told.append(lock.name)

    async def follow(lock: dsync.Lock) -> int:
        async with lock as lease:
            assert lease.fence is not None
            return lease.fence

    async with asyncio.TaskGroup() as tasks:
        for lock in held:
            tasks.create_task(hold(lock))
        await settled(lambda: len(fences) == 10, "ten locks are held")
        next_ones = {lock.name: tasks.create_task(follow(waiter.lock(lock.name))) for lock in held}
        for lock in held:
            await settled(lambda: queued(lock), "each is waited for")  # noqa: B023
        contained.kill()
        acquiring = asyncio.create_task(other.lock("y").acquire())
        contained.start()
        await acquiring
        await settled(lambda: len(told) == 10, "who held them is told", 10)
    for name, fence in fences.items():
        assert next_ones[name].result() > fence
    await other.lock("y").force_release()


async def test_a_container_that_stays_away_for_too_long_is_an_error_and_then_as_good_as_new(
    contained: Contained,
) -> None:
    client = contained.client(outage_timeout=0.5)
    await client.check()
    contained.kill()
    with pytest.raises(dsync.StoreUnavailable, match=r"could not be asked for 0\.5 s"):
        await client.lock("x").acquire()
    contained.start()
    async with client.lock("x") as lease:
        assert lease.held


async def test_a_container_that_is_frozen_for_less_than_a_lease_takes_nothing(
    contained: Contained,
) -> None:
    lock, other = contained.client().lock("x", lease=6), contained.client().lock("x")
    async with lock as lease:
        contained.pause()
        asking = asyncio.create_task(other.try_acquire())
        done, _ = await asyncio.wait([asking], timeout=1)
        assert not done, "nobody answers"
        contained.unpause()
        assert not await asking, "it is still held"
        assert lease.held
