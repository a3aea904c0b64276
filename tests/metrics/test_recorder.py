"""From happenings to measurements, without any client: each class of them counts."""

import dataclasses
from typing import Any

import pytest

from dsync import telemetry
from dsync.metrics import recorder
from dsync.metrics.catalogue import BUCKETS, METRICS, Metric
from dsync.metrics.recorder import Record, Recorder
from dsync.telemetry import Acquired, Happening, Lost, Missed, Released

PUBLIC = [getattr(telemetry, name) for name in telemetry.__all__]
CLASSES = [each for each in PUBLIC if Happening in getattr(each, "__bases__", ())]
VALUES: dict[str, Any] = {
    "kind": "lock",
    "name": "x",
    "waited": 0.25,
    "held": 0.5,
    "amount": 3,
    "to": "task",
    "missed": 2,
    "outage": 1.5,
}


class Notes(Recorder):
    """Sums up, by name and labels."""

    def __init__(self, max_names: int = 200) -> None:
        super().__init__(None, max_names)
        self.sums: dict[tuple[str, ...], float] = {}
        self.bound: list[tuple[str, ...]] = []

    def bind(self, metric: Metric, values: tuple[str, ...]) -> Record:
        assert len(values) == len(metric.labels)
        key = metric.name, *values
        self.bound.append(key)

        def record(amount: float) -> None:
            self.sums[key] = self.sums.get(key, 0) + amount

        return record


def made(cls: type[Happening]) -> Happening:
    values: Any = {field.name: VALUES.get(field.name) for field in dataclasses.fields(cls)}
    return cls(**values)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_of_happenings_is_counted(cls: type[Happening]):
    notes = Notes()
    notes(made(cls))
    assert any(notes.sums.values())


def test_every_metric_is_counted_by_something():
    notes = Notes()
    for cls in CLASSES:
        notes(made(cls))
    assert {name for name, *_ in notes.sums} == {metric.name for metric in METRICS}


def test_a_class_of_a_later_version_is_let_pass():
    class Moved(Happening):
        pass

    notes = Notes()
    notes(Moved("lock", "x"))
    assert notes.sums == {}


def test_a_loss_ends_a_hold_and_a_late_one_does_not_end_it_twice():
    notes = Notes()
    for _ in range(2):
        notes(Acquired("lock", "x", 0.0, "t", 1))
    notes(Lost("lock", "x", 3.0, "t", 1, "gone"))
    assert notes.sums["dsync.held", "lock", "x"] == 1
    notes(Released("lock", "x", 2.0, "t", 2))
    notes(Lost("lock", "x", 2.0, "t", 2, "gone", late=True))
    assert notes.sums["dsync.held", "lock", "x"] == 0
    assert notes.sums["dsync.lost", "lock", "x"] == 2
    assert notes.sums["dsync.hold", "lock", "x"] == 5.0


def test_a_gap_of_unknown_length_is_a_gap():
    notes = Notes()
    notes(Missed("bus", "x", None))
    notes(Missed("bus", "x", 7))
    assert notes.sums["dsync.bus.gaps", "bus", "x"] == 2
    assert notes.sums["dsync.bus.missed", "bus", "x"] == 7


def test_what_ought_not_to_happen_is_there_at_zero_once_its_primitive_is_used():
    """A counter that begins at 1 has not grown, as far as `increase()` can see."""
    notes = Notes()
    notes(Acquired("lock", "x", 0.0, "t", 1))
    for name in ("lost", "renewed_late", "timeouts", "slow_waits", "refused"):
        assert notes.sums[f"dsync.{name}", "lock", "x"] == 0


def test_memory_does_not_grow_with_the_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recorder, "KEPT", 50)
    notes = Notes()
    for number in range(1000):
        notes(Acquired("lock", f"order:{number}", 0.0, "t", 1))
    for number in range(1000):
        notes(Released("lock", f"order:{number}", 1.0, "t", 1))
    assert len(notes._known) <= 50
    assert len(notes.bound) == len(set(notes.bound)), "something was bound twice"
    assert notes.sums["dsync.acquire.wait", "lock", "order:*"] == 0
    assert notes.sums["dsync.hold", "lock", "order:*"] == 1000
    assert notes.sums["dsync.held", "lock", "order:*"] == 0


def test_names_that_no_template_tames_are_other():
    notes = Notes(max_names=5)
    for number in range(100):
        notes(Acquired("lock", "x" * number, 0.0, "t", 1))
    assert {name for _, _, name in notes.bound} == {"", "x", "xx", "xxx", "xxxx", "other"}


def test_the_catalogue_is_in_order():
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert set(metric.along) <= set(METRICS)
        assert all(other.type == "counter" for other in metric.along)
        # What Prometheus' names are made of, by its own adapter and by OpenTelemetry's exporters.
        if metric.type == "histogram":
            assert metric.unit == "s"
        else:
            assert metric.unit.startswith("{")
            assert metric.unit.endswith("}")
