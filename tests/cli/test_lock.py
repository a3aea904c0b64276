"""`dsync lock` on real processes: what the command gets, and that it ends before another begins."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import dsync
from dsync.server import Server
from tests.cli.conftest import Shell, runs, until

LEASE = "2"
# Ignores SIGTERM, has a child that does, too, and both say every 10 ms that they live.
STUBBORN = """
trap '' TERM
beat() { while :; do date +%s.%N >> beats; sleep 0.01; done; }
echo $$ > pid
beat & beat
"""


def members(group: int) -> list[str]:
    """The processes of a group that run."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True)
    rows = [row.split(None, 2) for row in listed.stdout.splitlines()]
    return [row[2] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


# -- what the command gets, and gives -------------------------------------------------------------


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -KILL $$", 137)])
def test_the_exit_code_of_the_command_is_passed_on(shell: Shell, script: str, code: int) -> None:
    done = shell.run("lock", shell.name, "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (code, "")


def test_the_command_is_told_name_url_and_a_fence_that_grows(shell: Shell) -> None:
    fences = []
    for _ in range(2):
        script = 'echo "$DSYNC_NAME|$DSYNC_URL|$DSYNC_FENCE"'
        name, url, fence = shell.run("lock", shell.name, "--", "sh", "-c", script).stdout.split("|")
        assert (name, url) == (shell.name, shell.url)
        fences.append(int(fence))
    assert fences[0] < fences[1]


def test_a_slot_comes_without_a_fence_even_inside_a_lock(shell: Shell) -> None:
    shell.environ["DSYNC_FENCE"] = "7"
    done = shell.run(
        "lock", shell.name, "--slots", "2", "--", "sh", "-c", "echo ${DSYNC_FENCE-none}"
    )
    assert done.stdout == "none\n"


def test_it_stands_in_a_pipeline(shell: Shell) -> None:
    done = shell.bash(
        f"set -o pipefail; printf 'b\\na\\n' | {shell.dsync} lock '{shell.name}' -- sort | tr ab AB"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("A\nB\n", "", 0)


def test_a_pipeline_ends_when_the_command_does_and_not_when_a_guard_does(shell: Shell) -> None:
    begun = time.monotonic()
    done = shell.bash(f"{shell.dsync} lock '{shell.name}' --verbose -- yes 2>log | head -1")
    assert (done.stdout, done.returncode) == ("y\n", 0)
    assert "COMMAND ended by signal 13" in shell.read("log")  # SIGPIPE, as without us
    assert time.monotonic() - begun < 15


def test_what_the_command_leaves_running_goes_on_and_no_guard_stays(shell: Shell) -> None:
    script = "sleep 30 >/dev/null 2>&1 & echo $!"
    done = shell.run("lock", shell.name, "--", "sh", "-c", script)
    pid = int(done.stdout)
    try:
        assert members(os.getpgid(pid)) == ["sleep 30"]
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("command", "code"), [("no-such-thing", 127), ("./broken", 126)])
def test_what_cannot_be_run_is_named(shell: Shell, command: str, code: int) -> None:
    broken = Path(shell.directory) / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    if code == 126:
        broken.write_bytes(b"\x7fELF, but no more")
    done = shell.run("lock", shell.name, "--", command)
    assert done.returncode == code
    assert done.stderr.startswith("dsync lock: ")
    assert repr(command) in done.stderr
    assert done.stderr.count("\n") == 1


# -- who gets it ----------------------------------------------------------------------------------


async def test_it_is_the_lock_that_programs_know(shell: Shell) -> None:
    async with dsync.connect(shell.url) as client, client.lock(shell.name):
        done = shell.run("lock", shell.name, "-n", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"lock {shell.name!r} is held by {client.label} on " in done.stderr
        assert f"pid {os.getpid()}, for " in done.stderr
        begun = time.monotonic()
        assert shell.run("lock", shell.name, "--timeout", "0.2", "--", "true").returncode == 1
        assert time.monotonic() - begun >= 0.2
    assert shell.run("lock", shell.name, "-n", "--", "true").returncode == 0


async def test_so_many_have_slots_and_no_more(shell: Shell) -> None:
    async with dsync.connect(shell.url) as client:
        slots = client.semaphore(shell.name, 2)
        async with slots:
            assert shell.run("lock", shell.name, "--slots", "2", "-n", "--", "true").returncode == 0
            async with slots:
                done = shell.run("lock", shell.name, "--slots", "2", "-n", "--", "true")
    assert done.returncode == 1
    assert "has none of its 2 slots free" in done.stderr


def test_one_in_a_period_runs_whoever_comes(shell: Shell) -> None:
    often = ("lock", shell.name, "--every", "60")
    assert shell.run(*often, "--", "echo", "first").stdout == "first\n"
    second = shell.run(*often, "-E", "0", "--", "echo", "second")
    assert (second.stdout, second.returncode) == ("", 0)
    assert "one has begun less than 60 s ago" in second.stderr
    third = shell.run(*often, "--timeout", "0.1", "--", "echo", "third")
    assert (third.stdout, third.returncode) == ("", 1)


async def test_who_is_asked_to_end_while_it_waits_leaves_the_queue_at_once(shell: Shell) -> None:
    async with dsync.connect(shell.url) as client, client.lock(shell.name) as held:
        with shell.start("lock", shell.name, "--", "true") as process:
            while not (await client.lock(shell.name).info()).waiters:
                assert process.poll() is None
            process.terminate()
            assert process.wait(15) == 143
        assert (await client.lock(shell.name).info()).waiters == ()
        assert held.held


# -- signals --------------------------------------------------------------------------------------


def test_signals_are_for_the_command(shell: Shell) -> None:
    heard = ("HUP", "INT", "USR1", "TERM")
    traps = "".join(f"trap 'echo {name} > {name}' {name}\n" for name in heard)
    script = traps + "echo > ready; while [ ! -e TERM ]; do sleep 0.01; done; exit 3"

    def hear() -> None:  # also where these tests run under nohup, or in the background
        for name in heard:
            signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_DFL)

    words = ("lock", shell.name, "--", "sh", "-c", script)
    with shell.start(*words, preexec_fn=hear) as process:
        shell.read("ready")
        for name in heard:
            process.send_signal(signal.Signals[f"SIG{name}"])
            shell.read(name)
        _, error = process.communicate(timeout=15)
    assert process.returncode == 3
    assert "dsync" not in error  # a shell may tell that its sleep was interrupted


def test_what_is_ignored_stays_ignored(shell: Shell) -> None:
    script = "echo > ready; while [ ! -e go ]; do sleep 0.01; done; echo done"
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with shell.start("lock", shell.name, "--", "sh", "-c", script, **ignoring) as process:
        shell.read("ready")
        process.send_signal(signal.SIGHUP)
        (shell.directory / "go").touch()
        assert process.communicate(timeout=15)[0] == "done\n"
    assert process.returncode == 0


# -- losing it ------------------------------------------------------------------------------------


def begin_after(shell: Shell) -> float:
    """Wait for the lock, and say when the command under it began."""
    done = shell.run("lock", shell.name, "--timeout", "20", "--", "date", "+%s.%N")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def last_beat(shell: Shell) -> float:
    return max(map(float, shell.read("beats").split()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_when_dsync_is_killed_or_stopped_the_command_is_dead_before_the_next_begins(
    shell: Shell, number: int
) -> None:
    with shell.start("lock", shell.name, "--lease", LEASE, "--", "sh", "-c", STUBBORN) as process:
        group = os.getpgid(int(shell.read("pid")))
        assert len(members(group)) >= 3
        process.send_signal(number)
        begun = begin_after(shell)
        until("all of its group are gone", lambda: not members(group))
        assert last_beat(shell) < begun
        if number == signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
            _, error = process.communicate(timeout=15)
            assert process.returncode == 75
            assert f"lock {shell.name!r} was lost" in error
            assert error.count("\n") == 1


def test_when_dsync_is_killed_the_command_may_tidy_up(shell: Shell) -> None:
    script = "trap 'echo > tidied; exit' TERM; echo > ready; while :; do sleep 0.01; done"
    with shell.start("lock", shell.name, "--lease", "5", "--", "sh", "-c", script) as process:
        shell.read("ready")
        process.kill()
        shell.read("tidied")


async def test_when_it_is_taken_away_the_command_is_ended(shell: Shell) -> None:
    script = "trap 'echo tidied; exit 0' TERM; echo > ready; while :; do sleep 0.01; done"
    with shell.start("lock", shell.name, "--", "sh", "-c", script) as process:
        shell.read("ready")
        async with dsync.connect(shell.url) as client:
            assert await client.lock(shell.name).force_release()
        output, error = process.communicate(timeout=15)
    assert (output, process.returncode) == ("tidied\n", 75)
    says = f"dsync lock: lock {shell.name!r} was lost: it was released by force (held for "
    assert error.startswith(says)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_without_its_guard_dsync_itself_ends_a_command_that_ignores_it(
    shell: Shell, number: int
) -> None:
    words = ("lock", shell.name, "--kill-after", "0.1", "--", "sh", "-c", STUBBORN)
    with shell.start(*words) as process:
        group = os.getpgid(int(shell.read("pid")))
        os.kill(group, number)  # the guard leads the group
        until("the guard is gone or stands", lambda: number == signal.SIGSTOP or not runs(group))
        async with dsync.connect(shell.url) as client:
            assert await client.lock(shell.name).force_release()
        _, error = process.communicate(timeout=15)
        assert process.returncode == 75, error
        assert "does not end" not in error
        until("all of its group are gone", lambda: not members(group))
    assert ("the guard process was killed" in error) == (number == signal.SIGKILL)


def test_when_there_is_no_server_any_more_the_command_ends_with_the_lease(shell: Shell) -> None:
    with Server.start() as server:
        shell.environ["DSYNC_URL"] = server.url
        words = ("lock", shell.name, "--lease", LEASE, "--", "sh", "-c", STUBBORN)
        with shell.start(*words) as process:
            group = os.getpgid(int(shell.read("pid")))
            time_of_death = time.time()
            server.stop()
            _, error = process.communicate(timeout=15)
            assert process.returncode == 75
            assert f"lock {shell.name!r} was lost" in error
            assert last_beat(shell) < time_of_death + float(LEASE)
            assert not members(group)


def test_a_long_grace_makes_sigterm_come_earlier_and_sigkill_not_later(shell: Shell) -> None:
    script = (
        "trap 'date +%s.%N > asked' TERM; echo $$ > pid;"
        "while :; do date +%s.%N >> beats; sleep 0.01; done"
    )
    words = ("lock", shell.name, "--lease", "2", "--kill-after", "0.8", "--", "sh", "-c", script)
    with shell.start(*words) as process:
        shell.read("pid")
        process.send_signal(signal.SIGSTOP)
        begun = begin_after(shell)
        grace = last_beat(shell) - float(shell.read("asked"))
        assert last_beat(shell) < begun
        assert 0.5 < grace < 1.5


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["x"], "what is to run? dsync lock x -- COMMAND ..."),
        (["x", "--"], "what is to run?"),
        (["", "--", "true"], "name must not be empty"),
        (["x", "--lease", "0.5", "--", "true"], "--lease: must be from 1 to 259200 seconds, got"),
        (["x", "--timeout", "-1", "--", "true"], "must be a number of seconds, 0 or more, got"),
        (["x", "--timeout", "1", "-n", "--", "true"], "--no-wait does not go with --timeout"),
        (["x", "--slots", "0", "--", "true"], "--slots: must be a whole number from 1 to"),
        (["x", "--slots", "2", "--every", "1", "--", "true"], "does not go with --slots"),
        (["x", "--kill-after", "16", "--", "true"], "at most half of the lease of 30 s, got 16"),
        (["x", "-E", "256", "--", "true"], "-E: must be a whole number from 0 to 255, got '256'"),
    ],
)
def test_arguments_that_cannot_be_used_are_named_with_the_value(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dsync.cli import main

    try:
        code = main(["lock", *words])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    assert complaint in capsys.readouterr().err
