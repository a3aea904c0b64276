"""The screen of `dsync top`: a head, a line for each primitive, and more on the selected one."""

import io
import sys
from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from dsync.cli.options import shown
from dsync.cli.top_words import HEAD, bar, brief, cells, summary
from dsync.overview import Snapshot
from dsync.overview.rows import Row

__all__ = ["Screen"]

# Of the columns but the two that share what is left: NAME and HOLDER.
WIDTHS = {"KIND": 9, "STATE": 11, "WAIT": 4, "RATE/S": 6, "P50": 6, "P99": 6}
RIGHT = ("WAIT", "RATE/S", "P50", "P99")
HELP = """\
q, Ctrl-C   quit                   arrows, j, k   select a row: who holds, who waits
s           sort by the next       r              the other way round
/           only some names: a part of them, or a pattern with * and ?
space       pause                  Ctrl-Z         stop; `fg` goes on

WAIT     tasks that wait; of silent processes, their places in the queue
RATE/S   grants per second; of events and barriers wakes, of limiters units,
         of buses messages
P50 P99  how long tasks have waited lately: half of them, and 99 of 100,
         no longer than that
HOLDER   who has held it for longest, process:task, for how long, how many more
?        nobody has told: the process is gone, does not answer, or is older

Any key goes back."""


class Screen:
    """Draws: a pure function but for where it has scrolled to."""

    def __init__(self) -> None:
        self._first = 0  # of the rows, the one at the top
        unicode = "utf" in (sys.stdout.encoding or "").lower()
        self._marks = ("█", "░", "·") if unicode else ("#", ".", "-")

    def drawn(
        self, width: int, height: int, head: tuple[str, str], rows: list[Row], selected: int,
        foot: str, snapshot: Snapshot | None, *, help: bool = False,
    ) -> str:  # fmt: skip
        """What to write to a terminal of that size."""
        where, trouble = head
        lines = [Text(shown(where), style="bold")]
        if trouble:
            lines.append(Text(shown(trouble), style="bold red"))
        elif snapshot is None:
            lines.append(Text("looking ..."))
        else:
            lines.append(Text(summary(snapshot), style="dim"))
        if help:
            lines += [Text(), *(Text(line) for line in HELP.splitlines())]
        else:
            room = max(height - len(lines) - 2, 1)
            lines.append(self._line(HEAD, width, "bold underline"))
            lines += self._body(rows, selected, width, room)
        del lines[max(height - 1, 1) :]
        lines += [Text()] * (height - 1 - len(lines))
        lines.append(Text(set_cell_size(shown(foot), width), style="reverse"))
        return painted(lines[:height], width)

    def _body(self, rows: list[Row], selected: int, width: int, room: int) -> list[Text]:
        """As many rows as there is room for, the selected one among them, and more on that."""
        if not rows:
            return [Text("nothing", style="dim")]
        more = self._details(rows[selected], width, max(room // 2, min(room - 1, 3)))
        visible = max(room - len(more), 1)
        self._first = min(max(self._first, selected - visible + 1), selected)
        self._first = max(min(self._first, len(rows) - visible), 0)
        lines: list[Text] = []
        for place, row in enumerate(rows[self._first : self._first + visible], self._first):
            lines.append(self._row(row, width, place == selected))
            if place == selected:
                lines += more
        return lines

    def _row(self, row: Row, width: int, selected: bool) -> Text:
        full, free, _ = self._marks
        words = list(cells(row))
        words[2] = bar(row, full, free)
        style = (
            "red"
            if row.error
            else "yellow"
            if row.waiting
            else ""
            if row.busy or row.rate
            else "dim"
        )
        return self._line(words, width, f"{style} reverse" if selected else style)

    def _line(self, words: Iterable[str], width: int, style: str) -> Text:
        left = width - sum(WIDTHS.values()) - len(HEAD) + 1
        name = max(min(left * 2 // 5, 40), 8)
        widths = {**WIDTHS, "NAME": name, "HOLDER": max(left - name, 8)}
        text = Text(style=style)
        for column, word in zip(HEAD, words, strict=True):
            cell = fitted(word, widths[column])
            padding = " " * (widths[column] - cell_len(cell))
            text.append(padding + cell if column in RIGHT else cell + padding)
            text.append(" ")
        text.truncate(width)
        return text

    def _details(self, row: Row, width: int, room: int) -> list[Text]:
        """In words, who holds it, and who waits in order."""
        mark = self._marks[2]
        # Of a lock that is held, the next line says it all.
        said = row.limit == 1 and row.holders and not row.asleep
        lines = [] if said else [f"  {mark} {row.state}"]
        for each in row.holders:
            fence = "" if each.fence is None else f"  fence {each.fence}"
            lines.append(
                f"  {mark} {party(each.label, each.host, each.pid)}  {each.task or '?'}"
                f"  held {brief(each.held)}  lease {brief(each.lease_left)}{fence}"
            )
        waiters = [
            f"  {place:>3}. {party(each.label, each.host, each.pid)}  {each.task or '?'}"
            f"  waits {brief(each.waited)}"
            for place, each in enumerate(row.waiters, 1)
        ]
        holding = lines[: max(room - min(len(waiters), room // 2), 2)]
        if len(holding) < len(lines):
            hidden = len(lines) - len(holding) + 1
            holding[-1] = f"  {mark} and {hidden} more hold it"
        left = max(room - len(holding), 0)
        if row.waiting > left or len(waiters) > left:
            waiters = waiters[: max(left - 1, 0)]
            if left:
                waiters.append(
                    f"       and {max(row.waiting, len(row.waiters)) - len(waiters)} more wait"
                )
        text = [Text(fitted(line, width), style="cyan") for line in (*holding, *waiters)]
        return text[:room]


def party(label: str, host: str, pid: int) -> str:
    """A process."""
    return f"{label} ({host}:{pid})"


def fitted(text: str, width: int) -> str:
    """`text` without what would do something to a terminal, and no wider than that."""
    safe = Text(shown(text))
    safe.truncate(width, overflow="ellipsis")
    return safe.plain


def painted(lines: list[Text], width: int) -> str:
    """The lines with their colours, each over what was there, and nothing below them."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, highlight=False, markup=False,
        color_system="auto", legacy_windows=False,
    )  # fmt: skip
    parts = []
    for line in lines:
        with console.capture() as captured:
            console.print(line, end="", no_wrap=True, overflow="crop", crop=True)
        parts.append(captured.get().replace("\n", "") + "\x1b[K")
    return "\x1b[H" + "\r\n".join(parts) + "\x1b[J"
