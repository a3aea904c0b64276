"""The page on a socket of its own, until a signal comes."""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

__all__ = ["serve"]

GRACE = 3  # seconds for answers under way, when it ends


async def serve(app: Starlette, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Answer on this socket until SIGINT or SIGTERM; a second SIGINT does not wait for anything.

    `ready` is called when these signals are heard and requests answered.
    """
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, lifespan="off", ws="none",
        proxy_headers=False, server_header=False, timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    await _Server(config, app.state.feed.close, ready).serve([listening])


class _Server(uvicorn.Server):
    """Ends its streams when it is told to end: otherwise it would wait for them."""

    def __init__(
        self, config: uvicorn.Config, end: Callable[[], object], ready: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._end = end
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The one it takes the place of has the signal raised again when all is done.
        self.force_exit = self.should_exit
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._end)
