"""A cluster that is well: which node does what, how it is found, and what is said if it is none."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio

import dsync
from dsync.names import tag
from dsync.redis import cluster as cluster_module
from dsync.redis import script as script_module
from dsync.redis.cluster import Cluster as Link
from dsync.redis.script import SCRIPTS, sharded
from dsync.redis.store import RedisStore
from dsync.server import Server
from tests.cluster.conftest import Broken
from tests.cluster.rig import Cluster
from tests.conftest import settled


def link_of(client: dsync.Client) -> Link:
    store = client.store
    assert isinstance(store, RedisStore)
    assert store.cluster is not None
    return store.cluster


def counts(cluster: Cluster, command: str) -> list[int]:
    """How often each primary has carried it out since the last call of `reset`."""
    return [node.calls().get(command, 0) for node in cluster.nodes]


def reset(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.ask("CONFIG", "RESETSTAT")


async def test_the_work_is_shared_by_the_nodes(whole: Broken) -> None:
    client = whole.client()
    locks = [client.lock(f"lock {i}") for i in range(60)]
    await client
    reset(whole.cluster)
    for lock in locks:
        for _ in range(3):
            async with lock:
                pass
    each = counts(whole.cluster, "evalsha")
    assert sum(each) == 60 * 3 * 2, "one to take it, one to give it back: none went to a wrong node"
    assert min(each) > 60, "each has a fair share"
    assert sum(counts(whole.cluster, "ssubscribe")) == 60, "once for each, however often it is used"


async def test_waiting_costs_no_more_commands_than_on_one_server(whole: Broken) -> None:
    holder, waiter = whole.client().lock("x"), whole.client().lock("x")
    for lock in (holder, waiter):
        async with lock:
            pass
    reset(whole.cluster)
    async with holder:
        waiting = asyncio.create_task(waiter.acquire())
        await settled(lambda: holder._cohort._contended is not None)
    await waiting
    await waiter.release()
    assert sum(counts(whole.cluster, "evalsha")) <= 6  # four, and a heartbeat, perhaps
    assert sum(counts(whole.cluster, "ssubscribe")) == 0


async def test_a_node_that_is_not_needed_is_not_connected_to(whole: Broken) -> None:
    client = whole.client()
    async with client.lock("x"):
        assert sum(node.connected for node in link_of(client).primaries()) == 1


async def test_the_queueing_acquire_leaves_with_its_subscription(
    whole: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await whole.client()
    link: Any = link_of(client).primaries()[0]
    written: list[bytes] = []
    transport = type(link._connection._transport)
    write = transport.write

    def noted(self: Any, data: bytes) -> None:
        written.append(data)
        write(self, data)

    monkeypatch.setattr(transport, "write", noted)
    async with client.lock("x"):
        assert sum(b"SSUBSCRIBE" in data and b"EVALSHA" in data for data in written) == 1


async def test_nothing_is_listened_to_that_nobody_keeps(
    whole: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "LINGER", 0.05)
    client = whole.client()
    kept = client.lock("kept")
    for name in ("kept", "one", "two"):
        async with client.lock(name):
            pass
    channels = link_of(client).channels
    own = tag(whole.namespace, "lock", "kept") + ":c:" + client.client_id
    await settled(lambda: list(channels) == [own])

    async def heard() -> list[int]:
        names = (tag(whole.namespace, "lock", name) for name in ("kept", "one", "two"))
        asked = [f"{name}:c:{client.client_id}" for name in names]
        return [
            (await whole.admin.of(each).execute_command("PUBSUB", "SHARDNUMSUB", each))[1]
            for each in asked
        ]

    async def is_so() -> bool:
        return await heard() == [1, 0, 0]

    await settled(is_so, "the servers know")
    async with kept, client.lock("one"):
        assert await heard() == [1, 1, 0]


async def test_a_cluster_client_of_the_users_is_used_and_stays_theirs(whole: Broken) -> None:
    node = whole.cluster.nodes[0]
    async with redis.asyncio.RedisCluster("127.0.0.1", node.port) as own:
        client = whole.client()
        brought = dsync.Client(redis=own, namespace=whole.namespace)
        async with brought:
            async with brought.lock("x"):
                waiting = asyncio.create_task(client.lock("x").acquire())
                await settled(lambda: len(client.homes) == 1)
            await waiting
        assert await own.set("mine", 1, ex=1)


async def test_an_address_that_the_client_of_the_user_maps_is_mapped(whole: Broken) -> None:
    """What the cluster says of itself need not be how it is reached from here."""
    seen = set()

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        seen.add(address)
        return "localhost", address[1]

    first = whole.cluster.nodes[0]
    async with (
        redis.asyncio.RedisCluster("127.0.0.1", first.port, address_remap=remap) as own,
        dsync.Client(redis=own, namespace=whole.namespace) as client,
    ):
        assert {node.place.host for node in link_of(client).primaries()} == {"localhost"}
    assert len(seen) == 3


async def test_a_seed_that_is_dead_does_no_harm(whole: Broken) -> None:
    url = whole.url.replace("://", "://127.0.0.1:1,")
    async with dsync.connect(url, namespace=whole.namespace) as client, client.lock("x"):
        pass


async def test_scripts_publish_in_their_own_slot_only() -> None:
    for name, script in SCRIPTS.items():
        text = sharded(name).text
        assert "'PUBLISH'" not in text
        assert text.count("'SPUBLISH'") == script.text.count("'PUBLISH'")
        assert text.upper().count("PUBLISH") == script.text.upper().count("PUBLISH")
        assert script_module.TEXTS[sharded(name).sha] == text


# -- what is said where it cannot be ---------------------------------------------------------------


@pytest.fixture
def lonely() -> Iterator[Server]:
    """A server that is no cluster."""
    with Server.start(port=0) as started:
        yield started


async def refused(url: str, **kwargs: Any) -> str:
    """What is said to who connects."""
    with pytest.raises(dsync.StoreUnavailable) as caught:
        async with asyncio.timeout(20):
            await dsync.connect(url, outage_timeout=2.0, **kwargs)
    return str(caught.value)


async def test_a_server_alone_is_no_cluster(lonely: Server) -> None:
    said = await refused(lonely.url.replace("redis://", "redis+cluster://"))
    assert "is no cluster" in said
    assert "use redis:// instead" in said


async def test_one_node_alone_is_not_what_a_cluster_is(whole: Broken) -> None:
    client = dsync.connect(f"redis://{whole.cluster.nodes[0].address}", namespace=whole.namespace)
    async with client:
        with pytest.raises(dsync.StoreUnavailable, match=r"use redis\+cluster://"):
            for i in range(50):
                await client.lock(str(i)).acquire()


def test_servers_without_sharded_channels_are_refused() -> None:
    # As a server that is too old would answer.
    with Cluster(1, 0, 1000, "--rename-command", "PUBSUB", "") as old:
        said = asyncio.run(refused(old.url))
    assert "no sharded publish/subscribe" in said
    assert "version 7" in said


def test_addresses_out_of_reach_are_named() -> None:
    with Cluster(1, 0, 1000, "--cluster-announce-ip", "127.9.9.9") as hidden:
        # Linux answers on all of 127/8, but nobody listens there.
        said = asyncio.run(refused(hidden.url))
    assert f"127.9.9.9:{hidden.nodes[0].port}" in said
    assert "cluster-announce-ip" in said


async def test_nobody_there_is_said_with_all_addresses() -> None:
    said = await refused("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    assert "127.0.0.1:1,127.0.0.1:2" in said


async def test_a_wrong_password_is_said_at_once(whole: Broken) -> None:
    said = await refused(whole.url.replace("://", "://nobody:secret@"))
    assert "refused the user name or password" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+cluster://", "names no host"),
        ("redis+cluster://a,,b", "names no host"),
        ("redis+cluster://a:x", "port must be a number"),
        ("redis+cluster://a,b:70000", "port must be a number"),
        ("redis+cluster://a/1", "database 0 only"),
        ("redis+cluster://a?nonsense=1", "nonsense"),
    ],
)
def test_a_url_that_cannot_be_is_refused_when_the_client_is_made(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dsync.connect(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_every_scheme_is_known_with_any_number_of_hosts(scheme: str) -> None:
    client = dsync.connect(
        f"{scheme}+cluster://user:p%40ss@one,two:7000,[::1]:7001/0?socket_timeout=1"
    )
    fleet = link_of(client)._fleet
    assert [str(each) for each in fleet.seeds] == ["one:6379", "two:7000", "[::1]:7001"]
    assert fleet.pool.connection_kwargs["password"] == "p@ss"
    tls = scheme in ("rediss", "valkeys")
    assert ("SSL" in fleet.pool.connection_class.__name__) == tls


def test_a_child_of_a_fork_leaves_the_connections_alone(three: Cluster) -> None:
    async def main() -> None:
        async with dsync.connect(three.url) as client:
            async with client.lock("x"):
                child = os.fork()
                if not child:
                    left = all(link.closed for link in link_of(client)._all())
                    os._exit(0 if left else 1)
                _, status = await asyncio.to_thread(os.waitpid, child, 0)
                assert status == 0
            async with client.lock("x"):
                pass

    asyncio.run(main())
