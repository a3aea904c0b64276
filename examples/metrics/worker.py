"""A worker that Prometheus can watch: how long it waits and holds, and what it loses and misses.

    DSYNC_URL=redis://localhost:6379 python examples/metrics/worker.py [PORT] [ORDERS]

    curl localhost:8001/metrics

It packs so many orders, by default until it is told to stop.  Start some, on a port each, let
Prometheus scrape them, and import examples/grafana_dashboard.json into Grafana.

Needs `pip install 'dsync-redis[prometheus]'`.  Without $DSYNC_URL it brings a server of its own.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Iterator
from itertools import count

from prometheus_client import start_http_server

import dsync
from dsync.metrics.prometheus import PrometheusHook

PACKERS = 4  # of each worker
TABLES = 3  # of all workers together; a packer needs one
PAYMENTS = 50  # per second, of all workers together


async def work(client: dsync.Client, orders: Iterator[int]) -> None:
    """Pack them, as many at a time as there are packers."""
    tables = client.semaphore("tables", TABLES)
    payments = client.rate_limiter("payments", PAYMENTS)
    bus = client.event_bus("orders")

    @bus.on("order.packed")
    def packed(event: dsync.Message) -> None:
        pass  # stands for a page that is rendered anew

    async def pack() -> None:
        for _ in orders:
            number = random.randrange(1_000_000)
            # A label for each of a million orders would be too many for Prometheus: there all are
            # named "order:*".
            try:
                async with client.lock(f"order:{number}"), tables:
                    await asyncio.sleep(random.expovariate(1 / 0.02))  # stands for the packing
                    await payments.acquire()
            except (dsync.LeaseLost, dsync.StoreUnavailable):
                continue  # Prometheus knows
            bus.trigger("order.packed", number)

    await client.event("shop is open").wait()
    async with asyncio.TaskGroup() as packers:
        for _ in range(PACKERS):
            packers.create_task(pack())


async def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8001
    orders = iter(range(int(sys.argv[2]))) if len(sys.argv) > 2 else count()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)

    # In a thread of its own, which answers also when the event loop has no time.
    server, thread = start_http_server(port, addr="127.0.0.1")
    print(f"metrics on http://127.0.0.1:{server.server_port}/metrics", flush=True)
    url = os.environ.get("DSYNC_URL", "embedded://")
    try:
        async with dsync.connect(
            url, namespace="example-metrics", on_event=PrometheusHook()
        ) as client:
            client.event("shop is open", ttl=3600).set()
            await work(client, orders)
            await loop.create_future()  # to look at, until we are told to stop
    except asyncio.CancelledError:
        print("told to stop")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    asyncio.run(main())
