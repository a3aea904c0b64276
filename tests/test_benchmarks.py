"""The command that measures: that it runs and tells what it found, never what it found."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_a_run_prints_ratios_first_and_writes_them_as_json(tmp_path: Path):
    found = tmp_path / "found.json"
    args = ("--seconds", "0.2", "--rounds", "1", "--json", str(found))
    done = run(*args, "uncontended", "hand-over")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert 0 < done.stdout.index("÷ floor") < done.stdout.index("cycles/s")

    report = json.loads(found.read_text("utf-8"))
    assert report["settings"]["rounds"] == 1
    ratios = {(ratio["workload"], ratio["ratio"]): ratio for ratio in report["ratios"]}
    assert {workload for workload, _ in ratios} == {"uncontended", "hand-over"}
    assert all(ratio["least"] <= ratio["median"] <= ratio["most"] for ratio in ratios.values())
    judged = ratios["uncontended", "dsync ÷ floor"]
    assert judged["goal"]["sign"] == "≥"
    assert judged["met"] in (True, False)
    assert len(report["rounds"]["uncontended"]) == 1
    assert report["rounds"]["uncontended"][0]["dsync"]["cycles/s"] > 0


def test_event_and_condition_are_measured_against_floors_without_them():
    done = run("--seconds", "0.2", "--rounds", "1", "event", "condition")
    assert done.returncode == 0, done.stderr
    for ratio, goal in {
        "p50 of a trip, dsync ÷ message": "≤ 2.5",
        "commands per trip": "≤ 3",
        "set until the last runs, dsync ÷ floor": "≤ 3",
        "PUBLISHes per change": "≤ 1",
    }.items():
        line = next(line for line in done.stdout.splitlines() if ratio in line)
        assert goal in line
        assert float(line.partition(ratio)[2].split()[0]) > 0


def test_the_bus_is_measured_against_plain_redis_py():
    done = run("--seconds", "0.2", "--rounds", "1", "bus-publish", "bus-delivery", "bus-queued")
    assert done.returncode == 0, done.stderr
    for ratio, goal in {
        "dsync vs one by one": "≥ 8",
        "dsync ÷ hand-written pipelines": "≥ 0.5",
        "p50, dsync ÷ redis.asyncio pub/sub": "≤ 1.5",
        "MB for 100,000 queued messages": "",
    }.items():
        line = next(line for line in done.stdout.splitlines() if ratio in line)
        assert goal in line
        assert float(line.partition(ratio)[2].split()[0]) > 0


def test_rate_limiters_are_measured_against_a_bare_script_and_against_aiolimiter():
    peer = find_spec("aiolimiter")
    done = run("--seconds", "0.2", "--rounds", "1", "limiter", "local-limiter")
    assert done.returncode == 0, done.stderr
    for ratio, goal in {
        "try_acquire() ÷ floor": "≤ 1.3",
        " acquire() ÷ floor": "≤ 1.3",
        "EVALs per try_acquire()": "≤ 1",
        "EVALs per acquire()": "≤ 1",
        "acquire(), dsync.local ÷ aiolimiter": "≤ 2",
    }.items():
        line = next(line for line in done.stdout.splitlines() if ratio in line)
        assert goal in line
        found = line.partition(ratio)[2].split()[0]
        # A peer that is not installed gets a dash.
        assert found == "-" if "aiolimiter" in ratio and not peer else float(found) > 0


def test_list_says_what_there_is():
    done = run("--list")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert "uncontended" in names
    assert len(names) == len(set(names))


def test_an_unknown_workload_is_refused_with_the_known_ones():
    done = run("uncontended", "nonsense")
    assert done.returncode == 2
    assert "no workload is called nonsense; there are uncontended, " in done.stderr
    assert done.stdout == ""
