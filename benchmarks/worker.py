"""One process of a crew: `python -m benchmarks.worker TASK`, started by crew.py."""

import asyncio
import importlib
import json
import sys
import time
from typing import Any

from benchmarks.crew import Window
from benchmarks.rig import runner

__all__ = ["Member"]


class Member:
    """What the work is called with: who it is, and when to start."""

    def __init__(self, url: str, namespace: str, index: int) -> None:
        self.url = url
        self.namespace = namespace
        self.index = index

    async def signal(self) -> Window:
        """Say that we are ready, and wait for the starting signal."""
        self.say(True)
        return Window(*await self.hear())

    def say(self, what: object) -> None:
        """To the one who started us, among the results."""
        print(json.dumps(what), flush=True)

    async def hear(self) -> Any:
        """What the one who started us says next."""
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            raise SystemExit("the one who started us is gone")
        return json.loads(line)

    async def opening(self, window: Window) -> None:
        """Wait until the window opens."""
        await asyncio.sleep(window.start - time.monotonic())

    async def closing(self, window: Window) -> None:
        """Wait until the window closes."""
        await asyncio.sleep(window.end - time.monotonic())


async def main(where: str, url: str, namespace: str, index: int, args: list[Any]) -> None:
    module, _, name = where.partition(":")
    work = getattr(importlib.import_module(module), name)
    print(json.dumps(await work(Member(url, namespace, index), *args)), flush=True)


if __name__ == "__main__":
    loop, *task = json.loads(sys.argv[1])
    with runner(loop) as ours:
        ours.run(main(*task))
