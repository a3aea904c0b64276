"""A worker: ordinary code that uses dsync.  Several processes of it share everything they touch.

`note(...)` writes down what happens, for the summary at the end of the demo; without it, this is
what a program of your own would look like.
"""

import asyncio
import contextlib
import os
import random
import sys
from pathlib import Path

import dsync
from dsync.demo.items import Queue, Stale
from dsync.demo.journal import HoldNotes, Journal
from dsync.demo.ledger import Ledger
from dsync.demo.upstream import call

__all__ = ["GATE", "LEASE", "NEWS", "QUEUE_SIZE", "SLOTS", "UPSTREAM_CAP", "main"]

LEASE = 1.5  # seconds; short, so that one can watch what happens when a holder dies
SLOTS = 3
UPSTREAM_CAP = 4
QUEUE_SIZE = 3
GATE = "go"  # what the event is called
NEWS = "ledger"  # ... and the bus on which everybody hears what was written


class Worker:
    """Tasks that contend with each other and with those of the other workers."""

    def __init__(self, client: dsync.Client, directory: Path, journal: Journal) -> None:
        self.ledger: Ledger = Ledger(directory / "ledger")
        self.upstream: Path = directory / "upstream"
        self.queue: Queue = Queue(directory / "queue")
        self.journal = journal
        self.over: bool = False
        self.linger: float = 0.0  # seconds that the next entry in the ledger is to take

        self.gate: dsync.Event = client.event(GATE)
        self.news: dsync.EventBus = client.event_bus(NEWS)
        self.lock: dsync.Lock = client.lock("ledger", lease=LEASE)
        self.slots: dsync.Semaphore = client.semaphore("slots", SLOTS, lease=LEASE)
        self.calls: dsync.BoundedSemaphore = client.bounded_semaphore(
            "upstream", UPSTREAM_CAP, lease=LEASE
        )
        # Two conditions over one lock: what is put wakes a taker, what is taken wakes a putter.
        self.queue_lock: dsync.Lock = client.lock("queue", lease=LEASE)
        self.there_is_work: dsync.Condition = client.condition("there is work", self.queue_lock)
        self.there_is_room: dsync.Condition = client.condition("there is room", self.queue_lock)

    async def run(self) -> None:
        """Work until told that it is over; what has begun is brought to an end."""
        self.journal.note("ready", pid=os.getpid())
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self.work())
            await self.obey()
            self.over = True
            if self.gate.is_set():
                await self.wake_all()
            else:
                work.cancel()

    async def work(self) -> None:
        """Wait at the gate with all the others, and then do everything at once."""
        await self.gate.wait()
        self.journal.note("through")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(self.keep_the_ledger())
                tasks.create_task(self.use_slots())
                tasks.create_task(self.call_upstream())
            tasks.create_task(self.produce())
            tasks.create_task(self.consume())

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
                    told = self.news.trigger("entry.written", [self.journal.worker, lease.fence])
                    note("left")
                await told
                note("told")
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
                async with self.calls as permit:
                    note("entered")
                    await call(self.upstream, permit)
                    note("left")
            except dsync.LeaseLost:
                note("lost")
            await asyncio.sleep(random.uniform(0, 0.01))

    async def produce(self) -> None:
        """Put items into a queue that has room for only so many."""
        number = 0
        while not self.over:
            await asyncio.sleep(random.uniform(0.005, 0.025))
            number += 1
            await self.put(f"{self.journal.worker}.{number}")

    async def consume(self) -> None:
        """Take items out of the queue and work on them."""
        while not self.over:
            if item := await self.take():
                await asyncio.sleep(random.uniform(0.005, 0.025))
                self.journal.note("done", "queue", item=item)

    async def put(self, item: str) -> None:
        """Put it, once there is room."""
        note = self.journal.hold("queue")
        try:
            async with self.there_is_room as lease:
                await self.there_is_room.wait_for(lambda: len(self.queue) < QUEUE_SIZE or self.over)
                fence = self.queue_lock.fence
                note("entered", fence=fence, woken=self.queue_lock.lease is not lease)
                if len(self.queue) < QUEUE_SIZE:
                    self.queue.put(item, self.journal.worker, fence)
                    self.there_is_work.notify()
                note("left")
        except (dsync.LeaseLost, Stale):
            note("lost")

    async def take(self) -> str | None:
        """The first item, once there is one; None when it is over."""
        note, item = self.journal.hold("queue"), None
        try:
            async with self.there_is_work as lease:
                await self.there_is_work.wait_for(lambda: len(self.queue) or self.over)
                fence = self.queue_lock.fence
                note("entered", fence=fence, woken=self.queue_lock.lease is not lease)
                if len(self.queue):
                    item = self.queue.take(self.journal.worker, fence)
                    self.there_is_room.notify()
                note("left")
        except (dsync.LeaseLost, Stale):
            note("lost")
        return item

    async def wake_all(self) -> None:
        """It is over: have everybody who waits for work or for room look again."""
        while True:
            with contextlib.suppress(dsync.LeaseLost):
                async with self.queue_lock:
                    self.there_is_work.notify_all()
                    self.there_is_room.notify_all()
                return

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
