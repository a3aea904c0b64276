"""Every example in the documents runs, and every link leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks() -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(ROOT)}:{number}", block)
        for path in DOCUMENTS
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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
