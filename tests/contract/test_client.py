"""Clients: made anywhere, bound to one loop, closed once."""

import asyncio
import gc
import subprocess
import sys

import pytest

import dsync
from tests.conftest import World, settled


async def test_connecting_is_lazy_awaitable_and_a_context_manager(world: World) -> None:
    client = world.client()
    assert await client is client
    async with world.client() as other:
        assert other.namespace == client.namespace
        await other.lock("x").acquire()
    with pytest.raises(dsync.ClientClosed, match="make a new one"):
        await other.lock("x").acquire()


async def test_names_that_were_used_and_dropped_leave_nothing_in_the_client(
    world: World,
) -> None:
    client = world.client()
    for i in range(300):
        async with client.lock(f"name-{i}"):
            pass
    assert not client.homes
    assert not client.keeper.holds()
    # The link may keep the last call for a turn of the loop; nothing waits for the collector.
    gc.disable()
    try:
        await settled(lambda: not client._cohorts, "the names are forgotten")
    finally:
        gc.enable()


def test_memory_is_shared_by_the_clients_of_one_url_and_by_nobody_else() -> None:
    async def main() -> None:
        one, two = dsync.connect("memory://"), dsync.connect("memory://")
        apart = dsync.connect("memory://other")
        async with one, two, apart, one.lock("x"):
            assert not await two.lock("x").try_acquire()
            assert await apart.lock("x").try_acquire()

    asyncio.run(main())
    asyncio.run(main())  # and every loop has its own


def test_a_client_may_be_made_at_import_and_belongs_to_the_loop_that_uses_it() -> None:
    client = dsync.connect("memory://")
    lock = client.lock("x")

    async def use() -> None:
        async with lock:
            pass

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="one client for each loop"):
        asyncio.run(use())


def test_a_program_in_development_mode_warns_of_nothing(server_url: str) -> None:
    program = f"""
import asyncio, dsync
client = dsync.connect({server_url!r}, namespace="devmode")
async def main():
    async with client:
        async with client.lock("x"), client.semaphore("s", 2):
            pass
asyncio.run(main())
"""
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (run.returncode, run.stderr) == (0, "")


async def test_closing_grants_nothing_to_who_waits_in_the_same_client(world: World) -> None:
    client = world.client()
    lock = client.lock("x", fair=True)
    await lock.acquire()
    waiting = asyncio.create_task(lock.acquire())
    semaphore = client.semaphore("s", 1)
    await semaphore.acquire()
    also = asyncio.create_task(semaphore.acquire())
    await asyncio.sleep(0)
    await client.aclose()
    for task in (waiting, also):
        with pytest.raises(dsync.ClientClosed):
            await task
    assert not client.homes
    other = world.client()
    assert await other.lock("x").try_acquire()
    assert await other.semaphore("s", 1).try_acquire()


async def test_memory_does_not_keep_names_that_were_only_waited_for() -> None:
    one, two = dsync.connect("memory://sweep"), dsync.connect("memory://sweep")
    async with one, two:
        for i in range(50):
            async with one.lock(f"n{i}"):
                with pytest.raises(dsync.AcquireTimeout):
                    await two.lock(f"n{i}").acquire(timeout=0.001)
        memory = one.store.memory  # type: ignore[attr-defined]
        assert len(memory.records) == 50  # what has left is remembered for a minute
        clock, memory.clock = memory.clock, lambda: clock() + 120_000_000
        for _ in range(1100):
            await one.lock("other").info()
        assert not memory.records
