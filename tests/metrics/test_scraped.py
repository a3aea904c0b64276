"""A worker process, scraped as Prometheus does it: the numbers add up."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from tests.metrics.scraping import Scrape

ROOT = Path(__file__).parents[2]
PERMIT_KINDS = ("lock", "semaphore")


@pytest.fixture(scope="module", params=["memory", "server"])
def scrape(request: pytest.FixtureRequest) -> Iterator[Scrape]:
    namespace = f"t-{uuid.uuid4().hex[:12]}"
    memory = request.param == "memory"
    url = f"memory://{namespace}" if memory else request.getfixturevalue("server_url")
    command = [sys.executable, "-W", "error", "-m", "tests.metrics.worker", url, namespace]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            assert port, "the worker has failed"
            yield Scrape(int(port))
            process.communicate(timeout=20)
            assert process.returncode == 0
        finally:
            process.kill()


def test_n_acquires_are_n_waits_and_n_holds(scrape: Scrape):
    for name in ("order:*-*", "x"):
        assert scrape.sum("dsync_acquire_wait_seconds_count", kind="lock", name=name) == 20
        assert scrape.sum("dsync_hold_seconds_count", kind="lock", name=name) == 20
        assert scrape.sum("dsync_acquire_wait_seconds_bucket", name=name, le="+Inf") == 20


def test_what_was_acquired_was_released_or_lost(scrape: Scrape):
    for labels in ({}, {"kind": "lock"}, {"kind": "semaphore"}, {"name": "lost"}):
        begun = scrape.sum("dsync_acquire_wait_seconds_count", **labels)
        assert scrape.sum("dsync_hold_seconds_count", **labels) == begun
        assert scrape.sum("dsync_held", **labels) == 0
    assert scrape.sum("dsync_lost_total", name="lost") == 1
    assert scrape.sum("dsync_lost_total") == 1


def test_waits_that_ended_otherwise_are_counted(scrape: Scrape):
    assert scrape.sum("dsync_timeouts_total", kind="semaphore", name="permits") == 2
    assert scrape.sum("dsync_refused_total", kind="semaphore", name="permits") == 1
    assert scrape.sum("dsync_acquire_wait_seconds_count", kind="semaphore") == 1
    assert scrape.sum("dsync_timeouts_total", kind="lock") == 0


def test_hand_overs_are_counted(scrape: Scrape):
    """Of 20 holds of one lock by 4 tasks most went from one task to the next."""
    assert 0 < scrape.sum("dsync_handed_over_total", name="x") < 20


def test_units_events_and_messages_are_counted(scrape: Scrape):
    assert scrape.sum("dsync_wait_seconds_count", kind="event", name="event") == 3
    assert scrape.sum("dsync_limiter_units_total", name="limit") == 7
    assert scrape.sum("dsync_limiter_wait_seconds_count", name="limit") == 2
    assert scrape.sum("dsync_refused_total", name="limit") == 1
    assert scrape.sum("dsync_bus_published_total", name="bus") == 5
    assert scrape.sum("dsync_bus_received_total", name="bus") == 5
    assert scrape.sum("dsync_bus_gaps_total", name="bus") == 1
    assert scrape.sum("dsync_bus_missed_total", name="bus") == 2


def test_nothing_broke(scrape: Scrape):
    assert scrape.sum("dsync_disconnects_total") == 0
    assert scrape.sum("dsync_outage_seconds_count") == 0


@pytest.mark.parametrize("metric", ["acquire_wait", "hold", "wait", "limiter_wait"])
def test_buckets_reach_from_a_millisecond_to_minutes(scrape: Scrape, metric: str):
    bounds: list[Any] = [
        float(sample.labels["le"]) for sample in scrape.matching(f"dsync_{metric}_seconds_bucket")
    ]
    assert min(bounds) == 0.001
    assert sorted(set(bounds))[-2:] == [300.0, float("inf")]
