"""Nodes that die, stand still, and come back."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import dsync
from tests.cluster.conftest import Broken
from tests.cluster.rig import Node
from tests.cluster.test_slots import Crew, slot_of
from tests.conftest import settled

SLOW = 20.0  # seconds in which a replica takes over, on a busy machine


def name_at(world: Broken, kind: str, node: Node) -> str:
    """A name whose slot the node serves."""
    return next(
        name
        for name in map(str, range(1000))
        if world.cluster.owner(slot_of(world, kind, name)) is node
    )


async def test_waiters_and_holders_go_on_when_a_replica_takes_over(mortal: Broken) -> None:
    node = mortal.cluster.nodes[0]
    name = name_at(mortal, "lock", node)
    one, other = (mortal.client(outage_timeout=30.0) for _ in range(2))
    holder, waiter = one.lock(name), other.lock(name)
    await holder.acquire()
    lease = holder.lease
    waiting = asyncio.create_task(waiter.acquire())
    await settled(lambda: holder._cohort._contended is not None, "it is known that one waits")
    # What the replica has not got is lost with the primary.
    assert node.ask("WAIT", 1, 5000) == 1
    node.kill()
    await settled(lambda: not holder.lease or one.store.connected, "it is found", SLOW)
    assert lease
    assert lease.held
    await holder.release()
    await asyncio.wait_for(waiting, SLOW)
    assert waiter.lease
    assert (waiter.lease.fence or 0) > (lease.fence or 0)
    await waiter.release()


async def test_a_lock_changes_its_server_under_load_and_is_held_by_one_at_a_time(
    mortal: Broken,
) -> None:
    """A planned failover loses nothing, so nothing may go wrong."""
    node = mortal.cluster.nodes[0]
    replica = mortal.cluster.replica_of(node)
    name = name_at(mortal, "lock", node)
    crew = Crew([mortal.client().lock(name) for _ in range(3)], tasks=3)
    await crew.more()
    await asyncio.to_thread(mortal.cluster.fail_over, replica)
    await crew.more()
    await crew.end()


async def test_nobody_is_stuck_when_a_server_dies_under_load(mortal: Broken) -> None:
    node = mortal.cluster.nodes[0]
    clients = [mortal.client(outage_timeout=30.0) for _ in range(3)]
    names = [name_at(mortal, kind, node) for kind in ("lock", "semaphore", "barrier")]
    done = [0, 0, 0]

    async def lock(client: dsync.Client, kind: int) -> None:
        held = client.lock(names[0]) if kind == 0 else client.semaphore(names[1], 2)
        try:
            async with held:
                await asyncio.sleep(0)
        except dsync.LeaseLost:
            pass  # it died with the server
        done[kind] += 1

    async def meet(client: dsync.Client) -> None:
        await client.barrier(names[2], 3).wait()
        done[2] += 1

    async def on_and_on(work: Callable[..., Awaitable[None]], *args: Any) -> None:
        while True:
            await work(*args)

    works = [
        *(on_and_on(lock, client, kind) for client in clients for kind in (0, 0, 1, 1, 1)),
        *(on_and_on(meet, client) for client in clients),
    ]
    tasks = [asyncio.create_task(work) for work in works]

    async def more() -> None:
        before = list(done)
        await settled(
            lambda: all(a >= b + 20 for a, b in zip(done, before, strict=True)),
            lambda: f"all go on: {before}, {done}",
            3 * SLOW,
        )

    await more()
    node.kill()
    await more()
    for task in tasks:
        assert not task.done(), task
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_other_nodes_serve_on_while_one_is_dead(mortal: Broken) -> None:
    for each in mortal.cluster.nodes:
        each.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    dead, alive = mortal.cluster.nodes[:2]
    client = mortal.client(outage_timeout=3.0)
    lost = client.lock(name_at(mortal, "lock", dead))
    kept = client.lock(name_at(mortal, "lock", alive))
    for lock in (lost, kept):
        async with lock:
            pass
    mortal.cluster.replica_of(dead).kill()
    dead.kill()
    with pytest.raises(dsync.StoreUnavailable, match=str(dead.port)):
        async with asyncio.timeout(SLOW):
            await lost.acquire()
    began = time.monotonic()
    async with kept:
        pass
    assert time.monotonic() - began < 2


async def test_a_node_that_stands_still_is_given_up_for_its_replica(mortal: Broken) -> None:
    node = mortal.cluster.nodes[1]
    name = name_at(mortal, "event", node)
    one, other = (mortal.client(outage_timeout=12.0) for _ in range(2))  # no answer for 4 s: dead
    await one.event(name).clear()
    awaited = other.event(name)
    waiting = asyncio.create_task(awaited.wait())
    await settled(lambda: any(each.noted is not None for each in awaited._flag.waiters))
    node.freeze()
    try:
        await asyncio.wait_for(one.event(name).set(), SLOW * 2)
        await asyncio.wait_for(waiting, SLOW)
    finally:
        node.thaw()


async def test_a_lease_that_nobody_could_renew_is_reported_lost(mortal: Broken) -> None:
    node = mortal.cluster.nodes[2]
    lock = mortal.client(outage_timeout=2.0).lock(name_at(mortal, "lock", node), lease=3.0)
    with pytest.raises(dsync.LeaseLost):
        async with lock:
            mortal.cluster.replica_of(node).kill()
            node.kill()
            await asyncio.sleep(60)


async def test_a_bus_goes_on_at_the_replica_and_tells_what_is_missed(mortal: Broken) -> None:
    node = mortal.cluster.owner(slot_of(mortal, "bus", "default"))
    publisher = mortal.client(outage_timeout=30.0).event_bus()
    got: list[int] = []
    gaps: list[object] = []
    listening = mortal.client().event_bus().on("n", got.append, on_gap=gaps.append)
    await listening
    await publisher.trigger("n", 1)
    await settled(lambda: got == [1])
    assert node.ask("WAIT", 1, 5000) == 1
    node.kill()
    await asyncio.wait_for(publisher.trigger("n", 2), SLOW)
    # It was published before the listener had found the replica, or after.
    await settled(lambda: got == [1, 2] or bool(gaps), "it is heard, or known to be missed", SLOW)
    await publisher.trigger("n", 3)
    await settled(lambda: got[-1] == 3, "it listens again", SLOW)
    listening.cancel()
