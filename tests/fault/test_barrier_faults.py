"""Barriers whose parties die, stand still or are cut off, and servers that forget.

    python -m tests.fault.test_barrier_faults URL NAMESPACE LOG PARTIES LEASE ROUNDS

is a party in a process of its own: it waits ROUNDS times and writes down `waiting` and `passed`
(with the round and its index), `broken`, `failed`, `done`; see workers.py for the log.
"""

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dsync
from dsync.testing import History as Log
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer, Through
from tests.fault.test_server_faults import FAULTS, Fault
from tests.fault.workers import ROOT, Worker

LEASE = 1.0
Task = asyncio.Task[int]
Spawn = Callable[..., "Party"]


class Party(Worker):
    """A process that waits at the barrier `x`."""

    def __init__(self, log: Log, arguments: list[str]) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.test_barrier_faults", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid


@pytest.fixture
def spawn(real: World, tmp_path: Path) -> Iterator[Spawn]:
    real.leftovers_allowed = True  # those that are killed leave what their lease keeps
    log = Log(tmp_path / "log")
    parties: list[Party] = []

    def spawned(count: int, lease: float = LEASE, rounds: int = 1) -> Party:
        arguments = [real.url, real.namespace, str(log.path), *map(str, (count, lease, rounds))]
        parties.append(Party(log, arguments))
        return parties[-1]

    yield spawned
    for party in parties:
        party.reap()


def waits(barrier: dsync.Barrier, count: int = 1) -> list[Task]:
    return [asyncio.create_task(barrier.wait()) for _ in range(count)]


async def waiting(barrier: dsync.Barrier, count: int, within: float = 5.0) -> float:
    """Wait until so many wait in the store; -> when, by time.monotonic()."""

    async def there() -> bool:
        return (await barrier.info()).waiting == count

    await settled(there, f"{count} wait at {barrier!r}", within)
    return time.monotonic()


async def warmed(client: dsync.Client) -> None:
    """The scripts are on the server: the next request is the one that counts."""
    barrier = client.barrier("warm", 1)
    await barrier.wait()
    await barrier.abort()
    await barrier.reset()
    await barrier.info()


# -- processes ------------------------------------------------------------------------------------


async def test_processes_pass_together_again_and_again(spawn: Spawn) -> None:
    count, rounds = 4, 60
    parties = [spawn(count, 30, rounds) for _ in range(count)]
    log = parties[0].log
    await settled(lambda: len(log.events("done")) == count, "all of them done", 40)
    assert not log.events("failed")
    came, passed = log.events("waiting"), log.events("passed")
    for turn in range(rounds):
        indices = [event["index"] for event in passed if event["round"] == turn]
        assert sorted(indices) == list(range(count)), f"round {turn}"
        last = max(event["t"] for event in came if event["round"] == turn)
        first = min(event["t"] for event in passed if event["round"] == turn)
        assert first >= last, f"somebody passed round {turn} before all had come"


async def test_a_party_killed_while_it_waits_leaves_with_its_lease_and_can_be_replaced(
    real: World, spawn: Spawn
) -> None:
    barrier = real.client().barrier("x", 3)
    victim = spawn(3)
    await waiting(barrier, 1)
    tasks = waits(barrier)
    await waiting(barrier, 2)
    killed = victim.signal(signal.SIGKILL)
    gone = await waiting(barrier, 1)
    assert gone - killed < LEASE + 0.1
    assert gone - killed > LEASE / 2  # its last sign of life was a third of a lease ago at most
    tasks += waits(barrier)
    await waiting(barrier, 2)
    assert not any(task.done() for task in tasks), "the dead one was counted"
    replacement = spawn(3)
    assert sorted(await asyncio.gather(*tasks)) == [0, 1]
    await settled(lambda: replacement.did("done"))
    assert replacement.events("passed")[0]["index"] == 2


async def test_a_party_killed_when_it_has_passed_costs_the_next_generation_no_more_than_its_claim(
    real: World, spawn: Spawn
) -> None:
    barrier = real.client().barrier("x", 2)
    victim = spawn(2)
    await waiting(barrier, 1)
    victim.signal(signal.SIGSTOP)  # it will not say that it has run
    assert await barrier.wait() == 1
    passed = time.monotonic()
    victim.signal(signal.SIGKILL)
    tasks = waits(barrier, 2)
    await waiting(barrier, 2)
    assert (await barrier.info()).state == "draining"
    assert sorted(await asyncio.gather(*tasks)) == [0, 1]
    assert LEASE - 0.1 < time.monotonic() - passed < LEASE + 0.3
    assert not victim.did("passed")


async def test_a_party_stopped_when_it_passes_hears_its_index_when_it_goes_on(
    real: World, spawn: Spawn
) -> None:
    """Its claim is over, others have passed after it: it is told all the same."""
    barrier = real.client().barrier("x", 2)
    stopped = spawn(2)
    await waiting(barrier, 1)
    stopped.signal(signal.SIGSTOP)
    assert await barrier.wait() == 1
    await asyncio.gather(*waits(barrier, 2))
    stopped.signal(signal.SIGCONT)
    await settled(lambda: stopped.did("done"))
    assert stopped.events("passed")[0]["index"] == 0
    assert (await barrier.info()).waiting == 0


async def test_a_party_stopped_past_its_lease_leaves_and_comes_again(
    real: World, spawn: Spawn
) -> None:
    barrier = real.client().barrier("x", 2)
    stopped = spawn(2)
    await waiting(barrier, 1)
    stopped.signal(signal.SIGSTOP)
    await waiting(barrier, 0)
    assert sorted(await asyncio.gather(*waits(barrier, 2))) == [0, 1]
    stopped.signal(signal.SIGCONT)
    await waiting(barrier, 1)
    assert await barrier.wait() == 1
    await settled(lambda: stopped.did("done"))
    assert stopped.events("passed")[0]["index"] == 0


async def test_an_abort_reaches_every_process(real: World, spawn: Spawn) -> None:
    barrier = real.client().barrier("x", 5)
    parties = [spawn(5, 30) for _ in range(3)]
    await waiting(barrier, 3)
    began = time.monotonic()
    await barrier.abort()
    await settled(lambda: all(party.did("broken") for party in parties))
    assert max(party.events("broken")[0]["t"] for party in parties) - began < 0.5
    await barrier.reset()


# -- lost replies, cut connections, late copies ---------------------------------------------------


async def test_an_arrival_whose_reply_was_lost_arrives_once(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().barrier("x", 2)
    await warmed(client)
    cut = proxy.swallow_replies_then_cut()
    tasks = waits(client.barrier("x", 2))
    await cut
    await waiting(other, 1)
    await client.check()
    assert (await other.info()).waiting == 1
    assert await other.wait() == 1
    assert await tasks[0] == 0


async def test_the_last_arrival_passes_with_its_index_although_the_reply_was_lost(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().barrier("x", 2)
    await warmed(client)
    tasks = waits(other)
    await waiting(other, 1)
    cut = proxy.swallow_replies_then_cut()
    assert await client.barrier("x", 2).wait() == 1
    assert cut.done()
    assert await tasks[0] == 0
    async with asyncio.timeout(2):  # and it has drained
        await asyncio.gather(*waits(other, 2))
    assert (await other.info()).generation == 2


async def test_a_leave_whose_reply_was_lost_has_left(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().barrier("x", 2)
    await warmed(client)
    tasks = waits(client.barrier("x", 2))
    await waiting(other, 1)
    cut = proxy.swallow_replies_then_cut()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await cut
    await client.check()
    await waiting(other, 0)
    async with asyncio.timeout(2):
        await asyncio.gather(*waits(other, 2))


async def test_the_word_that_a_party_has_run_arrives_although_its_reply_was_lost(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().barrier("x", 2)
    await warmed(client)
    tasks = waits(client.barrier("x", 2))
    await waiting(other, 1)
    cut = proxy.swallow_replies_then_cut()
    assert await other.wait() == 1
    assert await tasks[0] == 0
    await cut
    async with asyncio.timeout(2):
        await asyncio.gather(*waits(other, 2))


@pytest.mark.parametrize("how", ["reset", "abort"])
async def test_a_break_whose_reply_was_lost_happens_once(
    real: World, proxy: Proxy, through: Through, how: str
) -> None:
    client, other = through(), real.client().barrier("x", 3)
    await warmed(client)
    before = waits(other)
    await waiting(other, 1)
    barrier = client.barrier("x", 3)
    if how == "abort":
        await barrier.reset()
        before = waits(other)
        await waiting(other, 1)
    cut = proxy.swallow_replies_then_cut(b"barrier")
    reply = getattr(barrier, how)()
    await cut
    with pytest.raises(asyncio.BrokenBarrierError):
        await before[0]
    if how == "abort":
        # Asked again it finds that it was done: it does not undo what has come since.
        await other.reset()
    tasks = waits(other)
    await waiting(other, 1)
    await reply
    assert not (await other.info()).broken
    assert (await other.info()).waiting == 1
    await asyncio.gather(*tasks, *waits(other, 2))


async def test_a_trip_while_the_connection_was_cut_is_heard_of_at_once_when_it_is_back(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().barrier("x", 4)
    tasks = waits(client.barrier("x", 4), 3)
    await waiting(other, 3)
    proxy.black_hole("replies")
    assert await other.wait() == 3
    assert not any(task.done() for task in tasks)
    proxy.reset()  # what was held back is lost
    proxy.heal()
    began = time.monotonic()
    assert sorted(await asyncio.gather(*tasks)) == [0, 1, 2]
    assert time.monotonic() - began < 1  # no heartbeat


async def test_a_reset_while_the_connection_was_cut_is_heard_of_at_once_when_it_is_back(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().barrier("x", 4)
    tasks = waits(client.barrier("x", 4), 3)
    await waiting(other, 3)
    proxy.black_hole("replies")
    await other.reset()
    proxy.reset()
    proxy.heal()
    began = time.monotonic()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.BrokenBarrierError] * 3
    assert time.monotonic() - began < 1
    assert (await other.info()).waiting == 0


async def late_copy_arrives(real: World, proxy: Proxy) -> None:
    """What a stranded connection still had to say reaches the server, and is carried out."""
    before = len(await real.admin.client_list())
    proxy.heal()

    async def gone() -> bool:
        return len(await real.admin.client_list()) < before

    await settled(gone, "the server has read it to its end")


@pytest.mark.parametrize("end", ["passes", "is cancelled", "is broken", "times out"])
async def test_a_copy_of_an_arrival_that_comes_late_waits_for_nobody(
    real: World, proxy: Proxy, through: Through, end: str
) -> None:
    client, other = through(outage_timeout=1.5), real.client().barrier("x", 2)
    await warmed(client)
    proxy.strand()
    barrier = client.barrier("x", 2)
    timeout = 2.5 if end == "times out" else None
    task = asyncio.create_task(barrier.wait(timeout=timeout))
    await waiting(other, 1)  # by way of a second connection
    if end == "passes":
        assert await other.wait() == 1
        assert await task == 0
    elif end == "is cancelled":
        task.cancel()
    elif end == "is broken":
        await other.reset()
    await asyncio.gather(task, return_exceptions=True)
    await client.check()
    await waiting(other, 0)
    await late_copy_arrives(real, proxy)
    assert (await other.info()).waiting == 0
    async with asyncio.timeout(2):
        assert sorted(await asyncio.gather(*waits(other, 2))) == [0, 1]


async def test_a_copy_of_an_arrival_that_was_refused_comes_late_and_waits_for_nobody(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(outage_timeout=1.5), real.client().barrier("x", 3)
    await warmed(client)
    tasks = waits(other)
    await waiting(other, 1)
    proxy.strand()
    with pytest.raises(ValueError, match="with 3"):
        await client.barrier("x", 2).wait()
    await client.check()
    await asyncio.gather(*tasks, *waits(other, 2))
    await late_copy_arrives(real, proxy)
    assert (await other.info()).waiting == 0


async def test_cancelled_whenever_the_reply_is_under_way_nothing_stays_behind(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().barrier("x", 2)
    await warmed(client)
    proxy.delay = 0.02
    barrier = client.barrier("x", 2)
    for attempt in range(20):
        (task,) = waits(barrier)
        await asyncio.sleep(0.020 + 0.001 * attempt)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.check()
        assert (await other.info()).waiting == 0
    proxy.delay = 0
    await asyncio.gather(*waits(other), *waits(barrier))


async def test_a_party_that_cannot_reach_the_server_is_told_and_leaves(
    real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(outage_timeout=0.6), real.client().barrier("x", 3)
    tasks = waits(client.barrier("x", 3, lease=LEASE), 2)
    await waiting(other, 2)
    proxy.black_hole()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [dsync.StoreUnavailable] * 2
    assert results[0] is not results[1]
    await waiting(other, 0, within=LEASE + 1)
    proxy.heal()
    await client.check()
    assert (await other.info()).waiting == 0


# -- servers --------------------------------------------------------------------------------------


async def test_parties_come_again_when_the_server_came_back_empty(own_server: OwnServer) -> None:
    barriers = [own_server.client().barrier("x", 7) for _ in range(3)]
    tasks = [task for barrier in barriers for task in waits(barrier, 2)]
    await waiting(barriers[0], 6)
    own_server.restart()
    await waiting(barriers[0], 6, within=3)
    assert await barriers[1].wait() == 6
    assert sorted(await asyncio.gather(*tasks)) == list(range(6))


async def test_parties_come_again_when_all_was_flushed_and_nobody_said_so(
    own_server: OwnServer,
) -> None:
    barriers = [own_server.client().barrier("x", 11) for _ in range(2)]
    tasks = [task for barrier in barriers for task in waits(barrier, 5)]
    await waiting(barriers[0], 10)
    await own_server.admin.flushall()
    await waiting(barriers[0], 10, within=3)  # a heartbeat, and then all of them
    assert await barriers[1].wait() == 10
    assert sorted(await asyncio.gather(*tasks)) == list(range(10))


@FAULTS
async def test_a_barrier_in_use_neither_stops_nor_loses_nor_doubles_a_party(
    own_server: OwnServer, fault: Fault
) -> None:
    parties = 6
    barriers = [own_server.client().barrier("x", parties) for _ in range(3)]
    indices: list[list[int]] = []
    turns = [0] * parties
    ended = asyncio.Event()

    async def work(number: int, barrier: dsync.Barrier) -> None:
        while not ended.is_set():
            turn = turns[number]
            if turn == len(indices):
                indices.append([])
            indices[turn].append(await barrier.wait())
            turns[number] += 1
            await asyncio.sleep(random.random() / 500)

    tasks = [asyncio.create_task(work(i, barriers[i % 3])) for i in range(parties)]
    for _ in range(10):
        before = min(turns)
        await fault(own_server)
        await settled(lambda: min(turns) > before + 5, "it goes on", 1.9)  # noqa: B023
    ended.set()
    await barriers[0].abort()  # some wait already for a turn that others will not begin
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.BrokenBarrierError}
    complete = [turn for turn in indices if len(turn) == parties]
    assert len(complete) >= 50
    assert all(sorted(turn) == list(range(parties)) for turn in complete)


async def test_a_full_server_lets_parties_leave_and_break(own_server: OwnServer) -> None:
    one, two = own_server.client().barrier("x", 3), own_server.client().barrier("x", 3)
    tasks = waits(one) + waits(two)
    await waiting(one, 2)
    await own_server.admin.config_set("maxmemory", 1)
    try:
        tasks[0].cancel()
        await waiting(two, 1)
        await one.abort()
        with pytest.raises(asyncio.BrokenBarrierError):
            await tasks[1]
    finally:
        await own_server.admin.config_set("maxmemory", 0)
    await one.reset()
    await asyncio.gather(*waits(one, 2), *waits(two))


async def test_a_foreign_value_under_our_key_is_said_and_left_alone(real: World) -> None:
    real.leftovers_allowed = True
    barrier = real.client().barrier("x", 2)
    for part in ("state", "arrivals", "alive"):
        key = real.key("barrier", "x", part)
        await real.admin.set(key, "mine", px=60_000)
        for call in (barrier.wait, barrier.info, barrier.abort):
            if part != "state" and call != barrier.wait:
                continue
            with pytest.raises(dsync.ForeignKey):
                await call()
        assert await real.admin.get(key) == b"mine"
        await real.admin.delete(key)
    key = real.key("barrier", "x", "state")
    await real.admin.hset(key, "schema", 2)
    await real.admin.pexpire(key, 60_000)
    with pytest.raises(dsync.SchemaMismatch):
        await barrier.wait()
    assert await real.admin.hgetall(key) == {b"schema": b"2"}
    await real.admin.delete(key)


async def commands(server: OwnServer) -> int:
    """How many commands clients sent so far; what scripts call is not among them."""
    stats = await server.admin.info("commandstats")
    names = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_ping", "cmdstat_subscribe")
    return sum(stats[name]["calls"] for name in names if name in stats)


async def test_two_hundred_parties_that_wait_cost_a_command_a_second(
    own_server: OwnServer,
) -> None:
    client = own_server.client()
    tasks = waits(client.barrier("x", 201), 200)
    await waiting(client.barrier("x", 201), 200)
    before = await commands(own_server)
    await asyncio.sleep(4)  # two heartbeats; nothing is waited for: this is the measurement
    assert await commands(own_server) - before <= 4
    assert await client.barrier("x", 201).wait() == 200
    assert sorted(await asyncio.gather(*tasks)) == list(range(200))


# -- what a party does ----------------------------------------------------------------------------


async def work(url: str, namespace: str, path: str, *numbers: Any) -> None:
    log = Log(Path(path))
    parties, lease, rounds = int(numbers[0]), float(numbers[1]), int(numbers[2])
    async with dsync.connect(url, namespace=namespace) as client:
        barrier = client.barrier("x", parties, lease=lease)
        for turn in range(rounds):
            log.write("waiting", round=turn)
            try:
                index = await barrier.wait()
            except asyncio.BrokenBarrierError as exc:
                log.write("broken", round=turn, why=str(exc))
            except Exception as exc:
                log.write("failed", round=turn, why=repr(exc))
            else:
                log.write("passed", round=turn, index=index)
    log.write("done")


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
