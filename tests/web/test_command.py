"""`dsync web` as a process."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import START, Shell, until


@pytest.fixture
def shell(server_url: str, tmp_path: Path) -> Shell:
    return Shell(server_url, tmp_path)


@contextmanager
def get(url: str, path: str = "/", **headers: str) -> Iterator[http.client.HTTPResponse]:
    """An answer, whose body is still to be read."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=20)
    with closing(connection):
        connection.request("GET", path, headers={"Host": "localhost"} | headers)
        with connection.getresponse() as answer:
            yield answer


@contextmanager
def started(shell: Shell, *words: str) -> "Iterator[tuple[str, subprocess.Popen[str]]]":
    """`dsync web` on a free port.  -> the address that it prints"""
    with shell.start("web", "--port", "0", *words) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.communicate()[1]
        yield url, process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_though_somebody_watches(
    shell: Shell, number: signal.Signals
) -> None:
    with started(shell) as (url, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        with get(url, "/events") as stream:
            assert stream.status == 200
            assert stream.readline().startswith(b"retry:")
            process.send_signal(number)
            said, complaints = process.communicate(timeout=20)
            while stream.readline():
                pass  # it ends as it should: the last piece is there
        assert (process.returncode, said) == (0, "")
        assert complaints == (
            "dsync web: who opens this address can change nothing; Ctrl-C ends it\n"
        )


def test_it_shows_what_other_processes_hold(shell: Shell) -> None:
    def rows() -> list[dict[str, Any]]:
        with get(url, "/api/overview") as answer:
            return list(json.loads(answer.read())["rows"])

    with (
        started(shell, shell.name, "--every", "0.1") as (url, _),
        shell.start("lock", shell.name, "--", "sleep", "60"),
    ):
        until("it is held", lambda: sum(row["held"] for row in rows()))
        assert [(row["kind"], row["name"]) for row in rows()] == [("lock", shell.name)]


def test_a_port_that_is_taken_is_named(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = shell.run("web", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"dsync web: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "--port 0 takes a free one\n"
    )


def test_a_host_that_is_not_ours_is_named(shell: Shell) -> None:
    done = shell.run("web", "--host", "192.0.2.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot listen on 192.0.2.1:8377: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("--every", "0"), ("--port", "65536"), ("--url", "memory://")])
def test_what_cannot_be_used_is_refused(shell: Shell, words: tuple[str, str]) -> None:
    done = shell.run("web", *words)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_server_that_is_not_there_is_told_as_other_commands_do(shell: Shell) -> None:
    done = shell.run("web", "--url", "redis://127.0.0.1:1", "--patience", "0.2")
    assert (done.returncode, done.stdout) == (69, "")


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_packages_it_says_which_extra_has_them(shell: Shell, package: str) -> None:
    without = f"import sys; sys.modules[{package!r}] = None\n{START}"
    done = subprocess.run(
        [sys.executable, "-c", without, "web"], env=shell.environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        "dsync web: needs the packages starlette and uvicorn: pip install 'dsync-redis[web]'\n"
    )


@pytest.mark.parametrize("words", [("--host", "0.0.0.0"), ("--allow-release",)])
def test_where_more_is_at_stake_a_token_is_asked_for(shell: Shell, words: tuple[str, ...]) -> None:
    with started(shell, *words) as (url, process):
        token = urlsplit(url).query.removeprefix("token=")
        assert len(token) >= 32
        with get(url) as answer:
            assert answer.status == 401
        with get(url, "/api/overview", Authorization=f"Bearer {token}") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        said, complaints = process.communicate(timeout=20)
    assert process.returncode == 0
    assert said == ""
    assert token not in complaints
    assert ("nothing is encrypted" in complaints) == (words[0] == "--host")
    assert ("take locks" in complaints) == ("--allow-release" in words)


def test_a_token_of_ones_own_is_used(shell: Shell) -> None:
    shell.environ["DSYNC_WEB_TOKEN"] = "mine & yours"
    with started(shell) as (url, _):
        assert url.endswith("/?token=mine%20%26%20yours")
        with get(url) as answer:
            assert answer.status == 401
        with get(url, "/?" + urlsplit(url).query) as answer:
            assert answer.status == 303


def test_a_token_that_is_no_text_is_refused(shell: Shell) -> None:
    shell.environ["DSYNC_WEB_TOKEN"] = "\udcff"  # a byte that is not UTF-8
    done = shell.run("web", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dsync web: $DSYNC_WEB_TOKEN cannot be used: ")


def test_it_answers_to_its_own_names_and_those_it_is_given(shell: Shell) -> None:
    with started(shell, "--allow-host", "ops.example.com", "--allow-host", "other") as (url, _):
        for name, code in (("ops.example.com", 200), ("other:80", 200), ("evil.example", 400)):
            with get(url, Host=name) as answer:
                assert answer.status == code
