"""A selection of the scenarios of `make chaos`, each from one seed: they break no promise."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SEED = "20"
# Beside other tests, on a machine that does other things: `make chaos` shows the goals themselves.
SLACK = 1.0  # seconds


def play(path: Path, *args: str) -> tuple[int, dict[str, Any], str]:
    """Run one scenario; -> exit code, what was found, and all that was printed."""
    found = path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--seed", SEED, "--json", str(found), *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert found.exists(), done.stderr
    [scenario] = json.loads(found.read_text("utf-8"))["scenarios"]
    return done.returncode, scenario, done.stdout + done.stderr


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("fault", "primitive", "seconds"),
    [
        ("kill-holder", "lock", 1.6),
        ("stop-holder", "lock", 1.2),
        ("cut", "lock", 2.6),
        ("restart-empty", "lock", 3.1),
        ("script-flush", "lock", 1),
        ("kill-holder", "semaphore", 1.6),
        ("client-kill", "semaphore", 1),
        ("latency", "semaphore", 1.5),
        ("cut", "event", 2.6),
        ("kill-holder", "condition", 1.6),
        ("silence", "condition", 2.6),
        ("kill-holder", "barrier", 1.6),
        ("restart-empty", "barrier", 3.1),
        ("client-kill", "bus", 1),
        ("restart-empty", "bus", 3.1),
        ("stop-holder", "limiter", 1.2),
        ("kill-holder", "leader", 1.6),
    ],
)
def test_no_promise_is_broken_under(
    tmp_path: Path, fault: str, primitive: str, seconds: float
) -> None:
    options = ("--faults", fault, "--primitives", primitive, "--seconds", str(seconds))
    code, found, printed = play(tmp_path, *options)
    assert code == 0, printed
    assert found["violations"] == []
    assert found["leftovers"] == []
    assert found["harms"] > 0
    assert found["operations"] > 20
    assert found["recovery"] is not None
    if found["goal"] is not None:
        assert found["recovery"] < found["goal"] + SLACK, printed


def test_a_fault_that_says_nothing_of_a_primitive_is_a_dash_in_the_tables(tmp_path: Path) -> None:
    code, found, printed = play(tmp_path, "--faults", "kill-head", "--primitives", "bus")
    assert code == 0, printed
    assert not found["applies"]
    assert re.search(r"^kill-head +bus( +-)+$", printed, re.MULTILINE)


def test_a_table_for_a_page_shows_operations_and_recovery_and_what_is_wrong(
    tmp_path: Path,
) -> None:
    wrong = {"promise": "holders", "what": "two hold it", "events": [{"what": "held"}]}
    common: dict[str, Any] = {"seed": "1/x", "violations": [], "leftovers": []}
    well = {**common, "operations": 1234, "harms": 2, "recovery": 1.006}
    scenarios = [
        {"fault": "cut", "work": "lock", **well},
        {"fault": "cut", "work": "bus", **well, "recovery": None, "violations": [wrong]},
        {"fault": "kill-head", "work": "lock", **well, "harms": 0, "leftovers": ["a key"]},
        {"fault": "kill-head", "work": "bus", **common, "applies": False},
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"settings": {"seed": "1"}, "scenarios": scenarios}))
    command = [sys.executable, "-m", "chaos", "--read", str(path), "--markdown"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "seed 1",
        "",
        "|  | lock | bus |",
        "| --- | ---: | ---: |",
        "| `cut` | 1,234 · 1.01 s | **1 violated** · 1,234 · - |",
        "| `kill-head` | **no harm** · **1 left** · 1,234 · 1.01 s | - |",
    ]


def test_faults_and_primitives_are_listed_and_unknown_ones_refused() -> None:
    command = [sys.executable, "-m", "chaos"]
    listed = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0
    assert "  kill-holder " in listed.stdout
    assert "  semaphore " in listed.stdout
    refused = subprocess.run(
        [*command, "--faults", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "no faults called nonsense; there are none, " in refused.stderr
