"""Forks, event loops, and the end of the interpreter."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dsync
from tests.conftest import World

ROOT = Path(__file__).parents[2]


def in_child(act: Callable[[], object]) -> str:
    """What `act` raises in a forked child, which then ends without a trace."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            outcome = "nothing"
        except BaseException as exc:
            outcome = f"{type(exc).__name__}: {exc}"
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        outcome = pipe.read()
    os.waitpid(pid, 0)
    return outcome


def stepped(call: Callable[[], Any]) -> Callable[[], object]:
    """Runs the coroutine up to its first real wait."""
    return lambda: call().send(None)


pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize(
    "use",
    ["acquire", "try_acquire", "async with", "release", "leave", "info", "aclose"],
)
async def test_a_forked_child_is_told_to_make_its_own_client_and_the_parent_goes_on(
    real: World, use: str, held: Any
) -> None:
    client = real.client()
    lock, free = client.lock("x"), client.lock("free")
    await lock.acquire()
    acts: dict[str, Callable[[], object]] = {
        "acquire": stepped(free.acquire),
        "try_acquire": stepped(free.try_acquire),
        "async with": stepped(free.__aenter__),
        "release": lock.release,
        "leave": stepped(lambda: lock.__aexit__(None, None, None)),
        "info": stepped(lock.info),
        "aclose": stepped(client.aclose),
    }
    outcome = in_child(acts[use])
    # The parent's connection and lock are as they were.
    await asyncio.wait_for(client.check(), 2)
    assert await held() == 1
    assert lock.lease is not None
    assert lock.lease.held
    await lock.release()
    await free.acquire()
    await free.release()
    assert outcome.startswith("RuntimeError: ")
    if use != "leave":  # asyncio itself is the first to notice
        assert "make a client in the child" in outcome


@pytest.mark.parametrize("use", ["held", "fence", "notify", "notify_all"])
async def test_a_lock_is_not_held_in_a_forked_child_and_the_parent_goes_on(
    real: World, use: str, held: Any
) -> None:
    condition = real.client().condition("x")
    async with condition as lease:

        def is_held() -> None:
            if not lease.held:
                raise lease.error()

        acts: dict[str, Callable[[], object]] = {
            "held": is_held,
            "fence": lambda: condition.lock.fence,
            "notify": condition.notify,
            "notify_all": condition.notify_all,
        }
        outcome = in_child(acts[use])
        assert lease.held
        assert condition.lock.fence == lease.fence
        assert await held(kind="condition") == 1
        condition.notify()
    assert outcome.startswith("LeaseLost: ")
    assert "it belongs to the parent process, and this is a forked child" in outcome


def test_a_second_loop_is_told_to_make_its_own_client(server_url: str) -> None:
    client = dsync.connect(server_url, namespace="two-loops")

    async def use() -> None:
        async with client.lock("x"):
            pass

    async def misuse() -> None:
        with pytest.raises(RuntimeError, match="make one client for each loop"):
            await client.lock("x").acquire()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(use())
        second.run(misuse())
        first.run(use())
        first.run(client.aclose())


def run(source: str, url: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(source), url],
        cwd=ROOT, capture_output=True, text=True, timeout=8, check=False,
    )  # fmt: skip


def test_opening_locking_and_closing_leaves_no_warning(server_url: str) -> None:
    done = run(
        """
        import asyncio, gc, sys, dsync

        async def main():
            asyncio.get_running_loop().slow_callback_duration = 10
            async with dsync.connect(sys.argv[1], namespace="warnings") as client:
                async with client.lock("x"), client.semaphore("x", 2):
                    waiting = asyncio.create_task(client.lock("x").acquire())
                    await asyncio.sleep(0)
                    waiting.cancel()
                await client.lock("still held").acquire()

        asyncio.run(main())
        gc.collect()
        print("done")
        """,
        server_url, "-X", "dev", "-W", "error",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_interpreter_ends_at_once_with_a_lock_held_and_nothing_closed(
    server_url: str,
) -> None:
    done = run(
        """
        import asyncio, sys, dsync

        async def main():
            client = dsync.connect(sys.argv[1], namespace="no-close")
            await client.lock("x", lease=0.5).acquire()
            print("held")

        asyncio.run(main())
        """,
        server_url,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")


def test_a_process_that_ends_by_an_exception_in_the_body_frees_the_lock(server_url: str) -> None:
    done = run(
        """
        import asyncio, sys, dsync

        async def main():
            async with dsync.connect(sys.argv[1], namespace="raises") as client:
                async with client.lock("x", lease=60):
                    raise SystemExit(3)

        asyncio.run(main())
        """,
        server_url,
    )
    assert (done.returncode, done.stderr) == (3, "")

    async def take() -> bool:
        async with dsync.connect(server_url, namespace="raises") as client:
            return await client.lock("x").try_acquire()

    assert asyncio.run(take())
