"""Where calls wait, and channels are noted, as long as no node is known for their slot."""

from typing import TYPE_CHECKING, Any

from dsync.redis.link import Link
from dsync.store import Call

if TYPE_CHECKING:
    from dsync.redis.cluster import Cluster

__all__ = ["Lobby"]


class Lobby(Link):
    """A link that leads nowhere: what is called here is carried out when a node is found."""

    watches_replies = False

    def __init__(self, cluster: "Cluster", *args: Any) -> None:
        super().__init__(*args)
        self._cluster = cluster

    @property
    def connected(self) -> bool:
        return False

    @property
    def busy(self) -> bool:
        return bool(self._backlog)

    def _put(self, call: Call) -> None:
        self._backlog.append(call)
        self._cluster.refresh()

    def take(self, call: Call) -> None:
        """Keep what a node cannot carry out any more."""
        self._watch_by(call.issued + self.outage_timeout)
        self._put(call)

    def hand_over(self) -> None:
        """What waits for a node that is known now goes there."""
        waiting = list(self._backlog)
        self._backlog.clear()
        for call in waiting:
            link = self._cluster.link_for(call.command, self)
            if link is self:
                self._backlog.append(call)
            else:
                link.take(call)
        self._note_drained()

    def subscribe(self, channel: str) -> None:
        self.channels.add(channel)

    def unsubscribe(self, channel: str) -> None:
        self.channels.discard(channel)

    def nobody(self, trouble: BaseException | None) -> None:
        """No node could be asked."""
        self.trouble = trouble
        self._give_up()

    def fail(self, error: Exception) -> None:
        """It cannot help to ask again."""
        self._fail(lambda call: True, error)

    def _hang_up(self, trouble: BaseException) -> None:
        """There is no connection."""
