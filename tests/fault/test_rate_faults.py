"""Rate limiters when processes die or stand still, and the server forgets or is out of reach.

Uses are stamped when `acquire()` has returned, so a stamp is as late as its process was: the loop,
and the machine.  Counted from before the first call that can only make it fewer, so there the limit
is exact.  In any other window it may look like more, by the rate times the lateness, which workers
measure; a tenth of a second is granted on top, for what stands still without the loop knowing.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dsync
from dsync.beat import BEAT
from dsync.redis.script import SCRIPTS
from dsync.testing import Proxy
from tests.conftest import World, settled
from tests.fault.conftest import OwnServer, Through
from tests.fault.rate_worker import Fleet, fullest

RATE, BURST = 1000, 100
LONG = 1000.0  # seconds
SLACK = 0.1  # seconds
TAKE, RETURN = (SCRIPTS[f"rate_{name}"].sha.encode() for name in ("take", "return"))


@pytest.fixture
async def loaded(real: World) -> None:
    """Every script is there, so the first request is the one that counts."""
    for script in SCRIPTS.values():
        await real.admin.script_load(script.text)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as made:
        yield made


def admitted(uses: list[float], seconds: float) -> int:
    """How many in so many seconds from the first one on."""
    return sum(at < uses[0] + seconds for at in uses)


def never_more(uses: list[float], begin: float, rate: float, burst: float, late: float) -> None:
    for number, at in enumerate(uses):
        assert number + 1 <= rate * (at - begin) + burst, "from the beginning on"
    most = fullest(uses, rate)
    assert most <= burst + rate * (late + SLACK), f"{most:.0f} in a window; late {late:.3f} s"


# -- accuracy -------------------------------------------------------------------------------------


async def test_four_processes_use_what_the_rate_allows_and_never_more(
    real: World, fleet: Fleet
) -> None:
    begin = time.monotonic() + 1.5
    for _ in range(4):
        fleet.spawn(real.url, real.namespace, begin=begin, end=begin + 5.3)
    late = await fleet.done()
    uses = fleet.uses()
    never_more(uses, begin, RATE, BURST, late)
    count = admitted(uses, 5)
    print(f"{count} of {RATE * 5 + BURST}; fullest {fullest(uses, RATE):.0f}; late {late:.3f} s")
    # Clocks of processes differ by what their machine holds them up.
    assert 0.99 * (RATE * 5 + BURST) <= count <= RATE * (5 + late) + BURST


async def test_never_more_when_a_process_is_killed_and_the_others_use_what_is_left(
    real: World, fleet: Fleet
) -> None:
    begin = time.monotonic() + 1.5
    for _ in range(4):
        fleet.spawn(real.url, real.namespace, begin=begin, end=begin + 5.3)
    await asyncio.sleep(begin + 2 - time.monotonic())
    fleet.all[0].process.kill()
    late = await fleet.done()
    uses = fleet.uses()
    never_more(uses, begin, RATE, BURST, late)
    count = admitted(uses, 5)
    print(f"{count} of {RATE * 5 + BURST}; late {late:.3f} s")
    # It had reserved a unit for each of its eight tasks.
    assert count >= 0.98 * (RATE * 5 + BURST) - 8


async def test_a_queue_killed_with_its_process_costs_its_time_and_nothing_more(
    real: World, fleet: Fleet
) -> None:
    """Nobody can tell a process that died from one that waits; nobody overtakes it either."""
    begin = time.monotonic() + 1.0
    fleet.spawn(real.url, real.namespace, tasks=300, rate=200, burst=1, begin=begin, end=begin + 4)
    other = real.client().rate_limiter("x", 200, burst=1)
    await settled(lambda: len(fleet.uses()) > 20)
    fleet.all[0].process.kill()
    fleet.all[0].process.wait()
    info = await other.info()
    assert 200 < info.reserved <= 301
    await asyncio.wait_for(other.acquire(), info.wait + 0.5)
    assert (await other.info()).reserved <= 1


# -- a server that forgets ------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [8, 300], ids=["few wait", "a long queue"])
@pytest.mark.parametrize("how", ["restart", "flush"])
async def test_a_server_that_forgets_gives_one_burst_more_at_most(
    own_server: OwnServer, fleet: Fleet, how: str, tasks: int
) -> None:
    """Who waits reserves anew: what it had reserved does not come on top.

    But for what is due before its process hears of it: with its next answer, where none was cut.
    """
    rate, burst = 400, 40
    unheard = rate * SLACK if how == "flush" else 0
    begin = time.monotonic() + 1.5
    for _ in range(3):
        fleet.spawn(
            own_server.url,
            own_server.namespace,
            rate=rate,
            burst=burst,
            tasks=tasks,
            begin=begin,
            end=begin + 4,
        )
    await asyncio.sleep(begin + 1.5 - time.monotonic())
    if how == "restart":
        await asyncio.to_thread(own_server.restart)
    else:
        await own_server.admin.flushall()
    late = await fleet.done()
    uses = fleet.uses()
    print(f"fullest {fullest(uses, rate):.0f}, late {late:.3f} s")
    never_more(uses, begin, rate, 2 * burst + unheard, late)


async def test_a_queue_that_only_waits_learns_that_the_server_forgot(
    own_server: OwnServer, fleet: Fleet
) -> None:
    """It has nothing to ask for, so it looks, once in a beat; those of another process do ask."""
    own_server.leftovers_allowed = True
    rate, burst = 100, 10
    one, two = (own_server.client().rate_limiter("x", rate, burst=burst) for _ in range(2))
    uses: list[float] = []

    async def use(limiter: dsync.RateLimiter) -> None:
        await limiter.acquire()
        uses.append(time.monotonic())

    await two.info()
    tasks = [asyncio.create_task(use(one)) for _ in range(500)]
    await settled(lambda: len(uses) > 20)
    await own_server.admin.flushall()
    tasks += [asyncio.create_task(use(two)) for _ in range(500)]
    await asyncio.wait_for(asyncio.gather(*tasks), 15)
    assert fullest(uses, rate) <= 2 * burst + rate * (BEAT + SLACK)


async def test_waiters_reserve_anew_when_the_server_comes_back_empty(
    own_server: OwnServer,
) -> None:
    client = own_server.client()
    limiter = client.rate_limiter("x", 100, burst=1)
    uses: list[float] = []

    async def use() -> None:
        await limiter.acquire()
        uses.append(time.monotonic())

    tasks = [asyncio.create_task(use()) for _ in range(150)]
    await settled(lambda: len(uses) > 20)
    await asyncio.to_thread(own_server.restart)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert fullest(uses, 100) <= 2 + 100 * SLACK
    assert (await limiter.info()).reserved == 0
    assert not client.homes


# -- processes that stand still -------------------------------------------------------------------


async def test_a_stopped_process_does_not_use_what_is_late_in_a_clump(
    real: World, fleet: Fleet
) -> None:
    rate, burst = 200, 1
    begin = time.monotonic() + 1.0
    stopped = fleet.spawn(
        real.url, real.namespace, rate=rate, burst=burst, tasks=1000, begin=begin, end=begin + 8
    )
    await settled(lambda: len(stopped.uses()) > 50)
    os.kill(stopped.process.pid, signal.SIGSTOP)
    before = len(stopped.uses())
    await asyncio.sleep(3)
    assert len(stopped.uses()) == before
    os.kill(stopped.process.pid, signal.SIGCONT)
    await fleet.done()
    uses = fleet.uses()
    print(f"fullest {fullest(uses, rate):.0f}")
    assert fullest(uses, rate) <= 2 * burst + rate * SLACK


@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.5])
async def test_a_blocked_loop_does_not_use_what_is_late_in_a_clump(
    real: World, seconds: float
) -> None:
    limiter = real.client().rate_limiter("x", 200, burst=1)
    uses: list[float] = []

    async def use() -> None:
        await limiter.acquire()
        uses.append(time.monotonic())

    tasks = [asyncio.create_task(use()) for _ in range(400)]
    await settled(lambda: len(uses) > 20)
    time.sleep(seconds)
    await asyncio.gather(*tasks)
    assert fullest(uses, 200) <= 2 + 200 * SLACK


# -- a link that breaks ---------------------------------------------------------------------------


async def test_never_more_while_connections_are_killed_again_and_again(
    own_server: OwnServer, fleet: Fleet
) -> None:
    begin = time.monotonic() + 1.5
    for _ in range(4):
        fleet.spawn(own_server.url, own_server.namespace, begin=begin, end=begin + 4)
    while time.monotonic() < begin + 4:
        await asyncio.sleep(0.2)
        await own_server.admin.client_kill_filter(_type="normal", skipme=True)
    late = await fleet.done()
    uses = fleet.uses()
    count = admitted(uses, 4)
    print(f"{count} of {4 * RATE + BURST}; fullest {fullest(uses, RATE):.0f}; late {late:.3f} s")
    never_more(uses, begin, RATE, BURST, late)
    # Between a connection and the next nobody is served.
    assert count >= 0.5 * (4 * RATE + BURST)


async def test_never_more_after_an_outage_and_all_goes_on(
    real: World, proxy: Proxy, fleet: Fleet
) -> None:
    begin = time.monotonic() + 1.5
    for _ in range(2):
        fleet.spawn(proxy.url, real.namespace, begin=begin, end=begin + 4)
    await asyncio.sleep(begin + 1 - time.monotonic())
    proxy.black_hole()
    await asyncio.sleep(1)
    proxy.heal()
    late = await fleet.done()
    uses = fleet.uses()
    print(f"{len(uses)}; fullest {fullest(uses, RATE):.0f}; late {late:.3f} s")
    # Answers that were held back are used when they come, at most one for each task.
    never_more(uses, begin, RATE, BURST + 16, late)
    assert [at for at in uses if at > begin + 2.5], "it goes on"


@pytest.mark.parametrize("kind", ["acquire", "try_acquire"])
async def test_a_lost_reply_takes_nothing_twice(
    loaded: None, real: World, proxy: Proxy, through: Through, kind: str
) -> None:
    client = through()
    limiter = client.rate_limiter("x", 1, per=LONG, burst=10)
    await client.check()
    cut = proxy.swallow_replies_then_cut(TAKE)
    assert await getattr(limiter, kind)()
    assert cut.done()
    assert (await limiter.info()).remaining == 9


async def test_lost_replies_of_many_take_nothing_twice(
    loaded: None, real: World, proxy: Proxy, through: Through
) -> None:
    client = through()
    limiter = client.rate_limiter("x", 1, per=LONG, burst=100)
    await client.check()
    cut = proxy.swallow_replies_then_cut(TAKE)
    assert await asyncio.gather(*(limiter.acquire() for _ in range(8))) == [True] * 8
    assert cut.done()
    assert (await limiter.info()).remaining == 92


async def test_a_hand_back_whose_reply_was_lost_gives_back_once(
    loaded: None, real: World, proxy: Proxy, through: Through
) -> None:
    client, other = through(), real.client().rate_limiter("x", 1, per=LONG, burst=1)
    limiter = client.rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(3)]

    async def reserved(count: int) -> None:
        async def are() -> bool:
            return (await other.info()).reserved == count

        await settled(are, f"{count} reserved")

    await reserved(3)
    cut = proxy.swallow_replies_then_cut(RETURN)
    tasks[2].cancel()
    await cut
    await client.check()
    await reserved(2)
    for task in tasks:
        task.cancel()
    await reserved(0)


async def test_nobody_is_served_before_the_store_is_heard_of_again(
    real: World, proxy: Proxy, through: Through
) -> None:
    """While there is no connection the store may have lost its data."""
    limiter = through(outage_timeout=5).rate_limiter("x", 20, burst=1)
    await limiter.acquire()
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(3)]

    async def reserved() -> bool:
        return (await limiter.info()).reserved == 3

    await settled(reserved)
    proxy.refusing = True
    proxy.cut()
    link: Any = limiter._quota.client.store
    await settled(lambda: not link.connected)
    done = sum(task.done() for task in tasks)
    await asyncio.sleep(0.3)
    assert sum(task.done() for task in tasks) == done
    proxy.heal()
    await asyncio.wait_for(asyncio.gather(*tasks), 3)


async def test_an_outage_that_is_too_long_fails_who_waits(
    real: World, proxy: Proxy, through: Through
) -> None:
    client = through(outage_timeout=0.5)
    limiter = client.rate_limiter("x", 1, per=LONG, burst=1)
    await limiter.acquire()
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    proxy.refusing = True
    proxy.cut()
    for outcome in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5):
        assert isinstance(outcome, dsync.StoreUnavailable)
    proxy.heal()
    await settled(lambda: not client.homes)


# -- who is newer ---------------------------------------------------------------------------------


async def test_a_process_that_hears_late_of_its_birth_does_not_pass_for_a_newer_one(
    loaded: None, real: World, proxy: Proxy, through: Through
) -> None:
    """It declared before it knew when it was born, and another was made while its answer came."""
    proxy.delay = 0.15
    old = through().rate_limiter("x", 1, per=LONG, burst=10)
    task = asyncio.create_task(old.acquire())
    key = real.key("rate", "x", "state")

    async def declared() -> bool:
        return bool(await real.admin.exists(key))

    await settled(declared)
    new = real.client().rate_limiter("x", 2, per=LONG, burst=20)
    await new.acquire()
    assert not task.done()
    await task
    await old.acquire()
    assert (await new.info()).burst == 20
