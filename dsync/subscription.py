"""Subscriptions: what one subscriber of a bus has yet to hear, in order and bounded."""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from dsync.codec import Codec
from dsync.errors import BadMessage, ClientClosed
from dsync.pattern import literal, matcher

if TYPE_CHECKING:
    from dsync.hub import Hub

__all__ = ["Callback", "Gap", "Listening", "Message", "Overflow", "Parcel", "Stream", "drop_oldest"]

Overflow = Literal["drop_oldest", "drop_newest", "block"]
AGAIN = 0.1  # seconds until a callback that ended its task is called again
# Called with the data of each message; what it returns is awaited if it can be.
Callback = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Message:
    """What was triggered."""

    event: str
    data: Any
    origin: str  # the client that triggered it: `label:host:pid:...`
    sequence: int  # greater by one than the last one's, while the server keeps its data
    is_local: bool  # whether this client did


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages were lost here: act as if you had missed any.

    `missed`: how many, of all events of the bus where they were lost on the way to this process, of
    this subscriber's where its queue overflowed; None where nobody knows.
    """

    missed: int | None

    def __add__(self, other: "Gap") -> "Gap":
        """Both of them in one place."""
        if self.missed is None or other.missed is None:
            return Gap(None)
        return Gap(self.missed + other.missed)


@dataclass(slots=True)
class Parcel:
    """A message as it came, not decoded yet: each subscriber gets data of its own."""

    event: str
    payload: bytes
    origin: str
    sequence: int
    is_local: bool
    number: int  # of the messages that this process has heard


class Subscription:
    """One subscriber.  Awaited, it is live: what is triggered afterwards reaches it."""

    def __init__(
        self, hub: "Hub", pattern: str, codec: Codec, maxsize: int, overflow: Overflow
    ) -> None:
        self.pattern = pattern
        self.event: str | None = literal(pattern)  # the one that it wants, if there is but one
        self.matches: Callable[[str], bool] = matcher(pattern)
        self.maxsize = maxsize
        self.overflow = overflow
        self.closed: BaseException | None = None  # why it hears no more
        # What the hub notes about it.
        self.live = False  # the server has confirmed it
        self.since = 0  # number of the last message that came before it
        self.awaited = 0  # how many hear of it when it cannot be
        self.complained = False  # or else it has been reported
        self._hub = hub
        self._codec = codec
        # Parcels, and a Gap wherever some were lost; never two Gaps side by side.
        self._queue: deque[Parcel | Gap] = deque()
        self._size = 0  # parcels in it

    @property
    def full(self) -> bool:
        """Whether there is no room for another message."""
        return self._size >= self.maxsize

    def put(self, parcel: Parcel) -> None:
        """Another message; where there is no room for it, somebody loses one."""
        if self.full:
            if self.overflow == "drop_newest":
                self.put_gap(1)
                return
            drop_oldest(self._queue)
            self._size -= 1
        self._queue.append(parcel)
        self._size += 1
        self._wake()

    def put_gap(self, missed: int | None) -> None:
        """Messages that may have been for it were lost."""
        last = self._queue[-1] if self._queue else None
        if isinstance(last, Gap):
            self._queue[-1] = last + Gap(missed)
        else:
            self._queue.append(Gap(missed))
        self._wake()

    def _next(self) -> Message | Gap | None:
        """What comes next, decoded; what cannot be is reported and skipped."""
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, Gap):
                self._hub.tell_missed(item)
                return item
            was_full = self.full
            self._size -= 1
            if was_full and self.overflow == "block":
                self._hub.resume()
            try:
                data = self._codec.loads(item.payload)
            except Exception as error:
                self._hub.report(
                    BadMessage(
                        f"{self._hub.what}: {self._codec.name} cannot decode the data of event "
                        f"{item.event!r} from {item.origin} ({error}); it is skipped"
                    )
                )
                continue
            return Message(item.event, data, item.origin, item.sequence, item.is_local)
        return None

    def _wake(self) -> None:
        """There is something in the queue, or there will never be again."""
        raise NotImplementedError

    def cancel(self) -> None:
        """It hears no more; what it has not heard yet is gone.  Cancelling twice is fine."""
        self.close(asyncio.CancelledError())

    def close(self, why: BaseException) -> None:
        """Called by the hub as well."""
        if self.closed is None:
            self.closed = why
            self._queue.clear()
            self._size = 0
            self._hub.remove(self)
            self._wake()

    def __await__(self) -> Generator[Any, None, Self]:
        yield from self._hub.live(self).__await__()
        return self

    async def __aenter__(self) -> Self:
        try:
            return await self
        except BaseException:  # cancelled, too: nobody will leave what was not entered
            self.cancel()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __repr__(self) -> str:
        state = f"{self._size} queued" if self.closed is None else "cancelled"
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} to {self.pattern!r} [{state}]>"


class Stream(Subscription):
    """Messages, and a Gap wherever some were lost, for `async for`.

    Several tasks may iterate over it: each message goes to one of them.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._takers: deque[asyncio.Future[None]] = deque()
        self._entered = False

    def __await__(self) -> Generator[Any, None, Self]:
        if not self._entered:
            self._entered = True
            self._hub.add(self)
        return super().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message | Gap:
        if not self._entered:
            raise RuntimeError(
                f"{self!r} hears nothing yet: enter it by `async with bus.subscribe(...) as events`"
            )
        while True:
            item = self._next()
            if item is not None:
                return item
            if isinstance(self.closed, asyncio.CancelledError):
                raise StopAsyncIteration
            if self.closed is not None:
                raise self.closed
            taker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except BaseException:
                if taker.done() and not taker.cancelled():
                    self._wake()  # it was woken for something, and will not take it
                raise
            finally:
                if taker in self._takers:
                    self._takers.remove(taker)

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                if self.closed is None:
                    return


class Listening(Subscription):
    """A callback, called with each message's data, one after the other, in a task of its own."""

    def __init__(
        self, hub: "Hub", pattern: str, codec: Codec, maxsize: int, overflow: Overflow,
        callback: Callback, once: bool, on_gap: Callable[[Gap], object] | None,
    ) -> None:  # fmt: skip
        super().__init__(hub, pattern, codec, maxsize, overflow)
        self.callback = callback
        self._once = once
        self._on_gap = on_gap
        self._task: asyncio.Task[None] | None = None  # while there is something to be heard
        # What a callback sees is what was set where it was given, not what the reader runs in.
        self._context = copy_context()

    def _wake(self) -> None:
        if self.closed is not None:
            # A callback that runs comes to its end, unless the whole client ends (and not by it).
            task = self._task
            ends = isinstance(self.closed, ClientClosed)
            if task is not None and ends and task is not asyncio.current_task():
                task.cancel()
        elif self._task is None:
            # Not `create_task`: an eager task factory would run the callback in here, and it would
            # have ended before it is noted as the one that runs.
            self._task = asyncio.Task(
                self._listen(), name=f"dsync {self._hub.what}: {self.pattern}",
                loop=asyncio.get_running_loop(), context=self._context,
            )  # fmt: skip

    async def _listen(self) -> None:
        try:
            while self.closed is None and (item := self._next()) is not None:
                if isinstance(item, Gap):
                    await self._call(self._on_gap or self._hub.warn, item, "a gap")
                    continue
                if self._once:
                    self.close(asyncio.CancelledError())
                await self._call(self.callback, item.data, f"event {item.event!r}")
                if not self._queue:
                    break
                await asyncio.sleep(0)  # a callback that awaits nothing must not keep the loop
        finally:
            self._task = None
            if self._queue and self.closed is None:
                # A callback has ended this task (it cancelled it, SystemExit).  Not at once: when
                # the loop is being shut down, nothing may begin.
                asyncio.get_running_loop().call_later(AGAIN, self._wake)

    async def _call(self, callback: Callable[[Any], object], argument: Any, what: str) -> None:
        try:
            result = callback(argument)
            if inspect.isawaitable(result):
                await _awaited(result)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # else what it awaited was cancelled, not we
            name = getattr(callback, "__qualname__", repr(callback))
            note = f"dsync: raised by {name} on {what} of {self._hub.what}"
            # The same exception may be raised again and again: by a failed future, say.
            error.__notes__ = [
                *(
                    n
                    for n in getattr(error, "__notes__", ())
                    if not n.startswith("dsync: raised by")
                ),
                note,
            ]
            self._hub.report(error)


async def _awaited(result: Awaitable[object]) -> None:
    await result


def drop_oldest(queue: deque[Parcel | Gap]) -> None:
    """Drop the first parcel of a queue that has one; a Gap stands in its place."""
    gap = Gap(1)
    while isinstance(item := queue.popleft(), Gap):
        gap += item
    if queue and isinstance(head := queue[0], Gap):
        queue[0] = gap + head
    else:
        queue.appendleft(gap)
