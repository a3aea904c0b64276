"""What processes ask of a server while nothing goes wrong."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from dsync.beat import BEAT
from simulation.calibration import Calibration
from simulation.core import percentile, waits
from simulation.table import Table, figure

__all__ = ["COMFORT", "activities", "commands", "fleets", "leases", "load", "processes"]

COMFORT = 0.7  # of a core; beyond it waits grow faster than load
SHARE = (0.28, 0.34)  # of its lease after which a client renews, as in dsync.lease.Keeper
SECONDS = 2.0  # that are played through
BY_DEFAULT = 30.0  # seconds of a lease


@dataclass(frozen=True)
class Activity:
    """Something that a process does."""

    about: str
    rate: float  # commands or messages a second
    cost: float  # seconds of the core for each


def activities(costs: Calibration, lease: float = BY_DEFAULT) -> dict[str, Activity]:
    """What a process may do, each once a second where it is not on a timer."""
    beat = 1 / BEAT
    cycle = (costs.command("acquire, free") + costs.command("release, nobody waits")) / 2
    contended = costs.command("join a queue") + costs.command("release, hand over")
    known = {
        "hold": ("holds a lock, lease 30 s", 2 / lease / sum(SHARE), costs.command("renew")),
        "wait": ("waits for a lock", beat, costs.command("heartbeat, lock")),
        "event": ("waits for an event", beat, costs.command("heartbeat, event")),
        "listen": ("listens to a bus", beat, costs.command("heartbeat, bus")),
        "hear": ("is sent a message by a bus, 1/s", 1, costs.message / 1e6),
        "check": ("asks a rate limiter, 1/s", 1, costs.command("limiter check")),
        "cycle": ("takes and releases a free lock, 1/s", 2, cycle),
        "contend": (
            "takes a lock from another's hand, 1/s", 2, (contended + costs.message / 1e6) / 2
        ),
    }  # fmt: skip
    return {name: Activity(*each) for name, each in known.items()}


def commands(costs: Calibration) -> Table:
    """What the core does, and how much of it a second."""
    rows = [
        [
            what,
            figure(script, "µs"),
            figure(costs.command(what) * 1e6, "µs"),
            figure(COMFORT / costs.command(what), ""),
        ]
        for what, script in costs.script.items()
    ]
    rows.append(["client connects and subscribes", "", figure(costs.connect, "µs"),
                 figure(COMFORT / costs.connect * 1e6)])  # fmt: skip
    rows.append(["message, for each receiver", "", figure(costs.message, "µs"),
                 figure(COMFORT / costs.message * 1e6)])  # fmt: skip
    head = ["command", "in the script", "of the core", "a second, at 70 %"]
    return Table("commands", "What one core carries", head, rows)


def processes(costs: Calibration) -> Table:
    """What so many processes cost that all do one thing."""
    rows = []
    for each in activities(costs).values():
        share = each.rate * each.cost
        thousands = [
            text
            for count in (1_000, 100_000)
            for text in (figure(count * each.rate), figure(count * share * 100, "%"))
        ]
        rows.append([each.about, *thousands, figure(COMFORT / share)])
    head = [
        "each process", "1,000: a second", "of a core", "100,000: a second", "of a core",
        "processes at 70 %",
    ]  # fmt: skip
    return Table("processes", "What processes cost", head, rows)


def leases(costs: Calibration) -> Table:
    """Renewals by the length of the lease."""
    rows = []
    for lease in (10.0, 30.0, 60.0, 120.0):
        hold = activities(costs, lease)["hold"]
        rate = 100_000 * hold.rate
        rows.append([f"{lease:g} s", figure(rate), figure(rate * hold.cost * 100, "%")])
    head = ["lease", "renewals a second", "of a core"]
    return Table("leases", "100,000 leases by their length", head, rows)


def fleets(costs: Calibration, rng: random.Random) -> Table:
    """Workers that do a bit of everything."""
    doing = [activities(costs)[name] for name in ("hold", "wait", "listen", "check", "cycle")]
    rows = []
    for size, servers in ((1_000, 1), (10_000, 1), (20_000, 1), (100_000, 8)):
        used = load(doing, size // servers)
        waited = waits(arrivals(doing, size // servers, rng))
        told = ["grows"] * 3
        if used < 1:
            told = [figure(percentile(waited, percent) * 1e6, "µs") for percent in (50, 99, 99.9)]
        memory = size * (costs.memory["connection"] + costs.memory["process that waits"]
                         + costs.memory["lock, held"])  # fmt: skip
        rows.append(
            [
                f"{size:,} on {servers}",
                figure(size * sum(each.rate for each in doing)),
                figure(used * 100, "%"),
                *told,
                figure(memory / 1e6, "MB"),
            ]
        )
    head = [
        "workers on servers", "commands a second", "of each core", "wait p50", "p99", "p99.9",
        "server memory",
    ]  # fmt: skip
    return Table("fleets", "Workers that do five of these at once", head, rows)


def load(doing: list[Activity], size: int) -> float:
    """Of one core."""
    return size * sum(each.rate * each.cost for each in doing)


def arrivals(doing: list[Activity], size: int, rng: random.Random) -> Iterator[tuple[float, float]]:
    """Commands in order of time: each process keeps its rates, none knows of the others."""
    times = [
        (rng.uniform(0, SECONDS), each.cost)
        for each in doing
        for _ in range(round(size * each.rate * SECONDS))
    ]
    yield from sorted(times)
