"""`shell`: the command line as people run it, on a real server, under names of the test's own."""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
# Where SIGINT is ignored (a shell's background job) a program would inherit that.
PLAIN = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
START = PLAIN + "from dsync.cli import main; sys.argv[0] = 'dsync'; sys.exit(main())"


class Shell:
    """Runs `dsync` as a process."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.name = f"job {uuid.uuid4().hex[:8]}"
        self.environ = os.environ | {"DSYNC_URL": url, "PYTHONPATH": str(ROOT)}
        self.dsync = f"'{sys.executable}' -m dsync"  # for a real shell

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-c", START, *words]

    def run(self, *words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.words(*words), cwd=self.directory, env=self.environ, input=stdin,
            capture_output=True, text=True, timeout=40,
        )  # fmt: skip

    def bash(self, script: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-c", script], cwd=self.directory, env=self.environ, capture_output=True,
            text=True, timeout=40,
        )  # fmt: skip

    @contextlib.contextmanager
    def start(self, *words: str, **more: Any) -> "Iterator[subprocess.Popen[str]]":
        """One under way; it is killed if it has not ended by then."""
        with subprocess.Popen(
            self.words(*words), cwd=self.directory, env=self.environ, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, **more,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def read(self, file: str) -> str:
        """What is in a file of this test's, once there is something."""
        path = self.directory / file
        until(f"{file} is written", lambda: path.exists() and path.read_text().endswith("\n"))
        return path.read_text()


def until(what: str, condition: Callable[[], object], within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    command: Sequence[str] = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.fixture
def shell(server_url: str, tmp_path: Path) -> Shell:
    return Shell(server_url, tmp_path)
