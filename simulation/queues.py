"""What becomes of waits when something is in use nearly all the time."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from simulation.calibration import Calibration
from simulation.core import percentile, waits
from simulation.table import Table, figure

__all__ = ["BURN_IN", "Trace", "crowd", "queues", "trace"]

ARRIVALS = 60_000
BURN_IN = 5_000  # of them, that find less of a queue than is usual
HOLD = 0.010  # seconds, on average
PASSING = 0.0003  # seconds from a release to the next holder, on one network


def queues(costs: Calibration, rng: random.Random) -> Table:
    """The server's core under a mix of commands, and one lock, by how busy they are."""
    mix = [costs.command(what) for what in costs.script]
    rows = []
    for used in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
        core = waits(crowd(used, mix, rng))[BURN_IN:]
        holds = [rng.expovariate(1 / HOLD) + PASSING for _ in range(10_000)]
        lock = waits(crowd(used, holds, rng))[BURN_IN:]
        rows.append(
            [
                figure(used * 100, "%"),
                *(figure(percentile(core, percent) * 1e6, "µs") for percent in (50, 99)),
                *(figure(percentile(lock, percent) * 1e3, "ms") for percent in (50, 99)),
            ]
        )
    head = ["in use", "the core: p50", "p99", "a lock held 10 ms: p50", "p99"]
    return Table("queues", "Waits, by how much of the time it is in use", head, rows)


def crowd(used: float, costs: list[float], rng: random.Random) -> Iterator[tuple[float, float]]:
    """Arrivals that know nothing of each other and keep it busy for this part of the time."""
    rate = used / (sum(costs) / len(costs))
    now = 0.0
    for _ in range(ARRIVALS):
        now += rng.expovariate(rate)
        yield now, rng.choice(costs)


@dataclass(frozen=True)
class Trace:
    """Who wants one lock when, and for how long: played to the model, and to real clients."""

    arrivals: list[tuple[float, float]]  # when, and for how long, seconds

    def model(self) -> list[float]:
        """How long each waits."""
        return waits((when, hold + PASSING) for when, hold in self.arrivals)


def trace(count: int, hold: float, used: float, rng: random.Random) -> Trace:
    """So many that keep one lock in use for this part of the time, each for `hold` on average."""
    now, wanted = 0.0, []
    for _ in range(count):
        now += rng.expovariate(used / hold)
        wanted.append((now, rng.expovariate(1 / hold)))
    return Trace(wanted)
