"""A cluster of real servers on loopback: made, broken and mended by commands."""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.crc import key_slot

from dsync.server import Server, ServerError

__all__ = ["Admin", "Cluster", "Node", "eventually"]

SLOTS = 16384
BINARY = os.environ.get("DSYNC_TEST_SERVER")  # None: the embedded Valkey


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Node:
    """One server of a cluster."""

    def __init__(self, directory: Path, options: tuple[str, ...]) -> None:
        self.directory = directory
        self._options = options
        self.server = self._begin()
        self.admin: Any = redis.Redis(port=self.port, socket_timeout=5.0)
        self.id: str = self.admin.execute_command("CLUSTER", "MYID").decode()

    def _begin(self) -> Server:
        """Somebody else may take a port that was free a moment ago: then on others."""
        for _ in range(3):
            self.port, self.bus = free_port(), free_port()
            with suppress(ServerError):
                return self._start()
        self.port, self.bus = free_port(), free_port()
        return self._start()

    def _start(self) -> Server:
        return Server.start(
            self.directory,
            self.port,
            (
                *("--cluster-enabled", "yes", "--cluster-port", str(self.bus)),
                *("--cluster-config-file", str(self.directory / "nodes.conf")),
                *self._options,
            ),
            binary=BINARY,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, *command: Any) -> Any:
        return self.admin.execute_command(*command)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()  # waits for its guard
        self.admin.close()

    def freeze(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)

    def restart(self) -> None:
        self.server = self._start()

    def info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = self.admin.info(section)
        return found

    def view(self) -> dict[str, str]:
        """The nodes that it knows, by their ids, and what it thinks of each."""
        lines = self.ask("CLUSTER", "NODES").decode().splitlines()
        return {line.split()[0]: line.split()[2] for line in lines}

    def calls(self) -> dict[str, int]:
        """How often each command was carried out there since `CONFIG RESETSTAT`."""
        stats = self.info("commandstats")
        return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}


class Cluster:
    """`primaries` servers that share the slots evenly, and a replica for each of the first few."""

    def __init__(
        self, primaries: int = 3, replicas: int = 0, node_timeout: int = 1000, *options: str
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dsync-cluster-"))
        common = (
            *("--cluster-node-timeout", str(node_timeout), "--repl-diskless-sync-delay", "0"),
            *("--cluster-replica-validity-factor", "0", "--cluster-migration-barrier", "9"),
            *options,
        )
        self.nodes: list[Node] = []
        try:
            with ThreadPoolExecutor() as threads:
                begun = [
                    threads.submit(Node, self.directory / str(index), common)
                    for index in range(primaries + replicas)
                ]
            self.nodes = [each.result() for each in begun]
            self._assemble(primaries)
        except BaseException:
            self.stop()
            raise

    def _assemble(self, primaries: int) -> None:
        first = self.nodes[0]
        for index, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index:
                node.ask("CLUSTER", "MEET", "127.0.0.1", first.port, first.bus)
        for index, node in enumerate(self.nodes[:primaries]):
            start, end = SLOTS * index // primaries, SLOTS * (index + 1) // primaries - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", start, end)
        eventually(self._acquainted, "the nodes know each other")
        for index, node in enumerate(self.nodes[primaries:]):
            node.ask("CLUSTER", "REPLICATE", self.nodes[index].id)
        eventually(lambda: all(self._settled(node) for node in self.nodes), "all is up")

    def _acquainted(self) -> bool:
        views = [node.view() for node in self.nodes]
        return all(
            len(view) == len(self.nodes)
            and not any("handshake" in flags for flags in view.values())
            for view in views
        )

    def _settled(self, node: Node) -> bool:
        if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
            return False
        replicas = sum("slave" in flags for flags in node.view().values())
        if replicas != len(self.nodes) - len(self.primaries()):
            return False
        replication = node.info("replication")
        return bool(replication["role"] == "master" or replication["master_link_status"] == "up")

    def primaries(self) -> list[Node]:
        """Those that say that they are."""
        return [node for node in self.nodes if node.info("replication")["role"] == "master"]

    def owner(self, slot: int) -> Node:
        """Who serves the slot."""
        primaries = self.primaries()
        for first, last, primary, *_ in primaries[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in primaries if node.port == primary[1])
        raise AssertionError(f"nobody serves slot {slot}")

    def replica_of(self, primary: Node) -> Node:
        """Its replica."""
        return next(
            node
            for node in self.nodes
            if node is not primary and node.info("replication").get("master_port") == primary.port
        )

    def fail_over(self, replica: Node) -> None:
        """Have it take over, as planned: nothing is lost."""

        def done() -> bool:
            return bool(replica.info("replication")["role"] == "master")

        for _ in range(4):
            replica.ask("CLUSTER", "FAILOVER")
            # The servers give up after 5 s, on a busy machine or soon after the last one.
            with suppress(AssertionError):
                return eventually(done, "it takes over", within=6.0)
        raise AssertionError("the replica never took over")

    def move(self, slot: int, keys_at_once: int = 10) -> Node:
        """Have the next primary serve the slot, keys and all.  -> that one"""
        source = self.owner(slot)
        primaries = self.primaries()
        target = primaries[(primaries.index(source) + 1) % len(primaries)]
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
            where = ("127.0.0.1", target.port, "", 0, 5000)
            source.ask("MIGRATE", *where, "KEYS", *keys)
        for node in (target, source, *primaries):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        return target

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        for node in self.nodes:
            with suppress(ProcessLookupError):
                node.thaw()
            node.admin.close()
            node.server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def eventually(condition: Callable[[], bool], what: str, within: float = 20.0) -> None:
    """Wait for a state of the servers."""
    deadline = time.monotonic() + within
    while True:
        with suppress(redis.RedisError, OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.01)


class Admin:
    """A redis client for each node of a cluster; a command goes to the one that has its key."""

    def __init__(self, url: str) -> None:
        hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
        self._nodes = [redis.asyncio.Redis.from_url(f"redis://{host}") for host in hosts]

    def of(self, key: str | bytes) -> Any:
        """The client of the node that has the key; the slots are shared evenly."""
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        return next(
            node
            for index, node in enumerate(self._nodes)
            if slot < SLOTS * (index + 1) // len(self._nodes)
        )

    def __getattr__(self, name: str) -> Any:
        return lambda key, *args, **kwargs: getattr(self.of(key), name)(key, *args, **kwargs)

    async def publish(self, channel: str, payload: bytes) -> int:
        """Say it where those who listen to the channel of a primitive hear it in a cluster."""
        name = f"{{{channel}}}"
        heard: int = await self.of(name).execute_command("SPUBLISH", name, payload)
        return heard

    async def pubsub_numsub(self, *channels: str) -> list[tuple[bytes, int]]:
        """How many listen to each channel of a primitive."""
        found = []
        for name in (f"{{{channel}}}" for channel in channels):
            _, count = await self.of(name).execute_command("PUBSUB", "SHARDNUMSUB", name)
            found.append((name[1:-1].encode(), count))
        return found

    async def everywhere(self, *command: Any) -> list[Any]:
        """What each node replies."""
        return [await node.execute_command(*command) for node in self._nodes]

    async def execute_command(self, *command: Any) -> Any:
        return (await self.everywhere(*command))[0]

    async def scan_iter(self, **kwargs: Any) -> AsyncIterator[bytes]:
        for node in self._nodes:
            async for key in node.scan_iter(**kwargs):
                yield key

    async def aclose(self) -> None:
        for node in self._nodes:
            await node.aclose()
