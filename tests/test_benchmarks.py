"""The command that measures: that each workload runs and finds something, never how much."""

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from benchmarks import bus, event, growth, one_lock, semaphore
from benchmarks.__main__ import main, workloads
from benchmarks.crew import crew
from benchmarks.measure import (
    Goal,
    Measured,
    Ratio,
    Results,
    Score,
    Slice,
    Workload,
    measure,
    over,
    value,
)
from benchmarks.peers import PEERS, Peer, peer_of
from benchmarks.raw import bare_link
from benchmarks.report import as_json, as_markdown, as_text
from benchmarks.rig import LOOPS, Rig, runner
from benchmarks.worker import Member
from dsync.server import Server

ROOT = Path(__file__).parent.parent

# The same code as another one's with a greater number, and too long for here.
GREATER = {
    "own-locks-2000", "one-lock-100", "renewing-10000", "semaphore-10ms", "uvloop-200",
}  # fmt: skip
KNOWN = workloads()


def run(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Server.start(port=0) as server:
        rig = Rig(server.url, 0.05, quick=True)
        yield rig
        rig.close()


def nobody(text: str) -> None:
    """Hears of the progress."""


@pytest.fixture
def small_crews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes in place of four."""
    for module in (event, one_lock, semaphore):
        monkeypatch.setattr(module, "PROCESSES", 2)


@pytest.mark.usefixtures("small_crews")
@pytest.mark.parametrize(
    "name", [name for name in KNOWN if name not in GREATER and not name.startswith("growth-")]
)
def test_each_workload_finds_something_of_everybody_who_can_do_it(name: str, rig: Rig):
    workload = KNOWN[name]
    able = [who for who, run in workload.contenders.items() if run and not peer_of(who)]
    result = measured(workload, rig)
    assert not result.failures
    assert sorted(result.rounds[0]) == sorted(able)
    for who in able:
        assert result.rounds[0][who], f"{who} found nothing"
        assert all(map(math.isfinite, result.rounds[0][who].values()))
    for ratio in workload.ratios:
        found = result.ratio(ratio)
        if "uvloop" in ratio.what or "aiolimiter" in ratio.what:
            assert found is None  # whose peer was not asked for gets a dash
        else:
            assert found is not None


def measured(workload: Workload, rig: Rig) -> Results:
    """In a short window, or in a longer one if nobody got anything done on a machine that stood."""
    [result] = measure([workload], rig, 1, nobody, peers=())
    if result.failures or not all(map(got_on, workload.ratios, repeat(result))):
        longer = Rig(rig.url, 1.0, quick=True)
        [result] = measure([workload], longer, 1, nobody, peers=())
        longer.close()
        assert all(map(got_on, workload.ratios, repeat(result)))
    return result


def got_on(ratio: Ratio, result: Results) -> bool:
    """Whether there is a number, more than nothing where there has to be."""
    found = result.ratio(ratio)
    # Waiting sends next to nothing, and a few bytes drown in what else a server frees.
    maybe_none = "commands/s" in ratio.what or "server bytes" in ratio.what
    return found is None or found.median > 0 or maybe_none


@pytest.mark.parametrize("beside", ["names", "waiters", "permits", "sleepers", "arrivals"])
def test_growth_is_measured_beside_as_many_as_are_written_there(beside: str, rig: Rig):
    with rig.slice():
        tasks = growth.TASKS if beside == "waiters" else 1
        found = asyncio.run(growth.on_server(getattr(growth, beside), tasks, 100, rig))
        written = max(
            rig.length(key) for part in ("waiters", "sleepers:*", "holders", "arrivals")
            for key in rig.keys(f"*:{part}")
        ) if beside != "names" else len(rig.keys("*:state"))  # fmt: skip
    assert 99 <= written <= 110  # one may get the lock when all is over
    assert all(quantity > 0 for quantity in found.values())


def test_growth_in_one_process_is_measured_too(rig: Rig):
    slices: list[Slice] = [
        lambda rig: growth.beside_leases(10, rig),
        lambda rig: growth.beside_tasks(asyncio.Lock, 10, rig),
        lambda rig: growth.our_tasks(10, rig),
    ]
    for slice_ in slices:
        with rig.slice(), asyncio.Runner() as loop:
            found = loop.run(_awaited(slice_, rig))
            assert found.keys() == {growth.CPU}
            assert found[growth.CPU] > 0


async def _awaited(slice_: Slice, rig: Rig) -> Measured:
    return await slice_(rig)


def test_nothing_is_left_on_the_server(rig: Rig):
    with rig.slice():
        rig.fill(growth.NAMES, [], 10, rig.namespace)
        assert len(rig.keys("*")) == 10
    assert not rig.keys("*")


# -- ratios, rounds and peers, of workloads that need no server ------------------------------------


def fixed(**quantities: float) -> Slice:
    async def slice_(rig: Rig) -> dict[str, float]:
        return dict(quantities)

    return slice_


def workload(**others: Slice | None) -> Workload:
    return Workload(
        "made-up",
        "numbers that are known",
        {"dsync": fixed(speed=6.0, cost=2.0), **others},
        (
            Ratio("dsync vs other", over("speed", "dsync", "other"), Goal("≥", 3)),
            Ratio("dsync ÷ absent", over("speed", "dsync", "absent"), Goal("≥", 3)),
            Ratio("cost", value("dsync", "cost"), Goal("≤", 1)),
        ),
        Score("speed", True),
    )


def test_goals_are_judged_by_the_median_and_who_cannot_take_part_gets_a_dash(rig: Rig):
    made_up = workload(other=fixed(speed=2.0), absent=None)
    results = measure([made_up], rig, 3, nobody)
    lines = as_text(results, {"absent": "not installed"}).splitlines()
    assert lines[2].split()[-5:] == ["3", "3-3", "≥", "3", "yes"]
    assert lines[3].split()[-5:] == ["-", "-", "≥", "3", "-"]
    assert lines[4].split()[-5:] == ["2", "2-2", "≤", "1", "NO"]
    assert any(line.endswith("2-2      \N{MULTIPLICATION SIGN} 3 (3-3)") for line in lines)
    assert "absent  not installed" in as_text(results, {"absent": "not installed"})
    report = as_json(results, {}, {"rounds": 3})
    assert [ratio["met"] for ratio in report["ratios"]] == [True, None, False]
    assert len(report["rounds"]["made-up"]) == 3
    markdown = as_markdown(results, {})
    assert "| made-up | dsync vs other | 3 | 3-3 | ≥ 3 | yes |" in markdown
    assert "| made-up | dsync | speed | 6 | 6-6 |  |" in markdown
    assert "| made-up | dsync | cost |" not in markdown  # nobody is compared by it


def test_a_ratio_is_taken_within_each_round(rig: Rig):
    result = Results(workload(other=None))
    result.rounds = [
        {"dsync": {"speed": 10.0}, "other": {"speed": 1.0}},
        {"dsync": {"speed": 90.0}, "other": {"speed": 30.0}},
        {"dsync": {"speed": 8.0}, "other": {"speed": 4.0}},
        {"dsync": {"speed": 1.0}},
    ]
    found = result.ratio(result.workload.ratios[0])
    assert found is not None
    assert (found.least, found.median, found.most) == (2, 3, 10)


def test_a_peer_that_fails_gets_a_dash_and_its_error_and_is_not_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    asked = 0

    async def fails(rig: Rig) -> dict[str, float]:
        nonlocal asked
        asked += 1
        raise ConnectionError("not today")

    monkeypatch.setitem(PEERS, "broken-lock", Peer("broken-lock", "json"))  # json is installed
    [result] = measure([workload(**{"broken-lock, Lock": fails})], rig, 2, nobody)
    assert asked == 1
    assert result.failures == {"broken-lock, Lock": "ConnectionError: not today"}
    assert "broken-lock, Lock  ConnectionError: not today" in as_text([result], {})


@pytest.mark.parametrize("peers", [None, ["gone-lock"], []])
def test_a_peer_is_measured_if_it_is_installed_and_asked_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, peers: list[str] | None
):
    for package, module in (("here-lock", "json"), ("gone-lock", "no_such_module")):
        monkeypatch.setitem(PEERS, package, Peer(package, module))
    contenders = {"here-lock, Lock": fixed(speed=1.0), "gone-lock": fixed(speed=1.0)}
    [result] = measure([workload(**contenders)], rig, 1, nobody, peers)
    assert list(result.rounds[0]) == ["dsync", "here-lock, Lock"][: 2 if peers is None else 1]


# -- the command -----------------------------------------------------------------------------------


def test_a_run_prints_ratios_first_and_writes_them_as_json(tmp_path: Path):
    found = tmp_path / "found.json"
    done = run("--quick", "--seconds", "0.05", "--json", str(found), "uncontended", "local")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "0 s, round 1 of 1\n"  # what it is doing, in a log
    assert 0 < done.stdout.index("÷ floor") < done.stdout.index("cycles/s")

    report = json.loads(found.read_text("utf-8"))
    assert report["settings"]["rounds"] == 1
    ratios = {(ratio["workload"], ratio["ratio"]): ratio for ratio in report["ratios"]}
    assert {workload for workload, _ in ratios} == {"uncontended", "local"}
    assert all(ratio["least"] <= ratio["median"] <= ratio["most"] for ratio in ratios.values())
    judged = ratios["uncontended", "dsync ÷ floor"]
    assert judged["goal"] == {"sign": "≥", "bound": 0.75}
    assert judged["met"] in (True, False)
    assert report["rounds"]["uncontended"][0]["dsync"]["cycles/s"] > 0
    assert report["peers"].keys() >= PEERS.keys()


def test_the_peers_that_are_installed_are_measured(tmp_path: Path):
    there = [peer.package for peer in PEERS.values() if peer.installed]
    if not there:
        pytest.skip("no peer is installed: pip install 'dsync-redis[bench]'")
    found = tmp_path / "found.json"
    args = ("--quick", "--peers", ",".join(there), "--seconds", "0.05", "--json", str(found))
    done = run(*args, "uncontended", "limiter", "local-limiter", "bus-publish", "uvloop-1")
    assert done.returncode == 0, done.stderr
    report = json.loads(found.read_text("utf-8"))
    assert not any(report["failures"].values())
    measured = {
        peer.package
        for rounds in report["rounds"].values()
        for who in rounds[0]
        if (peer := peer_of(who)) is not None
    }
    assert sorted(measured) == sorted(there)


@pytest.mark.parametrize("who", semaphore.SEMAPHORES)
async def test_each_semaphore_lets_in_as_many_as_it_has_permits(who: str, rig: Rig):
    peer = peer_of(who)
    if peer is not None and not peer.installed:
        pytest.skip(f"{peer.package} is not installed: pip install 'dsync-redis[bench]'")
    inside = most = 0

    async def enter() -> None:
        nonlocal inside, most
        async with make():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    with rig.slice():
        async with semaphore.SEMAPHORES[who](rig.url, rig.namespace) as make:
            await asyncio.gather(*(enter() for _ in range(semaphore.PERMITS + 2)))
    assert 2 <= most <= semaphore.PERMITS


@pytest.mark.parametrize("scheme", ["redis", "unix"])
async def test_the_barest_floor_speaks_to_a_server_with_a_password(scheme: str):
    options = ("--requirepass", "open sesame")
    with Server.start(port=0 if scheme == "redis" else None, extra_args=options) as server:
        url = server.url.replace("://", "://:open%20sesame@", 1)
        async with bare_link(url) as send:
            assert await send("PING") == b"PONG"


@pytest.mark.parametrize("who", bus.WAYS)
async def test_each_bus_delivers_what_was_published(who: str, rig: Rig):
    peer = peer_of(who)
    if peer is not None and not peer.installed:
        pytest.skip(f"{peer.package} is not installed: pip install 'dsync-redis[bench]'")
    with rig.slice():
        async with bus.WAYS[who](rig.url, rig.namespace) as (publish, hearing), hearing as heard:
            await publish(7.5)
            assert await anext(heard) == 7.5


@pytest.mark.parametrize("loop", LOOPS)
def test_the_loop_asked_for_is_the_one_that_runs_and_that_processes_run_on(loop: str, rig: Rig):
    pytest.importorskip(loop)

    async def who() -> tuple[str, list[str]]:
        ours = type(asyncio.get_running_loop()).__module__
        async with crew(1, loop_of, rig, loop=loop) as members:
            members.go(0)
            return ours, await members.results()

    with runner(loop) as ours:
        here, there = ours.run(who())
    assert here.partition(".")[0] == loop
    assert [module.partition(".")[0] for module in there] == [loop]


async def loop_of(member: Member) -> str:
    await member.signal()
    return type(asyncio.get_running_loop()).__module__


def test_list_says_what_there_is_and_which_peers(capsys: pytest.CaptureFixture[str]):
    assert main(["--list"]) == 0
    what, _, whom = capsys.readouterr().out.partition("\n\n")
    names = [line.split()[0] for line in what.splitlines()]
    assert names == list(KNOWN)
    assert {line.split()[0] for line in whom.splitlines()} >= PEERS.keys()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["uncontended", "nonsense"], "no workload is called nonsense; there are uncontended, "),
        (["--peers", "nonsense"], "no peer is called nonsense; there are coredis, "),
        (["--seconds", "nan"], "--seconds must be > 0 and --rounds at least 1"),
        (["--rounds", "-1"], "--seconds must be > 0 and --rounds at least 1"),
        (["--seconds", "0"], "--seconds must be > 0 and --rounds at least 1"),
    ],
)
def test_what_does_not_exist_or_cannot_be_is_refused(
    args: list[str], error: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert error in said.err
    assert said.out == ""
