"""What is measured, each under its OpenTelemetry name; the one Prometheus has follows from it."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["BUCKETS", "METRICS", "Metric"]

# Seconds: from what one process keeps to itself, over what a server takes, to jobs of minutes.
BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


@dataclass(frozen=True, eq=False, slots=True)
class Metric:
    """A histogram, a counter, or a gauge that goes up and down.

    Attributes:
        name: in OpenTelemetry.
        unit: "s", or in braces what is counted.
        labels: what it is told apart by.
        along: counters that are there, at 0, as soon as this metric is: only of what has been 0
            before can anybody see that it has grown.
    """

    name: str
    type: Literal["histogram", "counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...] = ("kind", "name")
    along: tuple["Metric", ...] = ()


TIMEOUTS = Metric("dsync.timeouts", "counter", "{wait}", "Waits that came to their timeout")
SLOW_WAITS = Metric("dsync.slow_waits", "counter", "{wait}", "Waits longer than slow_wait")
REFUSED = Metric("dsync.refused", "counter", "{attempt}", "Attempts that would have had to wait")
SKIPPED = Metric("dsync.skipped", "counter", "{waiter}", "Waiters that had left when it came")

LOST = Metric("dsync.lost", "counter", "{lease}", "Leases that were lost")
RENEWED_LATE = Metric(
    "dsync.renewed_late", "counter", "{lease}", "Renewals that took more than one attempt"
)
HELD = Metric(
    "dsync.held", "gauge", "{lease}", "Leases that this process holds", along=(LOST, RENEWED_LATE)
)
ACQUIRE_WAIT = Metric(
    "dsync.acquire.wait",
    "histogram",
    "s",
    "Time from asking to holding",
    along=(TIMEOUTS, SLOW_WAITS, REFUSED),
)
HOLD = Metric("dsync.hold", "histogram", "s", "Time from holding to release or loss")
HANDED_OVER = Metric(
    "dsync.handed_over",
    "counter",
    "{lease}",
    "Releases that passed it on, to a task of this process or to another process",
    labels=("kind", "name", "to"),
)

WAIT = Metric(
    "dsync.wait",
    "histogram",
    "s",
    "Time waited for an event, a notification or the other parties",
    along=(TIMEOUTS,),
)

LIMITER_UNITS = Metric("dsync.limiter.units", "counter", "{unit}", "Units of rate limits taken")
LIMITER_WAIT = Metric(
    "dsync.limiter.wait",
    "histogram",
    "s",
    "Time waited for units of a rate limit",
    along=(LIMITER_UNITS, TIMEOUTS, REFUSED),
)

BUS_PUBLISHED = Metric("dsync.bus.published", "counter", "{message}", "Messages published")
BUS_GAPS = Metric("dsync.bus.gaps", "counter", "{gap}", "Gaps that subscribers were told of")
BUS_MISSED = Metric(
    "dsync.bus.missed", "counter", "{message}", "Messages in gaps, where their number is known"
)
BUS_RECEIVED = Metric(
    "dsync.bus.received",
    "counter",
    "{message}",
    "Messages delivered to subscribers",
    along=(BUS_GAPS, BUS_MISSED),
)

# Without labels, so that they are there, at 0, before anything breaks.
DISCONNECTS = Metric(
    "dsync.disconnects", "counter", "{connection}", "Connections that broke", labels=()
)
OUTAGE = Metric(
    "dsync.outage", "histogram", "s", "Time until there was a connection again", labels=()
)

METRICS = (
    *(ACQUIRE_WAIT, HOLD, HELD, LOST, RENEWED_LATE, HANDED_OVER, SKIPPED),
    *(TIMEOUTS, SLOW_WAITS, REFUSED, WAIT),
    *(LIMITER_UNITS, LIMITER_WAIT),
    *(BUS_PUBLISHED, BUS_RECEIVED, BUS_GAPS, BUS_MISSED),
    *(DISCONNECTS, OUTAGE),
)
