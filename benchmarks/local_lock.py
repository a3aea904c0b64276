"""dsync.local's Lock against asyncio's own, in one process and uncontended."""

import asyncio
import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.measure import Goal, Measured, Ratio, Slice, Workload, over
from benchmarks.rig import Rig, until

__all__ = ["WORKLOADS"]

OURS, THEIRS = "dsync.local.Lock", "asyncio.Lock"
BATCH = 1000  # cycles between two looks at the clock


async def slice_of(make: Callable[[], Any], rig: Rig) -> Measured:
    lock = make()
    cycles = 0
    began = time.monotonic()
    while until(began + rig.seconds):
        for _ in range(BATCH):
            await lock.acquire()
            lock.release()
        cycles += BATCH
    return {"ns/cycle": 1e9 * (time.monotonic() - began) / cycles}


def contenders() -> dict[str, Slice | None]:
    make = getattr(importlib.import_module("dsync.local"), "Lock", None)
    return {
        THEIRS: partial(slice_of, asyncio.Lock),
        OURS: None if make is None else partial(slice_of, make),
    }


WORKLOADS = (
    Workload(
        "local",
        "one task takes one free lock of its own process",
        contenders(),
        (Ratio("cycle, dsync.local ÷ asyncio", over("ns/cycle", OURS, THEIRS), Goal("≤", 2)),),
    ),
)
