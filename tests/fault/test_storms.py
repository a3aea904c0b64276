"""Storms of cancellations, and very many of everything: nothing stays behind, nobody starves.

    python -m tests.fault.test_storms URL NAMESPACE KIND SEED    one process of a storm

$DSYNC_FULL_SCALE makes the sizes those of the promises.
"""

import asyncio
import gc
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

import dsync
from dsync.quota import Quota
from tests.conftest import LIVELY, World, settled
from tests.fault.conftest import OwnServer

FULL = bool(os.environ.get("DSYNC_FULL_SCALE"))
CANCELLED = 0.6  # of all waits

# What a task of a storm does: `leaving` is called at the end of its body.
Use = Callable[[dsync.Client, Callable[[], None]], Awaitable[None]]


# -- what storms are made of -----------------------------------------------------------------------


class Inside:
    """How many are inside at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0

    def __enter__(self) -> None:
        self.now += 1
        self.total += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *args: object) -> None:
        self.now -= 1


inside = Inside()
dice = random.Random()


async def pause() -> None:
    await asyncio.sleep(dice.choice((0, 0, 0.001, 0.003)))


async def use_lock(client: dsync.Client, leaving: Callable[[], None], fair: bool = False) -> None:
    async with client.lock("x", fair=fair):
        with inside:
            await pause()
        leaving()


async def use_fair_lock(client: dsync.Client, leaving: Callable[[], None]) -> None:
    await use_lock(client, leaving, fair=True)


async def use_semaphore(client: dsync.Client, leaving: Callable[[], None]) -> None:
    async with client.semaphore("x", 3):
        with inside:
            await pause()
        leaving()


async def use_event(client: dsync.Client, leaving: Callable[[], None]) -> None:
    await client.event("x").wait()
    with inside:
        leaving()


async def use_condition(client: dsync.Client, leaving: Callable[[], None]) -> None:
    async with (condition := client.condition("x")):
        with inside:
            await pause()
        try:
            await condition.wait()
        finally:
            with inside:
                await pause()
            leaving()


async def use_barrier(client: dsync.Client, leaving: Callable[[], None]) -> None:
    await client.barrier("x", 2).wait()
    with inside:
        leaving()


async def use_rate_limiter(client: dsync.Client, leaving: Callable[[], None]) -> None:
    async with client.rate_limiter("x", 1000, burst=2):
        with inside:
            leaving()


async def use_single_flight(client: dsync.Client, leaving: Callable[[], None]) -> None:
    async def compute() -> int:
        with inside:
            await pause()
        return 1

    assert await client.single_flight("x", compute, ttl=0.005) == 1
    leaving()


async def use_leader(client: dsync.Client, leaving: Callable[[], None]) -> None:
    async with client.leader("x", sigterm=False):
        with inside:
            await pause()
        leaving()


async def use_exclusive(client: dsync.Client, leaving: Callable[[], None]) -> None:
    @client.exclusive("x")
    async def call() -> None:
        with inside:
            await pause()
        leaving()

    await call()


STORMS: dict[str, tuple[Use, int]] = {  # and how many may be inside
    "lock": (use_lock, 1),
    "fair lock": (use_fair_lock, 1),
    "semaphore": (use_semaphore, 3),
    "event": (use_event, 10**9),
    "condition": (use_condition, 1),
    "barrier": (use_barrier, 10**9),
    "rate limiter": (use_rate_limiter, 10**9),
    "single flight": (use_single_flight, 1),
    "leader": (use_leader, 1),
    "exclusive": (use_exclusive, 1),
}


async def help_out(kind: str, client: dsync.Client, count: int) -> None:
    """What those who wait for others need, so that none of them waits for ever."""
    if kind == "event":
        await client.event("x").set()
        await client.event("x").clear()
    elif kind == "condition":
        async with (condition := client.condition("x")):
            condition.notify_all()
    elif kind == "barrier" and count % 2:
        with suppress(dsync.WaitTimeout, asyncio.BrokenBarrierError):
            await client.barrier("x", 2).wait(timeout=0.02)


class Storm:
    """Waits of one kind, most of them cancelled at a random point, some twice, some on leaving."""

    def __init__(self, kind: str, clients: list[dsync.Client]) -> None:
        self.kind = kind
        self.use = STORMS[kind][0]
        self.clients = clients
        self.outcomes: Counter[str] = Counter()

    def _start(self) -> "asyncio.Task[None]":
        """One task, and when it is cancelled, if it is."""
        loop = asyncio.get_running_loop()
        marked = dice.random() < CANCELLED
        how = dice.choice(("once", "twice", "leaving", "leaving twice"))

        def leaving() -> None:
            if marked and how.startswith("leaving"):
                cancel()  # so it comes while the release is awaited

        def cancel() -> None:
            self.outcomes["cancels"] += 1
            loop.call_soon(task.cancel)
            if how.endswith("twice"):
                again = dice.choice((0.0, 0.0, 0.001, 0.004))
                loop.call_later(again, task.cancel)

        task = asyncio.ensure_future(self.use(dice.choice(self.clients), leaving))
        if marked and not how.startswith("leaving"):
            loop.call_later(dice.choice((0, 0.001, dice.uniform(0, 0.03))), cancel)
        return task

    async def round(self, count: int) -> None:
        """So many at once; all have come to their end when this returns."""
        tasks = {self._start() for _ in range(count)}
        deadline = time.monotonic() + 10
        while waiting := {task for task in tasks if not task.done()}:
            await asyncio.wait(waiting, timeout=0.03)
            waiting = {task for task in waiting if not task.done()}
            await help_out(self.kind, self.clients[0], len(waiting))
            assert time.monotonic() < deadline, f"starved: {waiting}"
        for task in tasks:
            if task.cancelled():
                self.outcomes["cancelled"] += 1
            else:
                error = task.exception()
                assert error is None, repr(error)
                self.outcomes["served"] += 1


async def nothing_left(world: World, clients: list[dsync.Client]) -> None:
    """No place, no permit, no listener, no task; at once, but for what is still on its way."""
    for client in clients:
        await client.check()
    for client in clients:
        assert not client.keeper.holds()
        # Units that could not be handed back are kept until they are due.
        homes = {home for home in client.homes.values() if not isinstance(home, Quota)}
        assert not homes

    await settled(lambda: not any(client.homes for client in clients), "no unit is kept", 1)

    def forgotten() -> bool:  # but for the timers of cancellations that came too late
        gc.collect()
        return not any((c._cohorts or c._arrivals or c._flights) for c in clients)

    await settled(forgotten, "everything is forgotten", 1)
    for client in clients:
        for flag in client._flags.values():  # they listen on for a while
            assert not flag.waiters
        assert all(":event:" in channel for channel in client._listeners)
    for key, ttl in (await world.keys()).items():
        part = key.partition("}:")[2].partition(":")[0]
        assert part not in LIVELY, f"{key} was left behind"
        assert ttl != -1, f"{key} has no time to live"


async def is_free(kind: str, client: dsync.Client) -> None:
    """Nobody has to wait for anything, not even for a message."""
    async with asyncio.timeout(1):
        if kind in ("lock", "fair lock", "exclusive"):
            assert await client.lock("x").try_acquire()
        elif kind == "semaphore":
            assert all([await client.semaphore("x", 3).try_acquire() for _ in range(3)])
        elif kind == "condition":
            assert await client.condition("x").lock.try_acquire()
        elif kind == "barrier":
            assert (await client.barrier("x", 2).info()).waiting == 0
        elif kind == "leader":
            async with client.leader("x", sigterm=False, timeout=0):
                pass
        elif kind == "single flight":
            assert await client.single_flight("y", lambda: asyncio.sleep(0, 2), ttl=1) == 2


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", STORMS)
async def test_a_storm_of_cancellations_leaves_nothing_and_starves_nobody(
    real: World, kind: str, seed: int
) -> None:
    print(f"seed {seed}")
    dice.seed(seed)
    inside.__init__()  # type: ignore[misc]
    clients = [real.client() for _ in range(4)]
    storm = Storm(kind, clients)
    for _ in range(5):
        await storm.round(30)
    print(storm.outcomes)
    assert storm.outcomes["served"] >= 150 * (1 - CANCELLED) / 2
    assert storm.outcomes["cancelled"] > 10
    assert inside.most <= STORMS[kind][1]
    await nothing_left(real, clients)
    await is_free(kind, real.client())


# -- the same with processes -----------------------------------------------------------------------


async def one_process(url: str, namespace: str, kind: str, seed: str) -> None:
    """A storm of its own; prints what became of it, and what is left in it."""
    dice.seed(int(seed))
    asyncio.get_running_loop().slow_callback_duration = 10  # this machine may be slow
    errors: list[str] = []
    async with dsync.connect(
        url, namespace=namespace, on_error=lambda error: errors.append(repr(error))
    ) as client:
        storm = Storm(kind, [client])
        await asyncio.to_thread(sys.stdin.readline)  # all begin at the same time
        for _ in range(4):
            await storm.round(25)
        await client.check()
        gc.collect()
        left = [*client.homes, *client.keeper.holds()]
    running = [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    print(json.dumps([storm.outcomes, [*map(repr, left), *running, *errors]]), flush=True)


@pytest.mark.parametrize("kind", ["lock", "semaphore", "condition", "leader", "single flight"])
async def test_processes_in_a_storm_of_cancellations_leave_nothing(real: World, kind: str) -> None:
    seed = random.randrange(2**16)
    print(f"seed {seed}")
    command = (sys.executable, "-X", "dev", "-m", "tests.fault.test_storms", real.url)
    processes = [
        await asyncio.create_subprocess_exec(
            *command, real.namespace, kind, str(seed + number),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]  # fmt: skip
    try:
        async with asyncio.timeout(20):
            ended = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    for out, words in ended:
        assert words.decode() == ""
        outcomes, left = json.loads(out)
        assert not left
        assert outcomes["served"] >= 20
        assert outcomes["cancelled"] > 5
    client = real.client()
    await nothing_left(real, [client])
    await is_free(kind, client)


# -- scale -----------------------------------------------------------------------------------------


def memory() -> int:
    """The most this process has ever had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def queue_up(url: str, namespace: str, count: int, fair: bool, begun: Any, results: Any) -> None:
    """One process with many waiters: each writes its number when it has the lock."""
    results.put(asyncio.run(_queue_up(url, namespace, count, fair, begun)))


async def _queue_up(
    url: str, namespace: str, count: int, fair: bool, begun: Any
) -> tuple[int, int, int, list[int]]:
    fences: list[int] = []
    before = memory()
    async with dsync.connect(url, namespace=namespace) as client:
        lock = client.lock("x", fair=fair)

        async def wait() -> None:
            async with lock as lease:
                assert lease.fence is not None
                fences.append(lease.fence)

        waits = [asyncio.create_task(wait()) for _ in range(count)]
        while lock._cohort.waiting() < count:
            await asyncio.sleep(0.01)
        await client.check()
        begun.put(os.getpid())
        await asyncio.gather(*waits)
        left = len(client.homes)
    return left, before, memory(), fences


@pytest.mark.parametrize("fair", [False, True], ids=["", "fair"])
async def test_thousands_of_waiters_in_many_processes_are_all_served_once(
    own_server: OwnServer, fair: bool
) -> None:
    """None of them gets on while another holds; meanwhile they cost next to nothing."""
    processes, count = (20, 250) if FULL else (8, 100 if fair else 400)
    holder = own_server.client()
    await holder.lock("x").acquire()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fault.test_storms", "dsync.redis.store"])
    begun, results = context.Queue(), context.Queue()
    arguments = (own_server.url, own_server.namespace, count, fair, begun, results)
    workers = [
        context.Process(target=queue_up, args=arguments, daemon=True) for _ in range(processes)
    ]
    began = time.monotonic()
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            await asyncio.to_thread(begun.get, timeout=60)
        standing = await own_server.admin.zcard(own_server.key("lock", "x", "waiters"))
        assert standing == (processes * count if fair else processes)
        all_wait = time.monotonic()
        idle = await commands_a_second(own_server, 4)
        info = await own_server.admin.info("memory")
        released = time.monotonic()
        await release_all(holder)
        told = [await asyncio.to_thread(results.get, timeout=120) for _ in workers]
        served = time.monotonic()
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    fences = [fence for *_, mine in told for fence in mine]
    print(
        f"{processes} processes, {processes * count} waiters, fair={fair}: "
        f"up in {all_wait - began:.1f} s, idle {idle:.0f} commands/s, "
        f"served in {served - released:.2f} s ({processes * count / (served - released):.0f}/s), "
        f"server {info['used_memory_peak'] / 2**20:.1f} MiB at most, "
        f"each process {max(after - before for _, before, after, _ in told)} MiB more at most"
    )
    assert len(fences) == len(set(fences)) == processes * count
    assert not any(left for left, *_ in told)
    # Two looks in each heartbeat (2 s) of a process, and what stays of a second's measuring.
    assert idle <= 2.5 * processes + 10
    assert info["used_memory_peak"] < 64 * 2**20
    assert max(after - before for _, before, after, _ in told) < 64
    assert await holder.lock("x").try_acquire()
    await release_all(holder)


async def release_all(client: dsync.Client) -> None:
    for hold in client.keeper.holds():
        assert hold.lease is not None
        await hold.cohort.give_back(hold.lease)


async def commands_a_second(world: World, seconds: float) -> float:
    """What the server carries out of its own accord, so to speak, over so long."""

    async def processed() -> int:
        return sum(
            stat["calls"]
            for name, stat in (await world.admin.info("commandstats")).items()
            if name in ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_ping")
        )

    before, began = await processed(), time.monotonic()
    await asyncio.sleep(seconds)  # the only way to see a rate
    return (await processed() - before) / (time.monotonic() - began)


async def test_thousands_of_names_held_at_once_are_renewed_and_released(
    own_server: OwnServer,
) -> None:
    count = 20_000 if FULL else 5_000
    before = memory()
    client = own_server.client()
    lost: list[dsync.Lease] = []
    client._on_lost = lost.append
    locks = [client.lock(f"n{number}", lease=8.0) for number in range(count)]
    began = time.monotonic()
    await asyncio.gather(*(lock.acquire() for lock in locks))
    held = time.monotonic()
    holds = client.keeper.holds()
    assert len(holds) == count
    first = {hold.token: hold.deadline for hold in holds}

    def renewed() -> bool:
        return all(hold.deadline > first[hold.token] for hold in client.keeper.holds())

    await settled(renewed, "each is renewed once", 10)
    after = time.monotonic()
    assert not lost
    assert len(client.keeper.holds()) == count
    info = await own_server.admin.info("memory")
    releasing = time.monotonic()
    await asyncio.gather(*(lock.release() for lock in locks))
    released = time.monotonic()
    print(
        f"{count} names: held in {held - began:.2f} s, renewed by {after - began:.2f} s, released "
        f"in {released - releasing:.2f} s; {memory() - before} MiB here, "
        f"{info['used_memory_peak'] / 2**20:.1f} MiB in the server"
    )
    assert not client.homes
    assert not client.keeper.holds()
    del locks, holds
    gc.collect()
    assert not client._cohorts
    for key, ttl in (await own_server.keys()).items():
        assert key.endswith(":state"), f"{key} was left behind"
        assert ttl > 0


if __name__ == "__main__":
    asyncio.run(one_process(*sys.argv[1:]))
