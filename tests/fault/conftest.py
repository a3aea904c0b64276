"""What faults need: worker processes, a proxy, a server of one's own to restart and kill."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dsync
from dsync.testing import Proxy
from tests.conftest import World, left_running, settled, start_server, url_of
from tests.fault.workers import Workers


@pytest.fixture
def workers(real: World, tmp_path: Path) -> Iterator[Workers]:
    """Real processes beside the clients of `real`."""
    real.leftovers_allowed = True  # those that are killed leave what their lease keeps
    with Workers(real.url, real.namespace, tmp_path / "log") as made:
        yield made


@pytest.fixture
async def proxy(server_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.to(server_url) as made:
        yield made


Through = Callable[..., dsync.Client]


@pytest.fixture
async def through(proxy: Proxy, real: World) -> AsyncIterator[Through]:
    """Makes clients that reach the server through the proxy."""
    made: list[dsync.Client] = []

    def client(**kwargs: Any) -> dsync.Client:
        kwargs.setdefault("namespace", real.namespace)
        kwargs.setdefault("on_error", real.errors.append)
        made.append(dsync.Client(proxy.url, **kwargs))
        return made[-1]

    yield client
    proxy.delay = proxy.jitter = 0
    proxy.heal()
    for one in made:
        await one.aclose()


class OwnServer(World):
    """A world on a server of its own, which loses everything when it restarts."""

    restricted = False  # a server that comes back empty has forgotten its users

    def __init__(self) -> None:
        self.server = start_server()
        super().__init__("server", url_of(self.server))

    def kill(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()

    def restart(self) -> None:
        """It comes back at the same address, empty."""
        self.server.stop()
        port = int(self.url.rpartition(":")[2].partition("/")[0])
        self.server = start_server(port)


@pytest.fixture
async def own_server() -> AsyncIterator[OwnServer]:
    before = asyncio.all_tasks()
    made = OwnServer()
    try:
        await made.open()
        yield made
        await made.close()
        await settled(
            lambda: not left_running(before), lambda: f"left running: {left_running(before)}"
        )
    finally:
        made.server.stop()
    assert not made.errors, f"errors nobody awaited: {made.errors}"


@pytest.fixture
def queued(real: World) -> Callable[..., Any]:
    """Waits until so many requests stand in the store's queue of a lock or semaphore."""

    async def until(count: int, name: str = "x", kind: str = "lock", within: float = 5.0) -> None:
        async def stand() -> bool:
            found: int = await real.admin.zcard(real.key(kind, name, "waiters"))
            return found == count

        await settled(stand, f"{count} in the queue", within)

    return until


@pytest.fixture
def held(real: World) -> Callable[..., Any]:
    """How many permits the store has given away."""

    async def count(name: str = "x", kind: str = "lock") -> int:
        found: int = await real.admin.zcard(real.key(kind, name, "holders"))
        return found

    return count
