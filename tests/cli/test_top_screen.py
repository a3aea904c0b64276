"""What `dsync top` draws, at any size; and its words."""

import re

import pytest
from rich.cells import cell_len

from dsync.cli.top_screen import Screen
from dsync.cli.top_words import SORTS, bar, brief, cells, chosen, number, summary
from dsync.overview import Snapshot
from dsync.overview.rows import Held, Row, Waiting

COLOURS = re.compile(r"\x1b\[[\d;]*m")


def lock(name: str, waiting: int = 0, held: float | None = None, **more: float | None) -> Row:
    row = Row("lock", name, "free", held is not None, limit=1, waiting=waiting, key=name, **more)  # type: ignore[arg-type]
    if held is not None:
        row.held = 1
        row.holders = [Held("web", "host", 7, "task", held, 20.0, 1795400532546919, "t")]
    row.waiters = [Waiting("web", "host", 7, f"w{place}", 1.0) for place in range(waiting)]
    return row


def snapshot(*rows: Row) -> Snapshot:
    return Snapshot(0.0, "dsync", "localhost", rows, 0, False, 2, 1, False)


def drawn(screen: Screen, width: int, height: int, rows: list[Row], selected: int) -> list[str]:
    text = screen.drawn(width, height, ("dsync top", ""), rows, selected, "q quit", snapshot(*rows))
    assert text.startswith("\x1b[H")
    assert text.endswith("\x1b[K\x1b[J")
    lines = text[3:-3].split("\r\n")
    assert all(line.endswith("\x1b[K") for line in lines)
    return [COLOURS.sub("", line.removesuffix("\x1b[K")) for line in lines]


@pytest.mark.parametrize(("width", "height"), [(20, 3), (40, 8), (80, 24), (81, 25), (250, 70)])
@pytest.mark.parametrize("selected", [0, 1, 30, 59])
def test_it_fits_whatever_the_size_and_shows_the_selected_row(
    width: int, height: int, selected: int
) -> None:
    wide = "文字" * 30
    rows = [lock(f"{number:02} {wide}", waiting=30, held=3.0) for number in range(60)]
    screen = Screen()
    for place in (59, 0):  # it scrolls
        drawn(screen, width, height, rows, place)
    lines = drawn(screen, width, height, rows, selected)
    assert len(lines) == height
    for line in lines:
        assert cell_len(line) <= width
        assert line.isprintable()
    if height > 3:
        assert sum(line.startswith(f"lock      {selected:02} ") for line in lines) == 1


def test_what_is_more_than_there_is_room_for_is_counted() -> None:
    row = lock("x", waiting=200, held=1.0)
    row.holders *= 50
    lines = drawn(Screen(), 80, 24, [row], 0)
    told = [int(n) for line in lines for n in re.findall(r"and (\d+) more", line)]
    holders = sum("held 1.0s" in line for line in lines)
    waiters = sum("waits 1.0s" in line for line in lines)
    assert [holders + told[0], waiters + told[1]] == [50, 200]
    assert min(holders, waiters) >= 2


def test_what_would_do_something_to_a_terminal_is_shown_instead() -> None:
    row = lock("\x1b[2Jx\r\n\x9b", held=1.0)
    row.holders[0].label = row.holders[0].task = "\x1b]0;t\x07"
    row.state = "\u202eevil\x00"
    for line in drawn(Screen(), 120, 24, [row], 0):
        assert line.isprintable()


def test_rows_are_sorted_by_the_most_and_filtered_by_a_part_or_a_pattern() -> None:
    rows = [
        lock("Apple", waiting=1, held=9.0, rate=5.0, wait_p99=0.2),
        lock("banana", waiting=7, held=2.0, rate=None, wait_p99=0.1),
        lock("cherry", waiting=0, rate=70.0, wait_p99=None),
    ]

    def names(sort: str, *, backwards: bool = False, wanted: str = "") -> str:
        some = chosen(rows, sort, backwards=backwards, wanted=wanted)
        return " ".join(row.name[0] for row in some)

    assert list(SORTS) == ["name", "waiting", "held", "rate", "wait"]
    assert [names(sort) for sort in SORTS] == ["A b c", "b A c", "A b c", "c A b", "A b c"]
    assert [names(sort, backwards=True) for sort in ("name", "waiting")] == ["c b A", "c A b"]
    assert names("name", wanted="AN") == "b"
    assert names("name", wanted="*e*") == "A c"
    assert names("name", wanted="[") == ""
    assert summary(snapshot(*rows)).endswith(
        "3 primitives, 2 busy, 8 waiting; 1 of 2 processes answer"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0, "0us"), (0.00045, "450us"), (0.0012, "1.2ms"), (0.4567, "457ms"),
     (3.21, "3.2s"), (65.0, "1m05s"), (7260.0, "2h01m"), (200_000.0, "2d")],
)  # fmt: skip
def test_times_are_brief(seconds: float | None, text: str) -> None:
    assert brief(seconds) == text
    assert len(text) <= 6


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "?"), (0.0, ""), (0.25, "0.2"), (99.4, "99.4"), (123.4, "123"), (1234.0, "1.2k"),
     (150_000.0, "150k"), (2.5e6, "2.5M"), (1e12, "1e+12")],
)  # fmt: skip
def test_rates_are_brief(value: float | None, text: str) -> None:
    assert number(value) == text
    assert len(text) <= 6


def test_permits_units_and_parties_are_a_bar() -> None:
    def shown(held: int, limit: int | None) -> str:
        return bar(Row("semaphore", "x", "", False, held=held, limit=limit))

    assert [shown(0, 4), shown(1, 4), shown(4, 4)] == ["..... 0/4", "##... 1/4", "##### 4/4"]
    assert shown(50_000, 100_000) == "###.. 50%"
    assert shown(7, 4) == "##### 7/4"  # it was shrunk
    assert shown(0, 0) == shown(0, None) == ""
    assert cells(Row("bus", "x", "7 messages so far", False, unit="messages", rate=3.0))[2:5] == (
        "", "", "3.0"
    )  # fmt: skip
