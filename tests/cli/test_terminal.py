"""`dsync lock` at a terminal, under a shell with job control."""

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.conftest import Shell

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")

CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"
# No shell waits for them: one that is between two commands may lose a Ctrl-C, with or without us.
CAT = "sh -c 'echo begun; exec cat'"
PAUSE = f"""'{sys.executable}' -c '
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGCONT, lambda *_: print("continued", flush=True))
print("begun", flush=True)
while True: signal.pause()'"""


class Terminal:
    """An interactive bash on a terminal of its own."""

    def __init__(self, shell: Shell) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(shell.directory)
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
                signal.signal(number, signal.SIG_DFL)  # our own shell may have us ignore them
            environ = shell.environ | {"PS1": "ready> ", "TERM": "dumb", "HISTFILE": ""}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environ)
        self.seen = ""
        self.see("ready> ")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def see(self, text: str, within: float = 20.0) -> None:
        """Wait until this is on the screen, behind what was seen before."""
        deadline = time.monotonic() + within
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is not on the screen: {self.seen!r}"
            if select.select([self.fd], [], [], left)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def echoes(self, text: str) -> None:
        """What is typed goes to `cat`: it is seen twice."""
        self.type(f"{text}\n")
        self.see(f"{text}\r\n{text}\r\n")

    def ends_with(self, code: int) -> None:
        """The job ends, the shell is back, and this is its exit code."""
        self.see("ready> ")
        self.type("echo code=$?.\n")
        self.see(f"\ncode={code}.")
        self.see("ready> ")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@contextmanager
def at_a_terminal(shell: Shell) -> Iterator[Terminal]:
    terminal = Terminal(shell)
    try:
        yield terminal
    finally:
        terminal.close()


def test_a_command_that_reads_has_the_keyboard(shell: Shell) -> None:
    with at_a_terminal(shell) as terminal:
        terminal.type(f"{shell.dsync} lock '{shell.name}' -- {CAT}\n")
        terminal.see("\nbegun")
        terminal.echoes("hello")
        terminal.type(CTRL_D)
        terminal.ends_with(0)


@pytest.mark.parametrize("command", [PAUSE, CAT], ids=["pause", "cat"])
def test_ctrl_c_ends_the_command(shell: Shell, command: str) -> None:
    with at_a_terminal(shell) as terminal:
        terminal.type(f"{shell.dsync} lock '{shell.name}' -- {command}\n")
        terminal.see("\nbegun")
        terminal.type(CTRL_C)
        terminal.ends_with(130)


def test_a_command_that_does_not_read_leaves_the_keyboard_to_the_pipeline(shell: Shell) -> None:
    with at_a_terminal(shell) as terminal:
        pager = "{ read x; read y < /dev/tty; echo $x-$y; }"
        terminal.type(f"{shell.dsync} lock '{shell.name}' -- echo page | {pager}\n")
        terminal.type("key\n")
        terminal.see("page-key")
        terminal.ends_with(0)


@pytest.mark.parametrize("command", [CAT, PAUSE], ids=["cat", "pause"])
def test_ctrl_z_stops_the_job_and_fg_goes_on(shell: Shell, command: str) -> None:
    with at_a_terminal(shell) as terminal:
        terminal.type(f"{shell.dsync} lock '{shell.name}' -- {command}\n")
        terminal.see("\nbegun")
        if command == CAT:
            terminal.echoes("first")
        terminal.type(CTRL_Z)
        terminal.see("Stopped")
        terminal.see("ready> ")
        terminal.type("fg\n")
        if command == CAT:
            terminal.see("exec")
            terminal.echoes("again")
        else:
            terminal.see("\ncontinued")
        terminal.type(CTRL_C)
        terminal.ends_with(130)


def test_in_the_background_it_stops_when_the_command_reads(shell: Shell) -> None:
    with at_a_terminal(shell) as terminal:
        terminal.type(f"{shell.dsync} lock '{shell.name}' -- {CAT} &\n")
        terminal.see("begun")
        terminal.type("wait\n")
        terminal.see("stopped")
        terminal.see("ready> ")
        terminal.type("fg\n")
        terminal.see("exec cat")
        terminal.echoes("hello")
        terminal.type(CTRL_D)
        terminal.ends_with(0)


def test_a_job_that_is_stopped_for_longer_than_its_lease_is_ended(shell: Shell) -> None:
    with at_a_terminal(shell) as terminal:
        terminal.type(f"{shell.dsync} lock '{shell.name}' --lease 1 -- {CAT}\n")
        terminal.see("\nbegun")
        terminal.echoes("hello")
        terminal.type(CTRL_Z)
        terminal.see("Stopped")
        terminal.see("ready> ")
        terminal.type(f"{shell.dsync} lock '{shell.name}' -- echo next\n")
        terminal.see("\nnext")
        terminal.see("ready> ")
        terminal.type("fg\n")
        terminal.see("was lost")
        terminal.ends_with(75)
