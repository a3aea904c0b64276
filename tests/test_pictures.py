"""The pictures in the documents ask no other host for anything, and are what a run has left."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.picture import left_on_screen

ROOT = Path(__file__).parent.parent
SHOWN = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")
PICTURES = sorted(
    {
        (page.parent / target).resolve()
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for _, target in SHOWN.findall(page.read_text())
    }
)


def words(picture: Path) -> list[str]:
    """Its lines of text, from the top."""
    lines: defaultdict[float, str] = defaultdict(str)
    for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        lines[float(element.attrib["y"])] += "".join(element.itertext()).replace("\xa0", " ")
    return [line.strip() for _, line in sorted(lines.items()) if line.strip()]


def drawn(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "docs.picture", "--out", str(directory), *arguments]
    return subprocess.run(command, cwd=ROOT, timeout=50, capture_output=True, text=True)


def verdicts(lines: list[str]) -> list[str]:
    """What the demo says in the end.  A line that was too long for the picture is two."""
    first = next(number for number, line in enumerate(lines) if line.startswith("ok "))
    return [line.split("  ")[0] for line in lines[first:]]


def test_the_readme_shows_all_pictures() -> None:
    assert {*PICTURES} == {*(ROOT / "docs").glob("*.svg")}
    assert {path.name for path in PICTURES} == {"demo.svg", "top.svg"}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_small_and_asks_no_other_host(picture: Path) -> None:
    text = picture.read_text()
    assert len(text) < 150_000
    ElementTree.fromstring(text)
    assert set(re.findall(r"https?://[^\"'\s<)]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_picture_of_the_demo_is_of_a_run_that_kept_its_promises() -> None:
    lines = words(ROOT / "docs" / "demo.svg")
    assert lines[0] == "$ dsync demo"
    assert set(verdicts(lines)) == {"ok"}


def test_a_picture_of_the_demo_is_what_a_run_leaves_on_its_screen(tmp_path: Path) -> None:
    done = drawn(tmp_path, "demo", "--seconds", "5", "--workers", "2")
    assert done.returncode == 0, done.stderr
    lines = words(tmp_path / "demo.svg")
    assert lines[0] == "$ dsync demo --seconds 5 --workers 2"
    assert "2 processes" in lines[1]
    assert "of 5 s" in lines[1]
    assert sum("(SIGKILL)" in line for line in lines) == 1
    assert set(verdicts(lines)) == {"ok"}


def test_a_picture_of_top_is_what_it_shows_of_processes_at_work(tmp_path: Path) -> None:
    done = drawn(tmp_path, "top", "--after", "1")
    assert done.returncode == 0, done.stderr
    lines = words(tmp_path / "top.svg")
    assert lines[0] == "$ dsync top --namespace shop"
    for picture in (lines, words(ROOT / "docs" / "top.svg")):
        assert any(re.match(r"lock +invoice 7 +held", line) for line in picture)


def test_a_run_that_fails_leaves_no_picture(tmp_path: Path) -> None:
    done = drawn(tmp_path, "demo", "--workers", "0")
    assert done.returncode == 1
    assert "--workers" in done.stderr
    assert not list(tmp_path.iterdir())


def test_only_the_last_frame_is_left_on_the_screen() -> None:
    first, last = "a\r\nb\r\n", "\x1b[1mc\x1b[0m\r\nd\r\n"
    erased = "\r\x1b[2K\x1b[1A\x1b[2K"
    assert left_on_screen(first + erased + last + "after\r\n") == "\x1b[1mc\x1b[0m\nd\nafter\n"
    assert left_on_screen(f"\x1b[?1049h\x1b[H{first}\x1b[H{last}\x1b[?1049l\r\n") == (
        "\x1b[1mc\x1b[0m\nd\n"
    )
