"""The store in Redis: a transition is one EVALSHA, messages come by one subscription."""

import asyncio
import time
from typing import Any

from dsync.errors import DsyncError, ForeignKey, SchemaMismatch, StoreUnavailable
from dsync.names import tag
from dsync.redis.cluster import Cluster
from dsync.redis.link import Link, Refusal, packed, text_of, words_of
from dsync.redis.open import route_for
from dsync.redis.pooled import PooledLink
from dsync.redis.script import SCRIPTS, Script
from dsync.redis.wire import Wire
from dsync.store import Arg, Bound, Call, Done, Inbox

__all__ = ["RedisStore"]


class RedisStore:
    """Carries out transitions on a Redis or Valkey server."""

    def __init__(
        self,
        client_id: str,
        inbox: Inbox,
        namespace: str,
        url: str | None,
        client: Any,
        outage_timeout: float,
    ) -> None:
        self.client_id = client_id
        self.namespace = namespace
        # Channels are named apart from keys, so an ACL can allow them by one pattern.
        self.channel: str = tag(namespace, "inbox", "")[1:-1]
        self.born: str | int = ""
        self.born_asked: float = 0.0
        self._route = route_for(url, client, f"dsync:{client_id}", outage_timeout / 3)
        common = (
            self._route.address, self.channel + client_id, inbox, self._greet, self._explain,
            outage_timeout,
        )  # fmt: skip
        self.link: Link | Cluster
        self.cluster: Cluster | None = None
        self.distant = True
        self.ordered: bool = self._route.fleet is not None or self._route.dial is not None
        if self._route.fleet is not None:
            self.link = self.cluster = Cluster(self._route.fleet, client_id, *common[2:])
        elif self._route.dial is not None:
            self.link = Wire(self._route.dial, *common)
        else:
            self.link = PooledLink(self._route.client, *common, lent=self._route.lent)

    @property
    def listening(self) -> bool:
        return self.link.listening

    @property
    def connected(self) -> bool:
        return self.link.connected

    @property
    def progress(self) -> float:
        return self.link.progress

    def at(self, kind: str, name: str) -> "RedisRecord":
        key = tag(self.namespace, kind, name)
        return RedisRecord(self, key) if self.cluster is None else self.cluster.record(self, key)

    def subscribe(self, channel: str) -> None:
        self.link.subscribe(self._named(channel))

    def unsubscribe(self, channel: str) -> None:
        self.link.unsubscribe(self._named(channel))

    def _named(self, channel: str) -> str:
        # In a cluster a channel is in the slot of its record, and named like that.
        return channel if self.cluster is None else f"{{{channel}}}"

    def _greet(self) -> Call:
        return Call(("TIME",), self._note_birth, time.monotonic())

    def _note_birth(self, call: Call) -> None:
        # redis-py makes a tuple of it.
        if isinstance(call.reply, list | tuple) and self.born == "":
            self.born_asked = call.sent
            self.born = int(call.reply[0]) * 1_000_000 + int(call.reply[1])

    async def ask(self, *command: Any, at: Link | None = None) -> Any:
        """The reply to one command, for what is not urgent; `at`: of which link, if not any."""
        future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        (at or self.link).call(
            command, lambda call: None if future.done() else future.set_result(call)
        )
        call = await future
        if isinstance(call.reply, BaseException):
            raise call.reply
        return call.reply

    def disown(self) -> None:
        self.link.disown()

    async def check(self) -> None:
        await self.ask("PING")
        if self.cluster is not None:
            await asyncio.gather(*(self.ask("PING", at=n) for n in self.cluster.primaries()))

    async def drain(self) -> None:
        await self.link.drain()

    async def aclose(self) -> None:
        await self.link.aclose()
        self._route.close()

    def rights(self) -> str:
        """What a user needs, in the words of ACL SETUSER."""
        prefix = self.channel.partition(":")[0].replace("*", "\\*")  # as keys begin
        brace, more = ("", "") if self.cluster is None else ("{", " +cluster|slots +asking")
        return (
            f"~{{{prefix}:* &{brace}{prefix}:* +@read +@write +@scripting +@pubsub "
            f"+time +ping +client|setname{more}"
        )

    def _explain(self, refusal: Refusal, call: Call) -> DsyncError:
        """What an error reply means to the one who called."""
        words = [text_of(word) for word in words_of(call.command)]
        what = words[3] if len(words) > 3 else words[0]
        where = f"Redis at {self.link.address}"
        if refusal.code in ("WRONGTYPE", "FOREIGN"):
            return ForeignKey(
                f"a key of {what.rpartition(':')[0]} in {where} holds something else than dsync's "
                f"state ({refusal}); nothing was changed: delete it or use another namespace"
            )
        if refusal.code == "SCHEMA":
            return SchemaMismatch(
                f"the state of {what.rpartition(':')[0]} in {where} was written by a newer dsync "
                f"(schema {str(refusal).partition(' ')[2].split(' ')[0]}, this one knows 1): "
                "upgrade this process"
            )
        # What a script may not do comes as ERR: in the words of Valkey, and of Redis.
        in_script = ("ACL failure in script", "user executing the script")
        if refusal.code == "NOPERM" or any(words in str(refusal) for words in in_script):
            return StoreUnavailable(
                f"{where} does not allow this user what dsync needs ({refusal}); "
                f"allow {self.rights()}"
            )
        if self.cluster is None and refusal.code in ("MOVED", "ASK"):
            return StoreUnavailable(
                f"{where} is a node of a cluster ({refusal}): use redis+cluster:// instead of "
                "redis://, or a redis.asyncio.RedisCluster"
            )
        tried = time.monotonic() - call.issued
        return StoreUnavailable(f"{where} refused {what} for {tried:.1f} s: {refusal}")


class RedisRecord:
    """The keys of one primitive."""

    __slots__ = ("key", "store")

    def __init__(self, store: RedisStore, key: str) -> None:
        self.store: RedisStore = store
        self.key: str = key

    def run(self, transition: str, done: Done, /, **args: Arg) -> None:
        self.store.link.call(self._command(transition, args), done)

    def bind(self, transition: str, /, **args: Arg) -> Bound:
        before, after = self._cut(transition, args)
        call = self.store.link.call

        def run(token: str, done: Done) -> None:
            call(b"%b$%d\r\n%b\r\n%b" % (before, len(token), token.encode(), after), done)

        return run

    def _cut(self, transition: str, args: dict[str, Arg]) -> tuple[bytes, bytes]:
        """The command as it goes over the wire, before and after its token."""
        words = self._command(transition, {**args, "token": ""})
        before, after = packed(*words).split(b"$0\r\n\r\n", 1)
        return before, after

    def _script(self, transition: str) -> Script:
        return SCRIPTS[transition]

    def _command(self, transition: str, args: dict[str, Arg]) -> tuple[Arg, ...]:
        script = self._script(transition)
        keys = [f"{self.key}:{part}" for part in script.keys]
        return ("EVALSHA", script.sha, len(keys), *keys, *script.values(args))
