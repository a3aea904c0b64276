"""A fleet that is told to stop by one event: each finishes what it has begun, and says goodbye.

    python examples/graceful_shutdown.py [URL]

The URL defaults to $DSYNC_URL, else to a server of our own.

Two primitives, each for what it is good at: an Event *stays* set, so a worker that starts late or
was cut off for a while stops as well; on the bus one hears what *happens*: who is here, who leaves.
"""

import asyncio
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import dsync

NAMESPACE = "example-shutdown"
WORKERS, TASKS = 3, 4


async def work(url: str, number: int) -> tuple[int, int]:
    """A worker.  -> how many jobs it has begun and finished"""
    begun = finished = 0

    async def jobs() -> None:
        nonlocal begun, finished
        while not stop.is_set():  # what this process knows: no I/O
            begun += 1
            await asyncio.sleep(random.uniform(0.01, 0.05))  # a job that must not be cut short
            finished += 1

    async def told_to_stop() -> bool:
        try:
            return await stop.wait()
        except dsync.StoreUnavailable:
            return False

    async with dsync.connect(url, namespace=NAMESPACE) as client:
        stop = client.event("stop")
        bus = client.event_bus()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(jobs())
            bus.trigger("worker.started", {"worker": number})
            while not await told_to_stop():
                pass  # not even whether to stop can be asked: go on with what we do
            # From here on no job begins; the group waits for those that have.
        await bus.trigger("worker.left", {"worker": number, "finished": finished})
    return begun, finished


def process(url: str, number: int) -> tuple[int, int]:
    return asyncio.run(work(url, number))


async def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DSYNC_URL", "embedded://")
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        async with dsync.connect(url, namespace=NAMESPACE) as client:
            stop = client.event("stop", ttl=60)  # seconds; the next fleet is not to find it set
            await stop.clear()
            async with client.event_bus().subscribe("worker.*") as news:
                fleet = [loop.run_in_executor(pool, process, url, n) for n in range(WORKERS)]
                started = left = 0
                async with asyncio.timeout(20):
                    while left < WORKERS:
                        message = await anext(news)
                        assert isinstance(message, dsync.Message), message
                        print(message.event, message.data, flush=True)
                        started += message.event == "worker.started"
                        left += message.event == "worker.left"
                        if started == WORKERS and not stop.is_set():
                            await stop.set()
                results = await asyncio.gather(*fleet)
            await stop.clear()
    assert all(begun == finished > 0 for begun, finished in results), results


if __name__ == "__main__":
    asyncio.run(main())
