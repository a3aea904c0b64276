"""One of several workers that contend for a lock and a semaphore: see docker-compose.yml.

    DSYNC_URL=redis://localhost:6379 python examples/compose_worker.py [ROUNDS]
    DSYNC_URL=redis://localhost:6379 python examples/compose_worker.py --watch

Start it in two terminals: the fences grow from one line to the next, whichever worker prints it.
"""

import asyncio
import itertools
import os
import signal
import socket
import sys

import dsync


async def work(rounds: int | None) -> None:
    me = f"{socket.gethostname()}/{os.getpid()}"
    async with dsync.connect(namespace="compose") as client:  # the server is $DSYNC_URL
        desks = client.semaphore("desks", 2)  # two workers may sit down at a time,
        ledger = client.lock("ledger", lease=5)  # one of them may write
        last = 0  # the fence under which we wrote last
        for _ in itertools.count() if rounds is None else range(rounds):
            try:
                async with desks:
                    await asyncio.sleep(0.2)  # work that two may do side by side
                    async with ledger:
                        fence = ledger.fence or 0
                        assert fence > last, f"{fence} after {last}: this would overwrite"
                        print(f"{me} writes with fence {fence}", flush=True)
                        last = fence
                        await asyncio.sleep(0.1)  # work that only one may do
            except (dsync.LeaseLost, dsync.StoreUnavailable) as error:
                print(f"{me} begins anew: {error}", flush=True)
                await asyncio.sleep(1)


async def watch() -> None:
    """Say each second who writes, and how many work and wait."""
    async with dsync.connect(namespace="compose") as client:
        desks, ledger = client.semaphore("desks", 2), client.lock("ledger")
        while True:
            try:
                seats, pen = await desks.info(), await ledger.info()
            except dsync.StoreUnavailable as error:
                print(error, flush=True)
            else:
                writer = f"{pen.holder.host}/{pen.holder.pid}" if pen.holder else "nobody"
                print(
                    f"{seats.held} of {seats.value} desks taken, {seats.waiting} waiting; "
                    f"{writer} writes, {len(pen.waiters)} waiting",
                    flush=True,
                )
            await asyncio.sleep(1)


async def main() -> None:
    how = sys.argv[1] if len(sys.argv) > 1 else None
    task = asyncio.ensure_future(watch() if how == "--watch" else work(int(how) if how else None))
    # `docker compose stop` sends SIGTERM: leave as from any cancellation, holding nothing.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        print("stopped", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
