"""A worker process that does a little of everything once, and shows its metrics over HTTP.

    python -m tests.metrics.worker URL NAMESPACE

It prints the port when all is done, and ends when its standard input does.
"""

import asyncio
import sys

from prometheus_client import start_http_server

import dsync
from dsync.metrics.prometheus import PrometheusHook
from dsync.telemetry import Acquired, Happening, Lost, Received, Released
from tests.conftest import settled


class Tally:
    """A hook that counts by itself."""

    def __init__(self) -> None:
        self.begun = self.ended = self.received = 0

    def __call__(self, happening: Happening) -> None:
        match happening:
            case Acquired():
                self.begun += 1
            case Released() | Lost(late=False):
                self.ended += 1
            case Received():
                self.received += 1
            case _:
                pass


async def hold(client: dsync.Client, other: dsync.Client, tally: Tally) -> None:
    """Order after order, a few at once, and one of them lost."""

    async def work(number: int) -> None:
        for step in range(5):
            async with client.lock(f"order:{number}-{step}"), client.lock("x"):
                await asyncio.sleep(0)

    await asyncio.gather(*map(work, range(4)))
    lock = client.lock("lost", on_lost="flag")
    await lock.acquire()
    assert await other.lock("lost").force_release()
    await settled(lambda: tally.begun == tally.ended)


async def be_refused(client: dsync.Client, other: dsync.Client) -> None:
    """By a semaphore that somebody else has used up."""
    async with other.semaphore("permits", 1):
        permits = client.semaphore("permits", 1)
        assert not await permits.try_acquire()
        for _ in range(2):
            try:
                await permits.acquire(timeout=0.01)
            except dsync.AcquireTimeout:
                pass
    async with permits:
        pass


async def hear(client: dsync.Client, tally: Tally) -> None:
    """An event, units of a limit, and messages of which two are dropped."""
    event = client.event("event")
    waiting = asyncio.gather(event.wait(), event.wait(), event.wait())
    await asyncio.sleep(0)
    event.set()
    await waiting
    await event.clear()
    limiter = client.rate_limiter("limit", 10, per=3600)
    await limiter.acquire(3)
    assert await limiter.try_acquire(4)
    assert not await limiter.try_acquire(4)
    bus = client.event_bus("bus")
    async with bus.subscribe("*", maxsize=3, overflow="drop_oldest") as heard:
        for number in range(5):
            await bus.trigger("tick", number)
        await settled(lambda: tally.received == 5)
        assert isinstance(await anext(heard), dsync.Gap)


async def main(url: str, namespace: str) -> None:
    server, _ = start_http_server(0, addr="127.0.0.1")
    tally = Tally()
    client = dsync.Client(url, namespace=namespace, on_event=[PrometheusHook(), tally])
    async with client, dsync.connect(url, namespace=namespace) as other:
        await hold(client, other, tally)
        await be_refused(client, other)
        await hear(client, tally)
        print(server.server_port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
