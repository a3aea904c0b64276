"""The examples in docs/cli.md run, and print what stands there."""

import re
import sys
from collections.abc import Iterator

import pytest

from dsync.server import Server
from tests.cli.conftest import ROOT, Shell

DOCUMENT = (ROOT / "docs" / "cli.md").read_text()
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What is another each time: numbers, who and where.
CHANGING = re.compile(r"\d+(\.\d+)?(e-\d+)?|dsync \([^)]*\)|held by \S+,")


def sessions() -> Iterator[list[tuple[str, str]]]:
    """Of each block, its commands and what they print."""
    for block in BLOCK.findall(DOCUMENT):
        parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
        yield list(zip(parts[::2], parts[1::2], strict=True))


def bare(text: str) -> list[str]:
    return [" ".join(CHANGING.sub("#", line).split()) for line in text.splitlines()]


@pytest.mark.parametrize("session", list(sessions()), ids=lambda session: session[0][0])
def test_the_examples_print_what_stands_there(shell: Shell, session: list[tuple[str, str]]) -> None:
    (shell.directory / "dsync").write_text(f"#!/bin/sh\nexec '{sys.executable}' -m dsync \"$@\"\n")
    (shell.directory / "dsync").chmod(0o755)
    shell.environ["PATH"] = f"{shell.directory}:{shell.environ['PATH']}"
    script = "exec 2>&1\n" + "\n".join(f"{command}; echo '--'" for command, _ in session)
    with Server.start() as server:  # of its own: the names there are everybody's
        shell.environ["DSYNC_URL"] = server.url
        *said, end = shell.bash(script).stdout.split("--\n")
    assert end == ""
    for (command, expected), printed in zip(session, said, strict=True):
        assert bare(printed) == bare(expected), f"{command}: {printed}"
