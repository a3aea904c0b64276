"""dsync's metrics and spans for OpenTelemetry: a hook for `on_event=`.

It needs the package opentelemetry-api: pip install 'dsync-redis[otel]'
"""

import time
from functools import partial

from dsync.metrics.catalogue import BUCKETS, METRICS, Metric
from dsync.metrics.names import Template
from dsync.metrics.recorder import Record, Recorder
from dsync.telemetry import Acquired, Happening, Lost, Released, Taken, TimedOut, Woken

try:
    from opentelemetry.context import Context, get_current
    from opentelemetry.metrics import (
        Counter,
        Histogram,
        Meter,
        MeterProvider,
        UpDownCounter,
        get_meter,
    )
    from opentelemetry.trace import StatusCode, Tracer, TracerProvider, get_tracer
except ImportError as _missing:
    raise ImportError(
        "dsync.metrics.otel needs the package opentelemetry-api: pip install 'dsync-redis[otel]'",
        name=_missing.name,
    ) from _missing

__all__ = ["OpenTelemetryHook"]

# Of these a task does not wait to hold something.
AWAITED = frozenset({"event", "condition", "barrier"})


class OpenTelemetryHook(Recorder):
    """Measures what a client tells of, and traces waits and holds::

        client = dsync.connect("redis://localhost:6379", on_event=OpenTelemetryHook())

    A span is made when the wait or the hold has ended, and lies in the span that was the task's
    when it acquired, or waited.

    Args:
        meter_provider: whose meters are used; the process's own, if not given.
        tracer_provider: likewise for spans.
        spans: False makes none.
        template: what makes the attribute `name` of a name in metrics, as a callable, or as a list
            of patterns such as `order:*`, of which the first that matches becomes the attribute.
            Without it a `*` stands for each number, run of eight or more hexadecimal digits, and
            UUID.  In spans, `dsync.name` is the name itself.
        max_names: how many different attributes `name` there may be; all further are "other".
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        spans: bool = True,
        template: Template | None = None,
        max_names: int = 200,
    ) -> None:
        super().__init__(template, max_names)
        meter = get_meter("dsync", meter_provider=meter_provider)
        self._instruments = {metric: _instrument(metric, meter) for metric in METRICS}
        tracer = get_tracer("dsync", tracer_provider=tracer_provider)
        self._spans = _Spans(tracer) if spans else None

    def bind(self, metric: Metric, values: tuple[str, ...]) -> Record:
        instrument = self._instruments[metric]
        attributes = dict(zip(metric.labels, values, strict=True))
        if isinstance(instrument, Histogram):
            return partial(instrument.record, attributes=attributes)
        return partial(instrument.add, attributes=attributes)

    def __call__(self, happening: Happening) -> None:
        super().__call__(happening)
        if self._spans is not None:
            self._spans.trace(happening)


def _instrument(metric: Metric, meter: Meter) -> Counter | Histogram | UpDownCounter:
    if metric.type == "counter":
        return meter.create_counter(metric.name, metric.unit, metric.help)
    if metric.type == "gauge":
        return meter.create_up_down_counter(metric.name, metric.unit, metric.help)
    return meter.create_histogram(
        metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=BUCKETS
    )


class _Spans:
    """Makes spans of what has ended."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        # Where each hold began: its end may be told elsewhere, a loss by the clock.  Permits that
        # a task has acquired of one semaphore are alike.
        self._began: dict[tuple[str, str, str, int | None], list[Context]] = {}

    def trace(self, happening: Happening) -> None:
        match happening:
            case Acquired(kind=kind, name=name, task=task, fence=fence):
                self._span("acquire", happening, happening.waited, get_current())
                self._began.setdefault((kind, name, task, fence), []).append(get_current())
            case Released(held=held):
                self._span("hold", happening, held, self._beginning(happening))
            case Lost(held=held, reason=reason, late=False):
                self._span("hold", happening, held, self._beginning(happening), reason)
            case Woken(waited=waited):
                self._span("wait", happening, waited, get_current())
            case Taken(waited=waited):
                self._span("acquire", happening, waited, get_current())
            case TimedOut(kind=kind, waited=waited):
                what = "wait" if kind in AWAITED else "acquire"
                self._span(what, happening, waited, get_current(), "timed out")
            case _:
                pass

    def _beginning(self, ended: Released | Lost) -> Context:
        """In which context the hold that has ended was acquired."""
        key = ended.kind, ended.name, ended.task, ended.fence
        contexts = self._began.get(key)
        if contexts is None:  # the hook was not there yet
            return get_current()
        context = contexts.pop()
        if not contexts:
            del self._began[key]
        return context

    def _span(
        self, what: str, ended: Happening, seconds: float, within: Context, error: str | None = None
    ) -> None:
        """One that ends now."""
        now = time.time_ns()
        attributes: dict[str, str | int] = {"dsync.kind": ended.kind, "dsync.name": ended.name}
        fence = getattr(ended, "fence", None)
        if fence is not None:
            attributes["dsync.fence"] = fence
        span = self._tracer.start_span(
            f"{ended.kind} {what}",
            within,
            attributes=attributes,
            start_time=now - int(seconds * 1e9),
        )
        if error is not None:
            span.set_status(StatusCode.ERROR, error)
        span.end(now)
