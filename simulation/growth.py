"""What one command costs by how many others wait, sleep, have left or have come."""

from collections.abc import Awaitable, Callable

from simulation.steps import ACQUIRE, LOCK, RELEASE, ROUNDS, Args, Step, Steps, named, queue

__all__ = ["growth"]

SIZES = (10, 1_000, 10_000, 100_000)
SHARE = 100  # commands of a round, where they leave the rest as it was
BARRIER: Args = {"lease": 600_000, "inbox": "calibration:inbox:", "memory": 60_000}


async def growth(steps: Steps) -> dict[str, dict[str, float]]:
    """µs by size, by what is done."""
    found = {}
    measures: tuple[tuple[str, int, Callable[[Steps, int], Awaitable[float]]], ...] = (
        ("a waiter's heartbeat, by waiters", 100_000, _heartbeat),
        ("handing a lock over, by waiters", 100_000, _hand_over),
        ("the release after `notify_all()`, by sleepers", 10_000, _notify_all),
        ("a release, by waits given up 60 s ago", 100_000, _sweep),
        ("the arrival that trips a barrier, by parties", 10_000, _trip),
        ("an arrival after a process died, by parties there", 10_000, _dead),
    )
    for what, most, measure in measures:
        sizes = [size for size in SIZES if size <= most]
        found[what] = {str(size): round(await measure(steps, size), 1) for size in sizes}
    return found


async def _heartbeat(steps: Steps, size: int) -> float:
    name = f"heartbeat {size}"
    await steps.do(queue(name, size + 1))
    again = queue(name, 10, first=1) * (SHARE // 10)
    return min([await steps.cost(again) for _ in range(ROUNDS)])


async def _hand_over(steps: Steps, size: int) -> float:
    name = f"hand over {size}"
    await steps.do(queue(name, size + ROUNDS * SHARE))
    found = []
    for first in range(0, ROUNDS * SHARE, SHARE):
        releases: list[Step] = [
            ("lock", name, "permit_release", named(RELEASE, first + number))
            for number in range(SHARE)
        ]
        found.append(await steps.cost(releases))
    return min(found)


async def _notify_all(steps: Steps, size: int) -> float:
    name = f"notify {size}"
    release: Args = {**LOCK, "condition": "c", "count": 0, "keep": 0, "tombstone": 0}
    asleep: list[Step] = []
    for number in range(size):
        falls = named(release, number) | {"sleeper": f"process-{number}.2/5000/c"}
        asleep.append(("condition", name, "permit_acquire", named(ACQUIRE, number)))
        asleep.append(("condition", name, "permit_yield", falls))
    await steps.do(asleep)
    await steps.do([("condition", name, "permit_acquire", named(ACQUIRE, size))])
    wakes = named(release, size) | {"sleeper": "", "count": 2**31}
    return await steps.cost([("condition", name, "permit_yield", wakes)])


async def _sweep(steps: Steps, size: int) -> float:
    name = f"sweep {size}"
    await steps.do(queue(name, 1))
    left: list[Step] = [
        ("lock", name, "permit_release", named(RELEASE, number) | {"tombstone": 60_000})
        for number in range(1, size + 1)
    ]
    await steps.do(left)
    steps.expire("lock", name, "left")
    last = named(RELEASE, size + 1) | {"tombstone": 60_000}
    return await steps.cost([("lock", name, "permit_release", last)])


async def _trip(steps: Steps, size: int) -> float:
    arrivals = _arrivals(f"trip {size}", size)
    await steps.do(arrivals[:-1])
    return await steps.cost(arrivals[-1:])


async def _dead(steps: Steps, size: int) -> float:
    name = f"dead {size}"
    await steps.do(_arrivals(name, size + 2)[:-2])
    steps.expire("barrier", name, "alive", 1)
    return await steps.cost(_arrivals(name, size + 2)[-2:-1])


def _arrivals(name: str, parties: int) -> list[Step]:
    return [
        ("barrier", name, "barrier_arrive", named(BARRIER, number) | {"parties": parties})
        for number in range(parties)
    ]
