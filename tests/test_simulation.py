"""The simulation: that it plays what it says, the same each time, and what the docs quote."""

import json
import random
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest

from dsync.beat import BEAT
from simulation import fleet, queues, restart
from simulation.__main__ import SCENARIOS, main, tables
from simulation.calibration import STORED, Calibration
from simulation.core import Clock, Core, percentile, waits
from simulation.restart import Restart, Setup
from simulation.table import figure

DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def costs() -> Calibration:
    return Calibration.load()


def test_the_document_quotes_what_the_command_prints(costs: Calibration):
    document = DOCUMENT.read_text("utf-8")
    for table in tables(costs, list(SCENARIOS)):
        assert table.markdown() in document, f"python -m simulation {table.name} says another thing"


def test_a_core_serves_in_order_and_is_never_idle_while_something_waits():
    core = Core()
    assert [core.serve(now, 2.0) for now in (0.0, 1.0, 1.5, 10.0)] == [2.0, 4.0, 6.0, 12.0]
    assert core.busy == 8.0


def test_what_happens_at_one_time_happens_in_the_order_in_which_it_was_planned():
    clock = Clock()
    happened: list[str] = []
    for when, what in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (9.0, "d")):
        clock.at(when, partial(happened.append, what))
    clock.run(until=5.0)
    assert happened == ["a", "b", "c"]
    assert clock.now == 2.0


@pytest.mark.parametrize("used", [0.5, 0.8])
def test_mean_waits_are_those_of_the_pollaczek_khinchine_formula(used: float):
    cost = 2.0  # all alike: the mean wait is used * cost / 2 / (1 - used)
    found = waits(queues.crowd(used, [cost], random.Random(1)))[queues.BURN_IN :]
    assert fmean(found) == pytest.approx(used * cost / 2 / (1 - used), rel=0.1)


def test_waits_grow_with_use(costs: Calibration):
    mix = [costs.command(what) for what in costs.script]
    found = [
        percentile(waits(queues.crowd(used, mix, random.Random(1))), 99)
        for used in (0.5, 0.7, 0.9, 0.98)
    ]
    assert found == sorted(found)
    assert found[-1] > 5 * found[0]


def test_a_process_that_waits_costs_a_command_in_each_beat(costs: Calibration):
    waiting = fleet.activities(costs)["wait"]
    assert waiting.rate == 1 / BEAT
    assert fleet.load([waiting], 1000) == pytest.approx(500 * costs.command("heartbeat, lock"))


def test_a_fleet_sends_what_its_activities_say(costs: Calibration):
    doing = list(fleet.activities(costs).values())
    sent = list(fleet.arrivals(doing, 1000, random.Random(1)))
    assert sent == sorted(sent)
    rate = 1000 * sum(each.rate for each in doing)
    assert len(sent) == pytest.approx(rate * fleet.SECONDS, rel=0.01)


def comeback(costs: Calibration, clients: int, **setup: float) -> restart.Outcome:
    values = {"outage_timeout": 10.0, "backlog": 65_535, **setup}
    return Restart(Setup(clients, 50e-6, **values), costs, random.Random(1)).run()  # type: ignore[arg-type]


def test_everybody_is_back_once_and_no_earlier_than_the_server_can(costs: Calibration):
    outcome = comeback(costs, 1000)
    assert len(outcome.back) == 1000
    assert outcome.attempts == 1.0
    assert outcome.busy == pytest.approx(1000 * (costs.connect / 1e6 + 50e-6))
    assert max(outcome.back) >= outcome.busy
    assert all(0 < when < float("inf") for when in outcome.back)


def test_large_fleets_are_played_by_fewer_clients_with_the_same_end(
    costs: Calibration, monkeypatch: pytest.MonkeyPatch
):
    few = comeback(costs, 8000)
    monkeypatch.setattr(restart, "PLAYED", 8000)
    all_of_them = comeback(costs, 8000)
    assert few.after(99) == pytest.approx(all_of_them.after(99), rel=0.1)


def test_connections_that_do_not_fit_into_the_backlog_come_later(costs: Calibration):
    crowded, roomy = comeback(costs, 10_000, backlog=511), comeback(costs, 10_000)
    assert crowded.after(99) > roomy.after(99)


def test_clients_more_patient_than_the_queue_is_long_get_through(costs: Calibration):
    hasty = comeback(costs, 100_000)
    patient = comeback(costs, 100_000, outage_timeout=120.0)
    assert patient.after(100) < float("inf")
    assert patient.attempts == 1.0
    assert hasty.attempts > patient.attempts


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "s", "0 s"),
        (0.1234, "%", "0.123 %"),
        (9876.0, "", "9,900"),
        (136.5, "µs", "136 µs"),
        (float("inf"), "s", "never"),
    ],
)
def test_figures_have_two_digits_or_three(value: float, unit: str, text: str):
    assert figure(value, unit) == text


def test_the_command_says_the_same_each_time_and_which_seed(capsys: pytest.CaptureFixture[str]):
    said = []
    for _ in range(2):
        assert main(["commands", "leases", "--json", "--seed", "7"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert said[0]["seed"] == 7
    assert [table["name"] for table in said[0]["tables"]] == ["commands", "leases"]
    assert said[0]["calibration"] == json.loads(STORED.read_text("utf-8"))


def test_an_unknown_scenario_and_a_file_that_is_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "no scenario is called nonsense; there are commands, " in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(SystemExit):
        main(["--calibration", str(other)])
    assert f"{other} holds no calibration" in capsys.readouterr().err
