"""Every example in the documents runs, and every link leads somewhere."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from textwrap import indent

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


def program(block: str, url: str = "memory://") -> str:
    """The block as a program.  What does not begin with an import goes into the README's first."""
    if block.startswith(("import", "from")):
        return block
    head, connect, tail = re.split(r"(?<=\n)(.*dsync\.connect\(.*\n)", blocks()[0][1])
    if block.startswith(" "):  # a line to put in place of its likeness
        assert "redis://" in block
        return head + block + tail
    end = tail.index("\n\n")
    return head + connect.replace("memory://", url) + indent(block, " " * 8) + tail[end:]


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


# What the README has people put into the first example.
JOBS = [block for _, block in blocks() if not block.startswith(("import", "from", " "))]


@pytest.mark.parametrize(
    "block", [block for _, block in blocks()], ids=[where for where, _ in blocks()]
)
def test_examples_run(block: str, server_url: str) -> None:
    done = run(program(block).replace("redis://localhost:6379", server_url))
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("job", JOBS, ids=range(len(JOBS)))
def test_what_people_come_for_runs_on_a_server_too(job: str, server_url: str) -> None:
    name = f'{server_url}", namespace="{uuid.uuid4().hex}'
    done = run(program(job.replace("memory://", name), name))
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


def test_the_table_of_calls_has_every_call_of_asyncio() -> None:
    table = section("From asyncio, call by call")
    for kind in ("Lock", "Semaphore", "BoundedSemaphore", "Event", "Condition", "Barrier"):
        assert f"`{kind}(" in table
        for call in dir(getattr(asyncio, kind)):
            if not call.startswith("_"):
                assert hasattr(getattr(dsync, kind), call), f"dsync.{kind} has no {call}"
                assert re.search(rf"`(await )?{call}\b", table), f"the table has no {call}"


def test_the_readmes_figures_are_those_that_were_measured() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    found = {
        (workload, re.sub(r"(?<!dsync), .*", "", contender).removeprefix("redis.asyncio.")): median
        for workload, contender, _, median, *_ in rows(section("Everybody's figures", page))
    }
    head, *table = rows(section("Compared with other locks"))
    workloads = {"free lock": "uncontended", "one lock": "one-lock"}
    workloads |= {"hand-over": "hand-over", "500 tasks wait": "waiting"}
    for what, *cells in table:
        workload = workloads.pop(what.split(",")[0], None)
        for who, cell in zip(head[1:], cells, strict=True) if workload else ():
            measured = found.get((workload or "", {"redis-py": "Lock"}.get(who, who)), "")
            assert cell.split(";")[0] == measured, f"{what}: {who}"
    assert not workloads


def section(heading: str, page: str = "") -> str:
    """What a page, or else the README, says under it."""
    page = page or (ROOT / "README.md").read_text()
    return page.partition(f"# {heading}\n")[2].partition("\n##")[0]


def rows(text: str) -> list[list[str]]:
    """The rows of its tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
