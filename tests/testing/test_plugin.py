"""The fixtures under pytest as users run it: each program here is a test file of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

USING = """
import asyncio
import dsync
import pytest

{mark}
async def test_a_lock(dsync_client, dsync_memory):
    async with dsync.connect(dsync_memory) as other, dsync_client.lock("x"):
        assert not await other.lock("x").try_acquire()

{mark}
async def test_it_is_empty_again(dsync_client):
    assert await dsync_client.lock("x").try_acquire()
    await dsync_client.lock("x").force_release()

{mark}
async def test_a_lease_by_the_clock(dsync_client, dsync_clock):
    lock = dsync_client.lock("x", lease=3600, renew=False, on_lost="flag")
    await lock.acquire()
    await dsync_clock.advance(3600)
    assert not lock.lease.held
    with pytest.raises(dsync.LeaseLost):
        lock.release()

{mark}
@pytest.mark.parametrize("time", range(2))
async def test_a_server_that_is_empty_each_time(dsync_server, time):
    client = await dsync.connect(dsync_server)
    assert await client.lock("x").try_acquire()
    await client.lock("x", renew=False).info()
    from dsync.testing import kill_process
    kill_process(client)
    await asyncio.sleep(0)

def test_without_a_loop(dsync_client):
    async def main():
        async with dsync_client.lock("x") as lease:
            assert lease.held
    asyncio.run(main())
"""

LEAKING = """
import asyncio
from dsync.testing import kill_process

async def test_leaves_a_lock(dsync_client):
    await dsync_client.lock("x").acquire()

async def test_leaves_a_task_that_gives_back(dsync_client):
    async def work():
        async with dsync_client.lock("x"):
            await asyncio.Event().wait()
    tasks.append(asyncio.create_task(work()))
    while not dsync_client.lock("x").locked():
        await asyncio.sleep(0)

async def test_dies(dsync_client):
    await dsync_client.lock("x").acquire()
    kill_process(dsync_client)

def test_leaves_a_permit_without_a_plugin_for_loops(dsync_client):
    async def main():
        await dsync_client.semaphore("s", 2).acquire()
    asyncio.run(main())

tasks = []
"""


def run(folder: Path, program: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """A test file under a pytest that knows nothing of this project's settings."""
    if "no:asyncio" not in options:
        options += ("-o", "asyncio_default_fixture_loop_scope=function")
    (folder / "test_it.py").write_text(program)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "pytest_dsync", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-p", "no:xdist", "-q", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.mark.parametrize("loops", ["auto", "strict", "anyio", "session"])
def test_the_fixtures_work_with_whatever_runs_the_tests(tmp_path: Path, loops: str) -> None:
    mark, options = "", ["-o", "asyncio_mode=auto"]
    if loops == "strict":
        mark, options = "@pytest.mark.asyncio", []
    elif loops == "anyio":
        mark, options = "@pytest.mark.anyio", ["-p", "no:asyncio"]
        (tmp_path / "conftest.py").write_text(
            "import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n"
        )
    elif loops == "session":
        options += ["-o", "asyncio_default_test_loop_scope=session"]
    done = run(tmp_path, USING.format(mark=mark), *options)
    assert re.search(r"^6 passed", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("scope", ["function", "session"])
def test_a_test_that_leaves_something_held_fails_and_says_what(tmp_path: Path, scope: str) -> None:
    options = ["-o", "asyncio_mode=auto", "-o", f"asyncio_default_test_loop_scope={scope}"]
    done = run(tmp_path, LEAKING, *options)
    assert "4 passed, 2 errors" in done.stdout, done.stdout
    assert re.search(
        r"dsync_client still holds lock 'x', acquired by Task-\d+ \(test_leaves_a_lock\): release",
        done.stdout,
    ), done.stdout
    assert "still holds semaphore 's'" in done.stdout


def test_who_does_not_use_the_fixtures_does_not_import_dsync() -> None:
    program = "import pytest_dsync, sys; print({'dsync', 'redis', 'asyncio'} & set(sys.modules))"
    code = f"import pytest, sys; before = set(sys.modules); {program}"
    code = code.replace("set(sys.modules))", "(set(sys.modules) - before))")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_what_it_registers_is_fixtures_only() -> None:
    import pytest_dsync

    assert not [name for name in vars(pytest_dsync) if name.startswith("pytest_")]
