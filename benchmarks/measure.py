"""Workloads, and how they are measured: short slices in turn, medians over the rounds.

A machine's speed changes from one second to the next, so nothing here is compared across slices
that are far apart: a ratio is taken within each round, and the median of the rounds' ratios counts.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers import peer_of
from benchmarks.rig import Rig, runner

__all__ = [
    "Goal", "Measured", "Ratio", "Results", "Round", "Score", "Slice", "Spread", "Workload",
    "measure", "over", "value",
]  # fmt: skip

# Peers say where others stand; that needs no more rounds than this, and where it takes long, one.
PEER_ROUNDS = 2
# Seconds a peer may take beyond its slice before it counts as stuck.
PATIENCE = 20.0

Measured = Mapping[str, float]  # what one slice found out: quantity -> value
Round = Mapping[str, Measured]  # contender -> what its slice of this round found out
Slice = Callable[[Rig], Awaitable[Measured]]


@dataclass(frozen=True)
class Goal:
    """A bound."""

    sign: str  # "≥" or "≤"
    bound: float

    def met(self, found: float) -> bool:
        return found >= self.bound if self.sign == "≥" else found <= self.bound


@dataclass(frozen=True)
class Ratio:
    """What a workload is judged by; computed within each round."""

    what: str
    of: Callable[[Round], float]
    goal: Goal | None = None


@dataclass(frozen=True)
class Score:
    """The quantity in which all contenders of a workload can be compared with one of them."""

    quantity: str
    more_is_better: bool
    whose: str = "dsync"

    def lead(self, round_: Round, contender: str) -> float:
        """How many times as good as the contender it was."""
        ours, theirs = round_[self.whose][self.quantity], round_[contender][self.quantity]
        better, worse = (ours, theirs) if self.more_is_better else (theirs, ours)
        return _quotient(better, worse)


@dataclass(frozen=True)
class Workload:
    """One question, put to each contender in turn."""

    name: str
    about: str
    contenders: Mapping[str, Slice | None]  # None: it cannot do this, and gets a dash
    ratios: Sequence[Ratio]
    score: Score | None = None
    # What counts things that hardly change, or takes long, is content with fewer rounds.
    rounds: int = 1000
    long: bool = False  # left out of a quick run, unless it is asked for by name


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None where there are none."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


class Results:
    """The rounds of one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.rounds: list[dict[str, Measured]] = []
        self.failures: dict[str, str] = {}  # contender -> what went wrong
        self.took = 0.0  # seconds, for all rounds

    def ratio(self, ratio: Ratio) -> Spread | None:
        """None where a contender could not do it."""
        return self._over_rounds(ratio.of)

    def lead(self, contender: str) -> Spread | None:
        """How many times as good the workload's own was, in the rounds that had both."""
        score = self.workload.score
        if score is None or contender == score.whose:
            return None
        return self._over_rounds(lambda round_: score.lead(round_, contender))

    def absolute(self, contender: str) -> dict[str, Spread]:
        """Every quantity of a contender; nothing where it could not do the workload."""
        slices = [round_[contender] for round_ in self.rounds if contender in round_]
        found = {}
        for name in slices[0] if slices else ():
            found[name] = Spread.of([slice_[name] for slice_ in slices])
        return {name: spread for name, spread in found.items() if spread is not None}

    def _over_rounds(self, of: Callable[[Round], float]) -> Spread | None:
        values = []
        for round_ in self.rounds:
            try:
                values.append(of(round_))
            except KeyError:  # somebody did not take part in this one
                pass
        return Spread.of(values)


def value(contender: str, quantity: str) -> Callable[[Round], float]:
    """For what is a ratio by itself, or has a goal of its own."""
    return lambda round_: round_[contender][quantity]


def over(quantity: str, contender: str, *others: str) -> Callable[[Round], float]:
    """What a contender reached ÷ the best that one of the others did."""
    return lambda round_: _quotient(
        round_[contender][quantity], max(round_[other][quantity] for other in others)
    )


def _quotient(one: float, other: float) -> float:
    return one / other if other else float("inf")


def measure(
    workloads: Sequence[Workload],
    rig: Rig,
    rounds: int,
    progress: Callable[[str], object],
    peers: Collection[str] | None = None,
) -> list[Results]:
    """Every workload in every round; who comes first changes from round to round.

    Args:
        peers: the packages to measure as well; None: all that are installed.
    """
    results = [Results(workload) for workload in workloads]
    for number in range(rounds):
        for result in results:
            if number >= result.workload.rounds:
                continue
            result.rounds.append({})
            began = time.monotonic()
            for who, run in _able(result, number, peers):
                progress(f"round {number + 1} of {rounds}: {result.workload.name}, {who}")
                found = _slice(result, who, run, rig)
                if found is not None:
                    result.rounds[-1][who] = found
            result.took += time.monotonic() - began
    return results


def _able(
    result: Results, number: int, peers: Collection[str] | None
) -> Iterator[tuple[str, Slice]]:
    """Who takes part in this round, in turns."""
    able = []
    most = 1 if result.workload.long else PEER_ROUNDS
    for who, run in result.workload.contenders.items():
        peer = peer_of(who)
        if run is None or who in result.failures:
            continue
        if peer is None or (
            number < most and peer.installed and (peers is None or peer.package in peers)
        ):
            able.append((who, run))
    shift = number % max(len(able), 1)
    yield from able[shift:] + able[:shift]


def _slice(result: Results, who: str, run: Slice, rig: Rig) -> Measured | None:
    """What one slice found.  Who fails is out of the workload: a long run is not lost by it."""
    patience = PATIENCE + 10 * rig.seconds if peer_of(who) else None

    async def bounded() -> Measured:
        async with asyncio.timeout(patience):
            return await run(rig)

    with rig.slice(), runner(rig.loop) as loop:
        try:
            return loop.run(bounded())
        except Exception as exc:
            result.failures[who] = f"{type(exc).__name__}: {exc}".partition("\n")[0][:200]
            return None
