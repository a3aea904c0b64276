"""A worker process that uses a rate limiter, and writes down when.

    python -m tests.fault.rate_worker URL NAMESPACE FILE [options]

FILE gets eight bytes for each unit used: CLOCK_MONOTONIC in ns, read when `acquire()` has returned.
What was written before a SIGKILL stays.  At its end the worker says how late its loop was at most.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

import dsync

__all__ = ["Fleet", "RateWorker", "fullest"]

ROOT = Path(__file__).parents[2]


class RateWorker:
    """One worker process, and what it has used."""

    def __init__(self, path: Path, arguments: list[str]) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.rate_worker", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests, which reap it
        )

    def uses(self) -> list[float]:
        """When it has used a unit, time.monotonic(), in order."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        return [at / 1e9 for at in array("q", data[: len(data) // 8 * 8])]

    async def done(self) -> float:
        """Wait for its end.  -> how late its loop was at most, seconds"""
        output, _ = await asyncio.to_thread(self.process.communicate)
        return float(output or 0)

    def reap(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Fleet:
    """The workers of one test; none of them outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[RateWorker] = []

    def spawn(self, url: str, namespace: str, **options: float) -> RateWorker:
        path = self.folder / f"uses-{len(self.all)}"
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        worker = RateWorker(path, [url, namespace, str(path), *words])
        self.all.append(worker)
        return worker

    def uses(self) -> list[float]:
        return sorted(at for worker in self.all for at in worker.uses())

    async def done(self) -> float:
        """-> how late the latest loop was at most, seconds"""
        return max([await worker.done() for worker in self.all])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self.all:
            worker.reap()


def fullest(uses: list[float], rate: float) -> float:
    """The most units that a window has beyond `rate` times its length: at most the burst.

    Over all pairs, in one pass: a window is fullest that begins where least was beyond the rate.
    """
    most, least = float("-inf"), float("inf")
    for number, at in enumerate(sorted(uses)):
        beyond = number - rate * at
        least = min(least, beyond)
        most = max(most, beyond + 1 - least)
    return most


async def lateness(late: list[float]) -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.005)
        late[0] = max(late[0], time.monotonic() - began - 0.005)


async def work(args: argparse.Namespace) -> None:
    late = [0.0]
    log = os.open(args.file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    async with dsync.connect(
        args.url, namespace=args.namespace, outage_timeout=args.outage
    ) as client:
        limiter = client.rate_limiter(args.name, args.rate, burst=int(args.burst))
        await asyncio.sleep(max(0.0, args.begin - time.monotonic()))
        watch = asyncio.create_task(lateness(late))

        async def use() -> None:
            while time.monotonic() < args.end:
                try:
                    await limiter.acquire(timeout=max(0, args.end - time.monotonic()))
                except dsync.AcquireTimeout:
                    return
                os.write(log, array("q", [time.monotonic_ns()]).tobytes())

        await asyncio.gather(*(use() for _ in range(int(args.tasks))))
        watch.cancel()
    sys.stdout.write(f"{late[0]:.6f}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("namespace")
    parser.add_argument("file")
    parser.add_argument("--name", default="x")
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--burst", type=float, default=100)
    parser.add_argument("--tasks", type=float, default=8)
    parser.add_argument("--begin", type=float, default=0, help="time.monotonic()")
    parser.add_argument("--end", type=float, required=True, help="time.monotonic()")
    parser.add_argument("--outage", type=float, default=10)
    asyncio.run(work(parser.parse_args()))


if __name__ == "__main__":
    main()
