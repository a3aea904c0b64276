"""Who hears what the workers tell: the director, from before the first word to the last."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import dsync
from dsync.demo.journal import Journal

__all__ = ["listening"]

PATIENCE = 3.0  # seconds until the last word must have come back


@contextlib.asynccontextmanager
async def listening(bus: dsync.EventBus, journal: Journal) -> AsyncIterator[None]:
    """Write down all that is told on the bus until the body has ended, and what was lost of it."""
    async with bus.subscribe("entry.*", maxsize=10_000) as entries:
        listener = asyncio.create_task(_listen(entries, journal))
        try:
            yield
        finally:
            # Each message comes behind all that the server had taken before.
            with contextlib.suppress(dsync.DsyncError, TimeoutError):
                await bus.trigger("entry.last")
                await asyncio.wait_for(listener, PATIENCE)
            listener.cancel()


async def _listen(entries: AsyncIterator[dsync.Message | dsync.Gap], journal: Journal) -> None:
    async for entry in entries:
        if isinstance(entry, dsync.Gap):
            journal.note("missed", count=entry.missed)
        elif entry.event == "entry.last":
            return
        else:
            worker, fence = entry.data
            journal.note("heard", whom=worker, fence=fence)
