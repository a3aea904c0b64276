"""What is seen, for all who watch: a look every so many seconds while somebody does, else none."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dsync.errors import DsyncError

__all__ = ["Feed", "Seen"]

QUIET = 15.0  # seconds after which something is said, so that a viewer that is gone is noticed

log: logging.Logger = logging.getLogger("dsync")


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What one look has brought, or why it has brought nothing: JSON in ASCII, in one line."""

    text: str
    ok: bool
    at: float  # when it ended, by the loop's clock


class Feed:
    """Looks, and has everybody see it.

    Nothing is queued: who is slow misses what was seen meanwhile, and holds up nobody.
    """

    # _following runs exactly while somebody watches.
    # _seen is what the latest look has brought, whoever asked for it.

    def __init__(
        self, look: Callable[[], Awaitable[Any]], rest: Callable[[], Awaitable[None]], every: float
    ) -> None:
        """`rest` is called when there is nobody left to look for."""
        self.every = every
        self.viewers: int = 0
        self.streams: int = 0  # that were let in, whether they watch yet or not
        self.closed: bool = False
        self._look = look
        self._rest = rest
        self._turn = asyncio.Lock()  # one look at a time
        self._seen: Seen | None = None
        self._news = asyncio.Event()  # set, and another put in its place, with each look
        self._following: asyncio.Task[None] | None = None

    async def now(self) -> Seen:
        """What was seen in the last `every` seconds; if nothing was, what is to be seen now."""
        async with self._turn:
            seen = self._recent() or await self._see()
            if not self.viewers:
                await self._rest()
            return seen

    async def watch(self) -> AsyncGenerator[Seen | None, None]:
        """What is seen from now on; None where nothing was for QUIET seconds.

        It ends with `close()`.  Leaving it is what ends the looking: close it, as with `aclosing`.
        """
        self.viewers += 1
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name="dsync web")
        last: Seen | None = None
        seen = self._recent()
        try:
            while not self.closed:
                if seen is None or seen is last:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(QUIET):
                            await self._news.wait()
                    seen = self._seen
                    if seen is last and not self.closed:
                        yield None
                else:
                    last = seen
                    yield seen
                    seen = self._seen
        finally:
            self.viewers -= 1
            if not self.viewers and self._following is not None:
                self._following.cancel()
                self._following = None

    def close(self) -> None:
        """Nobody watches any more, nor will."""
        self.closed = True
        self._tell()

    def _recent(self) -> Seen | None:
        seen, now = self._seen, asyncio.get_running_loop().time()
        return seen if seen is not None and now - seen.at < self.every else None

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                async with self._turn:
                    await self._see()
                # A server that takes long to answer is left alone for a while all the same.
                await asyncio.sleep(max(began + self.every - loop.time(), self.every / 2))
        finally:
            async with self._turn:
                if not self.viewers:  # or somebody else has come meanwhile
                    await self._rest()

    async def _see(self) -> Seen:
        try:
            text, ok = json.dumps(await self._look(), allow_nan=False), True
        except DsyncError as error:
            text, ok = json.dumps({"error": str(error)}), False
        except Exception:
            # A mistake of ours ends neither the page nor the service that it is a part of.
            log.exception("dsync web: the look failed")
            text, ok = json.dumps({"error": "the look failed: see the log"}), False
        seen = self._seen = Seen(text, ok, asyncio.get_running_loop().time())
        self._tell()
        return seen

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
