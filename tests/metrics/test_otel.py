"""What OpenTelemetry is told is what has happened, and where."""

import asyncio
import time
from typing import Any

import pytest

import dsync
from dsync.metrics.catalogue import BUCKETS
from dsync.telemetry import Acquired, Lost, Released
from tests.conftest import World, settled

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from dsync.metrics.otel import OpenTelemetryHook


class Sdk:
    """An application's SDK, that keeps everything in memory."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracers.get_tracer("test")

    def hook(self, **arguments: Any) -> OpenTelemetryHook:
        return OpenTelemetryHook(
            meter_provider=self.meters, tracer_provider=self.tracers, **arguments
        )

    def metrics(self) -> dict[str, Any]:
        """By name."""
        data = self.reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "dsync"
        return {metric.name: metric for metric in scope.metrics}

    def point(self, metric: str, kind: str, name: str) -> Any:
        (found,) = [
            point
            for point in self.metrics()[metric].data.data_points
            if point.attributes == {"kind": kind, "name": name}
        ]
        return found

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found


@pytest.fixture
def sdk() -> Any:
    made = Sdk()
    yield made
    made.meters.shutdown()
    made.tracers.shutdown()


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def within(span: ReadableSpan, parent: Any) -> bool:
    return span.parent is not None and span.parent.span_id == parent.get_span_context().span_id


async def test_metrics_have_the_names_and_units_of_opentelemetry(world: World, sdk: Sdk):
    client = world.client(on_event=sdk.hook())
    for number in range(3):
        async with client.lock(f"order:{number}"):
            pass
    wait = sdk.point("dsync.acquire.wait", "lock", "order:*")
    assert wait.count == 3
    assert wait.explicit_bounds == BUCKETS
    assert sdk.metrics()["dsync.acquire.wait"].unit == "s"
    assert sdk.point("dsync.hold", "lock", "order:*").count == 3
    assert sdk.point("dsync.held", "lock", "order:*").value == 0
    assert not sdk.metrics()["dsync.held"].data.is_monotonic
    assert sdk.point("dsync.lost", "lock", "order:*").value == 0
    assert sdk.metrics()["dsync.lost"].data.is_monotonic


async def test_a_wait_and_a_hold_lie_in_the_span_of_their_task(world: World, sdk: Sdk):
    client = world.client(on_event=sdk.hook())
    with sdk.tracer.start_as_current_span("request") as request:
        async with client.lock("order:17") as lease:
            await asyncio.sleep(0.05)  # what is measured
    wait, hold = sdk.span("lock acquire"), sdk.span("lock hold")
    for span in (wait, hold):
        assert within(span, request)
        assert span.attributes == {
            "dsync.kind": "lock",
            "dsync.name": "order:17",
            "dsync.fence": lease.fence,
        }
        assert span.status.status_code is StatusCode.UNSET
    assert 0.05 <= seconds(hold) < 30
    assert wait.end_time is not None
    assert hold.start_time is not None
    # The end of one and the beginning of the other, told a moment apart.
    assert abs(hold.start_time - wait.end_time) < 5e9


async def test_each_task_has_spans_of_its_own(world: World, sdk: Sdk):
    """Also where the release of one wakes the other."""
    client = world.client(on_event=sdk.hook())
    began: dict[str, Any] = {}

    async def work(name: str) -> None:
        with sdk.tracer.start_as_current_span(name) as began[name]:
            async with client.lock("x"):
                await asyncio.sleep(0)

    names = [f"request {number}" for number in range(5)]
    await asyncio.gather(*map(work, names))
    for kind in ("lock acquire", "lock hold"):
        spans = sdk.spans(kind)
        assert len(spans) == len(names)
        for name in names:
            assert sum(within(span, began[name]) for span in spans) == 1


async def test_a_loss_is_an_error_in_the_span_where_it_was_acquired(world: World, sdk: Sdk):
    """It is told by the clock or by the server, in no task's context, or in another's."""
    one, two = world.client(on_event=sdk.hook()), world.client()
    # The client's own timers and tasks begin in the context of who uses it first.
    with sdk.tracer.start_as_current_span("first request"):
        async with one.lock("y"):
            pass
    lock = one.lock("x", on_lost="flag")
    with sdk.tracer.start_as_current_span("request") as request:
        await lock.acquire()
    assert await two.lock("x").force_release()
    await settled(lambda: len(sdk.spans("lock hold")) == 2)
    hold = sdk.spans("lock hold")[-1]
    assert within(hold, request)
    assert hold.status.status_code is StatusCode.ERROR
    assert hold.status.description
    assert sdk.point("dsync.lost", "lock", "x").value == 1
    with pytest.raises(dsync.LeaseLost):
        lock.release()


async def test_a_wait_that_timed_out_is_an_error(world: World, sdk: Sdk):
    client = world.client(on_event=sdk.hook())
    with sdk.tracer.start_as_current_span("request") as request:
        async with client.lock("x"):
            with pytest.raises(TimeoutError):
                await client.lock("x").acquire(timeout=0.02)
        with pytest.raises(TimeoutError):
            await client.event("x").wait(timeout=0.02)
    *_, failed = sdk.spans("lock acquire")
    for span in (failed, sdk.span("event wait")):
        assert within(span, request)
        assert span.status.status_code is StatusCode.ERROR
        assert seconds(span) >= 0.02
    assert len(sdk.spans("lock hold")) == 1


async def test_waits_for_events_and_for_units_have_spans(world: World, sdk: Sdk):
    client = world.client(on_event=sdk.hook())
    event = client.event("ready")
    waiting = asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    event.set()
    await waiting
    await event.clear()
    assert await client.rate_limiter("api", 10).try_acquire()
    assert sdk.span("event wait").attributes == {"dsync.kind": "event", "dsync.name": "ready"}
    assert sdk.span("rate acquire").status.status_code is StatusCode.UNSET


async def test_permits_of_one_task_lie_where_they_were_acquired(world: World, sdk: Sdk):
    client = world.client(on_event=sdk.hook())
    permits = client.semaphore("x", 2)
    with sdk.tracer.start_as_current_span("request") as request:
        await permits.acquire()
        await permits.acquire()
    await permits.release()
    await permits.release()
    assert [within(span, request) for span in sdk.spans("semaphore hold")] == [True, True]


async def test_spans_may_be_switched_off(world: World, sdk: Sdk):
    client = world.client(on_event=sdk.hook(spans=False))
    async with client.lock("x"):
        pass
    assert sdk.exporter.get_finished_spans() == ()
    assert sdk.point("dsync.hold", "lock", "x").count == 1


def test_nothing_is_kept_of_holds_that_have_ended(sdk: Sdk):
    hook = sdk.hook()
    for fence in range(100):
        hook(Acquired("lock", "x", 0.0, "t", fence))
        hook(Acquired("semaphore", "x", 0.0, "t", None))
    for fence in range(100):
        hook(Lost("lock", "x", 1.0, "t", fence, "gone"))
        hook(Released("semaphore", "x", 1.0, "t", None))
    assert hook._spans is not None
    assert hook._spans._began == {}


def test_a_hold_that_began_before_the_hook_was_there_has_a_span(sdk: Sdk):
    sdk.hook()(Released("lock", "x", 2.0, "t", 1))
    hold = sdk.span("lock hold")
    assert hold.end_time is not None
    assert abs(hold.end_time / 1e9 - time.time()) < 60
    assert seconds(hold) == pytest.approx(2.0)


async def test_without_an_sdk_it_does_nothing(world: World):
    client = world.client(on_event=OpenTelemetryHook())
    async with client.lock("x"):
        pass
