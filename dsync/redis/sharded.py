"""The keys and channels of one primitive in a cluster: all in one slot."""

from typing import TYPE_CHECKING

from redis.crc import key_slot

from dsync.redis.script import Script, sharded
from dsync.redis.store import RedisRecord
from dsync.store import Arg, Bound, Done

if TYPE_CHECKING:
    from dsync.redis.cluster import Cluster
    from dsync.redis.store import RedisStore

__all__ = ["ShardedRecord"]

# After these there may be something to be heard: a grant, a wish, a loss.
ATTENDED = frozenset({"permit_acquire", "permit_wake", "barrier_arrive"})


class ShardedRecord(RedisRecord):
    """The keys of one primitive, and the channel on which this process hears of it.

    It listens from its first use on for as long as it is kept, and a little longer.
    """

    __slots__ = ("__weakref__", "_channel", "_cluster", "_slot")

    def __init__(self, store: "RedisStore", cluster: "Cluster", key: str) -> None:
        super().__init__(store, key)
        self._cluster = cluster
        self._slot = key_slot(key.encode())
        self._channel = key + cluster.ending

    def run(self, transition: str, done: Done, /, **args: Arg) -> None:
        self._attend(transition)
        self._cluster.links[self._slot].call(self._command(transition, args), done)

    def bind(self, transition: str, /, **args: Arg) -> Bound:
        before, after = self._cut(transition, args)
        links, slot = self._cluster.links, self._slot
        attended, channels = transition in ATTENDED, self._cluster.channels

        def run(token: str, done: Done) -> None:
            if attended and self._channel not in channels:
                self._attend(transition)
            links[slot].call(
                b"%b$%d\r\n%b\r\n%b" % (before, len(token), token.encode(), after), done
            )

        return run

    def _attend(self, transition: str) -> None:
        if transition in ATTENDED:
            self._cluster.attend(self._channel)

    def _script(self, transition: str) -> Script:
        return sharded(transition)

    def _command(self, transition: str, args: dict[str, Arg]) -> tuple[Arg, ...]:
        if "inbox" in args:
            args = {**args, "inbox": self._channel.removesuffix(self.store.client_id)}
        elif "channel" in args:
            args = {**args, "channel": self.key}  # as what listens to it has it from the store
        return super()._command(transition, args)
