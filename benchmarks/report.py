"""What was found, as tables for people and as JSON for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from benchmarks.measure import Goal, Results, Spread

__all__ = ["as_json", "as_markdown", "as_text"]

DASH = "-"
TIMES = "\N{MULTIPLICATION SIGN}"
Row = tuple[str, ...]
Table = tuple[str, Sequence[Row]]  # a heading; the rows, of which the first names the columns


def as_text(results: Sequence[Results], peers: Mapping[str, str]) -> str:
    """Ratios and their goals first, then what they were made of, then who could not take part."""
    return "\n\n".join(_text(rows) for _, rows in _tables(results, peers, brief=False))


def as_markdown(results: Sequence[Results], peers: Mapping[str, str]) -> str:
    """The same for docs/performance.md, of everybody's figures only those that are compared."""
    tables = _tables(results, peers, brief=True)
    return "\n\n".join(f"### {title}\n\n{_md(rows)}" for title, rows in tables)


def as_json(
    results: Sequence[Results], peers: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The same, with every round."""
    ratios = []
    for result in results:
        for ratio in result.workload.ratios:
            spread, goal = result.ratio(ratio), ratio.goal
            ratios.append(
                {
                    "workload": result.workload.name,
                    "ratio": ratio.what,
                    **({} if spread is None else _finite(asdict(spread))),
                    "goal": asdict(goal) if goal else None,
                    "met": goal.met(spread.median) if goal and spread else None,
                }
            )
    return {
        "settings": settings,
        "peers": peers,
        "ratios": ratios,
        "rounds": {result.workload.name: result.rounds for result in results},
        "took": {result.workload.name: result.took for result in results},
        "failures": {result.workload.name: result.failures for result in results},
    }


def _finite(spread: Mapping[str, float]) -> dict[str, float | None]:
    """What JSON can say: null where a contender got nothing done and a quotient has no end."""
    return {name: value if isfinite(value) else None for name, value in spread.items()}


def _tables(results: Sequence[Results], peers: Mapping[str, str], brief: bool) -> list[Table]:
    tables: list[Table] = [
        ("Goals and ratios", _ratios(results)),
        ("Everybody's figures", _figures(results, brief)),
        ("Peers", [("peer", "version, or why it was not measured"), *peers.items()]),
    ]
    failures = [
        (result.workload.name, who, why)
        for result in results
        for who, why in result.failures.items()
    ]
    if failures:
        tables.append(("What failed", [("workload", "contender", "error"), *failures]))
    return tables


def _ratios(results: Sequence[Results]) -> list[Row]:
    rows: list[Row] = [("workload", "ratio", "median", "min-max", "goal", "met")]
    for result in results:
        for ratio in result.workload.ratios:
            spread = result.ratio(ratio)
            judged = _judged(spread, ratio.goal)
            rows.append((result.workload.name, ratio.what, *_shown(spread), *judged))
    return rows


def _figures(results: Sequence[Results], brief: bool) -> list[Row]:
    """Each contender's quantities; by the one that counts, how many times as good dsync was."""
    rows: list[Row] = [("workload", "contender", "quantity", "median", "min-max", "dsync is")]
    for result in results:
        score = result.workload.score
        for contender in result.workload.contenders:
            found = result.absolute(contender)
            for quantity, spread in found.items():
                counts = score is not None and quantity == score.quantity
                if brief and score is not None and not counts:
                    continue
                lead = result.lead(contender) if counts else None
                cells = (contender, quantity, *_shown(spread), _times(lead))
                rows.append((result.workload.name, *cells))
            if not found:
                rows.append((result.workload.name, contender, DASH, DASH, DASH, ""))
    return rows


def _judged(spread: Spread | None, goal: Goal | None) -> Row:
    if goal is None:
        return "", ""
    met = {True: "yes", False: "NO"}[goal.met(spread.median)] if spread else DASH
    return f"{goal.sign} {goal.bound:g}", met


def _times(lead: Spread | None) -> str:
    if lead is None:
        return ""
    return f"{TIMES} {_number(lead.median)} ({_number(lead.least)}-{_number(lead.most)})"


def _shown(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return DASH, DASH
    return _number(spread.median), f"{_number(spread.least)}-{_number(spread.most)}"


def _number(value: float) -> str:
    """Three digits that count, and none behind the point where there are as many before it."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or not value else f"{value:.4f}"


def _text(rows: Sequence[Row]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _md(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
