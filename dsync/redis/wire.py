"""The link that dsync owns: one connection, full duplex, for commands and pushes alike (RESP3).

redis-py dials and shakes hands (TLS, AUTH, HELLO, SELECT, Sentinel); then its transport is ours.
No task touches the socket: a command is written when it is called, replies are handed out where
they are parsed, and a cancelled caller can desynchronise nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis

from dsync.errors import StoreUnavailable
from dsync.redis.link import Command, Link, Refusal, packed
from dsync.store import Call, Done

__all__ = ["Connection", "Wire"]

_MORE = object()  # hiredis: the reply is not complete yet


class Connection(asyncio.Protocol):
    """One connection: bytes in, replies out; everything written in one tick leaves together.

    The first write since something was heard goes out at once, the rest at the end of their tick:
    alone a command waits for nothing, and many share a system call.
    """

    def __init__(
        self, on_reply: Callable[[Any], None], on_lost: Callable[[BaseException], None]
    ) -> None:
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._parser = hiredis.Reader(replyError=Refusal, notEnoughData=_MORE)
        self._outbox: list[bytes] = []  # not empty: a flush is scheduled
        self._quiet = True  # nothing was written since we heard something
        self._transport: Any = None
        self._keep: Any = None
        self._loop = asyncio.get_running_loop()

    def take_over(self, dialled: Any) -> None:
        """Make the transport of redis-py's connection ours.

        The only private names of redis-py that we use.  Its stream objects are kept alive, for
        they close the transport when collected.
        """
        self._transport = dialled._writer.transport
        self._keep = (dialled._writer, dialled._reader)
        dialled._writer = dialled._reader = None
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            raise ConnectionError("the server closed the connection during the handshake")

    def write(self, data: bytes) -> None:
        if self._quiet:
            self._quiet = False
            self._transport.write(data)
            return
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(data)

    def gather(self) -> None:
        """What is written from now on in this tick leaves together, at its end."""
        self._quiet = False

    def _flush(self) -> None:
        self._transport.write(b"".join(self._outbox))
        self._outbox.clear()

    def data_received(self, data: bytes) -> None:
        gets = self._parser.gets
        self._quiet = not self._outbox
        try:
            self._parser.feed(data)
            while (reply := gets()) is not _MORE:
                self._on_reply(reply)
        except hiredis.ProtocolError as exc:
            self.close(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._keep = None
        self._on_lost(exc or ConnectionError("the server closed the connection"))

    def close(self, trouble: BaseException | None = None) -> None:
        """Close at once, with what was still to be written; `on_lost` is not called any more."""
        on_lost, self._on_lost = self._on_lost, lambda exc: None
        self._on_reply = lambda reply: None
        self._transport.abort()
        if trouble is not None:
            on_lost(trouble)


class Wire(Link):
    """A Link over one Connection, replaced when it breaks."""

    listening: bool
    trouble: BaseException | None

    def __init__(self, dial: Callable[[], Awaitable[Any]], *args: Any) -> None:
        super().__init__(*args)
        self._dial = dial  # -> a connected redis.asyncio Connection
        self._connection: Connection | None = None
        self._disowned: Connection | None = None
        self._dialling: asyncio.Task[None] | None = None
        # What is in flight and answered by pushes, one for each channel, or by one error reply.
        self._tuning: list[Call] = []
        # When the last call that was answered was sent, time.monotonic().
        self.progress: float = float("-inf")
        self._connected_at: float | None = None
        self._own = self.channel.encode()

    def call(self, command: Command, done: Done) -> Call:
        # The ordinary case of Link.call() in one piece: it is what every acquire pays for.
        connection = self._connection
        now = time.monotonic()
        if connection is None or self._watch_at > now + self.reply_timeout:
            return super().call(command, done)
        call = Call(command, done, now)
        call.attempts = 1
        self._inflight.append(call)
        connection.write(command if type(command) is bytes else packed(*command))
        return call

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def _put(self, call: Call) -> None:
        if self._connection is None:
            self._backlog.append(call)
            self._connect()
        else:
            self._send(call)

    def _send(self, call: Call) -> None:
        call.sent = time.monotonic()
        call.attempts += 1
        self._inflight.append(call)
        self._watch_by(call.sent + self.reply_timeout)
        assert self._connection is not None
        command = call.command
        self._connection.write(command if type(command) is bytes else packed(*command))

    def _connect(self) -> None:
        if self._dialling is None and not self.closed:
            self._dialling = asyncio.get_running_loop().create_task(
                self._keep_dialling(), name="dsync link"
            )

    async def _keep_dialling(self) -> None:
        attempt, began = 0, time.monotonic()
        if self._connected_at is not None and began - self._connected_at < 1:
            await asyncio.sleep(self.backoff(1))  # it answers, and hangs up
        while True:
            try:
                async with asyncio.timeout(self.reply_timeout):
                    dialled = await self._dial()
                connection = Connection(self._on_reply, self._on_lost)
                connection.take_over(dialled)
            except StoreUnavailable as exc:  # no use in trying again
                self.trouble = exc
                self._dialling = None
                self._fail(lambda call: True, exc)
                return
            except Exception as exc:
                self.trouble = exc if str(exc) else TimeoutError("connecting took too long")
                self._give_up()
                idle = not (self._backlog or self._delayed)
                if idle and time.monotonic() - began > self.outage_timeout:
                    self._dialling = None  # the next call tries again
                    return
                attempt += 1
                await asyncio.sleep(self.backoff(attempt))
            else:
                self._dialling = None
                self._connected(connection)
                return

    def _connected(self, connection: Connection) -> None:
        """Listen, send what waits, and if there was a connection before, announce the gap."""
        self._connection = connection
        self.trouble = None
        self.progress = float("-inf")
        self._listen()
        self._send(self.greet())
        waiting = list(self._backlog)
        self._backlog.clear()
        for call in waiting:
            self._send(call)
        first, self._connected_at = self._connected_at is None, time.monotonic()
        if not first:
            self._announce_gap()

    def _listen(self) -> None:
        """Subscribe to all that we listen to."""
        self._tune("SUBSCRIBE", self.channel)
        for channel in self.channels:  # each by itself: one may be refused, the others not
            self._tune("SUBSCRIBE", channel)

    def _announce_gap(self) -> None:
        self.inbox.gap()

    def subscribe(self, channel: str) -> None:
        self.channels.add(channel)
        if self._connection is not None:
            self._tune("SUBSCRIBE", channel)
        # else with the next connection

    def unsubscribe(self, channel: str) -> None:
        self.channels.discard(channel)
        if self._connection is not None and not self.closed:
            self._tune("UNSUBSCRIBE", channel)

    def _tune(self, *command: str) -> None:
        call = Call(command, self._tuned, time.monotonic())
        self._tuning.append(call)
        self._send(call)

    def _tuned(self, call: Call) -> None:
        # Refused (an ACL without our channels): waiters are served by asking, once a second.
        self._tuning.remove(call)
        refused = call.reply if isinstance(call.reply, BaseException) else None
        if call.command[0] == "SUBSCRIBE":
            for channel in call.command[1:]:
                if channel != self.channel:
                    self.inbox.tuned(channel, refused)

    def _on_reply(self, reply: Any) -> None:
        if type(reply) is hiredis.PushNotification:
            self._on_push_message(reply)
            return
        call = self._inflight.popleft()
        self.progress = call.sent
        if type(reply) is Refusal:
            self._refused(call, reply)
            return
        call.reply = reply
        if self._drained:
            self._finish(call)
            return
        try:
            call.done(call)
        except Exception as exc:
            self._failed(call, exc)

    def _on_push_message(self, push: list[Any]) -> None:
        kind, channel = push[0], push[1]
        if kind == b"message":
            if channel == self._own:
                self.inbox.pushed(push[2].split(b" "), self.progress)
            else:
                self.inbox.news(channel.decode(), push[2])
        elif self._inflight and kind in (b"subscribe", b"unsubscribe"):
            if kind == b"subscribe" and channel == self._own:
                self.listening = True
            call = self._inflight[0]
            if call in self._tuning and channel.decode() == call.command[-1]:
                self.progress = self._inflight.popleft().sent
                self._finish(call)

    def _on_lost(self, exc: BaseException) -> None:
        self._connection = None
        self.listening = False
        self.trouble = exc
        if self.closed:
            return
        gone = set(self._tuning)  # they belong to the connection that is gone
        self._delayed -= gone
        self._tuning.clear()
        self._backlog.extendleft(c for c in reversed(self._inflight) if c not in gone)
        self._inflight.clear()
        self._connect()
        self.inbox.disconnected(exc)

    def _hang_up(self, trouble: BaseException) -> None:
        if self._connection is not None:
            self._connection.close(trouble)

    def disown(self) -> None:
        super().disown()
        # Kept, for closing it here would take it out of the parent's selector as well.
        self._disowned, self._connection = self._connection, None

    async def aclose(self) -> None:
        await super().aclose()
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self.listening = False
            await asyncio.sleep(0)  # the transport closes its socket on the next tick
