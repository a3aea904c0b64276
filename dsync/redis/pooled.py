"""The link on redis-py's public API alone: one pipeline for each tick, and a PubSub.

For fakeredis, and for clients whose connections cannot be taken over.  Slower, and it knows
nothing about the order of replies and messages: each grant by message is confirmed by asking.
"""

import asyncio
import time
from typing import Any

import redis.exceptions

from dsync.redis.link import Link, Refusal, words_of
from dsync.store import Call

__all__ = ["PooledLink"]

# redis-py takes the code off the messages of the errors it has a class for.
_CODES = {
    redis.exceptions.NoScriptError: "NOSCRIPT",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}


def _as_refusal(error: Exception) -> Refusal:
    error.__traceback__ = None  # its frames hold the replies, and so all that this error is among
    code = _CODES.get(type(error), "")
    return Refusal(f"{code} {error}".strip())


def _text(data: Any) -> str:
    return data if isinstance(data, str) else str(data, "utf-8", "replace")


def _bytes(data: Any) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


class PooledLink(Link):
    """A Link over a `redis.asyncio.Redis`, which is not closed if it was lent."""

    watches_replies = False
    listening: bool
    progress: float
    trouble: BaseException | None

    def __init__(self, client: Any, *args: Any, lent: bool = True) -> None:
        super().__init__(*args)
        self._client = client
        self._lent = lent
        self._pump: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._greeted = False
        self._deaf = False  # refused our channel: waiters are served by asking
        self._pubsub: Any = None
        # Of the channels, those that we have subscribed to, and those that are confirmed.
        self._tuned: set[str] = set()
        self._confirmed: set[str] = set()

    def _put(self, call: Any) -> None:
        self._backlog.append(call)
        self._start()

    def _start(self) -> None:
        if self._pump is None and not self.closed:
            self._pump = asyncio.get_running_loop().create_task(
                self._send_ticks(), name="dsync link"
            )

    async def _send_ticks(self) -> None:
        """Send what has come since the last batch, one batch at a time."""
        attempt = 0
        try:
            await asyncio.sleep(0)  # the rest of this tick comes along
            while self._backlog or (self.channels != self._tuned and not self._deaf):
                try:
                    if self._reader is None and not self._deaf:
                        await self._listen()
                    await self._tune()
                    replies = await self._send_batch()
                except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError):
                    raise
                except (redis.exceptions.RedisError, OSError) as exc:
                    self.trouble = exc
                    self._requeue()
                    self._give_up()
                    attempt += 1
                    await asyncio.sleep(self.backoff(attempt))
                else:
                    attempt = 0
                    self.trouble = None
                    self.progress += 1
                    for reply in replies:
                        is_error = isinstance(reply, Exception)
                        self._answered(
                            self._inflight.popleft(), _as_refusal(reply) if is_error else reply
                        )
                    await asyncio.sleep(0)
        except Exception as exc:
            self._requeue()
            if self._backlog:
                error = self.explain(_as_refusal(exc), self._backlog[0])
                self._fail(lambda call: True, error)
        finally:
            self._pump = None
            if self._backlog and not self.closed:
                self._start()  # called while we were failing others

    async def _send_batch(self) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        if not self._greeted:
            # A connection first: the answer to the greeting is the server's time, and the longer
            # that is under way the less is known of it.
            async with asyncio.timeout(self.reply_timeout):
                await self._client.ping()
            self._greeted = True
            self._backlog.appendleft(self.greet())
        now = time.monotonic()
        while self._backlog:
            call = self._backlog.popleft()
            call.sent = now
            call.attempts += 1
            self._inflight.append(call)
            pipeline.execute_command(*words_of(call.command))
        async with asyncio.timeout(self.reply_timeout):
            replies = await pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, redis.exceptions.ConnectionError) and not isinstance(
                reply, redis.exceptions.BusyLoadingError
            ):
                raise reply
        return list(replies)

    def subscribe(self, channel: str) -> None:
        self.channels.add(channel)
        if self._deaf:
            self._refuse(channel)
        elif channel in self._confirmed:
            self.inbox.tuned(channel, None)  # left and back before the server was told
        else:
            self._start()

    def unsubscribe(self, channel: str) -> None:
        self.channels.discard(channel)
        if self.channels != self._tuned:
            self._start()

    def _refuse(self, channel: str) -> None:
        refusal = Refusal("NOPERM no permission to subscribe")
        call = Call(("SUBSCRIBE", channel), lambda call: None, time.monotonic())
        self.inbox.tuned(channel, self.explain(refusal, call))

    async def _tune(self) -> None:
        """Listen to what is wanted, and to nothing else."""
        if self._pubsub is None:
            return
        pubsub, wanted = self._pubsub, set(self.channels)
        new, old = wanted - self._tuned, self._tuned - wanted
        self._confirmed -= old
        if new:
            await pubsub.subscribe(*new)
            self._tuned |= new  # not before: if it fails it is tried again
        if old:
            await pubsub.unsubscribe(*old)
            self._tuned -= old

    def _requeue(self) -> None:
        self._backlog.extendleft(reversed(self._inflight))
        self._inflight.clear()

    async def _listen(self) -> None:
        """Subscribe, and wait until it is confirmed."""
        self._pubsub = pubsub = self._client.pubsub()
        self._tuned, self._confirmed = set(), set()
        await pubsub.subscribe(self.channel)
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.get_running_loop().create_task(
            self._read(pubsub, confirmed), name="dsync inbox"
        )
        try:
            await confirmed
        except redis.exceptions.NoPermissionError:
            self._deaf = True
            for channel in self.channels:
                self._refuse(channel)

    async def _read(self, pubsub: Any, confirmed: asyncio.Future[None]) -> None:
        try:
            while True:
                try:
                    message = await pubsub.get_message(timeout=1.0)
                except (redis.exceptions.RedisError, OSError) as exc:
                    if confirmed.done() and isinstance(exc, redis.exceptions.NoPermissionError):
                        for channel in self.channels - self._confirmed:
                            self._refuse(channel)
                        continue
                    if not confirmed.done():
                        confirmed.set_exception(exc)
                        return
                    if self.listening:
                        self.inbox.disconnected(exc)
                    self.listening = False
                    await asyncio.sleep(self.backoff(5))
                    continue
                if message is None:
                    await asyncio.sleep(0)  # fakeredis does not always yield
                elif message["type"] in ("subscribe", "message"):
                    channel, data = _text(message["channel"]), message["data"]
                    if channel != self.channel:
                        if message["type"] == "subscribe":
                            self._confirmed.add(channel)
                            self.inbox.tuned(channel, None)
                        else:
                            self.inbox.news(channel, _bytes(data))
                    elif message["type"] == "message":
                        self.inbox.pushed(_bytes(data).split(b" "), float("-inf"))
                    else:
                        # redis-py subscribes again by itself: a second confirmation is all we see.
                        self.listening = True
                        if confirmed.done():
                            self.inbox.gap()
                        else:
                            confirmed.set_result(None)
        finally:
            self.listening = False
            self._reader = self._pubsub = None
            await pubsub.unsubscribe()
            await pubsub.aclose()

    def _hang_up(self, trouble: BaseException) -> None:
        """The pool replaces broken connections; `_send_batch` has the time limit."""

    async def aclose(self) -> None:
        await super().aclose()
        for task in (self._pump, self._reader):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if not self._lent:
            await self._client.aclose()
