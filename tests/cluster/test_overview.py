"""The overview of a cluster: whoever holds is asked where it listens, whichever node that is."""

import asyncio

from dsync.overview import Overview
from tests.cluster.conftest import Broken
from tests.conftest import settled


async def test_holders_and_waiters_on_all_nodes_are_told_with_their_tasks(whole: Broken) -> None:
    one, two, watching = whole.client(label="one"), whole.client(label="two"), whole.client()
    locks = [one.lock(f"lock {number}") for number in range(20)]
    for lock in locks:
        await lock.acquire()
    waiting = [asyncio.create_task(two.lock(lock.name).acquire(), name="next") for lock in locks]
    await settled(lambda: len(two.homes) == 20)
    task = asyncio.current_task()
    assert task is not None
    async with Overview(watching) as view, asyncio.timeout(20):
        while True:
            seen = await view.look()
            holding = [each.task for row in seen.rows for each in row.holders]
            waits = [each.task for row in seen.rows for each in row.waiters]
            if holding == [task.get_name()] * 20 and waits == ["next"] * 20:
                break
            await asyncio.sleep(0.1)
    assert not [key for key in await whole.keys() if ":roll:" in key]
    for lock in locks:
        await lock.release()
    await asyncio.gather(*waiting)
    await two.aclose()
