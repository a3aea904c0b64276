"""The same with real clients, on this machine: `python -m simulation --validate`.

Each function sets up what a model plays, measures it, and returns the two beside each other:
what, the unit, the model's, the measured.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from statistics import fmean

import dsync
from benchmarks.crew import crew
from benchmarks.rig import Rig
from benchmarks.worker import Member
from dsync.beat import BEAT
from dsync.names import tag
from dsync.server import Server
from simulation.calibration import Calibration
from simulation.core import percentile
from simulation.meter import Meter
from simulation.queues import trace
from simulation.restart import Restart, Setup

__all__ = ["Comparison", "validate"]

Comparison = tuple[str, str, float, float]

PROCESSES = 2
NAMESPACE, KEPT = "simulation", "kept"
KEY = tag(NAMESPACE, "lock", KEPT)
OUTAGE = 30.0  # seconds
LONG = 600.0  # seconds of a lease that is not to end meanwhile


def validate(costs: Calibration, progress: Callable[[str], object]) -> list[Comparison]:
    """Takes about a minute and a half."""
    found: list[Comparison] = []
    for about, measure in (
        ("2,000 clients wait", waiting),
        ("a holder dies", dying),
        ("the server restarts", restarting),
        ("locks are taken and released", working),
        ("a lock in use most of the time", crowding),
    ):
        progress(about)
        found += asyncio.run(measure(costs))
    return found


async def want(member: Member, clients: int) -> None:
    """So many clients that want one lock, until whoever started us ends us."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(clients):
            client = dsync.connect(member.url, namespace=NAMESPACE, outage_timeout=OUTAGE)
            await stack.enter_async_context(client)
            lock = client.lock(KEPT, lease=LONG)
            # Kept, for a task that nobody keeps may be collected.
            stack.callback(asyncio.create_task(lock.acquire()).cancel)
        await member.signal()
        await member.hear()


@asynccontextmanager
async def crowd(url: str, clients: int) -> AsyncIterator[None]:
    """So many real clients that want the lock."""
    rig = Rig(url, 1.0)
    rig.namespace = NAMESPACE
    with closing(rig):
        async with crew(PROCESSES, want, rig, clients // PROCESSES):
            yield


async def settled(meter: Meter, count: int) -> None:
    """Return when so many hold the lock or wait for it."""
    while meter.wanted(KEY) < count:  # noqa: ASYNC110 - the server's state, which sets no event
        await asyncio.sleep(0.02)


async def waiting(costs: Calibration) -> list[Comparison]:
    """2,000 clients keep their places."""
    clients, seconds = 2_000, 10.0
    with Server.start(port=0) as server, closing(Meter(server.url)) as meter:
        async with crowd(server.url, clients):
            await settled(meter, clients)
            await asyncio.sleep(2.0)  # until everybody has found its beat
            before = meter.commands()
            with meter.measured() as spent:
                await asyncio.sleep(seconds)
            rate = (meter.commands() - before) / seconds
    expected = clients / BEAT
    cost = costs.command("heartbeat, lock")
    return [
        ("2,000 clients wait for a lock: heartbeats", "1/s", expected, rate),
        ("the same: a command, of the core", "µs", cost * 1e6, spent.cpu / spent.calls),
        (
            "the same: in the script",
            "µs",
            costs.script["heartbeat, lock"],
            spent.script / spent.calls,
        ),
    ]


async def dying(costs: Calibration) -> list[Comparison]:
    """1,000 clients wait for a lock whose holder dies."""
    clients = 1_000
    with Server.start(port=0) as server, closing(Meter(server.url)) as meter:
        holder = dsync.connect(server.url, namespace=NAMESPACE)
        await holder.lock(KEPT, lease=5.0, on_lost="flag").acquire()
        async with crowd(server.url, clients):
            await settled(meter, clients + 1)
            await holder.store.aclose()  # nothing is released
            await asyncio.sleep(meter.lease_left(KEY) - 0.25)
            before = meter.commands()
            await asyncio.sleep(0.5)
            asked = meter.commands() - before
        await holder.aclose()
    # All at the end of the lease, and those whose beat falls into the half second before it.
    expected = clients * (1 + 0.25 / BEAT)
    return [("1,000 wait, the holder dies: asked within 0.5 s", "", expected, asked)]


async def restarting(costs: Calibration) -> list[Comparison]:
    """60 clients after a restart: so few that their two processes are not what it takes."""
    clients = 60
    with Server.start(port=0) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        async with crowd(server.url, clients):
            with closing(Meter(server.url)) as meter:
                await settled(meter, clients)
            server.stop()
            await asyncio.sleep(1.0)  # until they are somewhere between two attempts
            with Server.start(port=port) as again, closing(Meter(again.url)) as meter:
                started = time.monotonic()
                await settled(meter, clients // 2)
                half = time.monotonic() - started
                await settled(meter, clients - 1)  # who held it has lost it, and wants no other
                everybody = time.monotonic() - started
    asked = (costs.script["join a queue"] + costs.io_batched) / 1e6
    setup = Setup(clients, asked, OUTAGE, processes=PROCESSES)
    expected = Restart(setup, costs, random.Random(1)).run()
    return [
        ("60 clients, a restart of the server: half are back", "s", expected.after(50), half),
        ("the same: all are back", "s", expected.after(100), everybody),
    ]


async def working(costs: Calibration) -> list[Comparison]:
    """Clients that take and release locks as fast as they can."""
    with Server.start(port=0) as server, closing(Meter(server.url)) as meter:
        rig = Rig(server.url, 1.0)
        rig.namespace = NAMESPACE
        with closing(rig):
            async with crew(PROCESSES, cycle, rig, 100) as members:
                window = members.go(3.0)
                await asyncio.sleep(window.start + 0.5 - time.monotonic())
                with meter.measured() as spent:
                    await asyncio.sleep(2.0)
                await members.results()
    what = ("acquire, free", "release, nobody waits")
    expected = sum(costs.command(each) for each in what) / 2 * 1e6
    script = sum(costs.script[each] for each in what) / 2
    return [
        ("200 clients take and release locks: a command, of the core", "µs", expected,
         spent.cpu / spent.calls),
        ("the same: in the script", "µs", script, spent.script / spent.calls),
    ]  # fmt: skip


async def cycle(member: Member, clients: int) -> None:
    """So many clients, each in a loop on a lock of its own."""
    async with contextlib.AsyncExitStack() as stack:
        locks = [
            (await stack.enter_async_context(dsync.connect(member.url, namespace=NAMESPACE))).lock(
                f"cycle {member.index} {number}"
            )
            for number in range(clients)
        ]
        window = await member.signal()

        async def work(lock: dsync.Lock) -> None:
            while time.monotonic() < window.end:
                async with lock:
                    pass

        await asyncio.gather(*(work(lock) for lock in locks))


async def crowding(costs: Calibration) -> list[Comparison]:
    """One lock in use most of the time: the same arrivals and holds, played and done."""
    played = trace(150, 0.1, 0.7, random.Random(7))
    expected = played.model()
    with Server.start(port=0) as server:
        rig = Rig(server.url, 1.0)
        rig.namespace = NAMESPACE
        with closing(rig):
            async with crew(PROCESSES, take, rig, played.arrivals, PROCESSES) as members:
                members.go(0.0)
                found = [wait for some in await members.results() for wait in some]
    about = "a lock in use 70 % of the time, held 100 ms: wait"
    return [
        (f"{about}, mean", "ms", fmean(expected) * 1e3, fmean(found) * 1e3),
        (f"{about}, p95", "ms", percentile(expected, 95) * 1e3, percentile(found, 95) * 1e3),
    ]


async def take(member: Member, arrivals: list[tuple[float, float]], members: int) -> list[float]:
    """Every `members`th of the arrivals, each by a task.  -> how long they waited"""
    async with dsync.connect(member.url, namespace=NAMESPACE) as client:
        lock = client.lock("crowded", fair=True)
        window = await member.signal()

        async def hold(when: float, seconds: float) -> float:
            due = window.start + when
            await asyncio.sleep(due - time.monotonic())
            async with lock:
                waited = time.monotonic() - due
                await asyncio.sleep(seconds)
            return waited

        mine = arrivals[member.index :: members]
        return list(await asyncio.gather(*(hold(when, seconds) for when, seconds in mine)))
