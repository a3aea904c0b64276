"""Workloads, and how they are measured: short slices in turn, medians over the rounds.

A machine's speed changes from one second to the next, so nothing here is compared across slices
that are far apart: a ratio is taken within each round, and the median of the rounds' ratios counts.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rig import Rig

__all__ = [
    "Goal", "Measured", "Ratio", "Results", "Round", "Slice", "Spread", "Workload", "measure",
    "over", "value",
]  # fmt: skip

Measured = Mapping[str, float]  # what one slice found out: quantity -> value
Round = Mapping[str, Measured]  # contender -> what its slice of this round found out
Slice = Callable[[Rig], Awaitable[Measured]]


@dataclass(frozen=True)
class Goal:
    """A bound, and the stricter one that is to come."""

    sign: str  # "≥" or "≤"
    now: float | None = None
    later: float | None = None

    def met(self, found: float, bound: float | None) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if bound is None:
            return None
        return found >= bound if self.sign == "≥" else found <= bound


@dataclass(frozen=True)
class Ratio:
    """What a workload is judged by; computed within each round."""

    what: str
    of: Callable[[Round], float]
    goal: Goal | None = None


@dataclass(frozen=True)
class Workload:
    """One question, put to each contender in turn."""

    name: str
    about: str
    contenders: Mapping[str, Slice | None]  # None: it cannot do this, and gets a dash
    ratios: Sequence[Ratio]


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


class Results:
    """The rounds of one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.rounds: list[dict[str, Measured]] = []

    def ratio(self, ratio: Ratio) -> Spread | None:
        """None where a contender could not do it."""
        try:
            return Spread.of([ratio.of(round_) for round_ in self.rounds])
        except KeyError:
            return None

    def absolute(self, contender: str) -> dict[str, Spread]:
        """Every quantity of a contender; nothing where it could not do the workload."""
        slices = [round_[contender] for round_ in self.rounds if contender in round_]
        if not slices:
            return {}
        return {name: Spread.of([slice_[name] for slice_ in slices]) for name in slices[0]}


def value(contender: str, quantity: str) -> Callable[[Round], float]:
    """For what is a ratio by itself, or has a goal of its own."""
    return lambda round_: round_[contender][quantity]


def over(quantity: str, contender: str, *others: str) -> Callable[[Round], float]:
    """What a contender reached ÷ the best that one of the others did."""
    return lambda round_: (
        round_[contender][quantity] / max(round_[other][quantity] for other in others)
    )


def measure(
    workloads: Sequence[Workload], rig: Rig, rounds: int, progress: Callable[[str], object]
) -> list[Results]:
    """Every workload in every round; who comes first changes from round to round."""
    results = [Results(workload) for workload in workloads]
    for number in range(rounds):
        for result in results:
            able = [(who, run) for who, run in result.workload.contenders.items() if run]
            shift = number % max(len(able), 1)
            result.rounds.append({})
            for who, run in able[shift:] + able[:shift]:
                progress(f"round {number + 1} of {rounds}: {result.workload.name}, {who}")
                with rig.slice():
                    result.rounds[-1][who] = asyncio.run(_awaited(run(rig)))
    return results


async def _awaited(slice_: Awaitable[Measured]) -> Measured:
    return await slice_
