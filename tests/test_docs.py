"""Every example in the documents runs, and every link leads somewhere."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import dsync

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
# Its blocks are mistakes: tests/test_troubleshooting.py makes them.
MISTAKES = ROOT / "docs" / "troubleshooting.md"


def blocks() -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(ROOT)}:{number}", block)
        for path in DOCUMENTS
        if path != MISTAKES
        for number, block in enumerate(BLOCK.findall(path.read_text()), 1)
    ]


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )


def anchors(path: Path) -> set[str]:
    """What `#...` may name in a document: its headings, as a forge spells them."""
    headings = HEADING.findall(FENCED.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize(
    "block", [block for _, block in blocks()], ids=[where for where, _ in blocks()]
)
def test_examples_run(block: str, server_url: str) -> None:
    if not block.startswith("import"):
        # A line to put in place of its likeness in the first example.
        first = blocks()[0][1]
        changed = [line for line in first.splitlines() if "dsync.connect(" in line]
        assert len(changed) == 1
        block = first.replace(changed[0] + "\n", block)
        assert "redis://" in block
    block = block.replace("redis://localhost:6379", server_url)
    done = run(block)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_tutorial_ends_with_a_fleet(server_url: str) -> None:
    *_, shop = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text())
    shop = shop.replace("redis://localhost:6379", server_url)
    shop = shop.replace("shop", f"shop-{uuid.uuid4().hex[:8]}")
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", shop],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    said = "".join(process.communicate(timeout=30)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(map(int, re.findall(r"packed order (\d+)", said))) == list(range(12))
    assert said.count("goes home") == 3


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(FENCED.sub("", path.read_text())):
        there = Path(os.path.normpath(path.parent / target)) if target else path
        assert there.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{path.name} links to {target}#{anchor}"


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    told = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
    assert set(dsync.__all__) - told == set()


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
