"""The link to a cluster: each command goes to the node that serves its slot, one Wire for each.

A primitive's keys are in one slot, and so is the channel on which its messages come to this
process: they arrive on the connection that its commands use, in their order.
"""

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from redis.crc import key_slot

from dsync.errors import StoreUnavailable
from dsync.redis.link import Command, Refusal
from dsync.redis.lobby import Lobby
from dsync.redis.node import Node, slot_of
from dsync.redis.topology import SLOTS, Address, Fleet, Topology, survey
from dsync.store import Call, Done, Inbox

if TYPE_CHECKING:
    from dsync.redis.sharded import ShardedRecord
    from dsync.redis.store import RedisStore

__all__ = ["Cluster"]

ASKED = 5  # nodes in one attempt to find out who serves what
LINGER = 10.0  # seconds between two looks for what nobody wants to hear of any more
MUTE = 0.5  # seconds without an answer after which a node is asked last
NEEDLESS = 3  # surveys that do not know a node before we leave it


class Cluster:
    """Which node serves what, and what goes to which."""

    def __init__(
        self,
        fleet: Fleet,
        client_id: str,
        inbox: Inbox,
        greet: Callable[[], Call],
        explain: Callable[[Refusal, Call], Exception],
        outage_timeout: float,
    ) -> None:
        self.address: str = str(fleet)  # for messages
        self.inbox = inbox
        self.closed: bool = False
        self._fleet = fleet
        # Of the channels on which this process gets its own messages.
        self.ending: str = ":c:" + client_id
        self._common = (self.ending, inbox, greet, explain, outage_timeout)
        self._lobby = Lobby(self, self.address, *self._common)
        # By slot, in one list for good.
        self.links: list[Node | Lobby] = [self._lobby] * SLOTS
        self._nodes: dict[Address, Node] = {}
        self._others: set[Address] = set()  # of the nodes, also those that serve nothing
        # Sharded channel -> where it is subscribed to, or is to be when there is a connection.
        self.channels: dict[str, Node | Lobby] = {}
        self._by_slot: dict[int, set[str]] = {}  # the same channels
        # What has been looked at and is kept: for these we listen to our own messages.
        self._records: WeakValueDictionary[str, ShardedRecord] = WeakValueDictionary()
        self._sweep: asyncio.TimerHandle | None = None
        self._deaf = False  # we may not listen to our own messages: those who wait ask
        self._known = False  # who serves what
        self._stale = False  # what is known is not true any more
        self._asking: asyncio.Task[None] | None = None
        self._gap_due = False

    # -- what the store calls -------------------------------------------------------------------

    def call(self, command: Command, done: Done) -> Call:
        """Send a command that any node can answer."""
        return self.link_for(command, self._lobby).call(command, done)

    @property
    def connected(self) -> bool:
        """Whether any node can be asked; the one that serves a slot may be out of reach."""
        return self._known and any(node.connected for node in self._nodes.values())

    @property
    def listening(self) -> bool:
        """Whether messages reach us from every node that we have to do with."""
        if self._deaf or not self._known or self._lobby.channels:
            return False
        return all(node.connected for node in self._nodes.values() if node.channels or node.busy)

    @property
    def progress(self) -> float:
        return max((node.progress for node in self._nodes.values()), default=0.0)

    def subscribe(self, channel: str) -> None:
        """Listen to a sharded channel; what its node is called from now on is answered after."""
        if channel not in self.channels:
            slot = key_slot(channel.encode())
            link = self.channels[channel] = self.links[slot]
            self._by_slot.setdefault(slot, set()).add(channel)
            link.subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        """Stop listening to it."""
        link = self.channels.pop(channel, None)
        if link is not None:
            slot = key_slot(channel.encode())
            self._by_slot[slot].remove(channel)
            if not self._by_slot[slot]:
                del self._by_slot[slot]
            link.unsubscribe(channel)

    def record(self, store: "RedisStore", key: str) -> "ShardedRecord":
        """The record of a primitive, one object for each."""
        from dsync.redis.sharded import ShardedRecord

        record = self._records.get(key)
        if record is None:
            record = self._records[key] = ShardedRecord(store, self, key)
        return record

    def attend(self, channel: str) -> None:
        """Listen to our own messages about a record, until nobody keeps it any more."""
        self.subscribe(channel)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(LINGER, self._ignore_unkept)

    def _ignore_unkept(self) -> None:
        self._sweep = None
        for channel in list(self.channels):
            if channel.endswith(self.ending):
                if channel.removesuffix(self.ending) not in self._records:
                    self.unsubscribe(channel)
                elif self._sweep is None:
                    self._sweep = asyncio.get_running_loop().call_later(LINGER, self._ignore_unkept)

    def primaries(self) -> list[Node]:
        """The nodes that serve slots, as far as is known."""
        return list({id(link): link for link in self.links if isinstance(link, Node)}.values())

    def disown(self) -> None:
        self.closed = True
        for link in self._all():
            link.disown()

    async def drain(self) -> None:
        """Return when everything called so far is answered or has failed."""
        while any(link.busy for link in self._all()):
            await asyncio.gather(*(link.drain() for link in self._all()))

    async def aclose(self) -> None:
        """Fail what is unanswered with ClientClosed."""
        self.closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        for link in list(self._all()):
            await link.aclose()

    # -- what nodes call ------------------------------------------------------------------------

    def link_for(self, command: Command, asker: Node | Lobby) -> Node | Lobby:
        """Who carries out a command; `asker`, if any node can."""
        slot = slot_of(command)
        if slot is not None:
            return self.links[slot]
        if asker is not self._lobby and not asker.closed:
            return asker
        nodes = self.primaries() if self._known else []
        return next((n for n in nodes if n.connected), nodes[0] if nodes else self._lobby)

    def node_at(self, where: str, teller: Node) -> Node:
        """The node that a MOVED or ASK of another names."""
        host, _, port = where.rpartition(":")
        if host in ("", "?"):
            return self._node(Address(teller.place.host, int(port)))
        return self._node(self._fleet.found(host, int(port)))

    def moved(self, slot: int, node: Node) -> None:
        """A node says that another serves this slot."""
        if self.links[slot] is not node:
            self.links[slot] = node
            self._move_channels([slot])
        self.refresh()

    def tuned(self, node: Node, channel: str, refused: BaseException | None) -> None:
        """A node has confirmed a subscription, or will not have it."""
        if channel.endswith(self.ending):
            self._deaf = self._deaf or refused is not None
        elif self.channels.get(channel) is node:
            self.inbox.tuned(channel[1:-1], refused)

    def heard(self, node: Node, channel: str, payload: bytes) -> None:
        """A message."""
        if not channel.endswith(self.ending):
            self.inbox.news(channel[1:-1], payload)
            return
        # What comes by a node that has ceased to serve the slot may have been under way for long.
        right = self.channels.get(channel) is node
        self.inbox.pushed(payload.split(b" "), node.progress if right else float("-inf"))

    def silenced(self, node: Node, channel: str) -> None:
        """A node will say nothing on this channel any more: its slot has moved."""
        # If we do not know yet where to, this is refused by MOVED.
        node.subscribe(channel)
        self.gap()

    def gap(self) -> None:
        """Messages may have been lost; said once for all that has happened by now."""
        if not self._gap_due:
            self._gap_due = True
            asyncio.get_running_loop().call_soon(self._announce_gap)

    def _announce_gap(self) -> None:
        self._gap_due = False
        if not self.closed:
            self.inbox.gap()

    # -- who serves what ------------------------------------------------------------------------

    def refresh(self) -> None:
        """What is known may not be true any more: ask."""
        self._stale = True
        if self._asking is None and not self.closed:
            self._asking = asyncio.get_running_loop().create_task(
                self._keep_asking(), name="dsync topology"
            )

    async def _keep_asking(self) -> None:
        """Ask until everything that is called has a node."""
        attempt = 0
        try:
            while True:
                self._stale = False
                found = await self._ask()
                idle = not any(link.busy for link in self._all())
                if idle or (found and not self._stale and not self._lobby.busy):
                    return
                attempt += 1
                await asyncio.sleep(self._lobby.backoff(attempt))
        finally:
            self._asking = None

    async def _ask(self) -> bool:
        """Believe what one of the nodes knows; False if none could be asked."""
        hopeless: StoreUnavailable | None = None
        trouble: BaseException | None = None
        for address in self._candidates():
            try:
                async with asyncio.timeout(self._lobby.reply_timeout):
                    topology = await survey(self._fleet, address)
            except StoreUnavailable as exc:
                hopeless = exc
            except Exception as exc:  # refused, cut, late, or an answer that makes no sense
                trouble = exc
            else:
                self._apply(topology)
                return True
        if hopeless is not None and trouble is None:
            self._lobby.fail(hopeless)
        else:
            self._lobby.nobody(trouble)
        return False

    def _candidates(self) -> list[Address]:
        """Whom to ask: those that answer first, at the end those that keep us waiting."""
        live: list[Address] = []
        mute: list[Address] = []
        for address, node in self._nodes.items():
            if node.connected:
                (mute if node.owing() > MUTE else live).append(address)
        rest = list(({*self._fleet.seeds} | self._others).difference(live, mute))
        random.shuffle(live)
        random.shuffle(rest)
        return [*live, *rest, *mute][:ASKED]

    def _apply(self, topology: Topology) -> None:
        """Believe it: commands, those that wait among them, and channels go where it says."""
        self._others = topology.nodes
        links: list[Node | Lobby] = [self._lobby] * SLOTS
        for first, last, address in topology.ranges:
            links[first : last + 1] = [self._node(address)] * (last - first + 1)
        self.links[:] = links
        unserved = sum(link is self._lobby for link in links)
        if unserved:
            self._lobby.trouble = Refusal(f"CLUSTERDOWN {unserved} of its slots are not served")
        self._known = True
        self._move_channels(list(self._by_slot))
        for link in list(self._all()):
            link.hand_over()
        self._leave_needless(topology)

    def _move_channels(self, slots: list[int]) -> None:
        """Have them where their slots are served now."""
        moved = False
        for slot in slots:
            right = self.links[slot]
            for channel in self._by_slot.get(slot, ()):
                link = self.channels[channel]
                if right is not link:
                    self.channels[channel] = right
                    link.unsubscribe(channel)
                    right.subscribe(channel)
                    moved = moved or link is not self._lobby
        if moved:
            self.gap()

    def _leave_needless(self, topology: Topology) -> None:
        serving = {address for _, _, address in topology.ranges}
        for address, node in list(self._nodes.items()):
            node.needless = 0 if address in serving or node.busy else node.needless + 1
            if node.needless >= NEEDLESS:
                del self._nodes[address]
                node.quit()

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            dial = self._fleet.dialler(address)
            node = Node(self, address, dial, str(address), *self._common)
            self._nodes[address] = node
        return node

    def _all(self) -> list[Node | Lobby]:
        return [self._lobby, *self._nodes.values()]
