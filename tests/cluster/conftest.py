"""Clusters of their own for tests that break them."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.cluster.rig import Cluster
from tests.conftest import World


class Broken(World):
    """A cluster that the test may break; each client made here stands for a process of its own."""

    restricted = False

    def __init__(self, cluster: Cluster) -> None:
        super().__init__("cluster", cluster.url)
        self.cluster = cluster
        self.leftovers_allowed = True

    async def close(self) -> None:
        """Clients must end; what the servers have kept is another matter."""
        for client in self.clients:
            await client.aclose()
        await self.admin.aclose()


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Three servers, of which a test may use all but break none."""
    with Cluster(3, node_timeout=15_000) as made:
        yield made


@pytest.fixture
def replicated() -> Iterator[Cluster]:
    """Three servers, each with a replica, which takes over within seconds."""
    with Cluster(3, 3) as made:
        yield made


@pytest.fixture
async def whole(three: Cluster) -> AsyncIterator[Broken]:
    """Clients of a cluster in which slots move."""
    made = Broken(three)
    await made.open()
    yield made
    await made.close()
    assert not made.errors


@pytest.fixture
async def mortal(replicated: Cluster) -> AsyncIterator[Broken]:
    """Clients of a cluster whose servers die."""
    made = Broken(replicated)
    await made.open()
    yield made
    await made.close()
