"""The processes of a shop, for a picture of `dsync top`: `python -m docs.shop NUMBER`.

They hold, wait and tell each other things under the names that the README has, until killed.
"""

import asyncio
import contextlib
import random
import sys

import dsync

CALLERS, CLERKS = 9, 2  # tasks of each process


async def call(client: dsync.Client) -> None:
    """Ask an API that bears so many calls at once, and so many in a minute."""
    places, minutes = client.semaphore("openai", 20), client.rate_limiter("openai", 600, per=60)
    while True:
        async with places, minutes:
            await asyncio.sleep(random.uniform(2, 3))


async def write(client: dsync.Client, invoice: int) -> None:
    """Take turns on one invoice."""
    while True:
        async with client.lock(f"invoice {invoice}"):
            await asyncio.sleep(0.3)


async def pack(client: dsync.Client) -> None:
    """Wait for orders."""
    async with (orders := client.condition("orders")):
        while True:
            await orders.wait()
            await asyncio.sleep(0.01)


async def lead(client: dsync.Client) -> None:
    """Bring the orders, if nobody else does, and tell everybody."""
    async with client.leader("scheduler"):
        while True:
            async with (orders := client.condition("orders")):
                orders.notify()
            client.event_bus().trigger("order.new", {"id": 7})
            await asyncio.sleep(0.05)


async def work(number: int) -> None:
    async with dsync.connect(namespace="shop", label=f"worker-{number}") as client:
        await client.event("migrated").set()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(call(client), name="call")
            for invoice in (7, 8):
                tasks.create_task(write(client, invoice), name=f"write {invoice}")
            for _ in range(CLERKS):
                tasks.create_task(pack(client), name="pack")
            tasks.create_task(lead(client), name="lead")
            tasks.create_task(client.barrier("reindex", 5).wait(), name="reindex")
            async with client.event_bus().subscribe("order.*") as events:
                async for _ in events:
                    pass


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(work(int(sys.argv[1])))
