"""Arguments checked where they are given: the error names the argument and the value."""

import math

__all__ = ["checked_count", "checked_lease", "checked_seconds"]

SHORTEST_LEASE = 0.05
# Twice the longest lease is less than the time to live of the state it belongs to.
LONGEST_LEASE = 3 * 24 * 3600.0


def checked_seconds(what: str, value: object, *, zero: bool = True) -> float:
    """`value` as seconds: a finite number, >= 0 (or > 0 where `zero` is false)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{what} must be a number of seconds, got {type(value).__name__}: {value!r}"
        )
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not zero):
        raise ValueError(f"{what} must be {'>=' if zero else '>'} 0 seconds, got {value!r:.60}")
    return seconds


def checked_lease(what: str, value: object) -> float:
    """`value` as the seconds of a lease: what Redis can keep, and longer than a round trip."""
    seconds = checked_seconds(what, value, zero=False)
    if not SHORTEST_LEASE <= seconds <= LONGEST_LEASE:
        raise ValueError(
            f"{what} must be between {SHORTEST_LEASE} and {LONGEST_LEASE:.0f} seconds, "
            f"got {value!r}"
        )
    return seconds


def checked_count(what: str, value: object, *, least: int = 0) -> int:
    """`value` as a count: an int, not a bool, >= `least`, and exact in the server's numbers."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, got {type(value).__name__}: {value!r}")
    if not least <= value <= 2**31:
        raise ValueError(f"{what} must be >= {least} and at most 2**31, got {value}")
    return value
