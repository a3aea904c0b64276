"""`dsync top`: in a terminal, in a pipe, and what it leaves behind."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

import dsync
from dsync.server import Server
from tests.cli.conftest import ROOT, Shell
from tests.conftest import settled

TMUX = pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
HOSTILE = "red \x1b[31m\x1b[2J\x9b\x07\r\nnews \x1b]0;title\x07"


class Screen:
    """An interactive bash in a terminal of 80 by 24, as tmux shows it."""

    def __init__(self, shell: Shell, namespace: str, url: str) -> None:
        self.socket = str(shell.directory / "tmux")
        self.asked = 0
        (shell.directory / "dsync").write_text(
            f"#!/bin/sh\nexec '{sys.executable}' -m dsync \"$@\" --namespace {namespace}\n"
        )
        (shell.directory / "dsync").chmod(0o755)
        environ = {
            "DSYNC_URL": url, "PYTHONPATH": str(ROOT), "PS1": "ready> ", "HISTFILE": "",
            "PATH": f"{shell.directory}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        words = ["=".join(pair) for pair in environ.items()]
        self.tmux(
            *("new-session", "-d", "-x", "80", "-y", "24", "-c", str(shell.directory)),
            *("env", *words, "bash", "--norc", "--noprofile", ";", "set", "status", "off"),
            *(";", "set", "-g", "remain-on-exit", "on"),
        )

    def tmux(self, *words: str) -> str:
        environ = {key: value for key, value in os.environ.items() if key != "TMUX"}
        environ |= {"LC_ALL": "C.UTF-8"}
        return subprocess.run(
            ["tmux", "-S", self.socket, "-f", "/dev/null", *words],
            capture_output=True, text=True, check=True, timeout=20, env=environ,
        ).stdout  # fmt: skip

    @property
    def lines(self) -> list[str]:
        return self.tmux("capture-pane", "-p").splitlines()

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def enter(self, command: str) -> None:
        self.tmux("send-keys", "-l", command)
        self.type("Enter")

    async def shows(self, *wanted: str, within: float = 20.0) -> list[str]:
        """Wait until there is something on the screen that each of these patterns matches."""

        lines: list[str] = []

        def all_there() -> bool:
            lines[:] = self.lines
            text = "\n".join(lines)
            return all(re.search(each, text, re.MULTILINE) for each in wanted)

        await settled(all_there, lambda: f"{wanted}:\n" + "\n".join(lines), within)
        return lines

    async def modes(self) -> str:
        """What the terminal's modes are, as the shell has them."""
        self.asked += 1
        self.enter(f"clear; stty -g | cksum; echo {self.asked}.")
        lines = await self.shows(rf"^{self.asked}\.$")
        return lines[lines.index(f"{self.asked}.") - 1]

    def close(self) -> None:
        self.tmux("kill-server")


Opened = Callable[..., Screen]


@pytest.fixture
def namespace() -> str:
    return f"t-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def screen(shell: Shell, namespace: str) -> Iterator[Opened]:
    """Opens a terminal, on the server of the tests or on another."""
    with ExitStack() as stack:

        def opened(url: str = shell.url) -> Screen:
            made = Screen(shell, namespace, url)
            stack.callback(made.close)
            return made

        yield opened


@asynccontextmanager
async def at_work(url: str, namespace: str) -> AsyncIterator[dsync.Client]:
    """A process in which tasks hold and wait, which answers who asks."""

    async def hold(lock: Any) -> None:
        async with lock:
            await asyncio.Event().wait()

    async with dsync.connect(url, namespace=namespace, label="web") as client:
        permits = client.semaphore("gpu", 4)
        works = {
            "nightly": client.lock("invoices"), "late": client.lock("invoices"),
            "later": client.lock("invoices"), "render-1": permits, "render-2": permits,
        }  # fmt: skip
        tasks = [asyncio.create_task(hold(what), name=name) for name, what in works.items()]
        await settled(lambda: client.lock("invoices").locked())
        await client.event("migrated").set()
        yield client
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(shell: Shell, *words: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(shell.run, "top", *words)


# -- in a pipe ------------------------------------------------------------------------------------


async def test_once_is_a_table_that_tells_the_tasks(shell: Shell, namespace: str) -> None:
    async with at_work(shell.url, namespace):
        done = await run(shell, "--once", "--namespace", namespace)
    assert (done.returncode, done.stderr) == (0, "")
    head, columns, *rows = done.stdout.rstrip("\n").splitlines()
    assert re.search(r"3 primitives, 3 busy, 2 waiting; \d of \d processes answer$", head)
    assert columns.split() == ["KIND", "NAME", "STATE", "WAIT", "RATE/S", "P50", "P99", "HOLDER"]
    assert re.match(r"lock +invoices +held +2 +web:nightly [\d.]+m?s$", rows[0])
    assert re.search(
        r"semaphore +gpu +###\.\. 2/4 .* +web:render-1 [\d.]+m?s \+1$", done.stdout, re.M
    )
    assert re.search(r"event +migrated +set$", done.stdout, re.M)


async def test_json_is_one_object_for_each_look_and_sorted(shell: Shell, namespace: str) -> None:
    async with at_work(shell.url, namespace):
        with shell.start(
            *("top", "--json", "--every", "0.1", "--sort", "name", "--namespace", namespace)
        ) as process:
            assert process.stdout
            read = process.stdout.readline
            looks = [json.loads(await asyncio.to_thread(read)) for _ in range(3)]
    for look in looks:
        assert [row["name"] for row in look["rows"]] == ["gpu", "invoices", "migrated"]
        lock = look["rows"][1]
        assert (lock["kind"], lock["waiting"], lock["limit"]) == ("lock", 2, 1)
        assert [holder["task"] for holder in lock["holders"]] == ["nightly"]
        assert [waiter["task"] for waiter in lock["waiters"]] == ["late", "later"]
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]


async def test_a_pattern_and_a_sort_choose(shell: Shell, namespace: str) -> None:
    async with at_work(shell.url, namespace):
        some = await run(shell, "inv*", "--once", "--json", "--namespace", namespace)
        longest = await run(shell, "--once", "--sort", "held", "--namespace", namespace)
    assert [row["name"] for row in json.loads(some.stdout)["rows"]] == ["invoices"]
    assert longest.stdout.splitlines()[-1].split()[0] == "event"
    assert (await run(shell, "--sort", "colour")).returncode == 2


async def test_a_reader_that_goes_ends_it_without_a_word(shell: Shell, namespace: str) -> None:
    done = await asyncio.to_thread(
        shell.bash, f"{shell.dsync} top --every 0.05 --namespace {namespace} | head -1; "
        "echo ${PIPESTATUS[0]}",
    )  # fmt: skip
    assert done.stdout.endswith("\n141\n")
    assert done.stderr == ""


def test_without_the_extra_it_says_so_and_prints_lines(shell: Shell, namespace: str) -> None:
    without = "import sys; sys.modules['rich'] = None\n"
    words = [*shell.words("top", "--every", "0.05", "--namespace", namespace)]
    words[2] = without + words[2]
    primary, secondary = os.openpty()
    with subprocess.Popen(
        words, stdin=secondary, stdout=secondary, stderr=subprocess.PIPE, text=True,
        env=shell.environ | {"TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(secondary)
        assert process.stderr
        assert "pip install 'dsync-redis[cli]'" in process.stderr.readline()
        seen = b""
        while b"0 primitives" not in seen:
            seen += os.read(primary, 4096)
        process.kill()
    os.close(primary)
    assert b"\x1b" not in seen


# -- what others have named -----------------------------------------------------------------------


async def test_what_names_and_labels_would_do_to_a_terminal_does_not_reach_it(
    shell: Shell, namespace: str
) -> None:
    primary, secondary = os.openpty()
    termios.tcsetwinsize(secondary, (24, 200))

    async def seen_of(*words: str, **more: Any) -> bytes:
        """All that it writes to a terminal, until it has shown the name twice."""
        process = subprocess.Popen(
            shell.words("top", *words, "--namespace", namespace),
            stdin=secondary, stdout=secondary, stderr=secondary,
            env=shell.environ | {"TERM": "xterm"} | more,
        )  # fmt: skip
        try:
            seen = b""
            while seen.count(rb"red \x1b[31m") < 2 and process.poll() is None:
                seen += await asyncio.to_thread(os.read, primary, 4096)
            return seen
        finally:
            process.kill()
            process.wait()

    async with dsync.connect(shell.url, namespace=namespace, label=HOSTILE) as client:
        asyncio.current_task().set_name(HOSTILE)  # type: ignore[union-attr]
        async with client.lock(HOSTILE):
            live = await seen_of()
            plain = await seen_of("--every", "0.1", TERM="dumb")
    os.close(primary)
    os.close(secondary)
    assert b"\x1b[?1049h" in live
    assert b"\x1b" not in plain
    for seen in (live, plain):
        assert b"\x1b[31m" not in seen.replace(b"\x1b[31m\x1b[7m", b"")
        for forbidden in (b"\x1b[2J", b"\x1b]0;", b"\x07", "\x9b".encode()):
            assert forbidden not in seen


# -- in a terminal --------------------------------------------------------------------------------


@TMUX
async def test_in_80_by_24_everything_is_to_be_read_and_keys_do_what_they_say(
    shell: Shell, namespace: str, screen: Opened
) -> None:
    async with at_work(shell.url, namespace) as client:
        terminal = screen()
        before = await terminal.modes()
        terminal.enter("dsync top; echo code=$?.")
        lines = await terminal.shows("web:nightly", "3 primitives, 3 busy, 2 waiting", r"\? help")
        assert len(lines) <= 24
        assert all(len(line) <= 80 for line in lines)
        assert re.match(r"KIND +NAME +STATE +WAIT +RATE/S +P50 +P99 HOLDER", lines[2])
        # The first is selected: who holds it, and who waits, in order.
        where = rf"web \({os.uname().nodename}:{os.getpid()}\)"
        await terminal.shows(
            rf"· {where}  nightly  held .* lease .*  fence \d{{16}}$",
            rf"1\. {where}  late  waits",
            rf"2\. {where}  later  waits",
        )
        terminal.type("j", "Down")
        await terminal.shows(r"· .*render-1  held", r"· .*render-2  held", "· 2 of 4 held")
        terminal.type("s")
        await terminal.shows("s sort: held")
        terminal.type("r")
        lines = await terminal.shows("sort: held, backwards", "^event")
        assert [line.split()[0] for line in lines if re.match("event|lock|semaphore", line)] == [
            "event", "semaphore", "lock"
        ]  # fmt: skip
        terminal.type("/", "M", "i", "g")
        lines = await terminal.shows("names with: Mig_", "^event +migrated +set")
        assert not any("invoices" in line for line in lines)
        terminal.type("Enter", "Escape")
        await terminal.shows("^lock +invoices", "/ filter  space")
        terminal.type("?")
        await terminal.shows("Any key goes back")
        assert all(len(line) <= 80 for line in terminal.lines)
        terminal.type("x")
        await terminal.shows("^lock +invoices")
        terminal.type("Space")
        await terminal.shows("^paused, as it was")
        await client.event("migrated").clear()
        terminal.type("Space")
        await terminal.shows("event +migrated +not set")
        terminal.tmux("resize-window", "-x", "120", "-y", "30")
        await terminal.shows(r"nightly .*s +$|web:nightly [\d.]+s")
        await settled(lambda: terminal.lines[-1:] != [] and len(terminal.lines) == 30)
        terminal.type("q")
        await terminal.shows(r"^code=0\.$")
        assert not any("KIND" in line for line in terminal.lines)
        assert await terminal.modes() == before


@TMUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_and_the_terminal_is_as_it_was(
    shell: Shell, namespace: str, screen: Opened, number: signal.Signals
) -> None:
    terminal = screen()
    before = await terminal.modes()
    terminal.enter("clear; dsync top; echo code=$?.")
    await terminal.shows("0 primitives")
    if number == signal.SIGINT:
        terminal.type("C-c")
    else:
        shell_pid = terminal.tmux("display-message", "-p", "#{pane_pid}").strip()
        (pid,) = subprocess.run(
            ["pgrep", "-P", shell_pid], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(pid), number)
    await terminal.shows(rf"^code={128 + number}\.$")
    assert await terminal.modes() == before


@TMUX
async def test_ctrl_z_gives_the_terminal_back_and_fg_goes_on(
    shell: Shell, namespace: str, screen: Opened
) -> None:
    terminal = screen()
    before = await terminal.modes()
    terminal.enter("clear; dsync top")
    await terminal.shows("0 primitives")
    terminal.type("C-z")
    await terminal.shows("Stopped")
    assert await terminal.modes() == before
    terminal.enter("fg; echo code=$?.")
    await terminal.shows("0 primitives", r"q quit")
    terminal.type("q")
    await terminal.shows(r"^code=0\.$")
    assert await terminal.modes() == before


@TMUX
async def test_an_error_of_ours_leaves_the_terminal_as_it_was(
    shell: Shell, namespace: str, screen: Opened
) -> None:
    terminal = screen()
    before = await terminal.modes()
    (shell.directory / "broken.py").write_text(
        "import sys, dsync.cli.top_screen as screen\n"
        "from dsync.cli import main\n"
        "drawn = screen.Screen.drawn\n"
        "def broken(self, *args, **more):\n"
        "    if args[5] is not None: raise RuntimeError('a bug of ours')\n"
        "    return drawn(self, *args, **more)\n"
        "screen.Screen.drawn = broken\n"
        f"sys.exit(main(['top', '--namespace', '{namespace}']))\n"
    )
    terminal.enter(f"clear; '{sys.executable}' broken.py; echo code=$?.")
    await terminal.shows("RuntimeError: a bug of ours", r"^code=1\.$")
    assert await terminal.modes() == before


@TMUX
async def test_a_lost_connection_is_said_and_it_goes_on_when_it_is_back(
    shell: Shell, namespace: str, screen: Opened
) -> None:
    with Server.start(socket_path=str(shell.directory / "sock")) as server:
        url = server.url
        terminal = screen(url)
        terminal.enter("dsync event set ready; dsync top --patience 1; echo code=$?.")
        await terminal.shows("event +ready +set", "1 primitive, 1 busy")
    await terminal.shows("^(connection lost|no answer for)", "event +ready +set")
    with Server.start(socket_path=str(shell.directory / "sock")):
        await terminal.shows("0 primitives, 0 busy", "^nothing")
        terminal.type("q")
        await terminal.shows(r"^code=0\.$")


@TMUX
async def test_a_holder_that_is_killed_vanishes_with_its_lease(
    shell: Shell, namespace: str, screen: Opened
) -> None:
    worker = (
        "import asyncio, sys, dsync\n"
        "async def main():\n"
        "    async with dsync.connect(sys.argv[1], namespace=sys.argv[2], label='doomed') as c:\n"
        "        async with c.lock('x', lease=2):\n"
        "            await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    terminal = screen()
    with subprocess.Popen(
        [sys.executable, "-c", worker, shell.url, namespace], env=shell.environ
    ) as process:
        terminal.enter("dsync top --every 0.2")
        await terminal.shows(r"^lock +x +held .*doomed:Task-\d", "lease 2.0s|lease 1.")
        process.kill()
        process.wait()
        await terminal.shows(r"^lock +x +free *$", r"^  · free$")
        terminal.type("q")
