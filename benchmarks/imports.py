"""How long `import dsync` takes, in fresh processes."""

import asyncio
import os
import statistics
import sys
import time
from functools import partial

from benchmarks.crew import ROOT
from benchmarks.measure import Goal, Measured, Ratio, Workload, value
from benchmarks.rig import Rig, until

__all__ = ["WORKLOADS"]

REDIS, OURS = "redis.asyncio", "dsync"
# What the first client for a Redis imports as well.
STORE = "dsync, dsync.redis"
BEYOND, STORE_BEYOND = f"{OURS}, after {REDIS}", f"{STORE}, after {REDIS}"
LEAST = 3  # processes; 1 will do in a quick run


async def slice_of(before: str, module: str, rig: Rig) -> Measured:
    """The median over as many processes as fit into the slice."""
    code = (
        f"import sys, time, {before}; began = time.perf_counter(); import {module}; "
        "print(time.perf_counter() - began)"
    )
    # So that the first one leaves its bytecode to the others, whatever is set here.
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    took: list[float] = []
    end = time.monotonic() + rig.seconds
    while len(took) < (1 if rig.quick else LEAST) or until(end):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE, cwd=ROOT, env=environ
        )
        out, _ = await process.communicate()
        took.append(float(out))
    return {"ms": 1000 * statistics.median(took)}


WORKLOADS = (
    Workload(
        "import",
        "import dsync in a fresh process, its bytecode compiled before",
        {
            REDIS: partial(slice_of, "time", REDIS),
            OURS: partial(slice_of, "time", OURS),
            BEYOND: partial(slice_of, REDIS, OURS),
            STORE_BEYOND: partial(slice_of, REDIS, STORE),
        },
        (
            Ratio("ms beyond redis.asyncio", value(BEYOND, "ms"), Goal("≤", 30)),
            Ratio("ms beyond redis.asyncio, with dsync.redis", value(STORE_BEYOND, "ms")),
            Ratio("ms alone", value(OURS, "ms")),
        ),
        rounds=3,
    ),
)
