"""The test files in docs/testing.md pass."""

import re
from pathlib import Path

import pytest

from tests.testing.test_plugin import ROOT, run

BLOCKS = re.findall(
    r"^```py\n(.*?)^```", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_an_example_for_pytest_passes(tmp_path: Path, block: str) -> None:
    done = run(tmp_path, block, "-o", "asyncio_mode=auto")
    tests = len(re.findall(r"^(?:async )?def test_", block, re.MULTILINE))
    assert f"{tests} passed" in done.stdout, done.stdout
