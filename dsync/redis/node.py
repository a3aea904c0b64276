"""The link to one node of a cluster: a Wire whose channels are sharded, and which knows MOVED."""

import time
from typing import TYPE_CHECKING, Any

from redis.crc import key_slot

from dsync.redis.link import TRANSIENT, Command, Refusal, packed, words_of
from dsync.redis.topology import Address
from dsync.redis.wire import Wire
from dsync.store import Call

if TYPE_CHECKING:
    from dsync.redis.cluster import Cluster

__all__ = ["Node", "slot_of"]

# Errors inside of a script: it was carried out in part.
HALF_WAY = ("non local key", "cluster is down")


def slot_of(command: Command) -> int | None:
    """The slot of a transition; None for what any node can answer."""
    words = words_of(command)
    if words[0] not in ("EVALSHA", "EVAL"):
        return None
    key = words[3]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


class Node(Wire):
    """Commands and channels of the slots that one node serves.

    What it turns out not to serve any more goes to the one that does.
    """

    progress: float
    trouble: BaseException | None

    def __init__(self, cluster: "Cluster", address: Address, *args: Any) -> None:
        super().__init__(*args)
        self._cluster = cluster
        self.place = address
        self.needless = 0  # how many surveys in a row have not seen it
        self.hint: str = (
            "it is an address that the cluster gives: can it be reached from here, or does the "
            "server need cluster-announce-ip or cluster-announce-hostname?"
        )

    @property
    def busy(self) -> bool:
        """Whether anything is on its way, or waits."""
        return bool(self._backlog or self._inflight or self._delayed)

    def owing(self) -> float:
        """Seconds for which it has left something unanswered."""
        return time.monotonic() - self._inflight[0].sent if self._inflight else 0.0

    # -- commands -------------------------------------------------------------------------------

    def _put(self, call: Call) -> None:
        if call in self._tuning:
            self._retune(call)
            return
        link = self._cluster.link_for(call.command, self)
        if link is self:
            super()._put(call)
        else:
            link.take(call)
            self._note_drained()

    def take(self, call: Call) -> None:
        """Carry out what was called on another node."""
        self._watch_by(call.issued + self.outage_timeout)
        super()._put(call)

    def take_asking(self, call: Call) -> None:
        """Carry it out although the slot is only about to be served here."""
        # Both in one go: the leave is for the next command.
        self.take(Call(("ASKING",), lambda call: None, time.monotonic()))
        self.take(call)

    def hand_over(self) -> None:
        """What waits here for another node goes there."""
        waiting = list(self._backlog)
        self._backlog.clear()
        for call in waiting:
            self._put(call)

    def _refused(self, call: Call, refusal: Refusal) -> None:
        text = str(refusal)
        if call.done == self._hushed:
            # An answer to the first half; the second has yet to come, if it is not that.
            self._inflight.appendleft(call)
            if refusal.code not in ("MOVED", "CLUSTERDOWN"):
                self._hang_up(refusal)
        elif refusal.code == "MOVED":
            self._moved(call, text)
        elif refusal.code == "ASK" and call.issued + self.outage_timeout > time.monotonic():
            call.attempts -= 1
            call.refused = True
            self._cluster.node_at(text.split(" ")[2], self).take_asking(call)
            self._note_drained()
        elif any(words in text for words in HALF_WAY):
            call.attempts += 1  # it may have done something
            super()._refused(call, Refusal(f"TRYAGAIN {text}"))
        else:
            if refusal.code == "CLUSTERDOWN":
                self._cluster.refresh()
            if call in self._tuning and refusal.code in TRANSIENT:
                call.issued = time.monotonic()  # it is never given up
            super()._refused(call, refusal)

    def _moved(self, call: Call, text: str) -> None:
        _, slot, where = text.split(" ")[:3]
        self._cluster.moved(int(slot), self._cluster.node_at(where, self))
        again = Refusal(f"TRYAGAIN {text}")
        if call in self._tuning:
            call.issued = time.monotonic()
            super()._refused(call, again)  # goes nowhere if the channel is another node's by now
        elif call.refused:
            super()._refused(call, again)  # they do not agree among each other: wait for it
        else:
            call.refused = True
            call.attempts -= 1
            self._put(call)

    def _on_lost(self, exc: BaseException) -> None:
        super()._on_lost(exc)
        if not self.closed:
            for call in [each for each in self._backlog if each.done == self._hushed]:
                self._backlog.remove(call)  # silent it is
            self._cluster.refresh()

    def _give_up(self) -> None:
        if self._backlog:
            self._cluster.refresh()
        super()._give_up()

    def quit(self) -> None:
        """It is not needed: nothing waits, nobody listens."""
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- channels -------------------------------------------------------------------------------

    def _listen(self) -> None:
        for channel in self.channels:
            self._tune("SSUBSCRIBE", channel)
        self.hint = Wire.hint  # it can be reached

    def _announce_gap(self) -> None:
        self._cluster.gap()

    def subscribe(self, channel: str) -> None:
        self.channels.add(channel)
        if self._connection is not None:
            self._connection.gather()  # with the command that needs it
            self._tune("SSUBSCRIBE", channel)

    def unsubscribe(self, channel: str) -> None:
        """A server that does not serve the slot any more answers by an error, having sent the push
        of a success before.  So this and a command that never fails make one call.
        """
        self.channels.discard(channel)
        if self._connection is not None and not self.closed:
            both = packed("SUNSUBSCRIBE", channel) + packed("TIME")
            self._send(Call(both, self._hushed, time.monotonic()))

    def _hushed(self, call: Call) -> None:
        """A channel says nothing any more."""

    def _retune(self, call: Call) -> None:
        """Subscribe once more, if it is still to be here."""
        if self._connection is None or call.command[1] not in self.channels:
            self._tuning.remove(call)
            self._note_drained()
        else:
            self._send(call)

    def _tuned(self, call: Call) -> None:
        self._tuning.remove(call)
        refused = call.reply if isinstance(call.reply, BaseException) else None
        self._cluster.tuned(self, str(call.command[1]), refused)

    def _on_push_message(self, push: list[Any]) -> None:
        kind, channel = push[0], push[1]
        if kind == b"smessage":
            self._cluster.heard(self, channel.decode(), push[2])
        elif kind == b"ssubscribe" and self._inflight:
            call = self._inflight[0]
            if call in self._tuning and channel.decode() == call.command[1]:
                self.progress = self._inflight.popleft().sent
                self._finish(call)
        elif kind == b"sunsubscribe":
            name = channel.decode()
            if name in self.channels and not self._hushing(name):
                self._cluster.silenced(self, name)

    def _hushing(self, channel: str) -> bool:
        """Whether it is we who have asked for that."""
        if not self._inflight or self._inflight[0].done != self._hushed:
            return False
        return words_of(self._inflight[0].command)[1] == channel
