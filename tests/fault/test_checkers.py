"""The checkers can fail: each rejects a history that is wrong, and what is broken on purpose."""

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsync.testing import (
    Event,
    History,
    Violation,
    admissions,
    deliveries,
    failures,
    fences,
    generations,
    harms,
    losses,
    overlaps,
    pulses,
    sightings,
    stale_writes,
    stranded,
    wake_ups,
)

ROOT = Path(__file__).parents[2]
Check = Callable[[list[Event]], list[Violation]]


def story(text: str) -> list[Event]:
    """One event a line: `t pid what key=value ...`; the values are JSON."""
    events = []
    for line in text.strip().splitlines():
        t, pid, what, *more = line.split()
        pairs = (item.partition("=") for item in more)
        details = {key: json.loads(value) for key, _, value in pairs}
        events.append({"what": what, "t": float(t), "pid": int(pid), **details})
    return events


# -- by hand: (checker, a history that is right, one that is wrong) --------------------------------

HELD = """
    1.0 1 held fence=10
    2.0 1 step fence=10
    3.0 1 leaving
    3.0 2 held fence=11
    4.0 2 leaving
"""
EXAMPLES: dict[str, tuple[Check, str, str]] = {
    "two hold a lock": (overlaps, HELD, HELD.replace("3.0 2 held", "2.9 2 held")),
    "three hold two permits": (
        lambda events: overlaps(events, 2),
        "1 1 held\n 2 2 held\n 3 1 leaving\n 3 3 held",
        "1 1 held\n 2 2 held\n 4 1 leaving\n 3 3 held",
    ),
    "two hold for longer than is allowed": (
        lambda events: overlaps(events, allowed=0.5),
        "1 1 held\n 2 2 held\n 2.4 1 told",
        "1 1 held\n 2 2 held\n 2.6 1 told",
    ),
    "a lost hold goes on": (
        overlaps,
        "1 1 held\n 2 1 told\n 2.1 2 held\n 2.2 1 lost",
        "1 1 held\n 2 1 told\n 2.1 2 held\n 2.15 1 step\n 2.2 1 lost",
    ),
    "a stopped holder works on": (
        overlaps,
        "1 1 held\n 2 9 stopped whom=1\n 3 2 held\n 4 9 continued whom=1\n 5 1 told",
        "1 1 held\n 2 9 stopped whom=1\n 3 2 held\n 4 9 continued whom=1\n 4.5 1 step\n 5 1 told",
    ),
    "a killed holder is another": (
        overlaps,
        "1 1 held\n 2 9 killed whom=1\n 3 2 held",
        "1 1 held\n 2 9 killed whom=4\n 3 2 held",
    ),
    "fences stay": (fences, HELD, HELD.replace("fence=11", "fence=10")),
    "fences cross where the server has forgotten, and nowhere else": (
        lambda events: fences(events, allowed=1.0),
        "1 9 harm\n 1 9 over\n 1.5 1 held fence=7\n 1.6 2 held fence=6",
        "1 9 harm\n 1 9 over\n 2.1 1 held fence=7\n 2.2 2 held fence=6",
    ),
    "writes cross where the server has forgotten, and the store refuses what is older": (
        lambda events: stale_writes(events, allowed=1.0),
        "1 9 harm\n 1 9 over\n 1.5 1 held fence=7\n 1.6 2 held fence=6\n 1.7 1 step fence=7",
        "1 9 harm\n 1 9 over\n 2.1 1 held fence=7\n 2.2 2 held fence=6\n 2.3 1 step fence=7",
    ),
    "a stale write passes": (
        stale_writes,
        "1 1 held fence=5\n 2 2 held fence=6\n 3 1 step fence=5\n 4 2 step fence=6",
        "1 1 held fence=5\n 2 2 held fence=5\n 3 1 step fence=5\n 4 2 step fence=5",
    ),
    "the rightful write is refused": (
        stale_writes,
        "1 1 held fence=5\n 2 1 leaving\n 3 2 held fence=6",
        "1 1 held fence=5\n 2 1 leaving\n 3 2 held fence=4",
    ),
    "a loss for nothing": (
        losses,
        "1 1 held\n 2 9 stopped whom=1\n 3 1 lost",
        "1 1 held\n 2 9 stopped whom=2\n 3 1 lost",
    ),
    "an error": (failures, "1 1 held", "1 1 failed"),
    "an exit code": (failures, "1 9 ended whom=1 code=0", "1 9 ended whom=1 code=1"),
    "an exit code of one not killed": (
        failures,
        "1 9 killed whom=1\n 2 9 ended whom=1 code=-9",
        "1 9 killed whom=2\n 2 9 ended whom=1 code=-9",
    ),
    "one waits for what is free": (
        lambda events: stranded(events, lease=1.0, within=2.0),
        "1 1 held\n 1 2 waiting\n 5 1 leaving\n 6.9 2 held\n 9 2 leaving",
        "1 1 held\n 1 2 waiting\n 5 1 leaving\n 7.1 2 held\n 9 2 leaving",
    ),
    "one waits for a dead holder longer than its lease": (
        lambda events: stranded(events, lease=1.0, within=2.0),
        "1 1 held\n 1 2 waiting\n 5 9 killed whom=1\n 7.9 2 held\n 9 2 leaving",
        "1 1 held\n 1 2 waiting\n 5 9 killed whom=1\n 8.1 2 held\n 9 2 leaving",
    ),
    "nobody is served after a harm": (
        lambda events: stranded(events, lease=1.0, within=2.0),
        "1 9 harm\n 1 2 waiting\n 5 9 over\n 6.9 2 held\n 9 2 leaving",
        "1 9 harm\n 1 2 waiting\n 5 9 over\n 9 3 step",
    ),
    "one wakes too many": (
        wake_ups,
        "1 1 asleep\n 2 2 asleep\n 3 9 notified n=1\n 4 1 awake",
        "1 1 asleep\n 2 2 asleep\n 3 9 notified n=1\n 4 1 awake\n 5 2 awake",
    ),
    "one is not woken": (
        wake_ups,
        "1 1 asleep\n 2 2 asleep\n 3 9 notified n=null\n 4 1 awake\n 5 2 awake",
        "1 1 asleep\n 2 2 asleep\n 3 9 notified n=null\n 4 1 awake",
    ),
    "one that gave up kept the notification": (
        wake_ups,
        '1 1 asleep\n 2 2 asleep\n 3 9 notified\n 4 1 awake why="timeout"\n 5 2 awake',
        '1 1 asleep\n 2 2 asleep\n 3 9 notified\n 4 1 awake why="timeout"',
    ),
    "more wake than died": (
        wake_ups,
        "1 1 asleep\n 2 2 asleep\n 3 9 killed whom=1\n 4 2 awake",
        "1 1 asleep\n 2 2 asleep\n 3 9 killed whom=3\n 4 2 awake\n 5 1 awake",
    ),
    "an event forgets": (
        pulses,
        "1 1 waiting\n 2 9 pulsing\n 2.1 9 pulsed\n 2.2 1 woken\n 9 9 step",
        "1 1 waiting\n 2 9 pulsing\n 2.1 9 pulsed\n 9 9 step",
    ),
    "an event that is set keeps one waiting": (
        pulses,
        "1 9 setting\n 2 9 set\n 3 1 waiting\n 3.1 1 woken\n 9 9 cleared",
        "1 1 waiting\n 2 9 setting\n 2.1 9 set\n 6 1 woken\n 9 9 cleared",
    ),
    "an event comes from nowhere": (
        pulses,
        "1 9 setting\n 2 9 set\n 3 1 waiting\n 4 1 woken\n 9 9 cleared",
        "1 9 setting\n 2 9 set\n 2.5 9 cleared\n 3 1 waiting\n 4 1 woken",
    ),
    "one wakes for a process that was only stopped, and one for nothing": (
        lambda events: wake_ups(events, lease=1.0),
        "1 1 asleep\n 1 2 asleep\n 2 9 notified\n 2.1 9 stopped whom=1\n 3 2 awake\n 4 1 awake",
        "1 1 asleep\n 1 2 asleep\n 2 9 notified\n 2.1 9 stopped whom=3\n 3 2 awake\n 4 1 awake",
    ),
    "one that had been notified gives up much later": (
        wake_ups,
        '1 1 asleep\n 3 9 notified\n 4 1 awake why="cancelled"',
        '1 1 asleep\n 3 9 notified\n 6 1 awake why="cancelled"',
    ),
    "notifications are lost with the server's data only": (
        lambda events: wake_ups(events, forgets=True),
        "1 1 asleep\n 2 8 notified\n 2.1 9 harm\n 2.2 9 over\n 9 9 step",
        "1 1 asleep\n 5 8 notified\n 2.1 9 harm\n 2.2 9 over\n 9 9 step",
    ),
    "an event forgets what a server has lost since, and nothing else": (
        lambda events: pulses(events, forgets=True),
        "1 1 waiting\n 2 8 pulsing\n 2.1 8 pulsed\n 3 9 harm\n 3.5 9 over\n 19 9 step",
        "1 1 waiting\n 5 8 pulsing\n 5.1 8 pulsed\n 3 9 harm\n 3.5 9 over\n 19 9 step",
    ),
    "an event that a dead process has set is set until it is cleared": (
        pulses,
        "1 8 pulsing\n 2 9 killed whom=8\n 3 1 waiting\n 3.1 1 woken",
        "1 8 pulsing\n 2 9 killed whom=8\n 2.1 7 pulsing\n 2.2 7 pulsed\n3 1 waiting\n 3.1 1 woken",
    ),
    "a pulse from before a wait wakes it where no connection broke": (
        lambda events: pulses(events, calm=["latency"]),
        '1 8 pulsing\n 1.1 8 pulsed\n 1.2 9 harm kind="cut"\n 2 1 waiting\n 2.1 1 woken\n'
        '3 9 over kind="cut"',
        '1 8 pulsing\n 1.1 8 pulsed\n 1.2 9 harm kind="latency"\n 2 1 waiting\n 2.1 1 woken\n'
        '3 9 over kind="latency"',
    ),
    "a party is missing that had long gone": (
        lambda events: generations(events, 2, lease=1.0),
        "1 1 waiting\n 2 9 killed whom=1\n 3 2 waiting\n 4 2 passed index=1\n 9 9 step",
        "1 1 waiting\n 2 9 killed whom=1\n 3 2 waiting\n 8 2 passed index=1\n 9 9 step",
    ),
    "a party that gives up had never heard that it may pass": (
        lambda events: generations(events, 2),
        "1 1 waiting\n 1 2 waiting\n 3 2 passed index=1\n 4 1 failed",
        "1 1 waiting\n 1 2 waiting\n 3 2 passed index=1\n 9 1 failed",
    ),
    "half a generation passes": (
        lambda events: generations(events, 2),
        "1 1 waiting\n 2 2 waiting\n 3 1 passed index=0\n 3 2 passed index=1",
        "1 1 waiting\n 2 2 waiting\n 3 1 passed index=0\n 6 9 step",
    ),
    "one passes before the other has come": (
        lambda events: generations(events, 2),
        "1 1 waiting\n 2 2 waiting\n 3 1 passed index=0\n 4 2 passed index=1",
        "1 1 waiting\n 3 2 waiting\n 2 1 passed index=0\n 4 2 passed index=1",
    ),
    "an index is out of range": (
        lambda events: generations(events, 2),
        "1 1 waiting\n 2 2 waiting\n 3 1 passed index=1\n 4 2 passed index=0",
        "1 1 waiting\n 2 2 waiting\n 3 1 passed index=1\n 4 2 passed index=2",
    ),
    "a message is lost in silence": (
        deliveries,
        """
        1 2 subscribed
        2 1 publishing number=1
        2 1 published number=1
        3 1 publishing number=2
        3 1 published number=2
        4 2 gap missed=1
        4 2 heard number=2 publisher=[1,null]
        5 2 left
        """,
        """
        1 2 subscribed
        2 1 publishing number=1
        2 1 published number=1
        3 1 publishing number=2
        3 1 published number=2
        4 2 heard number=2 publisher=[1,null]
        5 2 left
        """,
    ),
    "messages change places": (
        deliveries,
        "1 2 heard number=1 publisher=[1,null]\n 2 2 heard number=2 publisher=[1,null]",
        "1 2 heard number=2 publisher=[1,null]\n 2 2 heard number=1 publisher=[1,null]",
    ),
    "a message comes twice": (
        deliveries,
        "1 2 heard number=1 publisher=[1,null]\n 2 2 heard number=1 publisher=[3,null]",
        "1 2 heard number=1 publisher=[1,null]\n 2 2 heard number=1 publisher=[1,null]",
    ),
    "nobody knows how many were lost, though the server has kept its data": (
        deliveries,
        "1 2 subscribed\n 2 1 publishing number=1\n 3 1 published number=1\n 4 2 gap missed=1\n"
        "5 2 left",
        "1 2 subscribed\n 2 1 publishing number=1\n 3 1 published number=1\n"
        "4 2 gap missed=null\n 5 2 left",
    ),
    "a message is lost in silence after the server has lost its data": (
        lambda events: deliveries(events, forgets=True),
        "1 2 subscribed\n 2 1 publishing number=1\n 3 1 published number=1\n"
        "4 2 gap missed=null\n 5 2 left",
        "1 2 subscribed\n 4 2 gap missed=null\n 4.1 1 publishing number=1\n"
        "4.2 1 published number=1\n 5 2 left",
    ),
    "more than one burst more for a server that has forgotten": (
        lambda events: admissions(events, rate=1, burst=2, forgets=True),
        "1 1 admitted amount=2\n 1.1 9 harm\n 1.2 9 over\n 1.3 2 admitted amount=2",
        "1 1 admitted amount=2\n 1.1 9 harm\n 1.2 9 over\n 1.3 2 admitted amount=2\n1.4 3 admitted",
    ),
    "an observer sees nobody, though somebody leads": (
        sightings,
        "1 2 saw fence=null\n 2 1 held fence=7\n 4.4 2 saw fence=7 leader=1\n 9 1 leaving",
        "1 2 saw fence=null\n 2 1 held fence=7\n 4.6 2 saw fence=7 leader=1\n 9 1 leaving",
    ),
    "an observer sees one who has resigned": (
        sightings,
        "1 1 held fence=7\n 1 2 saw fence=7 leader=1\n 3 1 leaving\n 5.4 2 saw fence=null",
        "1 1 held fence=7\n 1 2 saw fence=7 leader=1\n 3 1 leaving\n 5.6 2 left",
    ),
    "an observer sees a dead leader for longer than its lease": (
        lambda events: sightings(events, lease=1.0),
        "1 1 held fence=7\n 1 2 saw fence=7 leader=1\n 3 9 killed whom=1\n 6.4 2 saw fence=null",
        "1 1 held fence=7\n 1 2 saw fence=7 leader=1\n 3 9 killed whom=1\n 6.6 2 saw fence=null",
    ),
    "an observer that was not cut off sees nothing new": (
        sightings,
        "1 1 held fence=7\n 1 2 saw fence=7 leader=1\n 2 9 harm\n 3 1 leaving\n 6 9 over\n"
        "8.4 2 left",
        "1 1 held fence=7\n 1 2 saw fence=7 leader=1\n 2 9 stopped whom=1\n 3 1 leaving\n"
        "6 9 continued whom=1\n 8.4 2 left",
    ),
    "an observer sees another than the one who leads": (
        sightings,
        "1 1 held fence=7\n 1 2 saw fence=7 leader=1\n 3 2 left",
        "1 1 held fence=7\n 1 2 saw fence=7 leader=3\n 3 2 left",
    ),
    "an observer sees one who never led, and was neither killed nor stopped": (
        lambda events: sightings(events, lease=1.0),
        "1 2 saw fence=7 leader=1\n 1.1 9 killed whom=1\n 2 2 left",
        "1 2 saw fence=7 leader=1\n 1.1 9 killed whom=3\n 2 2 left",
    ),
    "an observer sees an earlier leader again, and the server has not gone back in time": (
        lambda events: sightings(events, lease=2.0, forgets=True),
        "1 1 held fence=7\n 1 3 saw fence=7 leader=1\n 1.5 1 leaving\n 1.5 2 held fence=8\n"
        "1.5 3 saw fence=8 leader=2\n 2 9 harm\n 2.1 9 over\n 2.2 3 saw fence=7 leader=1\n"
        "3 3 saw fence=null",
        "1 1 held fence=7\n 1 3 saw fence=7 leader=1\n 1.5 1 leaving\n 1.5 2 held fence=8\n"
        "1.5 3 saw fence=8 leader=2\n 2.2 3 saw fence=7 leader=1\n 3 3 saw fence=null",
    ),
    "too much in a window": (
        lambda events: admissions(events, rate=2, per=1, burst=2),
        "1 1 admitted\n 1 2 admitted\n 1.5 1 admitted\n 2 1 admitted",
        "1 1 admitted\n 1 2 admitted\n 1.5 1 admitted\n 1.9 1 admitted",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_checker_accepts_what_is_right_and_rejects_what_is_not(name: str) -> None:
    check, right, wrong = EXAMPLES[name]
    assert check(story(right)) == []
    found = check(story(wrong))
    assert found
    for violation in found:
        assert violation.events, "it names the events that show it"
        assert str(violation.events[0]) in str(violation)


# -- for real: what is broken is caught through the same workers as dsync is -----------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("broken", "primitive", "promise"),
    [
        ("no_exclusion", "lock", "holders"),
        ("check_then_act", "semaphore", "holders"),
        ("tokenless_release", "lock", "holders"),
        ("late_release", "lock", None),
        ("forgetful_event", "event", "pulses"),
        ("wide_notify", "condition", "wake-ups"),
        ("lost_notify", "condition", "wake-ups"),
        ("early_barrier", "barrier", "generations"),
        ("leaky_bus", "bus", "accounting"),
        ("private_limiter", "limiter", "rate"),
        ("backward_observer", "leader", "sightings"),
    ],
)
def test_what_is_broken_is_caught(
    tmp_path: Path, broken: str, primitive: str, promise: str | None
) -> None:
    """`late_release` is as late as the one before, with a token: it only loses its leases."""
    path = tmp_path / "found.json"
    done: subprocess.CompletedProcess[str] | None = None
    for seconds in ("1.5", "3", "6"):  # it is broken at times only, and they have to meet it
        options = ("--faults", "none", "--primitives", primitive, "--seconds", seconds)
        done = subprocess.run(
            [sys.executable, "-m", "chaos", "--broken", broken, "--json", str(path), *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=50,
        )
        if done.returncode == 1:
            break
    assert done is not None
    assert done.returncode == 1, done.stdout + done.stderr
    [scenario] = json.loads(path.read_text("utf-8"))["scenarios"]
    kinds = {violation["promise"] for violation in scenario["violations"]} - {"no loss"}
    assert promise in kinds if promise else not kinds, done.stdout


# -- the history itself ----------------------------------------------------------------------------


def write_many(history: History, count: int) -> None:
    for number in range(count):
        history.write("step", number=number, padding="x" * 200)


def test_events_of_many_processes_do_not_mix(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    context: Any = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_many, args=(history, 500)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    events = history.events("step")
    assert len(events) == 1500
    assert [event["t"] for event in events] == sorted(event["t"] for event in events)
    for process in processes:
        assert [event["number"] for event in history.events(pid=process.pid)] == list(range(500))


def test_a_line_that_is_still_being_written_is_read_later(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    history.write("held")
    with history.path.open("ab") as file:
        file.write(b'{"what": "leaving", "t": 1e9, ')
        file.flush()
        assert [event["what"] for event in history.events()] == ["held"]
        file.write(b'"pid": 1}\n')
    assert [event["what"] for event in history.events()] == ["held", "leaving"]


def test_a_harm_that_ended_with_a_kill_is_over() -> None:
    found = harms(story("1 9 stopped whom=1\n 2 9 killed whom=1\n 3 9 harm kind=1"))
    assert [(harm.starts, harm.ends) for harm in found] == [(2.0, 2.0), (3.0, float("inf"))]
