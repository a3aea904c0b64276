"""What was found, as a table for people and as JSON for machines."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measure import Goal, Results, Spread

__all__ = ["as_json", "as_text"]

DASH = "-"
Row = tuple[str, ...]


def as_text(results: Sequence[Results]) -> str:
    """Two tables: ratios and their goals first, then what they were made of."""
    ratios: list[Row] = [("workload", "ratio", "median", "min-max", "goal", "met", "later", "met")]
    absolutes: list[Row] = [("workload", "contender", "quantity", "median", "min-max")]
    for result in results:
        name = result.workload.name
        ratios += [
            (name, ratio.what, *_judged(result.ratio(ratio), ratio.goal))
            for ratio in result.workload.ratios
        ]
        for contender in result.workload.contenders:
            found = result.absolute(contender)
            for quantity, spread in found.items():
                absolutes.append((name, contender, quantity, *_shown(spread)))
            if not found:
                absolutes.append((name, contender, DASH, DASH, DASH))
    return "\n\n".join(_table(rows) for rows in (ratios, absolutes))


def as_json(results: Sequence[Results], settings: dict[str, Any]) -> dict[str, Any]:
    """The same, with every round."""
    ratios = []
    for result in results:
        for ratio in result.workload.ratios:
            spread, goal = result.ratio(ratio), ratio.goal
            ratios.append(
                {
                    "workload": result.workload.name,
                    "ratio": ratio.what,
                    **({} if spread is None else asdict(spread)),
                    "goal": asdict(goal) if goal else None,
                    "met": goal.met(spread.median, goal.now) if goal and spread else None,
                }
            )
    rounds = {result.workload.name: result.rounds for result in results}
    return {"settings": settings, "ratios": ratios, "rounds": rounds}


def _judged(spread: Spread | None, goal: Goal | None) -> Row:
    cells: list[str] = list(_shown(spread))
    for bound in (goal.now, goal.later) if goal else (None, None):
        if goal is None or bound is None:
            cells += ["", ""]
        else:
            met = goal.met(spread.median, bound) if spread else None
            cells += [f"{goal.sign} {bound:g}", {True: "yes", False: "NO", None: DASH}[met]]
    return tuple(cells)


def _shown(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return DASH, DASH
    return _number(spread.median), f"{_number(spread.least)}-{_number(spread.most)}"


def _number(value: float) -> str:
    """Three digits that count, and none behind the point where there are as many before it."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or not value else f"{value:.4f}"


def _table(rows: Sequence[Row]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
