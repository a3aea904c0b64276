"""`dsync demo` keeps its promises on real processes, and its verdict notices when one is broken."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dsync
from dsync.demo.__main__ import main as demo_module
from dsync.demo.items import Queue, Stale
from dsync.demo.upstream import Upstream, call
from dsync.lease import Lease

ROOT = Path(__file__).parent.parent

# -- real runs ------------------------------------------------------------------------------------


def demo(*args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dsync", "demo", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40)


@contextlib.contextmanager
def started(*args: str) -> "Iterator[tuple[subprocess.Popen[str], Path]]":
    """A demo under way, and the directory where it makes its temporary files."""
    with (
        tempfile.TemporaryDirectory(prefix="d-") as directory,
        subprocess.Popen(
            [sys.executable, "-m", "dsync", "demo", "--plain", *args],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": directory},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            yield process, Path(directory)
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"it ended and never said {words!r}")


def pids_of_workers(directory: Path) -> set[int]:
    journals = directory.glob("dsync-demo-*/*.jsonl")
    lines = [line for path in journals for line in path.read_text().splitlines()]
    return {json.loads(line)["pid"] for line in lines if '"ready"' in line}


def runs(pid: int) -> bool:
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def all_gone(pids: set[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def figures(output: str, promise: str) -> list[float]:
    """The numbers of that line of the summary, behind the promise."""
    line = next(line for line in output.splitlines() if promise in line)
    assert line.startswith("ok "), line
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line.partition(promise)[2])]


def test_a_run_keeps_every_promise():
    run = demo("--plain", "--seconds", "6", "--workers", "4")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    said = run.stdout
    woken, waited, _, early = figures(said, "none before")
    assert (woken, waited, early) == (4, 4, 0)
    holds, overlaps = figures(said, "one holder at a time")
    assert (holds > 50, overlaps) == (True, 0)
    assert figures(said, "a greater fence") == [holds, 0]
    updates, total = figures(said, "ledger is lost")
    assert holds - 2 <= updates == total  # all but the killed and the overslept one
    assert figures(said, "slots are taken")[0] == 3
    assert figures(said, "calls upstream at once")[0] == 4
    put, done, left, lost, *_ = figures(said, "loses nothing")
    assert (done > 50, lost, 0 <= put - done - left <= 1) == (True, 0, True)
    told, not_heard, out_of_order = figures(said, "heard in order")
    assert (told > 50, not_heard, out_of_order) == (True, 0, 0)
    wake_ups, without = figures(said, "wakes with the lock")
    assert (wake_ups > 10, without) == (True, 0)
    waited, victim, heir, lease = figures(said, "lock passes on in 2 s")
    assert victim != heir
    assert waited <= lease + 0.5
    assert figures(said, "does not write on")[0] > lease
    assert figures(said, "no more than 3 commands")[0] < 3
    assert figures(said, "in good order") == [5, 1]


def test_ctrl_c_ends_everything_and_still_prints_the_summary():
    with started("--seconds", "60") as (process, directory):
        read_until(process, "2.0 s")
        until = time.monotonic() + 20
        while len(workers := pids_of_workers(directory)) < 4:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=15)
        assert process.returncode == 130, output
        assert figures(output, "one holder at a time")[1] == 0
        assert "NOT SEEN" in output
        assert "Traceback" not in output
        assert not any(map(runs, workers))
        assert list(directory.iterdir()) == []


def test_workers_end_when_the_demo_is_killed_even_one_that_stands_still():
    with started("--seconds", "5") as (process, directory):
        read_until(process, "is stopped (SIGSTOP)")
        until = time.monotonic() + 5
        while len(workers := pids_of_workers(directory)) < 5:  # the killed one's successor, too
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
        assert all_gone(workers, within=10)


def test_a_worker_at_the_gate_ends_when_the_demo_is_gone(server_url: str, tmp_path: Path):
    command = [sys.executable, "-m", "dsync.demo", "worker", "1", str(tmp_path), tmp_path.name]
    environ = os.environ | {"DSYNC_URL": server_url}
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.PIPE) as worker:
        try:
            journal = tmp_path / "1.jsonl"
            until = time.monotonic() + 10
            while not (journal.exists() and journal.read_text()):
                assert time.monotonic() < until
                time.sleep(0.01)
            assert worker.stdin
            worker.stdin.close()
            assert worker.wait(10) == 0
            assert '"through"' not in journal.read_text()
        finally:
            worker.kill()


def test_an_unreachable_server_is_named_and_exits_with_69():
    begun = time.monotonic()
    run = demo("--url", "redis://127.0.0.1:1")
    assert time.monotonic() - begun < 15
    assert run.returncode == 69
    assert run.stdout == ""
    assert "127.0.0.1:1" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--workers", "0"], "--workers: must be a whole number from 1"),
        (["--workers", "many"], "got 'many'"),
        (["--seconds", "4"], "--seconds: must be a number from 5"),
        (["--seconds", "nan"], "got 'nan'"),
        (["--url", "gopher://here"], "gopher"),
        (["--url", "memory://"], "processes cannot share memory://"),
    ],
)
def test_arguments_that_cannot_be_used_exit_with_2(args: list[str], complaint: str):
    run = demo(*args)
    assert run.returncode == 2
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr


# -- the verdict, on evidence made up --------------------------------------------------------------


class Evidence:
    """Journals of a run that never was: every promise kept, until a test says otherwise.

    Worker 1 is killed at 3.0 over its hold of the ledger, and worker 2 follows at 4.4.  Worker 2 is
    stopped from 6.0 to 8.0 over its second hold, and worker 3 follows at 7.5.  Worker 1 is killed
    with an item of the queue in its hands.
    """

    def __init__(self) -> None:
        self.total = 3
        self.journals: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: [], 3: []}
        self.queue: list[tuple[int, int, str, str]] = []  # fence, worker, what it did, item
        self.note(0, 0.0, "set up", workers=2, lease=1.5, slots=3, cap=4, size=2, own=True)
        for number, at in ((1, 0.4), (2, 0.5), (3, 3.5)):
            self.note(number, at, "ready", pid=100 + number)
            self.note(number, max(at, 0.7), "through")
        self.note(0, 0.6, "opened")
        self.ledger(1, 1, 1.0, 1.5, fence=10, read=0)
        self.note(1, 2.0, "entered", "ledger", 2, fence=20)
        self.note(0, 3.0, "killed", whom=1, pid=101)
        self.note(0, 3.1, "ended", whom=1, code=-9, words="")
        self.ledger(2, 1, 4.4, 4.9, fence=30, read=1)
        self.note(2, 5.0, "entered", "ledger", 2, fence=40)
        self.note(0, 6.0, "stopped", whom=2, pid=102)
        self.ledger(3, 1, 7.5, 7.8, fence=50, read=2)
        self.note(0, 8.0, "continued", whom=2)
        self.note(2, 8.1, "lost", "ledger", 2)
        for number in (1, 2, 3):
            self.slot(3, 10 + number, 1.0, 2.0)
        self.turn(1, 21, 1.0, 100, "put", "1.1")
        self.turn(2, 21, 1.2, 110, "take", "1.1", woken=True)
        self.note(2, 1.3, "done", "queue", item="1.1")
        self.turn(1, 22, 1.4, 120, "put", "1.2")
        self.turn(1, 23, 1.6, 130, "take", "1.2")
        self.turn(3, 21, 5.0, 140, "put", "3.1")
        self.note(0, 9.0, "ended", whom=2, code=0, words="")
        self.note(0, 9.0, "ended", whom=3, code=0, words="")
        self.note(0, 9.1, "summed up", most=4, calls=7, commands=26)

    def note(
        self, by: int, at: float, what: str, of: str = "", hold: int = 0, **more: Any
    ) -> dict[str, Any]:
        entry = {"at": at, "worker": by, "what": what, "of": of, "hold": hold} | more
        self.journals[by].append(entry)
        return entry

    def ledger(self, by: int, hold: int, since: float, until: float, fence: int, read: int) -> None:
        self.note(by, since, "entered", "ledger", hold, fence=fence)
        self.note(by, until - 0.02, "writing", "ledger", hold, read=read, total=read + 1)
        self.note(by, until - 0.01, "written", "ledger", hold)
        self.note(by, until, "left", "ledger", hold)
        self.note(0, until + 0.001, "heard", whom=by, fence=fence)
        self.note(by, until + 0.002, "told", "ledger", hold)

    def slot(self, by: int, hold: int, since: float, until: float) -> None:
        self.note(by, since, "entered", "slots", hold)
        self.note(by, until, "left", "slots", hold)

    def turn(
        self, by: int, hold: int, at: float, fence: int, verb: str, item: str, woken: bool = False
    ) -> None:
        """With the queue."""
        self.note(by, at, "entered", "queue", hold, fence=fence, woken=woken)
        self.note(by, at + 0.01, "left", "queue", hold)
        self.queue.append((fence, by, verb, item))

    def find(self, by: int, what: str, hold: int = 0) -> dict[str, Any]:
        return next(e for e in self.journals[by] if (e["what"], e["hold"]) == (what, hold))

    def heard(self, of: int) -> list[dict[str, Any]]:
        """The news of this worker that were heard."""
        return [e for e in self.journals[0] if e["what"] == "heard" and e["whom"] == of]

    def drop(self, by: int, what: str, hold: int = 0) -> None:
        self.journals[by].remove(self.find(by, what, hold))

    def judged(self, directory: Path) -> int:
        for number, entries in self.journals.items():
            lines = "".join(json.dumps(entry) + "\n" for entry in entries)
            (directory / f"{number}.jsonl").write_text(lines)
        (directory / "ledger").write_text(f"{self.total}\n")
        lines = "".join(json.dumps(line) + "\n" for line in sorted(self.queue))
        (directory / "queue").write_text(lines)
        return demo_module(["verify", str(directory)])


def one_begins_before_the_gate_opens(e: Evidence) -> None:
    e.find(1, "through")["at"] = 0.59


def one_is_not_woken(e: Evidence) -> None:
    e.drop(2, "through")


def an_item_is_lost(e: Evidence) -> None:
    e.drop(2, "done")


def an_item_is_done_twice(e: Evidence) -> None:
    e.note(3, 5.5, "done", "queue", item="1.1")


def the_killed_one_takes_two_items_along(e: Evidence) -> None:
    e.turn(1, 24, 2.0, 131, "put", "1.3")
    e.turn(1, 25, 2.1, 132, "take", "1.3")


def the_queue_overflows(e: Evidence) -> None:
    e.turn(3, 22, 5.1, 150, "put", "3.2")
    e.turn(3, 23, 5.2, 160, "put", "3.3")


def one_wakes_while_another_holds(e: Evidence) -> None:
    e.find(2, "entered", 21)["at"] = 1.009


def one_wakes_with_the_fence_of_another(e: Evidence) -> None:
    e.find(2, "entered", 21)["fence"] = 100


def news_are_not_heard(e: Evidence) -> None:
    e.journals[0].remove(e.heard(of=2)[0])


def more_news_are_not_heard_than_missed(e: Evidence) -> None:
    for number in (1, 2):
        e.journals[0].remove(e.heard(of=number)[0])
    e.note(0, 4.0, "missed", count=1)


def news_are_heard_twice(e: Evidence) -> None:
    e.note(0, 5.0, "heard", whom=2, fence=30)


def news_overtake_each_other(e: Evidence) -> None:
    e.ledger(2, 30, 5.1, 5.2, fence=41, read=2)
    e.total = 4
    e.find(3, "writing", 1).update(read=3, total=4)
    first, second = e.heard(of=2)
    first["at"], second["at"] = second["at"], first["at"]


def two_hold_at_once(e: Evidence) -> None:
    e.find(1, "left", 1)["at"] = 2.01


def the_killed_one_is_followed_too_early(e: Evidence) -> None:
    e.find(2, "entered", 1)["at"] = 2.9


def a_fence_goes_back(e: Evidence) -> None:
    e.find(2, "entered", 1)["fence"] = 19


def a_fence_comes_twice(e: Evidence) -> None:
    e.find(2, "entered", 1)["fence"] = 20


def an_update_is_lost(e: Evidence) -> None:
    e.total = 2


def a_fourth_is_in_a_slot(e: Evidence) -> None:
    e.slot(2, 20, 1.9, 2.5)


def upstream_counts_a_fifth(e: Evidence) -> None:
    e.find(0, "summed up")["most"] = 5


def the_hand_over_is_late(e: Evidence) -> None:
    e.find(2, "entered", 1)["at"] = 5.01
    e.find(2, "entered", 2)["at"] = 5.05


def nobody_follows_the_dead(e: Evidence) -> None:
    e.journals[2] = e.journals[3] = []


def who_overslept_writes_on(e: Evidence) -> None:
    e.note(2, 8.05, "writing", "ledger", 2, read=2, total=3)


def who_overslept_is_not_told(e: Evidence) -> None:
    e.find(2, "lost", 2)["what"] = "left"


def holds_cost_too_much(e: Evidence) -> None:
    e.find(0, "summed up")["commands"] = 40


def a_worker_fails(e: Evidence) -> None:
    e.note(3, 8.9, "failed", why="StoreUnavailable: gone")
    e.journals[0][-2]["code"] = 1


def a_worker_had_to_be_killed(e: Evidence) -> None:
    e.journals[0][-2]["code"] = -9


BREACHES: list[tuple[Callable[[Evidence], None], str]] = [
    (one_begins_before_the_gate_opens, "none before"),
    (one_is_not_woken, "none before"),
    (an_item_is_lost, "loses nothing"),
    (an_item_is_done_twice, "loses nothing"),
    (the_killed_one_takes_two_items_along, "loses nothing"),
    (the_queue_overflows, "loses nothing"),
    (one_wakes_while_another_holds, "wakes with the lock"),
    (one_wakes_with_the_fence_of_another, "wakes with the lock"),
    (news_are_not_heard, "heard in order"),
    (more_news_are_not_heard_than_missed, "heard in order"),
    (news_are_heard_twice, "heard in order"),
    (news_overtake_each_other, "heard in order"),
    (two_hold_at_once, "one holder at a time"),
    (the_killed_one_is_followed_too_early, "one holder at a time"),
    (a_fence_goes_back, "a greater fence"),
    (a_fence_comes_twice, "a greater fence"),
    (an_update_is_lost, "ledger is lost"),
    (a_fourth_is_in_a_slot, "slots are taken"),
    (upstream_counts_a_fifth, "calls upstream at once"),
    (the_hand_over_is_late, "lock passes on in 2 s"),
    (nobody_follows_the_dead, "lock passes on in 2 s"),
    (who_overslept_writes_on, "does not write on"),
    (who_overslept_is_not_told, "does not write on"),
    (holds_cost_too_much, "no more than 3 commands"),
    (a_worker_fails, "in good order"),
    (a_worker_had_to_be_killed, "in good order"),
]


def test_the_verdict_on_a_faultless_run_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert Evidence().judged(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert all(line.startswith("ok ") for line in lines)


@pytest.mark.parametrize(("breach", "promise"), BREACHES)
def test_the_verdict_notices_when(
    breach: Callable[[Evidence], None],
    promise: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    evidence = Evidence()
    breach(evidence)
    assert evidence.judged(tmp_path) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if promise in line)
    assert line.startswith("BROKEN"), line


def test_a_run_in_which_nothing_happened_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert demo_module(["verify", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("NOT SEEN") for line in lines), lines


@pytest.mark.parametrize("missing", ["killed", "stopped"])
def test_a_run_without_the_kill_or_the_stop_proves_too_little(missing: str, tmp_path: Path):
    evidence = Evidence()
    evidence.drop(0, missing)
    assert evidence.judged(tmp_path) == 1


@pytest.mark.parametrize("missed", [1, 5, None])
def test_news_that_were_reported_as_missed_need_not_be_heard(missed: int | None, tmp_path: Path):
    evidence = Evidence()
    news_are_not_heard(evidence)
    evidence.note(0, 5.0, "missed", count=missed)
    assert evidence.judged(tmp_path) == 0


def test_news_whose_confirmation_a_kill_cut_off_may_be_heard(tmp_path: Path):
    evidence = Evidence()
    evidence.note(0, 3.05, "heard", whom=1, fence=20)
    assert evidence.judged(tmp_path) == 0


@pytest.mark.parametrize(("total", "code"), [(3, 1), (4, 0)])
def test_an_update_that_a_kill_cut_short_counts_if_others_saw_it(
    total: int, code: int, tmp_path: Path
):
    evidence = Evidence()
    evidence.note(1, 2.5, "writing", "ledger", 2, read=1, total=2)
    evidence.find(2, "writing", 1).update(read=2, total=3)
    evidence.find(3, "writing", 1).update(read=3, total=4)
    evidence.total = total
    assert evidence.judged(tmp_path) == code


def test_a_line_of_the_queue_with_an_older_fence_does_not_count(tmp_path: Path):
    queue = Queue(tmp_path / "queue")
    overslept = Queue(tmp_path / "queue")
    queue.put("a", 1, fence=10)
    assert len(overslept) == 1
    queue.put("b", 1, fence=20)
    with pytest.raises(Stale, match="the fence 10 is older than 20"):
        overslept.take(2, fence=10)
    assert (len(queue), list(queue.items), queue.taken_by) == (2, ["a", "b"], {})
    assert queue.take(1, fence=20) == "a"
    with pytest.raises(Stale):
        overslept.put("c", 2, fence=10)
    assert (len(overslept), queue.most) == (1, 2)
    queue.close()
    overslept.close()


def test_commands_of_others_on_a_server_of_ones_own_are_not_held_against_us(tmp_path: Path):
    evidence = Evidence()
    evidence.find(0, "set up")["own"] = False
    evidence.find(0, "summed up")["commands"] = 1000
    assert evidence.judged(tmp_path) == 0


def test_a_line_that_a_kill_cut_short_was_never_written(tmp_path: Path):
    evidence = Evidence()
    assert evidence.judged(tmp_path) == 0
    with (tmp_path / "1.jsonl").open("a") as journal:
        journal.write('{"at": 2.99, "worker": 1, "what": "le')
    assert demo_module(["verify", str(tmp_path)]) == 0


async def test_who_was_stopped_while_it_connected_does_not_ask_when_its_permit_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    permit = Lease("a permit", None, None)
    connect = asyncio.open_unix_connection

    async def stopped(path: Path) -> Any:
        connected = await connect(path)
        permit.released = True
        permit.lose("its lease ran out")
        return connected

    monkeypatch.setattr(asyncio, "open_unix_connection", stopped)
    async with Upstream(tmp_path / "upstream") as upstream:
        with pytest.raises(dsync.LeaseLost):
            await call(upstream.path, permit)
        monkeypatch.undo()
        await call(upstream.path, Lease("another", None, None))
        assert upstream.calls == 1
