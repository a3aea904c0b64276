"""Processes that start together: the side of the one who starts them."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rig import Rig

__all__ = ["Crew", "Window", "crew"]

ROOT = Path(__file__).parent.parent
RUN_UP = 0.25  # seconds from the starting signal to the window


class Window(NamedTuple):
    """What counts happens in it; both ends in time.monotonic(), one clock for all processes."""

    start: float
    end: float


class Crew:
    """Some processes that are ready, or at work."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self.processes = processes

    def go(self, seconds: float) -> Window:
        """The starting signal: the window opens shortly, when all have run up."""
        start = time.monotonic() + RUN_UP
        window = Window(start, start + seconds)
        self.say(window)
        return window

    def say(self, what: object) -> None:
        """Something that all of them `hear()`."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what).encode() + b"\n")

    async def results(self) -> list[Any]:
        """What each of them found out, or has said, once all have."""
        return [await _line(process) for process in self.processes]


@asynccontextmanager
async def crew(
    size: int, work: Callable[..., object], rig: Rig, *args: object, loop: str | None = None
) -> AsyncIterator[Crew]:
    """`size` processes that call `work(member, *args)`; see worker.py for the member.

    They run on the rig's event loop, or on `loop`.
    """
    where = f"{work.__module__}:{work.__qualname__}"
    processes = []
    try:
        for index in range(size):
            task = json.dumps([loop or rig.loop, where, rig.url, rig.namespace, index, args])
            processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "benchmarks.worker", task),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    cwd=ROOT,
                    limit=2**26,
                )
            )
        for process in processes:
            await _line(process)
        yield Crew(processes)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def _line(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker ended early with exit code {await process.wait()}")
    return json.loads(line)
