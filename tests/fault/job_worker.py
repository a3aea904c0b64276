"""A worker process that calls a decorated function again and again.

    python -m tests.fault.job_worker URL NAMESPACE LOG [options]

LOG is a `dsync.testing.History`:

    held      the function begins        leaving   its last line
    lost      LeaseLost has left a call  failed    anything else has
    done      the process is about to end

SIGTERM ends it when the call that is under way has ended.
"""

import argparse
import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import dsync
from dsync.testing import History


def set_clock(ahead: float) -> None:
    """Put the wall clock of this process off by so many seconds."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + ahead
    time.time_ns = lambda: right_ns() + int(ahead * 1e9)


async def work(args: argparse.Namespace) -> None:
    log = History(Path(args.log))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with dsync.connect(args.url, namespace=args.namespace) as client:
        terms: dict[str, Any] = {"lease": args.lease, "busy": args.busy}
        decorate: Any = (
            client.limited("x", args.limit, **terms)
            if args.limit
            else client.exclusive("x", every=args.every, **terms)
        )

        @decorate
        async def job() -> None:
            log.write("held")
            await asyncio.sleep(args.step)
            log.write("leaving")

        while not ended.is_set():
            try:
                await job()
            except dsync.LeaseLost as exc:
                log.write("lost", why=str(exc))
            except Exception as exc:
                log.write("failed", why=repr(exc))
            await asyncio.sleep(args.pause)
    log.write("done")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("namespace")
    parser.add_argument("log")
    parser.add_argument("--every", type=float)
    parser.add_argument("--limit", type=int, default=0, help="limited() to so many")
    parser.add_argument("--busy", default="wait")
    parser.add_argument("--lease", type=float, default=1.0)
    parser.add_argument("--step", type=float, default=0.0, help="seconds that a call takes")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds between calls")
    parser.add_argument("--clock", type=float, default=0.0, help="seconds it is ahead")
    args = parser.parse_args()
    set_clock(args.clock)
    asyncio.run(work(args))


if __name__ == "__main__":
    main()
