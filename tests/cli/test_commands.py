"""The commands that look and change: what they print, and their exit codes."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis

import dsync
from dsync.cli import COMMANDS, main
from dsync.names import tag
from dsync.server import Server
from tests.cli.conftest import Shell

Said = tuple[int, str, str]
HOST = os.uname().nodename


@pytest.fixture
def namespace() -> str:
    return f"t-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def say(server_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process.  -> exit code, stdout, stderr"""

    def run(*words: str) -> Said:
        where = ("--url", server_url, "--namespace", namespace)
        first, rest = words[:2] if words[0] in ("event", "bus") else words[:1], words
        try:
            code = main([*first, *where, *rest[len(first) :]])
        except SystemExit as stopped:
            code = int(str(stopped.code))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def with_client(server_url: str, namespace: str) -> Callable[..., Any]:
    """Run a coroutine function of a client, while nothing else does."""

    def run(action: Callable[[dsync.Client], Coroutine[Any, Any, Any]]) -> Any:
        async def session() -> Any:
            async with dsync.connect(server_url, namespace=namespace, label="me") as client:
                return await action(client)

        return asyncio.run(session())

    return run


# -- events ---------------------------------------------------------------------------------------


def test_an_event_is_set_and_cleared_for_everybody(say: Any, with_client: Any) -> None:
    assert say("event", "status", "ready") == (1, "not set\n", "")
    assert say("event", "wait", "ready", "--timeout", "0.05")[0] == 1
    assert say("event", "set", "ready") == (0, "", "")
    assert with_client(lambda client: client.event("ready").wait(timeout=1))
    assert say("event", "wait", "ready") == (0, "", "")
    code, text, _ = say("event", "status", "ready", "--json")
    assert (code, json.loads(text)) == (0, {"name": "ready", "set": True})
    assert say("event", "clear", "ready") == (0, "", "")
    assert say("event", "status", "ready")[0] == 1


def test_an_event_that_is_set_for_a_time_says_how_long(say: Any) -> None:
    say("event", "set", "soon", "--ttl", "60")
    _, text, _ = say("info", "soon", "--json")
    known = json.loads(text)
    assert known["set"]
    assert 50 < known["ends_in"] <= 60


# -- the bus --------------------------------------------------------------------------------------


def test_who_listens_hears_what_is_triggered(shell: Shell) -> None:
    with shell.start("bus", "listen", "order.*", "--json", "--count", "2") as process:
        assert process.stderr
        assert "listening to 'order.*' on bus 'default'" in process.stderr.readline()
        for event, data in (("order.a", '{"id": 7}'), ("other", "1"), ("order.b", "-")):
            assert shell.run("bus", "trigger", event, data, stdin='"text"').returncode == 0
        output, error = process.communicate(timeout=15)
    heard = [json.loads(line) for line in output.splitlines()]
    assert [(each["event"], each["data"]) for each in heard] == [
        ("order.a", {"id": 7}),
        ("order.b", "text"),
    ]
    assert (process.returncode, error) == (0, "")


def test_a_reader_that_goes_ends_the_listener_without_a_word(shell: Shell) -> None:
    bus = f"--bus '{shell.name}'"
    script = f"""
        {{ {shell.dsync} bus listen {bus}; echo $? > code; }} 2>log | head -1 &
        until grep -q listening log 2>/dev/null; do sleep 0.02; done
        until [ -e code ]; do {shell.dsync} bus trigger tick {bus}; done
        wait
    """
    assert shell.bash(script).stdout == "tick null\n"
    assert shell.read("code") == "141\n"
    assert shell.read("log").count("\n") == 1


def test_data_that_are_not_json_are_named(say: Any) -> None:
    code, _, error = say("bus", "trigger", "x", "oops")
    assert code == 2
    assert "the data of 'x' must be JSON" in error
    assert "got 'oops'; text is written as" in error


# -- limits ---------------------------------------------------------------------------------------


def test_a_limit_lets_a_command_through_and_is_one_for_all(shell: Shell) -> None:
    words = ("limit", shell.name, "--rate", "1/hour", "-n")
    script = 'echo "$DSYNC_NAME"; kill -PIPE $$'
    done = shell.run(*words, "--", "sh", "-c", script)
    assert (done.stdout, done.returncode) == (f"{shell.name}\n", -13)  # it has become the command
    again = shell.run(*words, "--", "echo", "again")
    assert (again.stdout, again.returncode) == ("", 1)
    assert f"rate limiter {shell.name!r}" in again.stderr


def test_a_rate_or_amount_that_cannot_be_is_named(say: Any) -> None:
    assert "got 'often'" in say("limit", "x", "--rate", "often")[2]
    code, _, error = say("limit", "x", "--rate", "5/s", "--amount", "6")
    assert code == 2
    assert "amount 6 is more than the burst of 5" in error


# -- looking --------------------------------------------------------------------------------------


async def hold(client: dsync.Client) -> None:
    """One of each kind, used and let go, but for the event."""
    async with client.lock("a lock"), client.semaphore("slots", 3):
        pass
    async with client.condition("c"):
        pass
    async with client.leader("boss", sigterm=False):
        pass
    await client.event("an event").set()
    await client.barrier("b", 1).wait()
    await client.event_bus("news").trigger("x")
    await client.rate_limiter("calls", 5).acquire()
    await client.single_flight("answer", lambda: asyncio.sleep(0, 42), ttl=60)
    await client.exclusive("nightly", every=60)(lambda_)()
    long = "long " * 60
    async with client.lock(long):
        pass


async def lambda_() -> None:
    pass


def test_ls_lists_every_kind_and_how_it_stands(say: Any, with_client: Any) -> None:
    assert say("ls") == (0, "", "")
    with_client(hold)
    code, text, _ = say("ls")
    assert code == 0
    head, *rows = [line.split("  ") for line in text.splitlines()]
    assert head[0] == "KIND"
    stands = {(cells[0], cells[-1].strip()) for cells in ([c for c in r if c] for r in rows)}
    assert stands >= {
        ("lock", "free"),
        ("semaphore", "0 of 3 held"),
        ("condition", "free"),
        ("leader", "free"),
        ("event", "set"),
        ("barrier", "0 of 1 wait"),
        ("bus", "1 messages so far"),
        ("flight", "2 bytes kept"),
    }
    kinds = {row[0] for row in rows}
    assert kinds >= {"rate", "every"}
    assert "election" not in kinds
    assert [line.split()[1] for line in say("ls", "an*")[1].splitlines()[1:]] == ["an", "answer"]
    busy = say("ls", "--busy", "--json", "--kind", "event")[1].splitlines()
    assert [json.loads(line)["name"] for line in busy] == ["an event"]


def test_ls_does_nothing_to_a_terminal_and_survives_foreign_values(
    say: Any, with_client: Any, server_url: str, namespace: str
) -> None:
    async def odd(client: dsync.Client) -> None:
        async with client.lock("red \x1b[31m}:x"):
            pass

    with_client(odd)
    with redis.Redis.from_url(server_url) as admin:
        admin.set(f"{tag(namespace, 'lock', 'theirs')}:state", "not ours", ex=60)
        code, text, _ = say("ls")
        assert code == 0
        assert "red \\x1b[31m}:x" in text
        assert "holds something else than dsync's state" in text
        code, _, error = say("info", "theirs")
        assert code == 65
        assert error.count("\n") == 1


def test_info_tells_holders_and_waiters_in_order(
    say: Any, shell: Shell, with_client: Any, namespace: str
) -> None:
    async def with_two(client: dsync.Client) -> tuple[Any, Any]:
        second = dsync.connect(shell.url, namespace=namespace, label="2nd")
        async with client.lock("x"), second:
            asyncio.current_task().set_name("nightly")  # type: ignore[union-attr]
            waiting = asyncio.ensure_future(second.lock("x").acquire())
            while not (await client.lock("x").info()).waiters:
                pass
            words = ("info", "x", "--namespace", namespace)
            plain = await asyncio.to_thread(shell.run, *words)
            as_json = await asyncio.to_thread(shell.run, *words, "--json")
            waiting.cancel()
        return plain, as_json

    plain, as_json = with_client(with_two)
    assert plain.stdout.startswith(f"lock 'x': held by me ({HOST}:{os.getpid()}) in nightly for")
    assert "  waits   1. 2nd (" in plain.stdout
    known = json.loads(as_json.stdout)
    assert (known["held"], known["waiting"]) == (1, 1)
    assert (known["holders"][0]["pid"], known["holders"][0]["task"]) == (os.getpid(), "nightly")
    assert known["fence"] > 0


def test_a_name_of_which_there_is_nothing_says_what_there_is(say: Any, with_client: Any) -> None:
    code, _, error = say("info", "nothing")
    assert code == 1
    assert "no primitive 'nothing' in namespace" in error
    say("event", "set", "x")
    code, _, error = say("info", "x", "--kind", "lock")
    assert code == 1
    assert "no lock 'x' in namespace" in error
    assert error.rstrip().endswith("there is: event")


# -- changing -------------------------------------------------------------------------------------


def test_release_takes_a_lock_away_but_has_to_be_told_to(say: Any, shell: Shell) -> None:
    words = ("--url", shell.url)
    with shell.start("lock", shell.name, "--", "sh", "-c", "echo > on; sleep 30") as process:
        shell.read("on")
        refused = shell.run("release", shell.name, *words)
        assert refused.returncode == 2
        assert f"is held by {HOST}:{process.pid}, who may be at work" in refused.stderr
        done = shell.run("release", shell.name, "--force", *words)
        assert done.stdout == (f"lock {shell.name!r} taken from {HOST}:{process.pid}\n")
        assert process.wait(15) == 75
    again = shell.run("release", shell.name, "--force")
    assert (again.returncode, again.stderr) == (
        1,
        f"dsync release: lock {shell.name!r} is held by nobody\n",
    )


def test_of_several_kinds_or_holders_release_wants_one(
    say: Any, shell: Shell, with_client: Any, namespace: str
) -> None:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return shell.run("release", "x", "--force", "--namespace", namespace, *words)

    async def held(client: dsync.Client) -> None:
        slots = client.semaphore("x", 2)
        async with client.lock("x"):
            pass
        await slots.acquire()
        await slots.acquire()
        both = await asyncio.to_thread(run)
        assert both.returncode == 1
        assert "'x' is a lock and a semaphore: choose one with --kind" in both.stderr
        several = await asyncio.to_thread(run, "--kind", "semaphore")
        assert several.returncode == 2
        assert "choose with --holder, or --all" in several.stderr
        nobody = await asyncio.to_thread(run, "--kind", "semaphore", "--holder", "h:1")
        assert "is not held by h:1; it is by " in nobody.stderr
        done = await asyncio.to_thread(run, "--kind", "semaphore", "--all", "--json")
        assert [json.loads(line)["held"] for line in done.stdout.splitlines()] == [True, True]
        assert (await slots.info()).held == 0
        for _ in range(2):
            with pytest.raises(dsync.LeaseLost):
                slots.release()

    with_client(held)


def test_resize_sets_and_pins_the_value(say: Any, with_client: Any) -> None:
    assert "3 permits, pinned (nobody has used it yet)" in say("resize", "slots", "3")[1]
    _, text, _ = say("resize", "slots", "0", "--json")
    assert json.loads(text) == {"name": "slots", "value": 0, "before": 3, "pinned": True}

    async def info(client: dsync.Client) -> tuple[int, bool]:
        known = await client.semaphore("slots", 9).info()
        return known.value, known.pinned

    assert with_client(info) == (0, True)
    known = json.loads(say("info", "slots", "--json")[1])
    assert (known["value"], known["pinned"]) == (0, True)


def test_bench_measures_and_leaves_nothing_held(say: Any) -> None:
    code, text, error = say("bench", "--seconds", "0.05", "--json")
    assert (code, error) == (0, "")
    assert all(value > 0 for value in json.loads(text).values())
    rows = [json.loads(line) for line in say("ls", "--json")[1].splitlines()]
    assert rows
    assert not any(row["held"] or row["waiting"] for row in rows)


def test_doctor_tells_what_it_finds_and_fails_where_something_is_wrong(
    say: Any,
) -> None:
    code, text, error = say("doctor", "--json")
    findings = [json.loads(line) for line in text.splitlines()]
    assert all(finding["what"] and finding["severity"] for finding in findings)
    assert (code, error) == (int(any(f["severity"] != "info" for f in findings)), "")
    with Server.start(
        extra_args=("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    ) as bad:
        assert main(["doctor", "--url", bad.url]) == 1


# -- what they share ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "code", "complaint"),
    [
        ("redis://127.0.0.1:1", 69, "Redis at 127.0.0.1:1 could not be asked"),
        ("gopher://x", 2, "unknown scheme 'gopher'"),
        ("memory://", 2, "processes cannot share memory://"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_in_one_line(
    url: str, code: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "--url", url, "--patience", "0.3"]) == code
    error = capsys.readouterr().err
    assert error.startswith("dsync ls: ")
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_command_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"dsync {command}" in capsys.readouterr().out.partition("examples:")[2]


def test_starting_loads_neither_the_client_library_nor_much_else() -> None:
    source = """
import sys
from dsync.cli import parser
import dsync
before = set(sys.modules)
parser()
print(sorted({"redis", "rich", "hiredis", "shtab", "ctypes"} & set(sys.modules)))
print(len([name for name in set(sys.modules) - before if not name.startswith("dsync.cli")]))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    loaded, others = done.stdout.splitlines()
    assert loaded == "[]"
    assert int(others) <= 12


def test_completion_is_printed_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in script for command in COMMANDS)


def test_what_is_served_from_a_directory_is_there_again(shell: Shell) -> None:
    words = ("serve", "--persist", "data")
    shell.environ.pop("DSYNC_URL")
    for turn in range(2):
        with shell.start(*words) as process:
            assert process.stdout
            url = process.stdout.readline().strip()
            if turn == 0:
                assert shell.run("event", "set", "kept", "--url", url).returncode == 0
                second = shell.run(*words)
                assert second.returncode == 1
                assert "another dsync serve keeps its data in data" in second.stderr
            else:
                assert shell.run("event", "status", "kept", "--url", url).returncode == 0
            process.terminate()
            assert process.wait(15) == 0
            assert not os.path.exists(url.removeprefix("unix://"))
