"""A primary, its replica, and real sentinels that watch them: all of one's own, on loopback."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import redis.asyncio
import redis.exceptions

from chaos.servers import Backend
from dsync.server import Server, find_binary
from dsync.testing import Proxy
from tests.conftest import settled

__all__ = ["SERVICE", "Sentry", "Watched", "port_of"]

SERVICE = "shop"
DOWN_AFTER = 400  # ms of silence after which a sentinel takes a server for dead


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


class Sentry:
    """One sentinel process."""

    def __init__(self, config: Sequence[str], *options: str, binary: str | None = None) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="dsync-sentinel-"))
        file = self._home / "conf"
        file.write_text("\n".join(config) + "\n")
        starter = self._home / "sentinel"
        starter.write_text(f'#!/bin/sh\nexec {binary or find_binary()} {file} --sentinel "$@"\n')
        starter.chmod(0o700)
        self._server = Server.start(port=0, extra_args=options, binary=starter)
        self.port = port_of(self._server.url)
        self.pid = self._server.pid

    def admin(self) -> Any:
        return redis.asyncio.Redis(port=self.port)

    def close(self) -> None:
        self._server.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> "Sentry":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def watching(port: int, quorum: int, *more: str) -> list[str]:
    """A sentinel's configuration for the primary at this port."""
    return [
        f"sentinel monitor {SERVICE} 127.0.0.1 {port} {quorum}",
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}",
        f"sentinel failover-timeout {SERVICE} 10000",
        *(f"sentinel {what}" for what in more),
    ]


class Watched:
    """A primary with a replica, and as many sentinels as are wanted."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.sentries: list[Sentry] = []

    async def start(self, sentinels: int, *options: str) -> None:
        """`options` are those of both servers."""
        enter = self._stack.enter_context
        quick = ("--repl-diskless-sync-delay", "0", *options)
        self.primary = enter(await asyncio.to_thread(Backend, *quick))
        self._between = await self._stack.enter_async_context(Proxy.to(self.primary.url))
        of_it = ("--replicaof", f"127.0.0.1 {port_of(self._between.url)}", *quick)
        self.replica = enter(await asyncio.to_thread(Backend, *of_it))
        await settled(lambda: self._in_sync(), "the replica is in sync", within=15)
        config = watching(self.primary.port, sentinels // 2 + 1)
        for _ in range(sentinels):
            self.sentries.append(enter(await asyncio.to_thread(Sentry, config)))
        await settled(lambda: self._know_all(), "the sentinels know each other", within=15)

    def lag(self) -> None:
        """From now on nothing reaches the replica; the sentinels would mend that after 8 s."""
        self._between.black_hole("replies")

    async def caught_up(self) -> None:
        """The replica knows all that the primary has confirmed until now."""
        async with redis.asyncio.Redis.from_url(self.primary.url) as admin:
            await admin.set("mark", 1)
            assert await admin.wait(1, 10_000) == 1

    async def _in_sync(self) -> bool:
        async with redis.asyncio.Redis.from_url(self.replica.url) as admin:
            found = await admin.info("replication")
        return bool(found["master_link_status"] == "up")

    async def _know_all(self) -> bool:
        for sentry in self.sentries:
            async with sentry.admin() as admin:
                known = (await admin.sentinel_masters())[SERVICE]
            if (known["num-slaves"], known["num-other-sentinels"]) != (1, len(self.sentries) - 1):
                return False
        return True

    async def fail_over(self) -> None:
        """Order the first sentinel to promote the replica, once it knows enough of it."""

        async def begun() -> bool:
            async with self.sentries[0].admin() as admin:
                try:
                    await admin.execute_command("SENTINEL", "FAILOVER", SERVICE)
                except redis.exceptions.ResponseError as exc:
                    if "NOGOODSLAVE" not in str(exc):
                        raise
                    return False
            return True

        await settled(begun, "a failover has begun", within=15)

    async def led_by(self, backend: Backend) -> bool:
        """Whether all sentinels that answer name this server as the primary."""
        for sentry in self.sentries:
            with contextlib.suppress(redis.exceptions.ConnectionError):
                async with sentry.admin() as admin:
                    if (await admin.sentinel_masters())[SERVICE]["port"] != backend.port:
                        return False
        return True

    def url(self, query: str = "") -> str:
        nodes = ",".join(f"127.0.0.1:{sentry.port}" for sentry in self.sentries)
        return f"redis+sentinel://{nodes}/{SERVICE}{query}"
