"""A selection of the scenarios of `make chaos`, each from one seed: they break no promise."""

import json
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
