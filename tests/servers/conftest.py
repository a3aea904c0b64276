"""Servers of other kinds: watched by sentinels, over TLS, with replicas that have to answer."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.fault.test_documented import Made, client, rivals, tasks
from tests.servers.watched import Watched

__all__ = ["Made", "Watch", "client", "rivals", "tasks", "watch"]

Watch = Callable[..., Awaitable[Watched]]


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """Starts a primary, its replica, and so many sentinels."""
    async with AsyncExitStack() as stack:

        async def start(sentinels: int, *options: str) -> Watched:
            made = Watched(stack)
            await made.start(sentinels, *options)
            return made

        yield start
