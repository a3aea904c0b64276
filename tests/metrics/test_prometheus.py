"""What Prometheus is told is what has happened."""

import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

import dsync
from dsync.telemetry import Acquired, Disconnected, Happening, Reconnected
from dsync.testing import Proxy
from tests.conftest import World, settled

prometheus_client: Any = pytest.importorskip("prometheus_client")
PrometheusHook: Any = pytest.importorskip("dsync.metrics.prometheus").PrometheusHook


@pytest.fixture
def registry() -> Any:
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def value(registry: Any) -> Any:
    """-> a sample's value: of a lock named x, unless told otherwise."""

    def of(sample: str, kind: str = "lock", name: str = "x", **more: str) -> float | None:
        found: float | None = registry.get_sample_value(
            sample, {"kind": kind, "name": name, **more}
        )
        return found

    return of


async def test_each_acquire_and_each_hold_is_counted_once(world: World, registry: Any, value: Any):
    client = world.client(on_event=PrometheusHook(registry=registry))

    async def work() -> None:
        lock = client.lock("x")
        for _ in range(5):
            async with lock:
                assert value("dsync_held") == 1
                await asyncio.sleep(0)

    await asyncio.gather(*(work() for _ in range(4)))
    assert value("dsync_acquire_wait_seconds_count") == 20
    assert value("dsync_hold_seconds_count") == 20
    assert value("dsync_held") == 0
    assert value("dsync_lost_total") == 0
    assert value("dsync_handed_over_total", to="task") > 0
    assert value("dsync_acquire_wait_seconds_bucket", le="+Inf") == 20
    assert 0 < value("dsync_acquire_wait_seconds_sum") < 60


async def test_waits_and_holds_are_measured_in_seconds(world: World, registry: Any, value: Any):
    client = world.client(on_event=PrometheusHook(registry=registry))
    lock = client.lock("x")
    await lock.acquire()
    waiting = asyncio.create_task(client.lock("x").acquire())
    await asyncio.sleep(0.3)  # what is measured
    await lock.release()
    await waiting
    assert value("dsync_held") == 1
    assert 0.25 < value("dsync_hold_seconds_sum") < 30
    assert 0.25 < value("dsync_acquire_wait_seconds_sum") < 30
    assert value("dsync_acquire_wait_seconds_bucket", le="0.25") <= 1
    assert value("dsync_acquire_wait_seconds_bucket", le="30.0") == 2
    await client.aclose()


async def test_permits_that_are_out_are_held(world: World, registry: Any, value: Any):
    client = world.client(on_event=PrometheusHook(registry=registry))
    permits = client.semaphore("x", 3)
    for _ in range(3):
        await permits.acquire()
    assert value("dsync_held", "semaphore") == 3
    assert not await permits.try_acquire()
    assert value("dsync_refused_total", "semaphore") == 1
    with pytest.raises(TimeoutError):
        await permits.acquire(timeout=0.01)
    assert value("dsync_timeouts_total", "semaphore") == 1
    for _ in range(3):
        await permits.release()
    assert value("dsync_held", "semaphore") == 0
    assert value("dsync_acquire_wait_seconds_count", "semaphore") == 3


async def test_a_lost_lease_is_lost_and_not_held(world: World, registry: Any, value: Any):
    one, two = world.client(on_event=PrometheusHook(registry=registry)), world.client()
    lock = one.lock("x", on_lost="flag")
    await lock.acquire()
    assert await two.lock("x").force_release()
    await settled(lambda: value("dsync_lost_total") == 1)
    assert value("dsync_held") == 0
    assert value("dsync_hold_seconds_count") == 1
    with pytest.raises(dsync.LeaseLost):
        lock.release()
    assert value("dsync_lost_total") == 1


async def test_nothing_is_held_when_all_is_over_whatever_was_cancelled(
    world: World, registry: Any, value: Any
):
    client = world.client(on_event=PrometheusHook(registry=registry))

    async def hold(number: int) -> None:
        async with client.lock("x"):
            await asyncio.sleep(0.001 * (number % 3))

    async def use(number: int) -> None:
        permits = client.semaphore("x", 2)
        await permits.acquire(timeout=(None, 0.002)[number % 2])
        permits.release()

    tasks = [asyncio.create_task(work(number)) for number in range(30) for work in (hold, use)]
    for number, task in enumerate(tasks):
        await asyncio.sleep(0)
        if number % 3 == 0:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for kind in ("lock", "semaphore"):
        acquired = value("dsync_acquire_wait_seconds_count", kind)
        assert acquired > 0
        assert value("dsync_hold_seconds_count", kind) == acquired
        assert value("dsync_held", kind) == 0


async def test_events_conditions_and_barriers_are_waited_for(
    world: World, registry: Any, value: Any
):
    client = world.client(on_event=PrometheusHook(registry=registry))
    event, barrier = client.event("x"), client.barrier("x", 2)
    waiting = asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    event.set()
    await waiting
    assert value("dsync_wait_seconds_count", "event") == 1
    with pytest.raises(TimeoutError):
        await client.event("never").wait(timeout=0.01)
    assert value("dsync_timeouts_total", "event", "never") == 1
    await asyncio.gather(barrier.wait(), barrier.wait())
    assert value("dsync_wait_seconds_count", "barrier") == 2
    condition = client.condition("x")

    async def sleeper() -> None:
        async with condition:
            ready.set()
            await condition.wait()

    ready = asyncio.Event()
    sleeping = asyncio.create_task(sleeper())
    await ready.wait()
    async with condition:
        condition.notify()
    await sleeping
    assert value("dsync_wait_seconds_count", "condition") == 1
    assert value("dsync_timeouts_total", "condition") == 0
    await event.clear()


async def test_units_of_a_rate_limit_are_counted_and_refusals(
    world: World, registry: Any, value: Any
):
    client = world.client(on_event=PrometheusHook(registry=registry))
    limiter = client.rate_limiter("x", 10, per=3600)
    await limiter.acquire(4)
    assert await limiter.try_acquire(5)
    assert not await limiter.try_acquire(2)
    assert value("dsync_limiter_units_total", "rate") == 9
    assert value("dsync_limiter_wait_seconds_count", "rate") == 2
    assert value("dsync_refused_total", "rate") == 1


async def test_messages_and_gaps_of_a_bus_are_counted(world: World, registry: Any, value: Any):
    client = world.client(on_event=PrometheusHook(registry=registry))
    bus = client.event_bus("x")
    async with bus.subscribe("*", maxsize=2, overflow="drop_oldest") as events:
        for number in range(5):
            await bus.trigger("tick", number)
        await settled(lambda: value("dsync_bus_received_total", "bus") == 5)
        assert value("dsync_bus_published_total", "bus") == 5
        gap = await anext(events)
        assert isinstance(gap, dsync.Gap)
        await settled(lambda: value("dsync_bus_gaps_total", "bus") == 1)
        assert value("dsync_bus_missed_total", "bus") == gap.missed


async def test_what_breaks_and_comes_back_is_counted(real: World, server_url: str, registry: Any):
    told: list[Happening] = []
    async with Proxy.to(server_url) as proxy:
        client = dsync.Client(
            proxy.url,
            namespace=real.namespace,
            on_event=[PrometheusHook(registry=registry), told.append],
        )
        of = registry.get_sample_value
        assert of("dsync_disconnects_total") == of("dsync_outage_seconds_count") == 0
        await client.lock("x").locked()
        proxy.cut()
        await settled(lambda: any(isinstance(each, Reconnected) for each in told))
        broken = [each for each in told if isinstance(each, Disconnected)]
        outages = [each.outage for each in told if isinstance(each, Reconnected)]
        assert of("dsync_disconnects_total") == len(broken) >= 1
        assert of("dsync_outage_seconds_count") == len(outages)
        assert of("dsync_outage_seconds_sum") == pytest.approx(sum(outages))
        await client.aclose()


async def test_two_clients_and_two_hooks_may_share_a_registry(
    world: World, registry: Any, value: Any
):
    one = world.client(on_event=PrometheusHook(registry=registry))
    two = world.client(on_event=PrometheusHook(registry=registry))
    async with one.lock("x"), two.semaphore("x", 2), one.semaphore("x", 2):
        assert value("dsync_held") == 1
        assert value("dsync_held", "semaphore") == 2
    assert value("dsync_acquire_wait_seconds_count", "semaphore") == 2


def test_two_registries_have_nothing_in_common():
    one, two = (prometheus_client.CollectorRegistry() for _ in range(2))
    PrometheusHook(registry=one)(Acquired("lock", "x", 0.0, "t", 1))
    PrometheusHook(registry=two)
    labels = {"kind": "lock", "name": "x"}
    assert one.get_sample_value("dsync_held", labels) == 1
    assert two.get_sample_value("dsync_held", labels) is None


def test_a_registry_that_nobody_has_any_more_is_forgotten():
    registry = prometheus_client.CollectorRegistry()
    hook, gone = PrometheusHook(registry=registry), ref(registry)
    del registry, hook
    gc.collect()
    assert gone() is None


def test_the_template_of_ones_own_makes_the_label(registry: Any, value: Any):
    hook = PrometheusHook(registry=registry, template=["tenant:*"], max_names=1)
    hook(Acquired("lock", "tenant:ada", 0.0, "t", 1))
    hook(Acquired("lock", "invoices", 0.0, "t", 1))
    assert value("dsync_held", name="tenant:*") == 1
    assert value("dsync_held", name="other") == 1


def test_without_a_registry_it_is_the_processs_own():
    program = """
import prometheus_client
from dsync.metrics.prometheus import PrometheusHook
PrometheusHook()
print(prometheus_client.generate_latest().decode())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "# TYPE dsync_acquire_wait_seconds histogram" in done.stdout, done.stderr


def test_the_workers_of_one_web_server_add_up(tmp_path: Path):
    """With $PROMETHEUS_MULTIPROC_DIR, as gunicorn's workers have it."""
    program = """
import prometheus_client, prometheus_client.multiprocess
from dsync.metrics.prometheus import PrometheusHook
from dsync.telemetry import Acquired
PrometheusHook()(Acquired("lock", "x", 0.5, "t", 1))
registry = prometheus_client.CollectorRegistry()
prometheus_client.multiprocess.MultiProcessCollector(registry)
print(registry.get_sample_value("dsync_held", {"kind": "lock", "name": "x"}),
      registry.get_sample_value("dsync_acquire_wait_seconds_sum", {"kind": "lock", "name": "x"}))
"""
    environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", program], env=environ, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [["1.0", "0.5"], ["2.0", "1.0"]]
