"""The page of a client: asked within this process, or answering on a port of its own."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import uvicorn
from starlette.types import ASGIApp

import dsync
from dsync.web import make_app
from dsync.web.feed import Feed

EVERY = 0.1  # seconds between looks, in tests

Json = dict[str, Any]


def page_of(client: dsync.Client, **options: Any) -> Any:
    """Its application."""
    return make_app(client, **{"every": EVERY} | options)


def asking(app: ASGIApp, base_url: str = "http://localhost") -> httpx2.AsyncClient:
    """A browser of no manners; a failure is what it would be answered."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url=base_url)


@asynccontextmanager
async def served(app: ASGIApp, *feeds: Feed, port: int = 0) -> AsyncIterator[str]:
    """Where it answers for a while; these streams end before."""
    listening = socket.create_server(("127.0.0.1", port))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # who does not read is noticed
    port = listening.getsockname()[1]
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve([listening]))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        for feed in feeds:
            feed.close()
        server.should_exit = True
        await running


class Viewer:
    """Reads a stream."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def event(self) -> Json:
        """The next one: its fields, with the data as they are after JSON."""
        fields: Json = {}
        async for line in self._lines:
            if not line:
                break
            field, _, value = line.partition(": ")
            fields[field] = json.loads(value) if field == "data" else value
        return fields

    async def until(self, what: Any, within: float = 5.0) -> Json:
        """The first snapshot of which this is true."""
        async with asyncio.timeout(within):
            while True:
                snapshot = (await self.event()).get("data", {})
                if what(snapshot):
                    return dict(snapshot)


@asynccontextmanager
async def watching(url: str, path: str = "/events") -> AsyncIterator[Viewer]:
    """A viewer."""
    async with (
        httpx2.AsyncClient(timeout=20) as client,
        client.stream("GET", url + path) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        yield Viewer(answer.aiter_lines())


def row(snapshot: Json, name: str) -> Json:
    """The row of this name; {} if there is none."""
    return next((dict(row) for row in snapshot.get("rows", ()) if row["name"] == name), {})
