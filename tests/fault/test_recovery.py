"""How soon everybody is back after a fault, each client standing for a process of its own.

The bounds are those of the guarantees, and a machine that does other things may miss them by a
part: what is beyond SLACK times the bound is a defect, such as a heartbeat that has to be waited
for.  `make chaos` measures what a machine does.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import dsync
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer, Through

CUT = 3.0  # seconds
SLACK = 2
Round = Callable[[], Awaitable[object]]
Record = Callable[[str, object], None]


async def take_turns(condition: dsync.Condition) -> None:
    """One round of two that wake each other."""
    async with condition:
        condition.notify()
        with suppress(dsync.WaitTimeout):
            await condition.wait(0.1)


async def pulse(event: dsync.Event) -> None:
    event.set()
    await event.clear()


async def enter(thing: dsync.Lock | dsync.Semaphore | dsync.RateLimiter | dsync.Election) -> None:
    async with thing:
        pass


class Crew:
    """Two clients at work with everything there is, over and over.

    `back` says, of each of them at each kind of work, when it has succeeded last.
    """

    def __init__(self, one: dsync.Client, other: dsync.Client) -> None:
        self.back: dict[str, float] = {}
        self._rounds: dict[str, Round] = {}
        for who, client in (("one", one), ("other", other)):
            condition = client.condition("x")
            barrier = client.barrier("x", 2)
            self._rounds[f"{who}: condition"] = partial(take_turns, condition)
            self._rounds[f"{who}: barrier"] = barrier.wait
            for thing in (
                client.lock("x"),
                client.semaphore("x", 1),
                client.rate_limiter("x", 200),
                client.leader("x", sigterm=False),
            ):
                kind = type(thing).__name__
                self._rounds[f"{who}: {kind}"] = partial(enter, thing)
        self._rounds["one: event"] = one.event("x").wait
        self._rounds["other: event"] = partial(pulse, other.event("x"))
        self._bus = one.event_bus("x")
        self._rounds["other: bus"] = partial(other.event_bus("x").trigger, "x")

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async with self._bus.subscribe() as messages:
            rounds = {**self._rounds, "one: bus": messages.__anext__}
            tasks = [asyncio.create_task(self._work(*each)) for each in rounds.items()]
            try:
                await settled(lambda: self.back.keys() == rounds.keys(), "everybody is at work")
                yield
            finally:
                for task in tasks:
                    task.cancel()
                failed = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [each for each in failed if not isinstance(each, asyncio.CancelledError)]

    async def _work(self, name: str, one_round: Round) -> None:
        while True:
            with suppress(dsync.LeaseLost):  # of a server that has forgotten
                await one_round()
                self.back[name] = time.monotonic()
            await asyncio.sleep(0.03)

    async def everybody(self, since: float, within: float) -> float:
        """-> how long after that the last of them has succeeded, seconds"""
        first: dict[str, float] = {}

        def all_are() -> bool:
            for name, at in self.back.items():
                if at > since:
                    first.setdefault(name, at - since)
            return first.keys() == self.back.keys()

        await settled(
            all_are, lambda: f"everybody is back but {self.back.keys() - first.keys()}", within
        )
        return max(first.values())


async def test_after_a_cut_of_3_s_everybody_is_back_within_a_second(
    proxy: Proxy, through: Through, record_property: Record
) -> None:
    crew = Crew(through(), through())
    async with crew.at_work():
        proxy.refusing = True
        proxy.cut()
        await asyncio.sleep(CUT)
        proxy.heal()
        record_property("back", await crew.everybody(time.monotonic(), 1.0 * SLACK))


async def test_after_a_restart_of_the_server_everybody_is_back_within_a_second_and_a_half(
    own_server: OwnServer, record_property: Record
) -> None:
    """It comes back empty: who held has lost it, and all begin anew."""
    crew = Crew(own_server.client(), own_server.client())
    async with crew.at_work():
        await own_server.admin.connection_pool.disconnect()
        await asyncio.to_thread(own_server.restart)
        record_property("back", await crew.everybody(time.monotonic(), 1.5 * SLACK))


async def test_a_cut_takes_nothing_as_long_as_a_third_of_the_lease_and_the_margin_are_left(
    proxy: Proxy, through: Through, real: World
) -> None:
    """It begins when the leases are about to be renewed: then the least is left of them."""
    lease = 4.5  # of which at most 0.34 are gone before a renewal, and 0.5 s are kept back
    client = through()
    lock, semaphore = client.lock("x", lease=lease), client.semaphore("x", 2, lease=lease)
    election = client.leader("x", lease=lease, sigterm=False)
    async with lock as one, semaphore as two, election as three:
        leases = [one, two, three]
        gone = client.keeper._share * lease
        await asyncio.sleep(gone - 0.1)
        left = min(its.left for its in leases)
        assert lease / 2 - 0.5 < left < 0.8 * lease - 0.5  # nothing has been renewed
        proxy.refusing = True
        proxy.cut()
        await asyncio.sleep(left - 1.2)  # to dial again takes 0.4 s at most
        proxy.heal()
        await settled(lambda: all(its.left > left for its in leases), "all are renewed", 2)
        assert not any(its.lost.is_set() for its in leases)


# -- what the dead leave in the queue --------------------------------------------------------------

LEASE = 1.0  # seconds


async def die(proxy: Proxy) -> float:
    """The clients behind the proxy are gone, as the server sees it; -> when."""
    proxy.refusing = True
    proxy.cut()
    return time.monotonic()


async def test_the_places_of_a_dead_holder_in_the_queue_delay_nobody_behind_them(
    real: World, proxy: Proxy, through: Through, queued: Any
) -> None:
    """One process may hold and wait: its lease ends once, and not once for each of its tasks."""
    real.leftovers_allowed = True
    dead, living = through().lock("x", lease=LEASE, fair=True), real.client().lock("x")
    await dead.acquire()
    also = asyncio.create_task(dead.acquire())
    await queued(1)
    waiting = asyncio.create_task(living.acquire())
    await queued(2)
    died = await die(proxy)
    await asyncio.wait_for(waiting, 4 * LEASE)
    assert time.monotonic() - died < LEASE + 0.5
    await living.release()
    also.cancel()


async def test_dead_waiters_cost_one_claim_together(
    real: World, proxy: Proxy, through: Through, queued: Any
) -> None:
    claim = 2.0  # seconds, when those who have been silent for so long are not listening
    real.leftovers_allowed = True
    first, living = real.client().lock("x"), real.client().lock("x")
    await first.acquire()
    dead = [asyncio.create_task(through().lock("x", lease=claim).acquire()) for _ in range(4)]
    await queued(4)
    waiting = asyncio.create_task(living.acquire())
    await queued(5)
    died = await die(proxy)
    await first.release()
    await asyncio.wait_for(waiting, 4 * claim)
    assert time.monotonic() - died < claim + 0.7
    await living.release()
    for each in dead:
        each.cancel()


# -- what a server that has forgotten everything means for many ------------------------------------


async def test_a_holder_hears_of_its_loss_before_a_task_beside_it_gets_the_lock(
    real: World,
) -> None:
    """Holders are asked for in slices; those whom somebody here waits for come first."""
    real.leftovers_allowed = True
    client = real.client()
    for number in range(300):
        await client.lock(f"x{number}").acquire()
    first, second = client.lock("last"), client.lock("last", fair=True)
    await first.acquire()
    lease = first.lease
    assert lease is not None
    held_by_both: list[bool] = []

    async def wait() -> None:
        async with second:
            held_by_both.append(lease.held)

    waiting = asyncio.create_task(wait())

    async def queued() -> bool:
        return len((await first.info()).waiters) == 1

    await settled(queued)
    for hold in client.keeper.holds():
        client.keeper._renew_slice([hold])  # the server knows the script
    await client.store.drain()
    async with real.admin.pipeline(transaction=True) as pipe:
        for key in await real.keys():
            pipe.delete(key)
        pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await pipe.execute()
    async with asyncio.timeout(8):
        await waiting
    assert held_by_both == [False]
