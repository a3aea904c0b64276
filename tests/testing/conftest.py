"""The fixtures that users get, and clients that stand for processes of their own."""

from collections.abc import AsyncIterator, Callable

import pytest

import dsync
from pytest_dsync import _dsync_server as _dsync_server
from pytest_dsync import dsync_client as dsync_client
from pytest_dsync import dsync_clock as dsync_clock
from pytest_dsync import dsync_memory as dsync_memory
from pytest_dsync import dsync_server as dsync_server

Process = Callable[[], dsync.Client]


@pytest.fixture(params=["memory", "server"])
async def process(request: pytest.FixtureRequest) -> AsyncIterator[Process]:
    """Clients of one store, in memory and on a server, closed afterwards."""
    url: str = request.getfixturevalue(f"dsync_{request.param}")
    clients: list[dsync.Client] = []

    def make() -> dsync.Client:
        clients.append(dsync.connect(url))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()
