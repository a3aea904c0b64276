"""From happenings to measurements: what all adapters share."""

from collections.abc import Callable

from dsync.metrics.catalogue import (
    ACQUIRE_WAIT,
    BUS_GAPS,
    BUS_MISSED,
    BUS_PUBLISHED,
    BUS_RECEIVED,
    DISCONNECTS,
    HANDED_OVER,
    HELD,
    HOLD,
    LIMITER_UNITS,
    LIMITER_WAIT,
    LOST,
    OUTAGE,
    REFUSED,
    RENEWED_LATE,
    SKIPPED,
    SLOW_WAITS,
    TIMEOUTS,
    WAIT,
    Metric,
)
from dsync.metrics.names import Names, Template
from dsync.telemetry import (
    Acquired,
    Disconnected,
    HandedOver,
    Happening,
    Lost,
    Missed,
    Published,
    Received,
    Reconnected,
    Refused,
    Released,
    RenewedLate,
    Skipped,
    SlowWait,
    Taken,
    TimedOut,
    Woken,
)

__all__ = ["Record", "Recorder"]

Record = Callable[[float], object]  # by how much, or how long

KEPT = 10_000  # names whose series are remembered; then all are looked up afresh


class Recorder:
    """A hook that measures; `bind` is what an adapter brings.

    Args:
        template: what makes a label of a name: `dsync.metrics.names.Names`.
        max_names: how many labels there may be; what comes after them is "other".
    """

    def __init__(self, template: Template | None, max_names: int) -> None:
        self._label = Names(template, max_names)
        self._known: dict[tuple[str, str], Series] = {}  # by kind and name, as they are told
        self._series: dict[tuple[str, str], Series] = {}  # by kind and label

    def bind(self, metric: Metric, values: tuple[str, ...]) -> Record:
        """What records measurements of this metric, with these values of its labels."""
        raise NotImplementedError

    def __call__(self, happening: Happening) -> None:
        """Record it, if it is of a class that is known here."""
        series = self._known.get((happening.kind, happening.name))
        if series is None:
            series = self._find(happening.kind, happening.name)
        self._record(happening, series)

    def _find(self, kind: str, name: str) -> "Series":
        if len(self._known) >= KEPT:
            self._known.clear()
        key = kind, self._label(name)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series(self.bind, key)
        self._known[kind, name] = series
        return series

    def _record(self, happening: Happening, series: "Series") -> None:
        match happening:  # the frequent ones first
            case Acquired(waited=waited):
                series[ACQUIRE_WAIT](waited)
                series[HELD](1)
            case Released(held=held):
                series[HOLD](held)
                series[HELD](-1)
            case HandedOver(to=to):
                series[HANDED_OVER, to](1)
            case Received():
                series[BUS_RECEIVED](1)
            case Published():
                series[BUS_PUBLISHED](1)
            case Taken(amount=amount, waited=waited):
                series[LIMITER_WAIT](waited)
                series[LIMITER_UNITS](amount)
            case Woken(waited=waited):
                series[WAIT](waited)
            case Refused():
                series[REFUSED](1)
            case TimedOut():
                series[TIMEOUTS](1)
            case SlowWait():
                series[SLOW_WAITS](1)
            case Skipped():
                series[SKIPPED](1)
            case RenewedLate():
                series[RENEWED_LATE](1)
            case Lost(held=held, late=late):
                series[LOST](1)
                if not late:  # else it counts as released already
                    series[HOLD](held)
                    series[HELD](-1)
            case Missed(missed=missed):
                series[BUS_GAPS](1)
                series[BUS_MISSED](missed or 0)
            case Disconnected():
                series[DISCONNECTS](1)
            case Reconnected(outage=outage):
                series[OUTAGE](outage)
            case _:
                pass  # of a later version


class Series(dict[Metric | tuple[Metric, str], Record]):
    """What records the metrics of one kind and name, each made when it is first used."""

    def __init__(
        self, bind: Callable[[Metric, tuple[str, ...]], Record], values: tuple[str, str]
    ) -> None:
        super().__init__()
        self._bind = bind
        self._values = values

    def __missing__(self, key: Metric | tuple[Metric, str]) -> Record:
        metric, *more = key if isinstance(key, tuple) else (key,)
        record = self[key] = self._bind(metric, (*self._values, *more) if metric.labels else ())
        for other in metric.along:
            self[other](0)
        return record
