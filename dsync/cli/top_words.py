"""What `dsync top` says of a row, and in which order."""

import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from dsync.overview import Snapshot
from dsync.overview.rows import Row

__all__ = ["HEAD", "SORTS", "bar", "brief", "cells", "chosen", "holder", "number", "summary"]

HEAD = ("KIND", "NAME", "STATE", "WAIT", "RATE/S", "P50", "P99", "HOLDER")

# Of the most first, but names.
SORTS: dict[str, Callable[[Row], float]] = {
    "name": lambda row: 0.0,
    "waiting": lambda row: waiting(row),
    "held": lambda row: max((each.held for each in row.holders), default=0.0),
    "rate": lambda row: row.rate or 0.0,
    "wait": lambda row: row.wait_p99 or 0.0,
}


def waiting(row: Row) -> int:
    """Tasks that wait; of a condition also those that wait to be notified."""
    return row.waiting + (row.asleep if row.kind == "condition" else 0)


def chosen(
    rows: Iterable[Row], sort: str, *, backwards: bool = False, wanted: str = ""
) -> list[Row]:
    """Those whose name has what is wanted in it, in order; those that are busy stand first."""
    pattern = wanted if set(wanted) & set("*?[") else f"*{wanted}*"
    some = [
        row for row in rows if not wanted or fnmatchcase(row.name.casefold(), pattern.casefold())
    ]
    if sort == "name":
        return sorted(some, key=lambda row: (row.name, row.kind), reverse=backwards)
    some.sort(key=lambda row: (row.kind, row.name))
    some.sort(key=lambda row: (SORTS[sort](row), row.busy), reverse=not backwards)
    return some


def summary(snapshot: Snapshot) -> str:
    """One line on the whole."""
    rows = snapshot.rows
    busy, wait = sum(row.busy for row in rows), sum(map(waiting, rows))
    at = time.strftime("%H:%M:%S", time.localtime(snapshot.at))
    text = f"{at}  {len(rows)} primitive{'s' * (len(rows) != 1)}, {busy} busy, {wait} waiting; "
    text += f"{snapshot.answered} of {snapshot.processes} processes answer"
    if snapshot.cut:
        text += ", not all that they know"
    if snapshot.unread:
        text += "; still looking for more"
    if snapshot.left_out:
        text += f"; {snapshot.left_out} others in turns"
    return text


def cells(row: Row) -> tuple[str, ...]:
    """One for each column."""
    return (
        row.kind,
        row.name,
        bar(row),
        str(waiting(row) or ""),
        number(row.rate) if row.unit else "",
        brief(row.wait_p50),
        brief(row.wait_p99),
        holder(row),
    )


def bar(row: Row, full: str = "#", free: str = ".") -> str:
    """How it stands, in eleven characters; so many permits, units or parties as a bar."""
    if row.error:
        return "unreadable"
    if row.kind in ("lock", "condition", "leader"):
        return "held" if row.held else "free"
    if row.kind == "event":
        return "set" if row.held else "not set"
    if row.kind == "flight":
        return "kept" if row.held else "nothing"
    if not row.limit:
        return ""
    filled = min(-(-5 * row.held // row.limit), 5)
    share = f"{row.held}/{row.limit}"
    if len(share) > 5:
        share = f"{100 * row.held // row.limit}%"
    return f"{full * filled}{free * (5 - filled)} {share}"


def holder(row: Row) -> str:
    """Who holds it for longest, which task, and how long."""
    if row.error:
        return row.state
    if not row.holders:
        return ""
    first = max(row.holders, key=lambda each: each.held)
    others = f" +{len(row.holders) - 1}" if len(row.holders) > 1 else ""
    return f"{first.label}:{first.task or '?'} {brief(first.held)}{others}"


def number(value: float | None) -> str:
    """A count per second in five characters."""
    if value is None:
        return "?"
    if not value:
        return ""
    for unit, size in (("", 1), ("k", 1e3), ("M", 1e6)):
        if value < 999.5 * size:
            return f"{value / size:.{0 if value >= 99.5 * size else 1}f}{unit}"
    return f"{value:.0e}"


def brief(seconds: float | None) -> str:
    """A time in six characters; '' where there is none."""
    if seconds is None:
        return ""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f}ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{int(seconds) // 60}m{int(seconds) % 60:02}s"
    if seconds < 86400:
        return f"{int(seconds) // 3600}h{int(seconds) % 3600 // 60:02}m"
    return f"{int(seconds) // 86400}d"
