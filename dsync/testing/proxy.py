"""A TCP proxy on loopback that delays, holds back, cuts and loses what passes through it.

    async with Proxy.to("redis://127.0.0.1:6379/0") as proxy:
        client = dsync.connect(proxy.url)
        proxy.delay, proxy.jitter = 0.02, 0.01
        proxy.black_hole("replies")
        proxy.heal()

What a black hole takes is not dropped but held back until `heal()`, in order: so TCP does it, and
so commands sent before a partition reach the server after it.
"""

import asyncio
import random
import socket
import struct
from collections import deque
from types import TracebackType
from typing import Literal, Self, cast
from urllib.parse import urlsplit

__all__ = ["Proxy"]

Way = Literal["requests", "replies"]
BOTH: tuple[Way, Way] = ("requests", "replies")


class Proxy:
    """Forwards connections to one server, as well or as badly as it is told to.

    Attributes:
        url: where clients connect.
        delay: seconds that everything takes each way; what is under way keeps the old one.
        jitter: seconds, at most so much is added at random; the order stays.
        throttle: bytes per second that pass each way of each connection; 0 for no bound.
        refusing: whether connections to come are reset at once, as where no server listens.
        connections: how many were made so far.
    """

    def __init__(self, host: str, port: int, path: str = "", user: str = "") -> None:
        self.url: str = ""
        self.delay: float = 0.0
        self.jitter: float = 0.0
        self.throttle: float = 0.0
        self.refusing: bool = False
        self.connections: int = 0
        self._target = (host, port)
        self._path = path
        self._user = user  # "name:password@", or nothing
        self._pairs: set[_Pair] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._holding: set[Way] = set()
        self._trap: _Trap | None = None
        self._server: asyncio.Server | None = None

    @classmethod
    def to(cls, url: str) -> "Proxy":
        """A proxy to the server of this `redis://` URL."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return cls(*_address(url), parts.path, user + at)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Pair(self).client, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://{self._user}127.0.0.1:{port}{self._path}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.refusing = True  # who was accepted a moment ago is made a connection after this
        self.reset()
        await asyncio.gather(*self._dials)  # each finds its pair closed, and ends
        await asyncio.sleep(0)  # transports close their sockets on the next tick
        await self._server.wait_closed()

    def retarget(self, url: str) -> None:
        """Connections to come go to the server of this URL, as after a failover.

        Those of now stay where they are, until `cut()` or `reset()` ends them.  The user and the
        database are what clients say, so they remain those of the first URL.
        """
        self._target = _address(url)

    def black_hole(self, *ways: Way) -> None:
        """From now on nothing arrives, and nobody is told; both ways, or the one given."""
        self._holding.update(ways or BOTH)

    def strand(self) -> None:
        """A black hole for the connections of now; those to come are well."""
        for pair in self._pairs:
            pair.stranded = True

    def heal(self) -> None:
        """What was held back arrives now, connections are accepted, and all goes on."""
        self.refusing = False
        self._holding.clear()
        for pair in list(self._pairs):
            pair.stranded = False
            for lane in (pair.requests, pair.replies):
                lane.catch_up()

    def held(self, way: Way) -> bytes:
        """What a black hole has taken so far, of all connections."""
        lanes = [getattr(pair, way) for pair in self._pairs]
        return b"".join(data for lane in lanes for data in lane.held if data is not None)

    def cut(self, *ways: Way) -> None:
        """Close every connection, both ends; or end the way given, and let the other go on.

        Who reads at the end of that way sees the end of the stream; what is still sent is lost.
        """
        for pair in list(self._pairs):
            if ways:
                for way in ways:
                    getattr(pair, way).end()
            else:
                pair.close()

    def reset(self) -> None:
        """End every connection with a TCP reset, both ends."""
        for pair in list(self._pairs):
            pair.close(reset=True)

    def swallow_replies_then_cut(self, request: bytes = b"") -> "asyncio.Future[None]":
        """Forward the next request (that contains `request`), lose its reply, then cut.

        The connection is cut when the server has answered.  Returns a future of that moment.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._trap = _Trap(request, done)
        return done


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 6379


class _Trap:
    """A request to wait for, and then the connection on which its reply is to be lost."""

    def __init__(self, request: bytes, done: "asyncio.Future[None]") -> None:
        self.request = request
        self.done = done
        self.pair: _Pair | None = None


class _Pair:
    """A connection of a client and the one to the server that stands behind it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.stranded = False
        self.requests = _Lane(self, "requests")
        self.replies = _Lane(self, "replies")
        self.client = _End(self.requests)
        self.server = _End(self.replies)
        self.requests.sink, self.replies.sink = self.server, self.client

    def opened(self) -> None:
        self.proxy.connections += 1
        if self.proxy.refusing:
            self.close(reset=True)
            return
        self.proxy._pairs.add(self)
        dial = asyncio.get_running_loop().create_task(self._dial())
        self.proxy._dials.add(dial)
        dial.add_done_callback(self.proxy._dials.discard)

    async def _dial(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.server, *self.proxy._target
            )
        except OSError:
            self.close(reset=True)  # as the server itself would refuse
        else:
            self.requests.catch_up()

    def close(self, reset: bool = False) -> None:
        self.proxy._pairs.discard(self)
        for end in (self.client, self.server):
            end.close(reset)


class _Lane:
    """One way through the proxy: what arrives at one end leaves at `sink`, in order."""

    sink: "_End"

    def __init__(self, pair: _Pair, way: Way) -> None:
        self.pair = pair
        self.way = way
        self._due = 0.0  # when what came last leaves
        # Under way, in order.  A timer each would not keep it: those of one moment run in any.
        self._under_way: deque[tuple[float, bytes | None]] = deque()
        self._ended = False  # this way alone was cut
        self.held: list[bytes | None] = []  # None: the end

    def arrived(self, data: bytes | None) -> None:
        proxy = self.pair.proxy
        trap = proxy._trap
        if trap is not None and data is not None:
            if self.way == "requests" and trap.pair is None and trap.request in data:
                trap.pair = self.pair
            elif self.way == "replies" and trap.pair is self.pair:
                proxy._trap = None
                self.pair.close()
                trap.done.set_result(None)
                return
        loop = asyncio.get_running_loop()
        delay = proxy.delay + proxy.jitter * random.random()
        sending = len(data or b"") / proxy.throttle if proxy.throttle else 0.0
        if delay or sending or self._due > loop.time():
            self._due = max(self._due, loop.time() + delay) + sending
            self._under_way.append((self._due, data))
            if len(self._under_way) == 1:
                loop.call_at(self._due, self._arrive)
        elif self._under_way:
            self._under_way.append((self._due, data))  # due, and still behind others
        else:
            self._leave(data)

    def _arrive(self) -> None:
        loop = asyncio.get_running_loop()
        while self._under_way and self._under_way[0][0] <= loop.time():
            self._leave(self._under_way.popleft()[1])
        if self._under_way:
            loop.call_at(self._under_way[0][0], self._arrive)

    def _leave(self, data: bytes | None) -> None:
        pair = self.pair
        holding = pair.stranded or self.way in pair.proxy._holding
        if self.held or holding or self.sink.transport is None:
            self.held.append(data)
        elif data is None:
            pair.close()
        elif not (self._ended or self.sink.transport.is_closing()):
            self.sink.transport.write(data)

    def end(self) -> None:
        self._ended = True
        if self.sink.transport is not None and not self.sink.transport.is_closing():
            self.sink.transport.write_eof()

    def catch_up(self) -> None:
        held, self.held = self.held, []
        for data in held:
            self._leave(data)


class _End(asyncio.Protocol):
    """The proxy's end of one connection."""

    def __init__(self, lane: _Lane) -> None:
        self.transport: asyncio.Transport | None = None
        self._lane = lane

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        pair = self._lane.pair
        if self is pair.client:
            pair.opened()
        elif pair not in pair.proxy._pairs:
            self.close(reset=True)  # cut while we dialled

    def data_received(self, data: bytes) -> None:
        self._lane.arrived(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane.arrived(None)

    def close(self, reset: bool) -> None:
        if self.transport is None:
            return
        if reset:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()
