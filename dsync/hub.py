"""Hub: one bus in this process: who is told what it hears.

Every message of a bus has a number, so a hub that has heard n and hears n + 3 knows that two are
lost; after a reconnect it asks for the last number.
"""

import asyncio
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote

from dsync.backlog import Backlog
from dsync.beat import Beat
from dsync.errors import BadMessage, ClientClosed
from dsync.names import tag
from dsync.outbox import Outbox
from dsync.reply import Reply
from dsync.store import Call
from dsync.subscription import Gap, Listening, Parcel, Subscription
from dsync.telemetry import Missed, Received

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Hub"]

log: logging.Logger = logging.getLogger("dsync")
NAMES = 1024  # of events and publishers that are kept
GRACE = 1.0  # seconds in which messages may still overtake an answer that came by another way
Position = tuple[int, int]  # epoch, sequence


class Hub:
    """One bus, seen from this process."""

    def __init__(self, client: "Client", name: str) -> None:
        self.client = client
        self.name = name
        self.what: str = f"bus {name!r}"
        self.channel: str = tag(client.namespace, "bus", name)[1:-1]
        self._record = client.store.at("bus", name)
        # One for the bus as long as anything is on its way, though this hub may be new: of two, one
        # would overtake the other, and the server takes the older batch for a copy.
        outbox = Outbox(client, name, self._record, self.channel)
        self._outbox = client.outboxes.setdefault(name, outbox)
        # Subscribers: by the one event they want, and those that want a pattern.
        self._by_event: dict[str, list[Subscription]] = {}
        self._by_pattern: list[Subscription] = []
        self._blocking: list[Subscription] = []  # those with overflow="block"
        self._backlog = Backlog()  # what waits until they have room
        self._listening = False
        self._spell = 0  # how often we began to listen
        self._confirmed = False  # the server has said that we listen
        self._heard = 0  # messages
        self._names: dict[bytes, str] = {}  # as they come -> as they are kept
        self._position: Position | None = None  # of the last message heard; None: not live yet
        self._going_live: list[asyncio.Future[None]] = []
        self._early: deque[bytes] = deque(maxlen=1000)  # heard before we were live
        self._asking = 0  # looks that are under way
        # It notices a connection on which nothing comes, and makes one where there is none.
        self._beat = Beat(client, self._on_beat)

    def publish(self, event: str, payload: bytes) -> Reply[None]:
        """Send a message, behind all that were sent before."""
        return self._outbox.put(event, payload)

    # -- subscribers ----------------------------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        """From now on it gets what it wants; it is live when `live()` says so."""
        subscription.since = self._heard
        # While there is no connection the server has confirmed nothing: the next look does.
        store = self.client.store
        subscription.live = self._position is not None and (store.listening or not store.ordered)
        if subscription.event is None:
            self._by_pattern.append(subscription)
        else:
            self._by_event.setdefault(subscription.event, []).append(subscription)
        if subscription.overflow == "block":
            self._blocking.append(subscription)
        try:
            self.client.when_bound(self._listen)
        except BaseException:  # closed, or on another loop
            self.remove(subscription)
            raise

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
            self._listening = self._confirmed = False
            self._position = None
            self._backlog.clear()
            self._early.clear()
            self._beat.stop()
            self.client.ignore(self)
        self._wake_going()  # somebody may wait for this one to be live

    def subscribers(self) -> list[Subscription]:
        return [*self._by_pattern, *(s for some in self._by_event.values() for s in some)]

    async def live(self, subscription: Subscription) -> None:
        """Return when the server has confirmed that we listen."""
        loop = self.client.enter()
        subscription.awaited += 1
        try:
            while not subscription.live:
                if subscription.closed is not None:
                    raise subscription.closed
                self._listen()
                if not subscription.live:
                    future: asyncio.Future[None] = loop.create_future()
                    self._going_live.append(future)
                    if not self._asking:  # the answer came before this one, and was an error
                        self._ask()
                    await future
        finally:
            subscription.awaited -= 1

    def _listen(self) -> None:
        if not self._listening and (self._by_event or self._by_pattern):
            self._listening = True
            self._spell += 1
            self.client.listen(self)
            if self._listening:  # it was not refused at once
                self._ask()  # which makes a connection, too
                if self.client.store.distant:
                    self._beat.start()

    def _wake_going(self) -> None:
        going, self._going_live = self._going_live, []
        for future in going:
            if not future.done():
                future.set_result(None)

    # -- what the store says --------------------------------------------------------------------

    def tuned(self, refused: BaseException | None) -> None:
        """We hear everything from now on: see which number was the last."""
        if refused is not None:
            self._fail(refused)
        elif self._listening:
            self._confirmed = True
            self._ask()

    def ask_all(self) -> None:
        """Messages may have been lost."""
        if self._listening and (self._position is not None or self.client.store.ordered):
            self._ask()

    def _on_beat(self, missed: bool) -> None:
        if self._listening:
            # One look keeps an eye on the connection for all; where it breaks, everybody looks.
            alive = self._position is not None and not self.client.probes()
            if not self._asking and self.client.store.ordered and not alive:
                self._ask()
            self._beat.start()

    def _ask(self) -> None:
        """Look which number was the last."""
        self._asking += 1
        # Where answers and messages come by different ways, one that we asked for before the server
        # confirmed says nothing about what we hear.
        ripe = self._confirmed or self.client.store.ordered
        done = partial(self._looked, self._spell, ripe, self._position)
        self._record.run("bus_look", done)

    def _looked(self, spell: int, ripe: bool, before: Position | None, call: Call) -> None:
        self._asking -= 1
        if spell != self._spell:
            return  # from before we ceased to, and began again
        if isinstance(call.reply, BaseException):
            self._give_up(call.reply)
            return  # for the others the next message tells, or the next look
        epoch, sequence = call.reply
        if self._position is None:
            if self._confirmed and ripe:
                self._go_live(epoch, sequence)
        elif before is not None and before[0] == epoch and sequence < before[1]:
            # The server has lost its newest data: it gives numbers again that we have heard.
            self._position = epoch, sequence
            self._backlog.pass_on(Gap(None), self)
        elif self.client.store.ordered:
            self._catch_up(epoch, sequence)
            self._all_live()
        elif before is not None:
            # Messages come by another way: what they have to say may be behind this answer.
            loop = asyncio.get_running_loop()
            loop.call_later(GRACE, self._catch_up_late, spell, before[0], epoch, sequence)

    def _go_live(self, epoch: int, sequence: int) -> None:
        self._position = epoch, sequence
        self._all_live()
        while self._early:
            self.heard(self._early.popleft())

    def _all_live(self) -> None:
        for subscription in self.subscribers():
            subscription.live = True
        self._wake_going()

    def _catch_up_late(self, spell: int, known: int, epoch: int, sequence: int) -> None:
        # Not if we have ceased to listen, or heard of a newer epoch.
        if spell == self._spell and self._position is not None and self._position[0] == known:
            self._catch_up(epoch, sequence)

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
        self._backlog.pass_on(Gap(missed), self)

    def heard(self, payload: bytes) -> None:
        """A message; garbage raises ValueError."""
        parts = payload.split(b" ", 4)
        try:
            epoch, sequence = int(parts[0]), int(parts[1])
            origin, event = self._name(parts[2]), unquote(self._name(parts[3]))
            data = parts[4]
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
        self._heard += 1
        is_local = origin == self.client.client_id
        parcel = Parcel(event, data, origin, sequence, is_local, self._heard)
        self._backlog.pass_on(parcel, self)

    def _name(self, quoted: bytes) -> str:
        # What waits in queues has the same few names again and again: one object for each.
        name = self._names.get(quoted)
        if name is None:
            if len(self._names) >= NAMES:
                self._names.clear()
            name = self._names[quoted] = quoted.decode()
        return name

    def resume(self) -> None:
        """A subscriber that held up the others has room again."""
        self._backlog.resume(self)

    def must_wait(self, parcel: Parcel) -> bool:
        """Whether a subscriber that wants it, and blocks, has no room."""
        return any(s.full and s.matches(parcel.event) for s in self._blocking)

    def deliver(self, item: Parcel | Gap) -> None:
        """Put it into the queues of those who want it."""
        if isinstance(item, Parcel):
            self._deliver_message(item)
            return
        for subscription in self.subscribers():
            if subscription.live:  # else it came after them
                subscription.put_gap(item.missed)

    def _deliver_message(self, parcel: Parcel) -> None:
        for subscription in list(self._by_event.get(parcel.event, ())):
            if subscription.since < parcel.number:  # else it was stalled when this one came
                self._put(subscription, parcel)
        for subscription in list(self._by_pattern):
            if subscription.since < parcel.number and subscription.matches(parcel.event):
                self._put(subscription, parcel)

    def _put(self, subscription: Subscription, parcel: Parcel) -> None:
        subscription.put(parcel)
        watch = self.client.watch
        if watch.hooks:
            watch.tell(Received("bus", self.name, parcel.event))

    # -- trouble --------------------------------------------------------------------------------

    def warn(self, gap: Gap) -> None:
        """A callback's subscription has lost messages, and nobody asked to be told."""
        missed = "an unknown number of" if gap.missed is None else gap.missed
        log.warning("%s: a callback has missed %s messages", self.what, missed)

    def tell_missed(self, gap: Gap) -> None:
        """A subscriber is about to see a gap."""
        watch = self.client.watch
        if watch.hooks:
            watch.tell(Missed("bus", self.name, gap.missed))

    def report(self, error: BaseException) -> None:
        """Something went wrong that nobody awaits."""
        notes = "; ".join(getattr(error, "__notes__", ()))
        log.error("%s: %s: %s %s", self.what, type(error).__name__, error, notes)
        self.client.report(error, f"{self.what}: a message was not handled")

    def _give_up(self, error: BaseException) -> None:
        """The server cannot be asked, and we are not live: who waits for that has waited enough.

        Callbacks go on: they are live once it can be asked again.
        """
        unheard = False
        for subscription in self.subscribers():
            if subscription.live:
                continue
            if subscription.awaited or not isinstance(subscription, Listening):
                subscription.close(error)
            else:
                unheard = unheard or not subscription.complained
                subscription.complained = True
        if unheard:
            self.report(error)

    def _fail(self, error: BaseException) -> None:
        """It can never be."""
        subscriptions = self.subscribers()
        for subscription in subscriptions:
            subscription.close(error)
        callbacks = [s for s in subscriptions if isinstance(s, Listening)]
        if not all(s.awaited for s in callbacks) and not isinstance(error, ClientClosed):
            self.report(error)

    def close(self) -> None:
        """The client closes."""
        self._fail(ClientClosed(f"{self.what}: the client was closed"))
