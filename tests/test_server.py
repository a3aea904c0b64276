"""The embedded server lives exactly as long as the processes that use it, whatever ends them."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import dsync.server
from dsync.errors import DsyncError
from dsync.server import Server, ServerError, find_binary, join_or_start

ROOT = Path(__file__).parent.parent


def until(what: str, holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether the process is there; one that has ended and waits to be collected is not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def ask(url: str, *command: str) -> str:
    parts = urlsplit(url)
    unix = parts.scheme == "unix"
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as connection:
        connection.settimeout(5)
        connection.connect(unquote(parts.path) if unix else (parts.hostname, parts.port))
        connection.sendall(" ".join(command).encode() + b"\r\n")
        return connection.recv(4096).decode()


@contextlib.contextmanager
def python(source: str, *args: str) -> "Iterator[subprocess.Popen[str]]":
    """A process that runs `source` and talks through its pipes; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *args],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def let_go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.close()
    assert process.wait(10) == 0


# --- start and stop


def test_it_answers_on_a_unix_socket_and_not_on_tcp():
    with Server.start() as server:
        assert server.url.startswith("unix:///")
        assert ask(server.url, "PING") == "+PONG\r\n"
        assert ask(server.url, "CONFIG", "GET", "port").split()[-1] == "0"
        assert runs(server.pid)
        assert server.alive


def test_it_answers_on_a_free_port_of_this_machine_only():
    with Server.start(port=0) as server:
        assert server.url.startswith("redis://127.0.0.1:")
        assert ask(server.url, "PING") == "+PONG\r\n"
        assert ask(server.url, "CONFIG", "GET", "bind").split()[-1] == "127.0.0.1"


def test_nobody_else_can_reach_into_its_home():
    with Server.start() as server:
        assert stat.S_IMODE(server.home.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.home / "users").stat().st_mode) == 0o600
        assert stat.S_IMODE((server.home / "sock").stat().st_mode) == 0o700


def test_it_keeps_nothing_on_disk_and_evicts_nothing():
    with Server.start() as server:
        answers = {
            name: ask(server.url, "CONFIG", "GET", name).split("\r\n")[-2]
            for name in ("save", "appendonly", "maxmemory-policy")
        }
    assert answers == {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}


def test_stop_ends_the_server_and_removes_its_home():
    server = Server.start()
    server.stop()
    assert not runs(server.pid)
    assert not server.home.exists()
    assert not server.alive
    assert repr(server) == f"<dsync.server.Server {server.url} [stopped]>"


def test_stopping_again_does_nothing():
    with Server.start() as server:
        server.stop()
        server.stop()


def test_stop_ends_a_server_that_hangs():
    with Server.start() as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert not runs(server.pid)
    assert not server.home.exists()


def test_stop_after_the_server_died_by_itself():
    with Server.start() as server:
        os.kill(server.pid, signal.SIGKILL)
        until("the guard has noticed", lambda: not server.alive)
    assert not server.home.exists()


def test_options_of_the_servers_own_come_last_and_win():
    options = ("--maxmemory-policy", "allkeys-lru", "--requirepass", "secret")
    with Server.start(extra_args=options) as server:
        assert ask(server.url, "PING").startswith("-NOAUTH")


def test_data_asked_for_stay_in_the_directory(tmp_path: Path):
    aof = ("--appendonly", "yes", "--appendfsync", "always")
    with Server.start(tmp_path, extra_args=aof) as first:
        ask(first.url, "SET", "kept", "1")
    with Server.start(tmp_path, extra_args=aof) as second:
        assert ask(second.url, "GET", "kept") == "$1\r\n1\r\n"


def test_a_socket_path_may_be_used_again(tmp_path: Path):
    for _ in range(2):
        with Server.start(socket_path=tmp_path / "a b.sock") as server:
            assert server.url == f"unix://{tmp_path}/a%20b.sock"
            assert ask(server.url, "PING") == "+PONG\r\n"


# --- what cannot be started says why, and leaves nothing


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories go; empty again at the end."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def test_no_binary_names_the_extra(monkeypatch: pytest.MonkeyPatch, temporary: Path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(temporary))
    with pytest.raises(ServerError, match=r"pip install 'dsync-redis\[server\]'") as caught:
        Server.start()
    assert isinstance(caught.value, DsyncError)
    assert isinstance(caught.value, RuntimeError)


async def test_who_asks_for_it_where_there_is_none_hears_so_at_once(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(temporary))
    client = dsync.connect(f"embedded://{temporary}/x", outage_timeout=3600)
    with pytest.raises(dsync.StoreUnavailable, match=r"pip install 'dsync-redis\[server\]'"):
        await client
    await client.aclose()
    shutil.rmtree(temporary / "x", ignore_errors=True)


def test_without_the_wheel_a_server_on_path_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(mode=0o755)
        assert find_binary() == str(tmp_path / name)


def test_a_bad_option_is_reported_from_the_log(temporary: Path):
    with pytest.raises(ServerError, match=r"ended before it answered.*(?s:.*)no-such-option"):
        Server.start(extra_args=("--no-such-option", "1"))


def test_a_port_in_use_is_reported_and_its_server_is_not_taken_for_ours(temporary: Path):
    with Server.start(port=0) as other:
        port = urlsplit(other.url).port
        with pytest.raises(ServerError, match="in use"):
            Server.start(port=port)
        assert other.alive


def test_a_server_that_does_not_answer_in_time(tmp_path: Path, temporary: Path):
    silent = tmp_path / "silent-server"
    silent.write_text("#!/bin/sh\necho warming up\nexec sleep 60\n")
    silent.chmod(0o755)
    with pytest.raises(ServerError, match=r"did not answer within 0\.3 s; its log: warming up"):
        Server.start(binary=silent, timeout=0.3)
    silent.unlink()


def test_a_path_too_long_for_a_socket_says_so(temporary: Path):
    with pytest.raises(ServerError, match=r"may have 103 bytes, and /.* has \d+; choose a shorter"):
        Server.start(socket_path=temporary / ("x" * 120))


def test_a_socket_in_use_is_refused(temporary: Path):
    with Server.start() as server, pytest.raises(ServerError, match="another server answers at"):
        Server.start(socket_path=server.home / "sock")


def test_a_file_in_place_of_the_socket_is_left_alone(temporary: Path):
    precious = temporary / "precious"
    precious.write_text("data")
    with pytest.raises(ServerError, match="is not a socket"):
        Server.start(socket_path=precious)
    assert precious.read_text() == "data"
    precious.unlink()


# --- whoever holds it keeps it alive; nobody else does

OWNER = """
    import sys
    from dsync.server import Server
    server = Server.start()
    print(server.pid, server.home, flush=True)
    sys.stdin.read()
"""


def test_it_goes_when_its_owner_is_killed():
    with python(OWNER) as owner:
        pid, home = line(owner).split()
        assert runs(int(pid))
        owner.kill()
        until("the server is gone", lambda: not runs(int(pid)))
        until("its home is gone", lambda: not Path(home).exists())


def test_it_goes_when_its_owner_forgets_it():
    with python(OWNER) as owner:
        pid, _ = line(owner).split()
        let_go(owner)
        until("the server is gone", lambda: not runs(int(pid)))


def test_ctrl_c_at_the_owners_terminal_does_not_reach_it():
    with python(OWNER) as owner:
        pid = int(line(owner).split()[0])
        assert os.getsid(pid) != os.getsid(owner.pid)
        assert os.getpgid(pid) != os.getpgid(owner.pid)


def test_a_command_that_its_owner_started_does_not_keep_it():
    with subprocess.Popen(["sleep", "60"], close_fds=False) as before, Server.start() as server:
        with subprocess.Popen(["sleep", "60"], close_fds=False) as after:
            server.stop()
            assert not runs(server.pid)
            after.kill()
        before.kill()


def test_a_forked_child_that_stops_ends_nothing():
    source = """
        import os, sys
        from dsync.server import Server
        with Server.start() as server:
            child = os.fork()
            if child == 0:
                server.stop()
                os._exit(0)
            os.waitpid(child, 0)
            print(server.alive, flush=True)
    """
    with python(source) as owner:
        assert line(owner) == "True"
        let_go(owner)


# --- one server for all who ask at once

USER = """
    import sys
    from dsync.server import join_or_start
    server = join_or_start(sys.argv[1])
    print(server.pid, server.url, flush=True)
    sys.stdin.read()
"""


def test_processes_that_ask_at_once_get_one_server_and_it_goes_with_the_last(tmp_path: Path):
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(python(USER, str(tmp_path))) for _ in range(4)]
        answers = {line(user) for user in users}
        assert len(answers) == 1
        pid, url = answers.pop().split()
        users[0].kill()
        for user in users[1:-1]:
            let_go(user)
        assert ask(url, "PING") == "+PONG\r\n"
        users[-1].kill()
        until("the server is gone", lambda: not runs(int(pid)))


def test_stop_leaves_a_shared_server_to_the_others(tmp_path: Path):
    with join_or_start(tmp_path) as second:
        with join_or_start(tmp_path) as first:
            assert first.pid == second.pid
        assert second.alive
        assert ask(second.url, "PING") == "+PONG\r\n"
    until("the server is gone", lambda: not runs(second.pid))
    until("its home is gone", lambda: not second.home.exists())


def test_who_comes_when_the_guard_has_read_end_of_file_gets_another_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Until the guard closes the FIFO it can still be opened, though its server is doomed."""
    closes = "    exec 3<&-\n    kill"
    assert closes in dsync.server.GUARD
    dawdling = dsync.server.GUARD.replace(closes, f'    : >"$home/ended"; sleep 0.3\n{closes}')
    monkeypatch.setattr(dsync.server, "GUARD", dawdling)
    with join_or_start(tmp_path) as first:
        pass
    until("the guard has read end of file", (first.home / "ended").exists)
    with join_or_start(tmp_path) as second:
        assert second.pid != first.pid
        until("the first is gone", lambda: not first.home.exists())
        assert ask(second.url, "PING") == "+PONG\r\n"


def test_after_the_server_crashed_the_next_one_starts_another(tmp_path: Path):
    with join_or_start(tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)
        until("the guard has noticed", lambda: not first.alive)
        with join_or_start(tmp_path) as second:
            assert second.pid != first.pid
            assert ask(second.url, "PING") == "+PONG\r\n"


def test_directories_are_separate(tmp_path: Path):
    with join_or_start(tmp_path / "a") as a, join_or_start(tmp_path / "b") as b:
        assert a.pid != b.pid


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path):
    tmp_path.chmod(0o777)
    with pytest.raises(ServerError, match="that nobody else may write to; it is drwxrwxrwx"):
        join_or_start(tmp_path)


@pytest.mark.parametrize("runtime", [True, False])
def test_without_a_directory_it_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: bool
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path) if runtime else "")
    own = tmp_path / ("dsync" if runtime else f"dsync-{os.getuid()}")
    with join_or_start() as server:
        assert server.home.parent == own
        assert stat.S_IMODE(own.stat().st_mode) == 0o700


# --- the command


@contextlib.contextmanager
def command(*args: str) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        [sys.executable, "-m", "dsync", *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("option", ["--port 0", "--socket"])
def test_serve_answers_and_ends_with_0_on_a_signal(option: str, number: int, tmp_path: Path):
    arguments = ["--socket", str(tmp_path / "s")] if option == "--socket" else option.split()
    with command("serve", *arguments) as process:
        url = line(process)
        assert ask(url, "PING") == "+PONG\r\n"
        process.send_signal(number)
        _, teaching = process.communicate(timeout=10)
        assert process.returncode == 0
        assert f"export DSYNC_URL='{url}'" in teaching
    with pytest.raises(OSError):
        ask(url, "PING")


def test_serve_reports_what_it_cannot_do(tmp_path: Path):
    (tmp_path / "s").touch()
    with command("serve", "--socket", str(tmp_path / "s")) as process:
        _, error = process.communicate(timeout=10)
    assert process.returncode == 1
    assert error == f"dsync serve: {tmp_path}/s exists and is not a socket\n"


def test_serve_notices_that_its_server_died():
    with command("serve") as process:
        info = ask(line(process), "INFO", "server")
        pid = next(row for row in info.split() if row.startswith("process_id:"))
        os.kill(int(pid.removeprefix("process_id:")), signal.SIGKILL)
        _, error = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "ended by itself" in error


@pytest.mark.parametrize(
    "arguments",
    ["serve --port 65536", "demo --seconds 0", "demo --workers x", "demo --seconds inf"],
)
def test_bad_arguments_name_the_value(arguments: str):
    with command(*arguments.split()) as process:
        _, error = process.communicate(timeout=10)
    assert process.returncode == 2
    assert f"got '{arguments.split()[-1]}'" in error


def test_help_is_quick_because_it_loads_no_client_library():
    source = """
        import contextlib, sys
        from dsync.cli import main
        with contextlib.suppress(SystemExit):
            main(["--help"])
        print(sorted({"redis", "rich"} & set(sys.modules)))
    """
    with python(source) as process:
        output, _ = process.communicate(timeout=10)
    assert output.splitlines()[-1] == "[]"
    assert "dsync serve" in output
