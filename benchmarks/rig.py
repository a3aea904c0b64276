"""The server that everybody is measured on, and what it counts."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from uuid import uuid4

import redis

__all__ = ["ASYNCIO", "LOOPS", "Rig", "runner", "until"]

ASYNCIO = "asyncio"
LOOPS = (ASYNCIO, "uvloop")

# What clients send.  The server's total, and each connection's, also count what scripts call;
# none of the scripts here calls these.
SENT = ("eval", "evalsha", "set", "subscribe", "ping", "blpop")


class Rig:
    """One server, and a namespace of its own for each slice."""

    def __init__(self, url: str, seconds: float, loop: str = ASYNCIO, quick: bool = False) -> None:
        self.url = url
        self.seconds = seconds  # for each slice, where the workload needs no more
        self.loop = loop  # whose event loop everybody runs on, one of LOOPS
        self.quick = quick  # whether smaller numbers and shorter windows will do
        self.namespace = ""
        # Blocking, for it is used only where nothing is being timed.
        self._admin: Any = redis.Redis.from_url(url, decode_responses=True)

    @contextmanager
    def slice(self) -> Iterator[None]:
        """A fresh namespace, and nothing left of it afterwards."""
        self.namespace = f"bench-{uuid4().hex[:8]}"
        try:
            yield
        finally:
            keys = self.keys("*")
            for i in range(0, len(keys), 10_000):
                self._admin.unlink(*keys[i : i + 10_000])

    def commands(self) -> int:
        """How many commands clients have sent so far, without those inside scripts."""
        stats = self._admin.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in SENT)

    def scripts(self) -> tuple[int, int]:
        """How many scripts clients have had run so far, and the server's µs for them."""
        stats = self._admin.info("commandstats")
        none = {"calls": 0, "usec": 0}
        ran = [stats.get(f"cmdstat_{name}", none) for name in ("eval", "evalsha")]
        return sum(each["calls"] for each in ran), sum(each["usec"] for each in ran)

    def publishes(self) -> int:
        """How often something has been published so far, by clients and inside scripts."""
        stats = self._admin.info("commandstats")
        return int(stats.get("cmdstat_publish", {"calls": 0})["calls"])

    def connections(self) -> int:
        return len(self._admin.client_list())

    def memory(self) -> int:
        """Bytes that the server has allocated."""
        return int(self._admin.info("memory")["used_memory"])

    def fill(self, script: str, keys: list[str], *args: object) -> None:
        """Put many things there at once, by a script; it is not among those counted later."""
        self._admin.eval(script, len(keys), *keys, *args)

    def keys(self, pattern: str) -> list[str]:
        """Those of this slice's namespace."""
        pattern = f"*{self.namespace}*{pattern}"
        return list(self._admin.scan_iter(match=pattern, count=10_000))

    def length(self, key: str) -> int:
        """Of a sorted set."""
        return int(self._admin.zcard(key))

    def time_to_live(self, key: str) -> float:
        """Seconds."""
        return int(self._admin.pttl(key)) / 1000

    def first_score(self, key: str) -> float:
        """The least score of a sorted set."""
        [(_, score)] = self._admin.zrange(key, 0, 0, withscores=True)
        return float(score)

    def now(self) -> float:
        """The server's time, seconds."""
        seconds, microseconds = self._admin.time()
        return int(seconds) + int(microseconds) / 1_000_000

    def describe(self) -> str:
        """Name and version of the server."""
        info = self._admin.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(f'{name}_version', info['redis_version'])}"

    def close(self) -> None:
        self._admin.close()


def runner(loop: str) -> asyncio.Runner:
    """What runs coroutines on an event loop of that make."""
    make = None if loop == ASYNCIO else import_module(loop).new_event_loop
    return asyncio.Runner(loop_factory=make)


def until(end: float) -> bool:
    """Whether time.monotonic() has not reached `end`."""
    return time.monotonic() < end
