"""A Docker engine, if one answers, and a server in a container of it."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import docker
import pytest
from testcontainers.community.redis import RedisContainer
from testcontainers.core.config import testcontainers_config

from tests.conftest import World, left_running, settled
from tests.containers.engine import NoEngine, connect
from tests.containers.images import build_server

PORT = 6379  # in the container
OWN_IMAGE = "dsync-test-server"
PULLED_IMAGE = "redis:8-alpine"  # where the machine's own server is no program for a container


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker engine at $DOCKER_HOST, or at its usual place."""
    try:
        client = connect()
    except NoEngine as exc:
        pytest.skip(f"{exc}; `make containers` starts one")
    with contextlib.closing(client), pytest.MonkeyPatch.context() as patch:
        try:
            client.images.get(testcontainers_config.ryuk_image)
        except docker.errors.ImageNotFound:
            # Ryuk removes what a killed test run leaves.  Without its image nothing would start.
            patch.setattr(testcontainers_config, "ryuk_disabled", True)
        yield client


@pytest.fixture(scope="session")
def server_image(engine: Any) -> str:
    """$DSYNC_TEST_IMAGE, or one around this machine's own server."""
    named = os.environ.get("DSYNC_TEST_IMAGE")
    if named:
        return named
    if not sys.platform.startswith("linux"):
        return PULLED_IMAGE
    build_server(engine, OWN_IMAGE)
    return OWN_IMAGE


@pytest.fixture(scope="session")
def server_url(server_image: str) -> Iterator[str]:
    """In this folder the server that the tests share is one in a container."""
    with RedisContainer(server_image) as container:
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(PORT)}/0"


class Contained(World):
    """A world on a server in a container of its own, at one address whatever happens to it."""

    restricted = False  # a server that comes back empty has forgotten its users

    def __init__(self, image: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.container = RedisContainer(image).with_bind_ports(PORT, port).start()
        super().__init__("server", f"redis://{self.container.get_container_host_ip()}:{port}/0")

    def kill(self) -> None:
        """SIGKILL to all that runs in it."""
        self.container.get_wrapped_container().kill()

    def start(self) -> None:
        """It comes back at the same address, empty."""
        self.container.get_wrapped_container().start()

    def pause(self) -> None:
        """Freeze it where it stands."""
        self.container.get_wrapped_container().pause()

    def unpause(self) -> None:
        self.container.get_wrapped_container().unpause()


@pytest.fixture
async def contained(server_image: str) -> AsyncIterator[Contained]:
    before = asyncio.all_tasks()
    made = Contained(server_image)
    try:
        await made.open()
        yield made
        await made.close()
        await settled(
            lambda: not left_running(before), lambda: f"left running: {left_running(before)}"
        )
    finally:
        made.container.stop()
    assert not made.errors, f"errors nobody awaited: {made.errors}"
