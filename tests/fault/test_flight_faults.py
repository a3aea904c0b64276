"""single_flight over real processes: they die, stand still, and are cut off.

    python -m tests.fault.test_flight_faults URL NAMESPACE LOG [options]

is one of the processes: when a line comes in, all its tasks ask at once.  It logs

    ready     it is connected                  begins    a computation does
    computed  ... ends well                    breaks    ... or does not
    got       a task has its value             failed    ... or an error
    done      all tasks have one
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dsync
from dsync.lease import Terms
from dsync.redis.script import SCRIPTS
from dsync.testing import History, Proxy
from tests.conftest import World, settled
from tests.contract.test_single_flight import Source, follow, nothing_left, queue
from tests.fault.conftest import OwnServer, Through
from tests.fault.workers import ROOT, Worker, Workers

LEASE = 0.8
LOOK, LAND = (SCRIPTS[f"flight_{name}"].sha.encode() for name in ("look", "land"))


class Plane(Worker):
    """A process whose tasks want the value of one key."""

    def __init__(self, log: History, arguments: list[str]) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.test_flight_faults", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def go(self) -> None:
        """All its tasks ask."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()


class Fleet(Workers):
    async def planes(self, count: int, **options: Any) -> list[Plane]:
        """So many processes, connected."""
        options.setdefault("lease", LEASE)
        arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        made = [Plane(self.log, [*self._common, *arguments]) for _ in range(count)]
        self.all += made
        await settled(lambda: all(plane.did("ready") for plane in made), "all are ready", 20)
        return made


@pytest.fixture
def fleet(real: World, tmp_path: Path) -> Iterator[Fleet]:
    real.leftovers_allowed = True  # those that are killed leave what their lease keeps
    with Fleet(real.url, real.namespace, tmp_path / "log") as made:
        yield made


async def done(*planes: Plane, within: float = 10) -> None:
    await settled(lambda: all(plane.did("done") for plane in planes), "all are done", within)


# -- processes -------------------------------------------------------------------------------------


async def test_of_many_tasks_of_many_processes_one_computes_and_all_get_it(
    real: World, fleet: Fleet
) -> None:
    planes = await fleet.planes(4, tasks=50, hold=0.2, ttl=60)
    for plane in planes:
        plane.go()
    await done(*planes)
    assert len(fleet.log.events("begins")) == 1
    got = fleet.log.events("got")
    assert len(got) == 200
    assert {event["value"] for event in got} == {fleet.log.events("begins")[0]["pid"]}
    # What is left is the value, the floor of the fences, and for a minute who has left the queue.
    value, floor = (real.key(kind, "k", "state") for kind in ("flight", "single_flight"))
    passing = {real.key("single_flight", "k", part) for part in ("left", "alive")}

    async def tidy() -> bool:
        return set(await real.keys()) - passing == {value, floor}

    await settled(tidy, "nothing else is left")
    keys = await real.keys()
    assert 0 < keys.pop(value) <= 60_000
    assert 0 < keys.pop(floor) <= 7 * 24 * 3600 * 1000
    assert all(0 < ttl <= 120_000 for ttl in keys.values())


async def test_each_process_that_fails_hands_on_to_one_other(fleet: Fleet) -> None:
    bad = await fleet.planes(3, tasks=2, hold=0.05, ttl=60, fails=1)
    good = await fleet.planes(1, tasks=5, hold=0.05, ttl=60)
    for plane in [*bad, *good]:
        plane.go()
    await done(*bad, *good)
    log = fleet.log
    assert len(log.events("got")) + len(log.events("failed")) == 11
    assert all(event["why"] == "OSError('mine')" for event in log.events("failed"))
    assert len(log.events("failed")) == len(log.events("begins")) - 1, "one got it right"
    # One after the other, not all at once.
    spans = sorted(
        (e["t"], e["what"]) for e in log.events() if e["what"] in ("begins", "computed", "breaks")
    )
    assert [what == "begins" for _, what in spans] == [True, False] * len(log.events("begins"))


async def test_when_the_process_that_computes_is_killed_the_next_does_when_the_lease_ends(
    fleet: Fleet,
) -> None:
    (first,) = await fleet.planes(1, hold=60)
    others = await fleet.planes(2, tasks=5, hold=0.01)
    first.go()
    await settled(lambda: first.did("begins"))
    for plane in others:
        plane.go()
    killed = first.signal(signal.SIGKILL)
    await done(*others)
    begins = [event for event in fleet.log.events("begins") if event["pid"] != first.pid]
    assert len(begins) == 1
    assert begins[0]["t"] - killed < LEASE + 0.25
    assert len(fleet.log.events("got")) == 10


async def test_who_was_stopped_past_its_lease_gets_its_own_and_overwrites_nothing(
    real: World, fleet: Fleet
) -> None:
    first, second = await fleet.planes(2, hold=0.1, ttl=60)
    first.go()
    await settled(lambda: first.did("begins"))
    first.signal(signal.SIGSTOP)
    assert not first.did("computed")
    second.go()
    await done(second)
    assert second.events("got")[0]["value"] == second.pid
    first.signal(signal.SIGCONT)
    await done(first)
    assert not first.did("failed")
    assert first.events("got")[0]["value"] == first.pid

    async def compute() -> int:
        raise AssertionError("it is kept")

    assert await real.client().single_flight("k", compute, ttl=60) == second.pid


async def test_who_waits_and_is_killed_holds_up_nobody(fleet: Fleet) -> None:
    (first,) = await fleet.planes(1, hold=0.4)
    (waiting,) = await fleet.planes(1)
    others = await fleet.planes(2, tasks=5)
    first.go()
    await settled(lambda: first.did("begins"))
    waiting.go()
    for plane in others:
        plane.go()
    waiting.signal(signal.SIGKILL)
    await done(first, *others)
    assert len(fleet.log.events("begins")) == 1
    for event in fleet.log.events("got"):
        assert event["t"] - first.events("computed")[0]["t"] < 0.5


# -- a lease that ends while it computes -----------------------------------------------------------


async def test_a_lease_that_is_lost_is_not_the_callers_trouble(real: World) -> None:
    source = Source()
    source.open.clear()
    lost: list[dsync.Lease] = []
    one, two = real.client(on_lost=lost.append), real.client()
    task = asyncio.create_task(one.single_flight("k", source, ttl=60, lease=0.3))
    await settled(lambda: source.begun == 1)
    await real.admin.delete(real.key("single_flight", "k", "holders"))
    await settled(lambda: bool(lost))
    other = asyncio.create_task(two.single_flight("k", source, ttl=60))
    await settled(lambda: source.begun == 2)
    source.open.set()
    assert {(await task)["number"], (await other)["number"]} == {1, 2}

    async def compute() -> dict[str, int]:
        raise AssertionError("it is kept")

    assert await one.single_flight("k", compute, ttl=60) == {"number": 2}


async def test_a_function_that_blocks_the_loop_for_longer_than_its_lease_still_stores_its_value(
    real: World,
) -> None:
    begun = 0

    async def compute() -> int:
        nonlocal begun
        begun += 1
        time.sleep(0.4)
        return 5

    client = real.client()
    for _ in range(2):
        assert await client.single_flight("k", compute, ttl=60, lease=0.2) == 5
    assert begun == 1


# -- the server, and the way to it -----------------------------------------------------------------


@pytest.fixture
async def loaded(real: World) -> None:
    """Every script is there, so the first request is the one that counts."""
    for script in SCRIPTS.values():
        await real.admin.script_load(script.text)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("lost", [LOOK, LAND], ids=["look", "land"])
async def test_an_answer_that_is_lost_is_asked_for_again(
    real: World, proxy: Proxy, through: Through, lost: bytes
) -> None:
    source = Source()
    client = through()
    await client.check()
    swallowed = proxy.swallow_replies_then_cut(lost)
    calls = (client.single_flight("k", source, ttl=60) for _ in range(5))
    async with asyncio.timeout(10):
        assert await asyncio.gather(*calls) == [{"number": 1}] * 5
    assert swallowed.done()
    assert await real.client().single_flight("k", source, ttl=60) == {"number": 1}
    await settled(lambda: nothing_left(client))


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_who_is_cut_off_while_it_waits_gets_the_value_when_it_is_back(
    real: World, proxy: Proxy, through: Through, how: str
) -> None:
    source = Source()
    source.open.clear()
    one, two = real.client(), through()
    first = asyncio.create_task(one.single_flight("k", source, ttl=60))
    await settled(lambda: source.begun == 1)
    tasks = [asyncio.create_task(two.single_flight("k", source, ttl=60)) for _ in range(3)]
    await queue(1, two)
    proxy.black_hole()
    source.open.set()
    await first
    assert not any(task.done() for task in tasks)
    getattr(proxy, how)()
    proxy.heal()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*tasks) == [{"number": 1}] * 3
    assert source.begun == 1


async def test_a_message_that_is_lost_with_its_sender_is_made_up_for_after_a_reconnect(
    real: World, proxy: Proxy, through: Through
) -> None:
    """The value is there, its message went nowhere, and the lock is held by a dead process."""
    source = Source()
    two = through()
    holder = real.client()
    lock = holder._cohort("single_flight", "k", 1, fences=True)
    lease = await lock.try_acquire(Terms())
    assert lease is not None
    task: asyncio.Task[Any] = asyncio.create_task(two.single_flight("k", source, ttl=60))
    await queue(1, two)
    await real.admin.hset(
        real.key("flight", "k", "state"), mapping={"schema": 1, "fence": 5, "value": b"7"}
    )
    await real.admin.pexpire(real.key("flight", "k", "state"), 60_000)
    proxy.cut()
    async with asyncio.timeout(5):
        assert await task == 7
    lock.put_away(lease)


async def test_a_value_that_cannot_be_stored_is_returned_and_the_failure_reported(
    own_server: OwnServer,
) -> None:
    source = Source()
    source.open.clear()
    client = own_server.client(outage_timeout=0.5)
    task = asyncio.create_task(client.single_flight("k", source, ttl=60))
    followers = [asyncio.create_task(client.single_flight("k", source, ttl=60)) for _ in range(3)]
    await follow(3, client)
    await settled(lambda: source.begun == 1)
    own_server.kill()
    source.open.set()
    assert await task == {"number": 1}
    assert await asyncio.gather(*followers) == [{"number": 1}] * 3, "they need not wait as long"
    assert any(isinstance(error, dsync.StoreUnavailable) for error in own_server.errors)
    assert source.begun == 1
    own_server.restart()
    await client.check()
    assert all(isinstance(error, dsync.StoreUnavailable) for error in own_server.errors)
    own_server.errors.clear()  # with their tracebacks, which keep the flight
    await settled(lambda: nothing_left(client), within=10)


async def test_while_the_server_is_away_all_who_wait_fail_together(own_server: OwnServer) -> None:
    source = Source()
    client = await own_server.client(outage_timeout=0.5)
    own_server.kill()
    began = time.monotonic()
    calls = (client.single_flight("k", source, ttl=60) for _ in range(20))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(r) for r in results] == [dsync.StoreUnavailable] * 20
    assert len({id(r) for r in results}) == 20
    assert time.monotonic() - began < 3
    assert source.begun == 0
    own_server.restart()
    assert await client.single_flight("k", source, ttl=60) == {"number": 1}
    own_server.errors.clear()


async def test_a_server_that_comes_back_empty_has_the_value_computed_again(
    own_server: OwnServer,
) -> None:
    source = Source()
    source.open.clear()
    one, two = own_server.client(), own_server.client()
    first = asyncio.create_task(one.single_flight("k", source, ttl=60))
    await settled(lambda: source.begun == 1)
    second = asyncio.create_task(two.single_flight("k", source, ttl=60))
    await queue(1, two)
    own_server.kill()
    own_server.restart()
    source.open.set()
    async with asyncio.timeout(10):
        results = await asyncio.gather(first, second)
    assert results[0] == {"number": 1}
    assert results[1] in ({"number": 1}, {"number": 2})


# -- one of the processes --------------------------------------------------------------------------


async def fly(args: argparse.Namespace) -> None:
    log = History(Path(args.log))
    fails = args.fails
    pid = os.getpid()

    async def compute() -> int:
        nonlocal fails
        log.write("begins")
        await asyncio.sleep(args.hold)
        if fails > 0:
            fails -= 1
            log.write("breaks")
            raise OSError("mine")
        log.write("computed")
        return pid

    async def ask(client: dsync.Client) -> None:
        try:
            value = await client.single_flight("k", compute, ttl=args.ttl, lease=args.lease)
        except Exception as exc:
            log.write("failed", why=repr(exc))
        else:
            log.write("got", value=value)

    async with dsync.connect(args.url, namespace=args.namespace) as client:
        log.write("ready")
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(ask(client) for _ in range(args.tasks)))
    log.write("done")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url", "namespace", "log"):
        parser.add_argument(name)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--hold", type=float, default=0.0, help="seconds that computing takes")
    parser.add_argument("--ttl", type=float, default=60.0)
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--fails", type=int, default=0, help="how often computing fails at first")
    asyncio.run(fly(parser.parse_args()))


if __name__ == "__main__":
    main()
