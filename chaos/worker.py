"""One worker process: does its work until SIGTERM, then leaves and says what it left behind.

It is forked from a process that has imported everything, so that dozens start at once.
"""

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from random import Random
from typing import Any

import dsync
import dsync.redis.store  # workers are forked with it
from chaos.work import Shift, Terms, works
from dsync.testing import History

__all__ = ["STANDSTILL", "Job", "main"]

STANDSTILL = 1.4  # leases for which SIGUSR1 blocks the event loop


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    url: str
    namespace: str
    history: str  # where it is
    work: str
    terms: Terms
    seed: int
    connect: str = "dsync:connect"  # or what stands in for it


def main(job: Job) -> None:
    """The whole life of the process."""
    words = os.open(f"{job.history}.stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(words, 2)
    os.close(words)
    logging.getLogger("dsync").setLevel(logging.ERROR)  # losses are told, and written down
    asyncio.run(_main(job))


async def _main(job: Job) -> None:
    history = History(job.history)
    loop = asyncio.get_running_loop()
    parent = multiprocessing.parent_process()
    if parent is not None:
        loop.add_reader(parent.sentinel, os._exit, 1)  # nobody outlives the run
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.add_signal_handler(signal.SIGUSR1, _block, history, STANDSTILL * job.terms.lease)
    before = _open()
    module, _, name = job.connect.partition(":")
    connect = getattr(importlib.import_module(module), name)

    def failed(error: BaseException) -> None:
        history.write("failed", why=f"nobody awaited: {error!r}")

    client: dsync.Client
    hook: list[Shift] = []
    async with connect(
        job.url,
        namespace=job.namespace,
        on_error=failed,
        on_lost=lambda lease: hook[0].told(lease),
    ) as client:
        shift = Shift(client, history, Random(job.seed), job.terms)
        shift.ending = ending
        hook.append(shift)
        history.write("ready")
        await works()[job.work].run(shift)
    history.write("done", left=await _left(before))


def _block(history: History, seconds: float) -> None:
    """Compute, and let the event loop wait: what SIGUSR1 asks for."""
    history.write("stopped", whom=os.getpid())
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass
    history.write("continued", whom=os.getpid())


def _open() -> dict[str, str]:
    """The files and sockets of this process."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # without /proc
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing itself
                found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


async def _left(before: dict[str, str]) -> list[str]:
    """What there is beyond that, of tasks, files and threads; sockets may take a moment to go."""
    left: list[str] = []
    for _ in range(20):
        own = asyncio.current_task()
        tasks: list[Any] = [task for task in asyncio.all_tasks() if task is not own]
        threads = [t for t in threading.enumerate() if t is not threading.main_thread()]
        files = [what for number, what in _open().items() if before.get(number) != what]
        left = [*map(repr, tasks), *map(repr, threads), *files]
        if not left:
            break
        await asyncio.sleep(0.05)
    return left
