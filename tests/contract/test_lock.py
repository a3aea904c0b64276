"""What a Lock promises, on every store."""

import asyncio

import pytest

import dsync
from tests.conftest import World, settled


async def test_the_lock_is_held_by_one_at_a_time(world: World) -> None:
    one, two = world.client(), world.client()
    inside = most = 0

    async def work(client: dsync.Client) -> None:
        nonlocal inside, most
        for _ in range(30):
            async with client.lock("x"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.gather(*(work((one, two)[i % 2]) for i in range(8)))
    assert most == 1
