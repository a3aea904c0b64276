"""Hub: one bus in this process: what it publishes, and who is told what it hears.

Every message of a bus has a number, so a hub that has heard n and hears n + 3 knows that two are
lost; after a reconnect it asks for the last number.  What this process triggers leaves in batches,
one at a time: each is published once and in order, whatever has to be sent again.
"""

import asyncio
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from dsync.errors import BadMessage, ClientClosed
from dsync.names import tag
from dsync.reply import Reply
from dsync.store import Call
from dsync.subscription import Gap, Parcel, Subscription

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Hub"]

log = logging.getLogger("dsync")
BATCH, BATCH_BYTES = 512, 256 * 1024  # messages, bytes that are published in one step
REMEMBER_MS = 60_000  # for as long a repeated batch is known as one
BACKLOG = 100_000  # messages that wait for a subscriber with overflow="block"
GRACE = 1.0  # seconds in which messages may still overtake an answer that came by another way
Position = tuple[int, int]  # epoch, sequence


class Hub:
    """One bus, seen from this process."""

    def __init__(self, client: "Client", name: str) -> None:
        self.client = client
        self.what = f"bus {name!r}"
        self.channel = tag(client.namespace, "bus", name)[1:-1]
        self._record = client.store.at("bus", name)
        # What is to be published, and who awaits it.
        self._outbox: deque[tuple[bytes, Reply[None]]] = deque()
        self._batches = 0
        self._publishing = False
        # Subscribers: by the one event they want, and those that want a pattern.
        self._by_event: dict[str, list[Subscription]] = {}
        self._by_pattern: list[Subscription] = []
        self._blocking: list[Subscription] = []  # those with overflow="block"
        # What waits until they have room, and how many of those were dropped.
        self._stalled: deque[Parcel | Gap] = deque()
        self._listening = False
        self._position: Position | None = None  # of the last message heard; None: not live yet
        self._going_live: list[asyncio.Future[None]] = []
        self._early: deque[bytes] = deque(maxlen=1000)  # heard before we were live

    # -- publishing -----------------------------------------------------------------------------

    def publish(self, event: str, payload: bytes) -> Reply[None]:
        """Send a message, behind all that were sent before."""
        self.client.enter()
        reply: Reply[None] = Reply(report=self.client.report)
        self._outbox.append((quote(event, safe="").encode() + b" " + payload, reply))
        if not self._publishing:
            self._publish()
        return reply

    def _publish(self) -> None:
        messages: list[bytes] = []
        replies: list[Reply[None]] = []
        size = 0
        while self._outbox and len(messages) < BATCH and size < BATCH_BYTES:
            message, reply = self._outbox.popleft()
            messages.append(message)
            replies.append(reply)
            size += len(message)
        self._publishing = True
        self._batches += 1
        self._record.run(
            "bus_publish",
            partial(self._published, replies),
            publisher=self.client.client_id,
            batch=self._batches,
            sizes=" ".join(str(len(message)) for message in messages),
            messages=b"".join(messages),
            channel=self.channel,
            remember=REMEMBER_MS,
        )

    def _published(self, replies: list[Reply[None]], call: Call) -> None:
        self._publishing = False
        failed = call.reply if isinstance(call.reply, BaseException) else None
        for reply in replies:
            reply.settle(failed)
        if self._outbox and not self._publishing:
            self._publish()

    # -- subscribers ----------------------------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        """From now on it gets what it wants; it is live when `live()` says so."""
        if subscription.event is None:
            self._by_pattern.append(subscription)
        else:
            self._by_event.setdefault(subscription.event, []).append(subscription)
        if subscription.overflow == "block":
            self._blocking.append(subscription)
        self.client.when_bound(self._listen)

    def remove(self, subscription: Subscription) -> None:
        """It gets nothing any more; without subscribers nobody listens."""
        among = self._by_pattern
        if subscription.event is not None:
            among = self._by_event.get(subscription.event, [])
        if subscription in among:
            among.remove(subscription)
        if subscription.event is not None and not among:
            self._by_event.pop(subscription.event, None)
        if subscription in self._blocking:
            self._blocking.remove(subscription)
            self.resume()
        if not (self._by_event or self._by_pattern) and self._listening:
            self._listening = False
            self._position = None
            self._stalled.clear()
            self._early.clear()
            self.client.ignore(self)

    def subscribers(self) -> list[Subscription]:
        return [*self._by_pattern, *(s for some in self._by_event.values() for s in some)]

    async def live(self, subscription: Subscription) -> None:
        """Return when the server has confirmed that we listen."""
        loop = self.client.enter()
        while self._position is None:
            if subscription.closed is not None:
                raise subscription.closed
            self._listen()
            future: asyncio.Future[None] = loop.create_future()
            self._going_live.append(future)
            await future

    def _listen(self) -> None:
        if not self._listening and (self._by_event or self._by_pattern):
            self._listening = True
            self.client.listen(self)

    # -- what the store says --------------------------------------------------------------------

    def tuned(self, refused: BaseException | None) -> None:
        """We hear everything from now on: see which number was the last."""
        if refused is not None:
            self._fail(refused)
        elif self._listening:
            self._record.run("bus_look", self._looked)

    def ask_all(self) -> None:
        """Messages may have been lost."""
        if self._listening and (self._position is not None or self.client.store.ordered):
            self._record.run("bus_look", self._looked)

    def _looked(self, call: Call) -> None:
        if not self._listening:
            return
        if isinstance(call.reply, BaseException):
            if self._position is None:
                self._fail(call.reply)
            else:
                self._lost(None)  # it cannot be asked
            return
        epoch, sequence = call.reply
        if self._position is None:
            self._position = epoch, sequence
            going, self._going_live = self._going_live, []
            for future in going:
                if not future.done():
                    future.set_result(None)
            while self._early:
                self.heard(self._early.popleft())
        elif self.client.store.ordered:
            self._catch_up(epoch, sequence)
        else:
            # Messages come by another way: what they have to say may be behind this answer.
            loop = asyncio.get_running_loop()
            loop.call_later(GRACE, self._catch_up, epoch, sequence)

    def _catch_up(self, epoch: int, sequence: int) -> None:
        """The last message was this one: what we have not heard of it is lost."""
        if self._position is None:
            return
        known, heard = self._position
        if epoch == known or not known:
            missed: int | None = sequence - heard
            if missed is not None and missed <= 0:
                return
        else:
            missed = None  # the server has begun anew, and forgotten what it had published
        self._position = epoch, sequence
        self._lost(missed)

    def heard(self, payload: bytes) -> None:
        """A message; garbage raises ValueError."""
        parts = payload.split(b" ", 4)
        try:
            epoch, sequence = int(parts[0]), int(parts[1])
            origin, event, data = parts[2].decode(), unquote(parts[3].decode()), parts[4]
        except (ValueError, IndexError):
            self.report(
                BadMessage(f"{self.what}: somebody else wrote on its channel: {payload[:200]!r}")
            )
            return
        if self._position is None:
            self._early.append(payload)
            return
        known, last = self._position
        if epoch == known and sequence <= last:
            return  # published while we asked; it is counted
        self._catch_up(epoch, sequence - 1)
        self._position = epoch, sequence
        parcel = Parcel(event, data, origin, sequence, origin == self.client.client_id)
        if self._stalled or self._must_wait(parcel):
            self._stall(parcel)
        else:
            self._deliver(parcel)

    def _deliver(self, parcel: Parcel) -> None:
        for subscription in list(self._by_event.get(parcel.event, ())):
            subscription.put(parcel)
        for subscription in list(self._by_pattern):
            if subscription.matches(parcel.event):
                subscription.put(parcel)

    def _lost(self, missed: int | None) -> None:
        if self._stalled:
            self._stall(Gap(missed))
            return
        for subscription in self.subscribers():
            subscription.put_gap(missed)

    # -- waiting for those that want everything -------------------------------------------------

    def _must_wait(self, parcel: Parcel) -> bool:
        return any(s.full and s.matches(parcel.event) for s in self._blocking)

    def _stall(self, item: Parcel | Gap) -> None:
        if len(self._stalled) >= BACKLOG:
            # Better a gap than no memory left.
            dropped = self._stalled.popleft()
            missed: int | None = 1 if isinstance(dropped, Parcel) else dropped.missed
            if self._stalled and isinstance(head := self._stalled[0], Gap):
                self._stalled.popleft()
                missed = None if missed is None or head.missed is None else missed + head.missed
            self._stalled.appendleft(Gap(missed))
        self._stalled.append(item)

    def resume(self) -> None:
        """A subscriber that held up the others has room again."""
        while self._stalled:
            item = self._stalled[0]
            if isinstance(item, Parcel) and self._must_wait(item):
                return
            self._stalled.popleft()
            if isinstance(item, Parcel):
                self._deliver(item)
            else:
                for subscription in self.subscribers():
                    subscription.put_gap(item.missed)

    # -- trouble --------------------------------------------------------------------------------

    def warn(self, gap: Gap) -> None:
        """A callback's subscription has lost messages, and nobody asked to be told."""
        missed = "an unknown number of" if gap.missed is None else gap.missed
        log.warning("%s: a callback has missed %s messages", self.what, missed)

    def report(self, error: BaseException) -> None:
        """Something went wrong that nobody awaits."""
        notes = "; ".join(getattr(error, "__notes__", ()))
        log.error("%s: %s: %s %s", self.what, type(error).__name__, error, notes)
        self.client.report(error, f"{self.what}: a message was not handled")

    def _fail(self, error: BaseException) -> None:
        going, self._going_live = self._going_live, []
        for subscription in self.subscribers():
            subscription.close(error)
        for future in going:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """The client closes."""
        self._fail(ClientClosed(f"{self.what}: the client was closed"))
