"""exclusive and limited when processes die, clocks are off, and the server goes away."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import dsync
from dsync.redis.script import SCRIPTS
from dsync.testing import History, Proxy
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer, Through
from tests.fault.workers import ROOT, Worker, Workers

LEASE = 0.8
# Two functions begin no closer than `every` less the time that the answer takes that lets the first
# begin: a round trip, and on a busy machine a process's wait for its turn.
WAY = 0.05


class JobWorker(Worker):
    def __init__(self, log: History, arguments: list[str]) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.job_worker", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self.process.pid


class Fleet(Workers):
    """Processes that call one function."""

    def job(self, **options: Any) -> JobWorker:
        options.setdefault("lease", LEASE)
        arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        worker = JobWorker(self.log, [*self._common, *arguments])
        self.all.append(worker)
        return worker

    def starts(self) -> list[float]:
        """When the function began, on the clock that all processes of a machine share."""
        return [event["t"] for event in self.log.events("held")]

    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.starts())]

    async def dismiss(self) -> None:
        """All end well, and nothing went wrong in them."""
        living = [worker for worker in self.all if worker.process.poll() is None]
        for worker in living:
            worker.signal(signal.SIGTERM)
        await settled(lambda: all(worker.did("done") for worker in living), "all are done", 10)
        assert not self.log.events("failed")


@pytest.fixture
def fleet(real: World, tmp_path: Path) -> Iterator[Fleet]:
    real.leftovers_allowed = True  # those that are killed leave what their lease keeps
    with Fleet(real.url, real.namespace, tmp_path / "log") as made:
        yield made


# -- killed and stopped ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1], ids=["exclusive", "limited"])
async def test_when_the_process_that_runs_it_is_killed_the_next_runs_it_when_the_lease_ends(
    fleet: Fleet, queued: Any, limit: int
) -> None:
    first = fleet.job(step=30, limit=limit)
    await settled(lambda: first.did("held"), "the first one runs it")
    second = fleet.job(step=0.01, limit=limit)
    await queued(1, kind="semaphore" if limit else "lock")
    killed = first.signal(signal.SIGKILL)
    await settled(lambda: second.did("leaving"), "the second one has run it", LEASE + 2)
    assert second.events("held")[0]["t"] - killed < LEASE + 0.25
    await fleet.dismiss()


@pytest.mark.parametrize("busy", ["skip", "wait"])
async def test_killed_in_the_middle_it_does_not_run_again_before_its_time(
    fleet: Fleet, busy: str
) -> None:
    every = 2 * LEASE
    first = fleet.job(every=every, step=30, busy=busy)
    await settled(lambda: first.did("held"), "the first one runs it")
    second = fleet.job(every=every, busy=busy)
    first.signal(signal.SIGKILL)
    await settled(lambda: second.did("leaving"), "the second one has run it", every + 2)
    assert every - WAY < fleet.gaps()[0] < every + 0.25
    await fleet.dismiss()


async def test_killed_in_the_middle_it_does_not_run_again_before_its_lease_ends_either(
    fleet: Fleet,
) -> None:
    first = fleet.job(every=0.1, step=30, busy="skip")
    await settled(lambda: first.did("held"), "the first one runs it")
    second = fleet.job(every=0.1, busy="skip")
    killed = first.signal(signal.SIGKILL)
    await settled(lambda: second.did("leaving"), "the second one has run it", LEASE + 2)
    assert LEASE / 2 < second.events("held")[0]["t"] - killed < LEASE + 0.25
    await fleet.dismiss()


async def test_killed_while_it_waits_for_its_time_it_has_taken_none(
    real: World, fleet: Fleet, queued: Any
) -> None:
    every = 2.5

    async def nothing() -> None:
        began.append(time.monotonic())

    began: list[float] = []
    await real.client().exclusive("x", every=every)(nothing)()
    sleeper = fleet.job(every=every, busy="wait")
    lock = real.client().lock("x")

    async def sleeps() -> bool:
        holder = (await lock.info()).holder
        return holder is not None and holder.pid == sleeper.pid

    await settled(sleeps, "it holds the lock")
    other = fleet.job(every=every, busy="wait")
    await queued(1)
    sleeper.signal(signal.SIGKILL)
    await settled(lambda: other.did("held"), "the other one runs it", every + 2)
    assert not sleeper.did("held")
    assert every - WAY < other.events("held")[0]["t"] - began[0] < every + 0.25
    other.signal(signal.SIGKILL)  # it sleeps for its next


async def test_stopped_in_the_middle_it_ends_as_lost_and_costs_nobody_a_turn(
    fleet: Fleet,
) -> None:
    every = 2 * LEASE
    stopped = fleet.job(every=every, step=0.3, busy="skip")
    await settled(lambda: stopped.did("held"), "it runs")
    stopped.signal(signal.SIGSTOP)
    assert not stopped.did("leaving")
    other = fleet.job(every=every, busy="skip")
    await settled(lambda: other.did("held"), "the other one runs it", every + 2)
    assert every - WAY < fleet.gaps()[0] < every + 0.25
    stopped.signal(signal.SIGCONT)
    await settled(lambda: stopped.did("lost"), "the first one was told")
    await fleet.dismiss()
    assert all(gap > every - WAY for gap in fleet.gaps())
    # What it had begun before it was stopped did not go on.
    assert [event["what"] for event in stopped.events()[:2]] == ["held", "lost"]


# -- one start in each period ----------------------------------------------------------------------


@pytest.mark.parametrize("busy", ["skip", "wait"])
async def test_of_many_processes_exactly_one_begins_in_each_period_whatever_their_clocks_say(
    fleet: Fleet, busy: str
) -> None:
    every, periods = 0.4, 12
    for clock in (0, 3600, -3600, 0.2, -86400 * 400):
        fleet.job(every=every, busy=busy, clock=clock)
    await settled(lambda: len(fleet.starts()) > periods, f"{periods} periods", every * periods + 10)
    gaps = fleet.gaps()[:periods]
    print([f"{gap * 1000:.1f}" for gap in gaps])
    assert min(gaps) > every - WAY
    # None is left out: when its time has come somebody calls within milliseconds.
    assert max(gaps) < 1.5 * every
    assert sum(gaps) < every * periods + 0.5
    await fleet.dismiss()
    assert not fleet.log.events("lost")


async def test_one_begins_in_each_period_while_processes_are_killed(fleet: Fleet) -> None:
    """The short lease ends within the period, so the dead cost nobody a start."""
    every = 0.6
    for _ in range(4):
        fleet.job(every=every, busy="skip", step=0.2, lease=0.3)
    for kill in range(1, 4):
        await settled(lambda: len(fleet.starts()) >= 2 * kill, "another one runs it", 10)  # noqa: B023
        last = fleet.log.events("held")[-1]["pid"]
        next(worker for worker in fleet.all if worker.pid == last).signal(signal.SIGKILL)
    await settled(lambda: len(fleet.starts()) >= 8, "the last one runs it", 10)
    print([f"{gap * 1000:.1f}" for gap in fleet.gaps()])
    assert min(fleet.gaps()) > every - WAY
    assert max(fleet.gaps()) < every + 0.3
    await fleet.dismiss()


# -- the server and the way to it ------------------------------------------------------------------


class Job:
    """A function of this process, and when it began."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> str:
        self.starts.append(time.monotonic())
        await self.may_end.wait()
        return "ran"

    def of(self, client: dsync.Client, **kwargs: Any) -> Callable[[], Any]:
        async def job() -> str:
            return await self()

        decorated: Callable[[], Any] = client.exclusive("x", **kwargs)(job)
        return decorated


async def test_a_server_that_came_back_empty_ends_what_runs_and_lets_the_next_begin(
    own_server: OwnServer,
) -> None:
    """It has forgotten both the lock and when the function began, which is said in the docs."""
    job = Job()
    call = job.of(own_server.client(), every=600, lease=2.0)
    job.may_end.clear()
    running = asyncio.create_task(call())
    await settled(lambda: len(job.starts) == 1, "it runs")
    own_server.restart()
    with pytest.raises(dsync.LeaseLost):
        await asyncio.wait_for(running, 5)
    job.may_end.set()
    assert await call() == "ran"
    assert await call() is dsync.SKIPPED


async def test_a_call_that_waits_for_its_time_while_the_server_comes_back_empty_is_told(
    own_server: OwnServer,
) -> None:
    job = Job()
    call = job.of(own_server.client(), every=600, lease=2.0, busy="wait")
    await call()
    waiting = asyncio.create_task(call())
    lock = own_server.client().lock("x")

    async def holds() -> bool:
        return (await lock.info()).holder is not None

    await settled(holds)
    own_server.restart()
    with pytest.raises(dsync.LeaseLost):
        await asyncio.wait_for(waiting, 5)
    assert len(job.starts) == 1
    assert await asyncio.wait_for(call(), 5) == "ran"


async def test_a_server_that_is_gone_refuses_the_call_and_the_function_does_not_run(
    own_server: OwnServer,
) -> None:
    job = Job()
    client = own_server.client(outage_timeout=0.5)
    skips, waits = job.of(client, every=0.001), job.of(client, every=0.001, busy="wait")
    assert await skips() == "ran"
    own_server.kill()
    for call in (skips, waits):
        with pytest.raises(dsync.StoreUnavailable):
            await call()
    assert len(job.starts) == 1
    own_server.leftovers_allowed = True
    own_server.restart()
    assert await skips() == "ran"


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_a_connection_that_breaks_while_it_waits_for_its_time_changes_nothing(
    proxy: Proxy, through: Through, held: Any, how: str
) -> None:
    job = Job()
    call = job.of(through(), every=1.0, busy="wait")
    await call()
    waiting = asyncio.create_task(call())

    async def holds() -> bool:
        return bool(await held() == 1)

    await settled(holds)
    for _ in range(3):
        connections = proxy.connections
        getattr(proxy, how)()
        await settled(lambda: proxy.connections > connections, "it is connected again")  # noqa: B023
    assert await waiting == "ran"
    assert 1.0 - WAY < job.starts[1] - job.starts[0] < 1.0 + 0.25


async def test_a_lost_answer_whether_it_may_begin_takes_one_time_and_it_begins(
    proxy: Proxy, through: Through
) -> None:
    job = Job()
    client = through()
    call = job.of(client, every=0.5)
    assert await call() == "ran"  # the scripts are there
    await asyncio.wait_for(until_due(client), 5)
    cut = proxy.swallow_replies_then_cut(SCRIPTS["rate_take"].sha.encode())
    assert await call() == "ran"
    assert cut.done()
    # It took one: the next is due half a second after it, not a whole.
    began = job.starts[-1]
    assert await call() is dsync.SKIPPED
    await asyncio.wait_for(until_due(client), 5)
    assert await call() == "ran"
    assert 0.5 - WAY - 0.2 < job.starts[-1] - began < 0.5 + 0.2


async def until_due(client: dsync.Client) -> None:
    limiter = client._rate_limiter("every", "x", rate=1, per=0.5, burst=1)
    while (await limiter.info()).wait > 0:
        await asyncio.sleep(0.005)


async def test_an_answer_that_comes_after_the_lease_has_ended_begins_nothing_and_takes_no_time(
    real: World, proxy: Proxy, through: Through, held: Any
) -> None:
    """It may begin, says the server, but the lock is not ours any more when that arrives."""
    every = 1.0
    job, other = Job(), real.client()
    call = job.of(through(), every=every, busy="wait", lease=0.8)
    assert await call() == "ran"
    waiting = asyncio.create_task(call())

    async def holds() -> bool:
        return bool(await held() == 1)

    await settled(holds)
    await settled(lambda: time.monotonic() > job.starts[0] + every - 0.1, "just before its time")
    proxy.black_hole("replies")
    with pytest.raises(dsync.LeaseLost):
        await waiting
    assert SCRIPTS["rate_take"].sha.encode() not in proxy.held("requests")
    assert await job.of(other, every=every)() is dsync.SKIPPED  # its time was taken ...
    proxy.heal()
    assert await asyncio.wait_for(until_run(job.of(other, every=every)), every / 2) == "ran"
    assert len(job.starts) == 2  # ... and was handed back when the answer came


async def until_run(call: Callable[[], Any]) -> Any:
    while (result := await call()) is dsync.SKIPPED:
        await asyncio.sleep(0.005)
    return result


# -- cancelled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("busy", ["wait", "skip", "raise"])
async def test_calls_that_are_cancelled_at_any_time_leave_nothing_and_keep_the_time(
    real: World, busy: str, seed: int
) -> None:
    """In the queue, in the question whether it may begin, while it waits for its time, inside."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    every = 0.05
    job = Job()
    calls = [job.of(real.client(), every=every, busy=busy) for _ in range(4)]
    longest = 0.1 if busy == "wait" else 0.003  # seconds that a round takes
    ends = time.monotonic() + 20
    while len(job.starts) < 8 and time.monotonic() < ends:
        tasks = [asyncio.create_task(dice.choice(calls)()) for _ in range(10)]
        for task in dice.sample(tasks, 8):
            asyncio.get_running_loop().call_later(dice.uniform(0, longest), task.cancel)
        async with asyncio.timeout(10):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            assert result in ("ran", dsync.SKIPPED) or isinstance(
                result, asyncio.CancelledError | dsync.AcquireTimeout
            ), result
    gaps = [later - earlier for earlier, later in pairwise(job.starts)]
    assert len(gaps) >= 7
    assert min(gaps) > every - 0.03
    info = await real.client().lock("x").info()
    assert (info.holder, info.waiters) == (None, ())
