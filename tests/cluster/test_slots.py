"""Slots that go to another node while somebody works in them."""

import asyncio

from redis.crc import key_slot

import dsync
from dsync.names import tag
from tests.cluster.conftest import Broken
from tests.conftest import settled


def slot_of(world: Broken, kind: str, name: str) -> int:
    return key_slot(tag(world.namespace, kind, name).encode())


class Crew:
    """Tasks of several clients that take one lock again and again, and what they saw."""

    def __init__(self, locks: list[dsync.Lock], tasks: int) -> None:
        self.fences: list[int] = []
        self.inside = 0
        self._tasks = [
            asyncio.create_task(self._work(lock)) for lock in locks for _ in range(tasks)
        ]

    async def _work(self, lock: dsync.Lock) -> None:
        while True:
            async with lock as lease:
                assert self.inside == 0, "two hold it at once"
                self.inside += 1
                assert lease.fence is not None
                self.fences.append(lease.fence)
                await asyncio.sleep(0)
                self.inside -= 1

    async def more(self, cycles: int = 100) -> None:
        """Return when so many more have been done."""
        wanted = len(self.fences) + cycles
        await settled(lambda: len(self.fences) >= wanted or bool(self.failed()), "they go on", 20)
        assert not self.failed()

    def failed(self) -> list[BaseException | None]:
        return [task.exception() for task in self._tasks if task.done()]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome
        assert self.fences == sorted(set(self.fences)), "fences that do not grow"


async def test_a_lock_whose_slot_moves_under_load_is_held_by_one_at_a_time(whole: Broken) -> None:
    slot = slot_of(whole, "lock", "x")
    crew = Crew([whole.client().lock("x") for _ in range(3)], tasks=3)
    await crew.more()
    for keys_at_once in (1, 10, 10):
        await asyncio.to_thread(whole.cluster.move, slot, keys_at_once)
        await crew.more()
    await crew.end()


async def test_who_waits_hears_at_once_of_a_grant_by_the_node_that_serves_the_slot_now(
    whole: Broken,
) -> None:
    holder, waiter = whole.client().lock("x"), whole.client().lock("x")
    await holder.acquire()
    waiting = asyncio.create_task(waiter.acquire())
    await settled(lambda: waiter._cohort.waiting() == 1 and holder._cohort._contended is not None)
    there = await asyncio.to_thread(whole.cluster.move, slot_of(whole, "lock", "x"))
    channel = tag(whole.namespace, "lock", "x") + ":c:" + waiter._cohort.client.client_id
    await settled(lambda: there.ask("PUBSUB", "SHARDNUMSUB", channel)[1] == 1, "it listens there")
    began = asyncio.get_running_loop().time()
    await holder.release()
    await waiting
    assert asyncio.get_running_loop().time() - began < 1, "it was told, not asked"
    await waiter.release()


async def test_a_bus_whose_slot_moves_delivers_or_says_what_it_has_missed(whole: Broken) -> None:
    publisher, listener = whole.client().event_bus(), whole.client().event_bus()
    got: list[int] = []
    missed: list[int | None] = []
    listening = listener.on("n", got.append, on_gap=lambda gap: missed.append(gap.missed))
    await listening
    slot = slot_of(whole, "bus", "default")
    sent = 0
    for _ in range(3):
        moving = asyncio.create_task(asyncio.to_thread(whole.cluster.move, slot))
        while not moving.done():
            await publisher.trigger("n", sent)
            sent += 1
        await moving
    await publisher.trigger("n", sent)
    await settled(lambda: bool(got) and got[-1] == sent, "the last one comes")
    assert got == sorted(set(got))
    assert None not in missed
    assert len(got) + sum(each or 0 for each in missed) == sent + 1
    listening.cancel()


async def test_everything_works_where_the_slot_has_moved_to(whole: Broken) -> None:
    one, other = whole.client(), whole.client()
    limiter, event = one.rate_limiter("r", 100), one.event("e")
    semaphore, barrier = one.semaphore("s", 2), one.barrier("b", 2)
    await limiter.acquire()
    await event.set()
    await semaphore.acquire()
    for kind, name in (("rate", "r"), ("event", "e"), ("semaphore", "s"), ("barrier", "b")):
        await asyncio.to_thread(whole.cluster.move, slot_of(whole, kind, name))
    waiting = asyncio.create_task(barrier.wait())
    await asyncio.gather(waiting, other.barrier("b", 2).wait())
    await limiter.acquire()
    assert await other.event("e").is_set()
    other_semaphore = other.semaphore("s", 2)
    await other_semaphore.acquire()
    assert await one.semaphore("s", 2).locked()
    await other_semaphore.release()
    await semaphore.release()
    await event.clear()
