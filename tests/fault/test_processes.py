"""Processes that contend, die and are stopped."""

import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import World, settled
from tests.fault.workers import Workers

LEASE = 1.0


async def lease_end(real: World, kind: str = "lock") -> float:
    """When the one holder's lease ends on the server, by time.monotonic() here."""
    ((_, ends),) = await real.admin.zrange(real.key(kind, "x", "holders"), 0, -1, withscores=True)
    seconds, micros = await real.admin.time()
    return time.monotonic() + float(ends) / 1000 - float(seconds) - float(micros) / 1e6


async def test_processes_on_one_lock_never_overlap_and_their_fences_increase(
    workers: Workers, tmp_path: Path
) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    for _ in range(5):
        workers.spawn("--rounds", "40", "--count", str(counter), "--lease", "30")
    await settled(lambda: len(workers.log.events("done")) == 5, "five workers done", 30)
    assert counter.read_text() == "200"
    holds = workers.log.holds()
    assert len(holds) == 200
    for (_, end, earlier), (begin, _, later) in pairwise(holds):
        assert end <= begin, f"{earlier} and {later} overlap"
        assert earlier["fence"] < later["fence"]


async def test_processes_on_one_semaphore_never_hold_more_than_its_permits(
    workers: Workers,
) -> None:
    for _ in range(4):
        workers.spawn(
            "--permits", "2", "--rounds", "30", "--step", "0.003", "--lease", "30"
        )  # fmt: skip
    await settled(lambda: len(workers.log.events("done")) == 4, "four workers done", 30)
    holds = workers.log.holds()
    assert len(holds) == 120
    for begin, _, event in holds:
        inside = sum(b <= begin < e for b, e, _ in holds)
        assert inside <= 2, f"{inside} inside when {event} came"
    assert max(sum(b <= begin < e for b, e, _ in holds) for begin, _, _ in holds) == 2


@pytest.mark.parametrize("permits", ["0", "1"], ids=["lock", "semaphore"])
async def test_a_killed_holder_is_succeeded_by_the_waiting_process_when_its_lease_ends(
    real: World, workers: Workers, queued: Any, permits: str
) -> None:
    kind = "semaphore" if permits == "1" else "lock"
    options = ("--lease", str(LEASE), "--permits", permits)
    holder = workers.spawn(*options)
    await settled(lambda: holder.did("step"), "the holder's first step")
    waiter = workers.spawn(*options)
    await queued(1, kind=kind)
    killed = holder.signal(signal.SIGKILL)
    ends = await lease_end(real, kind)
    assert ends <= killed + LEASE
    await settled(lambda: waiter.did("held"), "the waiter holds", LEASE + 2)
    assert -0.01 < waiter.events("held")[0]["t"] - ends < 0.25


async def test_a_killed_holder_is_succeeded_by_a_newcomer_when_its_lease_ends(
    real: World, workers: Workers
) -> None:
    holder = workers.spawn("--lease", str(LEASE))
    await settled(lambda: holder.did("step"), "the holder's first step")
    holder.signal(signal.SIGKILL)
    ends = await lease_end(real)
    lock = real.client().lock("x")
    async with lock as lease:
        assert -0.01 < time.monotonic() - ends < 0.25
        assert lease.fence is not None
        assert lease.fence > holder.events("held")[0]["fence"]


async def test_a_holder_served_from_the_queue_and_killed_at_once_costs_no_more_than_its_lease(
    real: World, workers: Workers, queued: Any
) -> None:
    lock = real.client().lock("x", lease=LEASE)
    await lock.acquire()
    first = workers.spawn("--lease", str(LEASE))
    await queued(1)
    second = workers.spawn("--lease", str(LEASE))
    await queued(2)
    await lock.release()
    await settled(lambda: first.did("held"), "the first waiter holds")
    killed = first.signal(signal.SIGKILL)
    await settled(lambda: second.did("held"), "the second waiter holds", 7)
    assert second.events("held")[0]["t"] - killed < LEASE + 0.5


async def test_the_killed_head_of_the_queue_costs_no_more_than_a_claim(
    real: World, workers: Workers, queued: Any
) -> None:
    """A grant to a process that is gone is provisional: it ends after min(lease, 5 s)."""
    lock = real.client().lock("x", lease=LEASE)
    await lock.acquire()
    head = workers.spawn("--lease", str(LEASE))
    await queued(1)
    follower = workers.spawn("--lease", str(LEASE))
    await queued(2)
    head.signal(signal.SIGKILL)
    released = time.monotonic()
    await lock.release()
    await settled(lambda: follower.did("held"), "the follower holds", 7)
    assert follower.events("held")[0]["t"] - released < LEASE + 0.5


async def test_a_waiter_killed_in_the_middle_of_the_queue_stops_neither_side_of_it(
    real: World, workers: Workers, queued: Any
) -> None:
    lock = real.client().lock("x", lease=LEASE)
    await lock.acquire()
    options = ("--lease", str(LEASE), "--rounds", "1", "--step", "0.01")
    line = []
    for place in range(1, 4):
        line.append(workers.spawn(*options))
        await queued(place)
    first, middle, last = line
    middle.signal(signal.SIGKILL)
    await lock.release()
    await settled(lambda: last.did("done"), "the last one done", 8)
    begun, left = first.events("held")[0]["t"], first.events("leaving")[0]["t"]
    assert begun < left < last.events("held")[0]["t"]
    assert last.events("held")[0]["t"] - left < LEASE + 0.5


@pytest.mark.parametrize("awaits", ["timer", "pipe"])
async def test_a_stopped_holder_runs_nothing_of_its_body_after_its_lease(
    workers: Workers, queued: Any, awaits: str
) -> None:
    """What the body awaits is due when it goes on: the loss has to come first all the same."""
    options = ("--lease", str(LEASE))
    stopped = workers.spawn(*options, *(["--read"] if awaits == "pipe" else []))
    assert stopped.process.stdin is not None
    if awaits == "pipe":
        stopped.process.stdin.write(b"go\n")
        stopped.process.stdin.flush()
    await settled(lambda: stopped.did("step"), "its first step")
    other = workers.spawn(*options)
    await queued(1)

    steps = len(stopped.events("step"))
    if awaits == "timer":  # stop it right behind a step: it sleeps then
        await settled(lambda: len(stopped.events("step")) > steps, "another step")
    stopped.signal(signal.SIGSTOP)
    before = len(stopped.events())
    if awaits == "pipe":
        stopped.process.stdin.write(b"go\n")
        stopped.process.stdin.flush()
    await settled(lambda: other.did("held"), "another process holds", LEASE + 2)
    await settled(lambda: other.did("step"), "and works")
    other.signal(signal.SIGTERM)
    await settled(lambda: other.did("done"), "and is done")
    stopped.signal(signal.SIGCONT)
    await settled(lambda: stopped.did("done"), "the stopped one has ended")
    assert [event["what"] for event in stopped.events()[before:]] == ["told", "lost", "done"]


async def test_a_waiter_stopped_while_the_lock_was_handed_to_it_does_not_believe_the_old_grant(
    real: World, workers: Workers, queued: Any
) -> None:
    """Its grant ended unclaimed and another process works: it has to ask, not to start."""
    lock = real.client().lock("x", lease=LEASE)
    await lock.acquire()
    stopped = workers.spawn("--lease", str(LEASE))
    await queued(1)
    other = workers.spawn("--lease", str(LEASE))
    await queued(2)
    stopped.signal(signal.SIGSTOP)
    await lock.release()
    await settled(lambda: other.did("step"), "the other one works", 7)
    stopped.signal(signal.SIGCONT)
    await queued(1)  # it has asked, and waits again
    other.signal(signal.SIGTERM)
    await settled(lambda: stopped.did("step"), "then it works", 3)
    stopped.signal(signal.SIGTERM)
    await settled(lambda: stopped.did("done"))
    (_, first_end, first), (begin, _, second) = workers.log.holds()
    assert (first["pid"], second["pid"]) == (other.pid, stopped.pid)
    assert first_end <= begin
    assert first["fence"] < second["fence"]
