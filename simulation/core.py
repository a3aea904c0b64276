"""A clock, and a core that serves in order of arrival: all that the models are made of."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import count

__all__ = ["Clock", "Core", "percentile", "waits"]


class Clock:
    """Time that passes as fast as it can: actions happen in the order of their times, seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        # The number keeps apart what happens at one time: first come, first served.
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def at(self, when: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._due, (when, next(self._numbers), action))

    def run(self, until: float = float("inf")) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heapq.heappop(self._due)
            action()


class Core:
    """One core.  It serves in order of arrival, so it is known at once when it will be done."""

    def __init__(self) -> None:
        self.free_at = 0.0  # when all that has come is done
        self.busy = 0.0  # seconds of work that have come

    def serve(self, now: float, cost: float) -> float:
        """Work that comes now.  -> when it is done"""
        self.free_at = max(self.free_at, now) + cost
        self.busy += cost
        return self.free_at


def waits(arrivals: Iterable[tuple[float, float]]) -> list[float]:
    """How long each waits for its turn, of `(time, cost)` in order of time."""
    core = Core()
    return [core.serve(now, cost) - cost - now for now, cost in arrivals]


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
