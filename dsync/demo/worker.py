"""A worker: ordinary code that uses dsync.  Several processes of it share everything they touch.

`note(...)` writes down what happens, for the summary at the end of the demo; without it, this is
what a program of your own would look like.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

import dsync
from dsync.demo.journal import HoldNotes, Journal
from dsync.demo.ledger import Ledger
from dsync.demo.upstream import call

__all__ = ["LEASE", "SLOTS", "UPSTREAM_CAP", "main"]

LEASE = 1.5  # seconds; short, so that one can watch what happens when a holder dies
SLOTS = 3
UPSTREAM_CAP = 4


class Worker:
    """Tasks that contend with each other and with those of the other workers."""

    def __init__(self, client: dsync.Client, directory: Path, journal: Journal) -> None:
        self.ledger = Ledger(directory / "ledger")
        self.upstream = directory / "upstream"
        self.journal = journal
        self.over = False
        self.linger = 0.0  # seconds that the next entry in the ledger is to take

        self.lock = client.lock("ledger", lease=LEASE)
        self.slots = client.semaphore("slots", SLOTS, lease=LEASE)
        self.calls = client.bounded_semaphore("upstream", UPSTREAM_CAP, lease=LEASE)

    async def run(self) -> None:
        """Work until told that it is over; what has begun is brought to an end."""
        self.journal.note("ready", pid=os.getpid())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.obey())
            for _ in range(2):
                tasks.create_task(self.keep_the_ledger())
                tasks.create_task(self.use_slots())
                tasks.create_task(self.call_upstream())

    async def keep_the_ledger(self) -> None:
        """Read, compute, write, over and over.  Only the lock keeps updates from getting lost."""
        while not self.over:
            note = self.journal.hold("ledger")
            try:
                async with self.lock as lease:
                    note("entered", fence=lease.fence)
                    total = self.ledger.read()
                    await self.compute(note)
                    note("writing", read=total, total=total + 1)
                    self.ledger.write(total + 1)
                    note("written")
                    note("left")
            except dsync.LeaseLost:
                note("lost")

    async def use_slots(self) -> None:
        """Occupy one of a few slots for a while."""
        while not self.over:
            note = self.journal.hold("slots")
            try:
                async with self.slots:
                    note("entered")
                    await asyncio.sleep(random.uniform(0.01, 0.04))
                    note("left")
            except dsync.LeaseLost:
                note("lost")
            await asyncio.sleep(random.uniform(0, 0.01))

    async def call_upstream(self) -> None:
        """Call a service that fails under more than so many calls from the whole fleet."""
        while not self.over:
            note = self.journal.hold("upstream")
            try:
                async with self.calls:
                    note("entered")
                    await call(self.upstream)
                    note("left")
            except dsync.LeaseLost:
                note("lost")
            await asyncio.sleep(random.uniform(0, 0.01))

    async def compute(self, note: HoldNotes) -> None:
        """What takes time between reading and writing; very long if so ordered."""
        seconds, self.linger = self.linger, 0.0
        if seconds:
            note("lingers")
        await asyncio.sleep(seconds or random.uniform(0.001, 0.004))

    async def obey(self) -> None:
        """Take orders from stdin: seconds to linger.  It ends with the demo, however that ends."""
        orders = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
        )
        async for order in orders:
            self.linger = float(order)
        self.over = True
        pipe.close()


async def work(number: int, directory: Path, namespace: str, journal: Journal) -> None:
    # The URL is in $DSYNC_URL: a command line is no place for a password.
    async with dsync.connect(
        namespace=namespace, label=f"worker-{number}", outage_timeout=2
    ) as client:
        await Worker(client, directory, journal).run()


def main(number: int, directory: Path, namespace: str) -> None:
    """Be worker `number`, until stdin ends."""
    journal = Journal(directory, number)
    try:
        asyncio.run(work(number, directory, namespace, journal))
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        journal.note("failed", why=f"{type(cause).__name__}: {cause}")
        raise
    finally:
        journal.close()
