"""What those who only wait cost the server."""

import asyncio

import pytest

from tests.conftest import settled
from tests.fault.conftest import OwnServer

WATCHED = 4.0  # seconds: two heartbeats


async def commands(server: OwnServer) -> int:
    """How many commands clients sent so far; what scripts call is not among them."""
    stats = await server.admin.info("commandstats")
    names = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_ping", "cmdstat_subscribe")
    return sum(stats[name]["calls"] for name in names if name in stats)


@pytest.mark.parametrize("fair", [False, True], ids=["", "fair"])
async def test_two_hundred_idle_waiters_share_a_connection_and_a_command_a_second(
    own_server: OwnServer, fair: bool
) -> None:
    holder, client = own_server.client().lock("x"), own_server.client()
    await holder.acquire()
    lock = client.lock("x", fair=fair)
    tasks = [asyncio.create_task(lock.acquire()) for _ in range(200)]
    await settled(lambda: "waiters:200]" in repr(lock))
    await client.check()
    before = await commands(own_server)
    await asyncio.sleep(WATCHED)  # nothing is waited for: this is the measurement
    assert await commands(own_server) - before <= WATCHED
    names = [entry["name"] for entry in await own_server.admin.client_list()]
    assert sum(name.startswith("dsync:") for name in names) == 2  # the holder's and the waiters'
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await holder.release()
