"""What about a server does not go with what dsync promises, and what to change."""

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dsync.names import tag
from dsync.redis.store import RedisStore

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Finding", "checkup"]

OLDEST = (7, 0)  # of Redis; every Valkey is younger
CLOCK_OFF = 30.0  # seconds between the server's clock and ours that are worth a word
CLOCK_JUMP = 0.25  # seconds, beyond what asking took
LARGEST_MESSAGE = 2**20  # bytes, what a bus sends by default

# Which of the rights that we need this user has; it asks, and does nothing.
RIGHTS = """\
local function may(...) return redis.acl_check_cmd(...) and 1 or 0 end
return {
  may('ZADD', ARGV[1], '0', 'x'), may('ZRANGE', ARGV[1], '0', '0'),
  may(ARGV[3] .. 'PUBLISH', ARGV[2], ''), may(ARGV[3] .. 'SUBSCRIBE', ARGV[2])
}
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a server.

    Attributes:
        severity: `error`: dsync does not work on it; `warning`: a promise does not hold, or will
            fail; `info`: good to know.
        what: what was found, and where.
        why: what follows from it.
        remedy: what to change; "" where there is nothing to.
    """

    severity: Literal["error", "warning", "info"]
    what: str
    why: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" + (f"; {self.remedy}" if self.remedy else "")


async def checkup(client: "Client", watch: float = 0.0) -> list[Finding]:
    """Ask the server how it is set up, all in one round trip; of a cluster, each primary.

    What the server does not let this user ask is left out.

    Args:
        client: whose server.
        watch: seconds for which its clock is watched; 0: it is looked at once.

    Raises:
        StoreUnavailable: there is no sign of life.
    """
    client.enter()
    store = client.store
    if not isinstance(store, RedisStore):
        return []
    if store.cluster is not None:
        await store.check()
        nodes: list[Any] = list(store.cluster.primaries())
    else:
        nodes = [store.link]
    examined = (_Examination(store, node, client.replicas).run(watch) for node in nodes)
    found = await asyncio.gather(*examined)
    return [finding for each in found for finding in each]


class _Examination:
    """Of one server: what it says of itself, and what that means."""

    def __init__(self, store: RedisStore, node: Any, replicas: int) -> None:
        self._store = store
        self._node = node
        self._wanted = replicas
        self._where = f"Redis at {node.address}"
        self._hello: dict[str, Any] = {}
        self._info: dict[str, str] = {}  # empty where we may not ask
        self._config: dict[str, str] = {}
        self._rights: list[int] | Exception = []

    async def run(self, watch: float) -> list[Finding]:
        """Ask, and judge."""
        key, channel, sharded = tag(self._store.namespace, "checkup", ""), self._store.channel, ""
        if self._store.cluster is not None:
            channel, sharded = key, "S"
        clocks, hello, info, config, rights, alive = await asyncio.gather(
            self._clocks(),
            self._ask("HELLO"),
            self._ask("INFO"),
            self._ask("CONFIG", "GET", "client-output-buffer-limit", "appendfsync"),
            self._ask("EVAL", RIGHTS, 0, key, channel, sharded),
            self._ask("PING"),
        )
        if isinstance(alive, Exception):
            raise alive.with_traceback(None)
        self._hello, self._info, self._config = _words(hello), _lines(info), _words(config)
        self._rights = rights
        found = [*self._of_version(), *self._of_memory(), *self._of_rights(), *self._of_role()]
        found += [*self._of_output(), *self._of_persistence(), *self._of_clock(clocks)]
        if watch:
            await asyncio.sleep(watch)
            found += self._of_jumps(clocks, await self._clocks())
        return found

    async def _ask(self, *command: Any) -> Any:
        """The reply, or the exception that stands for it."""
        try:
            return await self._store.ask(*command, at=self._node)
        except Exception as exc:
            return exc

    async def _clocks(self) -> tuple[float, float, float, float] | None:
        """The server's clock, ours just before, and on the monotonic one before and after."""
        ours, before = time.time(), time.monotonic()
        reply = await self._ask("TIME")
        if not isinstance(reply, list | tuple):
            return None
        return int(reply[0]) + int(reply[1]) / 1e6, ours, before, time.monotonic()

    def _of_version(self) -> Iterator[Finding]:
        server, version = self._hello.get("server", ""), self._hello.get("version", "")
        number = re.match(r"(\d+)\.(\d+)", version)
        if number is None:
            return
        if server == "redis" and (int(number[1]), int(number[2])) < OLDEST:
            yield Finding(
                "error",
                f"{self._where} is version {version}",
                "what scripts refuse there has lost its code, so that an outage is not told from "
                "an error",
                f"use Redis {OLDEST[0]}.{OLDEST[1]} or newer, or Valkey",
            )
        else:
            mode, proto = self._hello.get("mode", "standalone"), self._hello.get("proto", "?")
            what = f"{server.capitalize()} {version}, {mode}, RESP{proto}"
            yield Finding("info", self._where, what)

    def _of_memory(self) -> Iterator[Finding]:
        policy = self._info.get("maxmemory_policy", "noeviction")
        limit, used = (int(self._info.get(key, 0)) for key in ("maxmemory", "used_memory"))
        if policy == "noeviction":
            if limit and used > 0.9 * limit:
                yield Finding(
                    "warning",
                    f"{self._where} uses {used / limit:.0%} of its maxmemory",
                    "at 100 % it refuses what dsync writes, renewals of leases too",
                    "raise maxmemory, or give dsync a server of its own",
                )
            return
        if int(self._info.get("maxmemory", 0)):
            yield Finding(
                "warning",
                f"{self._where} evicts keys when its memory is full (maxmemory-policy {policy})",
                "leases are among them, and two may then hold at once",
                "set maxmemory-policy noeviction, or give dsync a server of its own",
            )
        else:
            yield Finding(
                "info",
                f"{self._where} has maxmemory-policy {policy}, and no maxmemory",
                "nothing is evicted as long as that is so",
            )

    def _of_rights(self) -> Iterator[Finding]:
        rights = self._rights
        if isinstance(rights, Exception):
            missing = ["run scripts"] if "NOPERM" in str(rights) else []
        else:
            may = ("write its keys", "read its keys", "publish its messages", "listen to them")
            missing = [what for what, had in zip(may, rights, strict=False) if had == 0]
        if missing:
            yield Finding(
                "warning",
                f"{self._where} does not let this user {', '.join(missing)}",
                "what needs that will be refused (who may not listen waits by asking)",
                f"ACL SETUSER ... {self._store.rights()}",
            )

    def _of_role(self) -> Iterator[Finding]:
        if self._hello.get("role", "master") != "master":
            yield Finding(
                "warning",
                f"{self._where} is a replica",
                "it takes no writes, so nothing can be held there",
                "use the primary, or let sentinels find it: redis+sentinel://host1,host2/service",
            )
        if self._hello.get("mode") == "cluster" and self._store.cluster is None:
            yield Finding(
                "warning",
                f"{self._where} is one node of a cluster",
                "it refuses what belongs to other nodes (MOVED)",
                "use redis+cluster://, or a RedisCluster of your own",
            )
        replicas = int(self._info.get("connected_slaves", self._wanted))
        if replicas < self._wanted:
            yield Finding(
                "warning",
                f"{self._where} has {replicas} replicas, and this client wants {self._wanted} to "
                "have what counts",
                "nothing can be acquired, and what is held will be lost",
                "start more of them, or connect with a smaller replicas=",
            )
        elif replicas and not self._wanted:
            yield Finding(
                "info",
                f"{self._where} has {replicas} asynchronous replica{'s' * (replicas > 1)}",
                "a failover can lose what was granted last, and then two may hold at once",
                "fence what must not happen twice, or connect with replicas=1",
            )

    def _of_output(self) -> Iterator[Finding]:
        words = self._config.get("client-output-buffer-limit", "").split()
        if "pubsub" not in words:
            return
        hard = int(words[words.index("pubsub") + 1])
        if 0 < hard < LARGEST_MESSAGE:
            yield Finding(
                "warning",
                f"{self._where} hangs up on subscribers {hard} bytes behind "
                "(client-output-buffer-limit pubsub)",
                f"one message of a bus may have {LARGEST_MESSAGE}, and our only connection is one "
                "of a subscriber",
                "use the default, 32mb 8mb 60",
            )

    def _of_persistence(self) -> Iterator[Finding]:
        aof = self._info.get("aof_enabled")
        if aof == "1" and self._config.get("appendfsync") == "always":
            yield Finding(
                "info", f"{self._where} writes all it confirms", "a restart loses nothing"
            )
        elif aof is not None:
            yield Finding(
                "info",
                f"{self._where} does not write all that it confirms to its disk",
                "after a crash it has forgotten who has come to hold since; they get LeaseLost",
                "appendonly yes and appendfsync always, if that matters more than speed",
            )

    def _of_clock(self, clocks: tuple[float, float, float, float] | None) -> Iterator[Finding]:
        if clocks is None:
            return
        theirs, ours, before, after = clocks
        off = theirs - min(max(theirs, ours), ours + after - before)
        if abs(off) > CLOCK_OFF:
            how = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'}"
            yield Finding(
                "warning",
                f"the clock of {self._where} is {how} ours",
                "one of them is wrong; if the server's is set right in one step, leases end early, "
                "or late, by as much",
                "synchronise it, slowly, or restart the server after that",
            )

    def _of_jumps(
        self,
        first: tuple[float, float, float, float] | None,
        second: tuple[float, float, float, float] | None,
    ) -> Iterator[Finding]:
        if first is None or second is None:
            return
        moved = second[0] - first[0]
        shortest, longest = second[2] - first[3], second[3] - first[2]
        jump = moved - min(max(moved, shortest), longest)
        if abs(jump) > CLOCK_JUMP:
            yield Finding(
                "warning",
                f"the clock of {self._where} has jumped by {jump:+.2f} s",
                "a step forward ends leases early, and two may hold at once; a step back keeps "
                "those of the dead longer",
                "let it be slewed, never stepped",
            )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _words(reply: Any) -> dict[str, str]:
    """A reply of names and values."""
    if isinstance(reply, list | tuple):  # RESP2
        reply = dict(zip(reply[::2], reply[1::2], strict=False))
    if not isinstance(reply, dict):
        return {}
    return {_text(name): _text(value) for name, value in reply.items()}


def _lines(reply: Any) -> dict[str, str]:
    """A reply to INFO."""
    if isinstance(reply, dict):
        return _words(reply)
    if not isinstance(reply, str | bytes):
        return {}
    pairs = (line.partition(":") for line in _text(reply).splitlines())
    return {name: value for name, colon, value in pairs if colon}
