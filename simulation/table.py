"""Tables, as Markdown that reads well on a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Table", "figure"]


def figure(value: float, unit: str = "") -> str:
    """Two digits that count, or three: what a model says is not truer than that."""
    if value == float("inf"):
        return "never"
    digits = 3 if f"{value:.1e}".startswith("1") else 2
    rounded = float(f"{value:.{digits - 1}e}")
    text = f"{rounded:,.0f}" if rounded >= 10 or rounded == 0 else f"{rounded:g}"
    return f"{text} {unit}".rstrip()


@dataclass(frozen=True)
class Table:
    """What one scenario has found."""

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join(_line(line, widths) for line in (self.head, rule, *self.rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        text.rjust(width) if number else text.ljust(width)
        for number, (text, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join([first, *others]) + " |"
