"""A service that stands only so many calls at once, and counts them itself."""

import asyncio
import random
from pathlib import Path
from types import TracebackType
from typing import Self

from dsync.lease import Lease

__all__ = ["Upstream", "call"]


class Upstream:
    """Answers on a unix socket after some work; each call has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: int = 0
        self.now: int = 0  # calls that are being answered
        self.most: int = 0  # ... at once, so far
        self._server: asyncio.Server | None = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A call begins when it is asked for: who is stopped before that asks when it runs
            # again, if its permit is still its own.
            if await reader.readline():
                await self._work()
                writer.write(b"done\n")
        except ConnectionError:
            pass  # the caller was killed
        finally:
            writer.close()

    async def _work(self) -> None:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(random.uniform(0.005, 0.015))
        finally:
            self.now -= 1  # before the caller can know, and give its permit to the next

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._answer, self.path)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()


async def call(path: Path, permit: Lease) -> None:
    """Call the service and return when it has answered.

    Raises:
        LeaseLost: the permit is not ours any more; nothing was asked for.
    """
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        if not permit.held:  # stopped while it connected: what runs again runs to its next await
            raise permit.error()
        writer.write(b"work\n")
        await reader.readline()
    finally:
        writer.close()
