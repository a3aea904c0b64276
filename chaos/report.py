"""What was found: as a table for people, for a page of documentation, and as JSON for machines."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chaos.scenario import Result
from dsync.testing import Violation

__all__ = ["as_json", "as_markdown", "as_text", "from_json"]

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


def as_markdown(results: Sequence[Result]) -> str:
    """A row for each fault and a column for each primitive, in the order of the results."""
    works = list(dict.fromkeys(result.work for result in results))
    cells: dict[str, dict[str, str]] = {}
    for result in results:
        cells.setdefault(result.fault, {})[result.work] = _cell(result)
    rows = [["", *works], ["---"] + ["---:"] * len(works)]
    rows += [[f"`{fault}`", *(row.get(work, "") for work in works)] for fault, row in cells.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_json(results: Sequence[Result], settings: dict[str, Any]) -> dict[str, Any]:
    """The same, with every violation."""
    return {"settings": settings, "scenarios": [asdict(result) for result in results]}


def from_json(found: dict[str, Any]) -> list[Result]:
    """The results that were written so."""
    results = [Result(**scenario) for scenario in found["scenarios"]]
    for result in results:
        violations: list[Any] = result.violations
        result.violations = [Violation(**violation) for violation in violations]
    return results


def _row(result: Result) -> Row:
    if not result.applies:
        return (result.fault, result.work, *["-"] * 5, "", "", "-")
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


def _cell(result: Result) -> str:
    """`operations · recovery`, and before it what should not be."""
    if not result.applies:
        return "-"
    recovery = "-" if result.recovery is None else f"{result.recovery:.2f} s"
    if result.recovery == math.inf:
        recovery = "**never**"
    parts = [f"{result.operations:,}", recovery]
    for count, what in ((len(result.leftovers), "left"), (len(result.violations), "violated")):
        if count:
            parts.insert(0, f"**{count} {what}**")
    return " · ".join(parts if result.harms else ["**no harm**", *parts])
