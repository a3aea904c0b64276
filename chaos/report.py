"""What was found, as a table for people and as JSON for machines."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chaos.scenario import Result

__all__ = ["as_json", "as_text"]

SHOWN = 5  # violations of a scenario in full
Row = tuple[str, ...]


def as_text(results: Sequence[Result]) -> str:
    """A row for each scenario, then what went wrong in it."""
    rows: list[Row] = [
        (
            "fault", "primitive", "operations", "harms", "lost", "violations", "recovery", "goal",
            "met", "leftovers",
        )
    ]  # fmt: skip
    rows += [_row(result) for result in results]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    for result in results:
        if not result.kept:
            lines += ["", f"{result.fault} x {result.work}, seed {result.seed}:"]
            lines += [str(violation) for violation in result.violations[:SHOWN]]
            if len(result.violations) > SHOWN:
                lines.append(f"... and {len(result.violations) - SHOWN} violations more")
            lines += [f"left: {what}" for what in result.leftovers]
    return "\n".join(lines)


def as_json(results: Sequence[Result], settings: dict[str, Any]) -> dict[str, Any]:
    """The same, with every violation."""
    return {"settings": settings, "scenarios": [asdict(result) for result in results]}


def _row(result: Result) -> Row:
    recovery, goal = result.recovery, result.goal
    met = "" if goal is None or recovery is None else "yes" if recovery <= goal else "NO"
    return (
        result.fault,
        result.work,
        f"{result.operations:,}",
        str(result.harms),
        str(result.losses),
        str(len(result.violations)),
        "-" if recovery is None else f"{recovery:.3f} s",
        "" if goal is None else f"≤ {goal:g} s",
        met,
        str(len(result.leftovers)),
    )
