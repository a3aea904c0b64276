"""EventBus: events for all processes, by name, with data."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, overload

from dsync.arguments import checked_count, checked_seconds
from dsync.codec import Codec, codec_of
from dsync.errors import WaitTimeout
from dsync.hub import Hub
from dsync.names import checked_name
from dsync.reply import Reply
from dsync.subscription import Callback, Gap, Listening, Message, Overflow, Stream

__all__ = ["EventBus"]

Decorated = TypeVar("Decorated", bound=Callback)
OVERFLOWS = ("drop_oldest", "drop_newest", "block")


class EventBus:
    """Events with data, for all subscribers in all processes, made by `client.event_bus(name)`.

    At most once, and in order per publisher.  A subscriber that has lost messages (the connection
    broke, it was too slow) is told so by a Gap in their place.

    Usage::

        bus = client.event_bus()

        @bus.on("order.created")
        async def created(order): ...

        bus.trigger("order.created", {"id": 7})

        async with bus.subscribe("cache.*") as events:
            async for message in events:
                if isinstance(message, dsync.Gap):
                    cache.clear()

    In a pattern `*` stands for any text, `\\*` for a star.
    """

    def __init__(self, hub: Hub, name: str, codec: Any = None, max_size: int = 2**20) -> None:
        self._hub = hub
        self._codec = codec_of(codec)
        self._max_size = checked_count("max_size", max_size, least=1)
        self.name = name

    def trigger(self, event: str, data: Any = None) -> Reply[None]:
        """Tell everybody; awaited, the server has taken it.

        Triggers leave in their order; other calls of this client may overtake those that nobody
        awaits.  Await the last one before you release a lock or set an event by which others go on.

        Raises:
            TypeError, ValueError: the codec cannot encode the data, or they are larger than
                `max_size` bytes; nothing was sent.
            StoreUnavailable: awaited, the server has not confirmed it, or does not let us publish;
                it may have been heard, or not.
        """
        checked_name(event, "event")
        payload = self._codec.dumps(f"event {event!r}", data)
        size = len(event.encode()) + len(payload)
        if size > self._max_size:
            raise ValueError(
                f"event {event:.100}: its name and data are {size} bytes, more than "
                f"max_size={self._max_size}; send a reference to them instead"
            )
        return self._hub.publish(event, payload)

    @overload
    def on(
        self, event: str, callback: None = None, *, maxsize: int = 1000,
        overflow: Overflow = "drop_oldest", on_gap: Callable[[Gap], object] | None = None,
    ) -> Callable[[Decorated], Decorated]: ...  # fmt: skip

    @overload
    def on(
        self, event: str, callback: Callback, *, maxsize: int = 1000,
        overflow: Overflow = "drop_oldest", on_gap: Callable[[Gap], object] | None = None,
    ) -> Listening: ...  # fmt: skip

    def on(
        self, event: str, callback: Callback | None = None, *, maxsize: int = 1000,
        overflow: Overflow = "drop_oldest", on_gap: Callable[[Gap], object] | None = None,
    ) -> Any:  # fmt: skip
        """Call `callback(data)` for each event that matches, one after the other.

        Without a callback, a decorator; before a loop runs it is noted, and begins when the client
        is first used.  The result can be awaited: then the server has confirmed
        the subscription, and what is triggered afterwards is heard.  Sync and async callbacks;
        what one raises goes to the client's `on_error` hook and the log, and stops nothing.

        Args:
            event: a name or a pattern.
            callback: gets the data.
            maxsize: how many messages wait for it at most.
            overflow: what goes when there are more: "drop_oldest", "drop_newest", or "block":
                nothing, and all subscribers of this bus in this process wait for this one.
            on_gap: called with a Gap where messages were lost; by default that is logged.

        Raises:
            TypeError, ValueError: an argument cannot be used.
            StoreUnavailable: awaited, the server could not be asked, or does not let us listen.
        """
        if callback is None:

            def decorate(decorated: Decorated) -> Decorated:
                self._add(event, decorated, maxsize, overflow, False, on_gap)
                return decorated

            return decorate
        return self._add(event, callback, maxsize, overflow, False, on_gap)

    def once(self, event: str, callback: Callback) -> Listening:
        """Call `callback(data)` for the first event that matches; see `on`."""
        return self._add(event, callback, 1, "drop_newest", True, lambda gap: None)

    def off(self, event: str, callback: Callback | None = None) -> int:
        """Cancel the subscriptions of `event`, as it was written, to this callback or to all.

        Returns how many there were.
        """
        off = [
            subscription
            for subscription in self._hub.subscribers()
            if isinstance(subscription, Listening)
            and subscription.pattern == event
            and (callback is None or subscription.callback == callback)
        ]
        for subscription in off:
            subscription.cancel()
        return len(off)

    def subscribe(
        self, event: str = "*", *, maxsize: int = 1000, overflow: Overflow = "drop_oldest"
    ) -> Stream:
        """What matches, as `async with bus.subscribe(...) as events: async for message in events`.

        Each is a Message, or a Gap where messages were lost.  Entered, it is confirmed by the
        server: what is triggered afterwards is heard.

        Args:
            event: a name or a pattern.
            maxsize: how many messages wait to be taken at most.
            overflow: as for `on`.

        Raises:
            TypeError, ValueError: an argument cannot be used.
            StoreUnavailable: entered, the server could not be asked, or does not let us listen.
        """
        return Stream(self._hub, *self._checked(event, maxsize, overflow))

    async def wait_for(self, event: str, timeout: float | None = None) -> Message:
        """The next message that matches and is triggered from now on.

        Args:
            event: a name or a pattern.
            timeout: seconds to wait; None waits for ever.

        Raises:
            WaitTimeout: there was none in time.
            StoreUnavailable: the server does not let us listen.
        """
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        try:
            async with (
                asyncio.timeout(timeout),
                self.subscribe(event, maxsize=1, overflow="drop_newest") as events,
            ):
                async for message in events:
                    if isinstance(message, Message):
                        return message
        except TimeoutError:
            raise WaitTimeout(
                f"no event {event!r} on {self._hub.what} within {timeout:g} s"
            ) from None
        raise AssertionError("a stream ends only when it is cancelled")

    def _add(
        self, event: str, callback: Callback, maxsize: int, overflow: Overflow, once: bool,
        on_gap: Callable[[Gap], object] | None,
    ) -> Listening:  # fmt: skip
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        if on_gap is not None and not callable(on_gap):
            raise TypeError(f"on_gap must be callable, got {on_gap!r}")
        wanted = self._checked(event, maxsize, overflow)
        listening = Listening(self._hub, *wanted, callback=callback, once=once, on_gap=on_gap)
        self._hub.add(listening)
        return listening

    def _checked(
        self, event: str, maxsize: int, overflow: Overflow
    ) -> tuple[str, Codec, int, Overflow]:
        checked_name(event, "event")
        checked_count("maxsize", maxsize, least=1)
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow must be one of {OVERFLOWS}, got {overflow!r}")
        return event, self._codec, maxsize, overflow

    def __repr__(self) -> str:
        count = len(self._hub.subscribers())
        cls = type(self)
        name = f" {self.name!r}" if self.name else ""
        return (
            f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x}{name} "
            f"[subscribers:{count}]>"
        )
