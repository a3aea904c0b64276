"""What the server says that it has spent, and bare connections to it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

__all__ = ["Meter", "Sockets", "Spent"]


class Spent:
    """What was spent while something was done; filled in when it is over."""

    script = 0.0  # µs inside EVALSHA
    calls = 0  # of EVALSHA
    cpu = 0.0  # µs of the main thread, system calls included


class Meter:
    """Reads a server's counters.  It blocks: only for use where nothing is being timed."""

    def __init__(self, url: str) -> None:
        self.admin: Any = redis.Redis.from_url(url)

    @contextmanager
    def measured(self) -> Iterator[Spent]:
        spent = Spent()
        calls, script = self._evaluated()
        cpu = self._cpu()
        yield spent
        spent.cpu = self._cpu() - cpu
        now, total = self._evaluated()
        spent.calls, spent.script = now - calls, total - script

    def _evaluated(self) -> tuple[int, float]:
        stats = self.admin.info("commandstats").get("cmdstat_evalsha", {"calls": 0, "usec": 0})
        return int(stats["calls"]), float(stats["usec"])

    def _cpu(self) -> float:
        cpu = self.admin.info("cpu")
        total = cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"]
        return float(total) * 1e6

    def memory(self) -> int:
        """Bytes in use."""
        return int(self.admin.info("memory")["used_memory"])

    def describe(self) -> str:
        """Name and version of the server."""
        info = self.admin.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(f'{name}_version', info['redis_version'])}"

    def commands(self) -> int:
        """How many transitions were asked for so far."""
        return self._evaluated()[0]

    def wanted(self, key: str) -> int:
        """How many hold a lock or wait for it."""
        holders, waiters = (self.admin.zcard(f"{key}:{part}") for part in ("holders", "waiters"))
        return int(holders) + int(waiters)

    def lease_left(self, key: str) -> float:
        """Seconds until the lease ends that ends first."""
        [(_, ends)] = self.admin.zrange(f"{key}:holders", 0, 0, withscores=True)
        seconds, microseconds = self.admin.time()
        return float(ends) / 1000 - int(seconds) - int(microseconds) / 1e6

    def close(self) -> None:
        self.admin.close()


class Sockets:
    """Bare connections to a server on TCP."""

    def __init__(self, url: str, count: int) -> None:
        host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
        self._sockets = [socket.create_connection((host, int(port))) for _ in range(count)]

    def say(self, data: bytes, expected: int) -> None:
        """All send this, and wait for an answer of so many bytes."""
        for each in self._sockets:
            each.sendall(data)
        self.hear(expected)

    def hear(self, expected: int) -> None:
        """Wait until each has received so many bytes."""
        for each in self._sockets:
            left = expected
            while left > 0:
                left -= len(each.recv(min(left, 2**16)))

    def close(self) -> None:
        for each in self._sockets:
            each.close()
