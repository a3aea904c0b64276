"""What a Barrier promises, on every store."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

import dsync
from dsync.barrier import BarrierInfo
from dsync.store import Call
from tests.conftest import World, settled
from tests.contract.test_cancellation import at_every_step

Task = asyncio.Task[int]


def waits(barrier: dsync.Barrier, count: int = 1) -> list[Task]:
    return [asyncio.create_task(barrier.wait()) for _ in range(count)]


async def waiting(barrier: dsync.Barrier, count: int) -> None:
    """Wait until so many wait in the store."""

    async def there() -> bool:
        return (await barrier.info()).waiting == count

    await settled(there, f"{count} wait at {barrier!r}")


async def drained(barrier: dsync.Barrier) -> None:
    async def over() -> bool:
        return (await barrier.info()).state != "draining"

    await settled(over, f"nobody drains at {barrier!r}")


async def dropped(tasks: list[Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def silent(barrier: dsync.Barrier) -> None:
    """From now on this process gives no sign of life."""
    barrier._arrivals._beat.stop()
    barrier._arrivals._beat.start = lambda ms=0: None  # type: ignore[method-assign]


# -- passing --------------------------------------------------------------------------------------


async def test_the_parties_of_all_processes_pass_together_each_with_an_index_of_its_own(
    world: World,
) -> None:
    barriers = [world.client().barrier("x", 6) for _ in range(3)]
    tasks = [task for barrier in barriers for task in waits(barrier, 2)]
    indices = await asyncio.gather(*tasks)
    assert sorted(indices) == list(range(6))
    assert all(barrier.n_waiting == 0 and not barrier.broken for barrier in barriers)


async def test_nobody_passes_before_the_last_has_come(world: World) -> None:
    first, last = world.client().barrier("x", 4), world.client().barrier("x", 4)
    tasks = waits(first, 3)
    await waiting(last, 3)
    await last.info()
    assert not any(task.done() for task in tasks)
    assert await last.wait() == 3
    assert sorted(await asyncio.gather(*tasks)) == [0, 1, 2]


async def test_the_index_is_the_order_of_arrival_over_all_processes(world: World) -> None:
    barriers = [world.client().barrier("x", 6) for _ in range(3)]
    tasks: list[Task] = []
    for i in range(5):
        tasks += waits(barriers[i % 3])
        await waiting(barriers[0], i + 1)
    assert await barriers[2].wait() == 5
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]


async def test_async_with_waits_and_gives_the_index(world: World) -> None:
    one, two = world.client().barrier("x", 2), world.client().barrier("x", 2)
    indices: list[int] = []

    async def work(barrier: dsync.Barrier) -> None:
        async with barrier as index:
            indices.append(index)

    await asyncio.gather(work(one), work(two))
    assert sorted(indices) == [0, 1]


async def test_one_party_alone_passes_again_and_again(world: World) -> None:
    barrier = world.client().barrier("x", 1)
    for _ in range(5):
        assert await barrier.wait(timeout=5) == 0
    assert await asyncio.gather(*waits(barrier, 5)) == [0] * 5
    assert (await barrier.info()).generation == 10
    assert barrier.n_waiting == 0


async def test_who_is_too_many_waits_for_the_next_time(world: World) -> None:
    one, two = world.client().barrier("x", 3), world.client().barrier("x", 3)
    tasks = waits(one, 4) + waits(two, 3)
    await settled(lambda: sum(task.done() for task in tasks) == 6)
    await drained(one)
    assert Counter(task.result() for task in tasks if task.done()) == {0: 2, 1: 2, 2: 2}
    info = await two.info()
    assert (info.waiting, info.generation) == (1, 2)
    await asyncio.gather(*waits(two, 2), *tasks)


async def test_nobody_passes_for_the_next_time_before_all_have_passed_for_the_last(
    world: World,
) -> None:
    """Cyclic use: six tasks of three processes, each comes back at once."""
    parties, rounds = 6, 30
    passed = [0] * parties
    indices: list[list[int]] = [[] for _ in range(rounds)]

    async def work(number: int, barrier: dsync.Barrier) -> None:
        for turn in range(rounds):
            if random.random() < 0.2:
                await asyncio.sleep(0)
            indices[turn].append(await barrier.wait())
            passed[number] = turn + 1
            assert min(passed) >= turn, "somebody has not passed the last time"

    barriers = [world.client().barrier("x", parties) for _ in range(3)]
    await asyncio.gather(*(work(i, barriers[i % 3]) for i in range(parties)))
    assert all(sorted(turn) == list(range(parties)) for turn in indices)
    assert (await barriers[0].info()).generation == rounds


async def test_the_next_generation_waits_until_every_task_of_the_last_one_has_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = world.client().barrier("x", 2), world.client().barrier("x", 2)
    held: list[Any] = []
    leave = slow._arrivals._leave
    monkeypatch.setattr(slow._arrivals, "_leave", held.append)
    first = waits(slow)
    await waiting(fast, 1)
    assert await fast.wait() == 1
    assert await first[0] == 0
    tasks = waits(fast, 2)
    await waiting(fast, 2)
    info = await fast.info()
    assert (info.state, info.generation) == ("draining", 1)
    assert not any(task.done() for task in tasks)
    monkeypatch.undo()
    leave(held[0])
    assert sorted(await asyncio.gather(*tasks)) == [0, 1]


async def test_objects_of_one_name_are_one_barrier_and_names_are_apart(world: World) -> None:
    client = world.client()
    tasks = waits(client.barrier("x", 2)) + waits(client.barrier("y", 2))
    await waiting(client.barrier("x", 2), 1)
    assert await client.barrier("x", 2).wait() == 1
    assert not tasks[1].done()
    assert await client.barrier("y", 2).wait() == 1
    await asyncio.gather(*tasks)


async def test_many_barriers_of_one_process_do_not_meet(world: World) -> None:
    one, two = world.client(), world.client()
    tasks = [
        task for i in range(20) for c in (one, two) for task in waits(c.barrier(f"b{i}", 2))
    ]  # fmt: skip
    assert Counter(await asyncio.gather(*tasks)) == {0: 20, 1: 20}


# -- leaving --------------------------------------------------------------------------------------


async def test_a_cancelled_party_leaves_and_another_takes_its_place(world: World) -> None:
    one, two = world.client().barrier("x", 3), world.client().barrier("x", 3)
    tasks = waits(one, 2)
    await waiting(two, 2)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await waiting(two, 1)
    assert one.n_waiting == 1
    others = waits(two, 2)
    assert [await tasks[1], *sorted(await asyncio.gather(*others))] == [0, 1, 2]


async def test_a_party_cancelled_just_when_it_passes_is_cancelled_and_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.client().barrier("x", 2), world.client().barrier("x", 2)
    (task,) = waits(one)
    await waiting(two, 1)
    heard = one._arrivals.heard

    def heard_and_cancelled(*message: Any) -> None:
        heard(*message)
        task.cancel()

    monkeypatch.setattr(one._arrivals, "heard", heard_and_cancelled)
    assert await two.wait() == 1
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(2):  # below the time after which it would be taken for dead
        await asyncio.gather(*waits(two, 2))


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_a_timeout_raises_leaves_and_breaks_nothing(world: World, timeout: float) -> None:
    one, two = world.client().barrier("x", 3), world.client().barrier("x", 3)
    tasks = waits(two)
    await waiting(two, 1)
    with pytest.raises(TimeoutError, match=r"barrier 'x': 2 of 3 parties had come") as raised:
        await one.wait(timeout=timeout)
    assert isinstance(raised.value, dsync.errors.WaitTimeout)
    await waiting(two, 1)
    assert not one.broken
    await asyncio.gather(*tasks, *waits(one, 2))


async def test_asking_once_is_enough_for_the_last_one(world: World) -> None:
    one, two = world.client().barrier("x", 2), world.client().barrier("x", 2)
    tasks = waits(one)
    await waiting(two, 1)
    assert await two.wait(timeout=0) == 1
    await asyncio.gather(*tasks)


async def test_asyncio_timeout_works_as_everywhere(world: World) -> None:
    barrier = world.client().barrier("x", 2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await barrier.wait()
    await waiting(barrier, 0)


@pytest.mark.parametrize("late", [False, True], ids=["before", "just after"])
async def test_cancelled_at_any_step_nothing_stays_behind(world: World, late: bool) -> None:
    barrier, probe = world.client().barrier("x", 2), world.client().barrier("x", 2)

    async def come_and_go() -> None:
        async with asyncio.timeout(0.02):
            await barrier.wait()

    async def nothing() -> None:
        await waiting(probe, 0)
        assert not barrier._arrivals.parties
        assert not barrier._arrivals.client.homes

    async def use() -> None:
        try:
            await come_and_go()
        except TimeoutError:
            pass

    assert await at_every_step(use, nothing, late) >= 1


async def test_a_storm_of_cancellations_leaves_a_barrier_that_works(world: World) -> None:
    rng = random.Random(7)
    barriers = [world.client().barrier("x", 5) for _ in range(3)]
    passed = 0

    async def work(barrier: dsync.Barrier) -> None:
        nonlocal passed
        try:
            await barrier.wait(timeout=rng.choice((None, 0, 0.001, 0.01)))
            passed += 1
        except TimeoutError:
            pass

    tasks: list[asyncio.Task[None]] = []
    for _ in range(40):
        tasks += [asyncio.create_task(work(rng.choice(barriers))) for _ in range(5)]
        await asyncio.sleep(rng.choice((0, 0, 0.001)))
        for task in rng.sample(tasks, min(6, len(tasks))):
            task.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await waiting(barriers[0], 0)
    await drained(barriers[0])
    generation = (await barriers[0].info()).generation
    async with asyncio.timeout(5):
        indices = await asyncio.gather(*waits(barriers[0], 2), *waits(barriers[1], 3))
    assert sorted(indices) == list(range(5))
    info = await barriers[2].info()
    assert info.generation == generation + 1
    assert passed <= 5 * generation, "more have passed than its trips let pass"


async def test_closing_a_client_fails_who_waits_and_they_leave(world: World) -> None:
    one, two = world.client(), world.client().barrier("x", 3)
    tasks = waits(one.barrier("x", 3), 2)
    await waiting(two, 2)
    await one.aclose()
    for task in tasks:
        with pytest.raises(dsync.ClientClosed, match="barrier 'x': the client was closed"):
            await task
    await waiting(two, 0)
    with pytest.raises(dsync.ClientClosed):
        await one.barrier("x", 3).wait()
    with pytest.raises(dsync.ClientClosed):
        one.barrier("x", 3).reset()


async def test_a_client_that_is_closed_before_its_party_has_run_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.client().barrier("x", 2), world.client().barrier("x", 2)
    (task,) = waits(one)
    await waiting(two, 1)
    heard = one._arrivals.heard

    def heard_and_closed(*message: Any) -> None:
        heard(*message)
        one._arrivals.close()

    monkeypatch.setattr(one._arrivals, "heard", heard_and_closed)
    assert await two.wait() == 1
    assert await task == 0
    async with asyncio.timeout(2):
        await asyncio.gather(*waits(two, 2))


# -- breaking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "abort"])
async def test_it_breaks_everybody_who_waits_in_every_process(world: World, how: str) -> None:
    barriers = [world.client().barrier("x", 9) for _ in range(3)]
    tasks = [task for barrier in barriers for task in waits(barrier, 2)]
    await waiting(barriers[0], 6)
    await getattr(barriers[0], how)()
    for task in tasks:
        with pytest.raises(
            asyncio.BrokenBarrierError, match=r"^Abort or reset of barrier \(barrier 'x'\)$"
        ):
            await task
    info = await barriers[1].info()
    assert (info.waiting, info.broken, info.generation) == (0, how == "abort", 0)
    assert [barrier.broken for barrier in barriers] == [how == "abort"] * 3
    assert [barrier.n_waiting for barrier in barriers] == [0] * 3
    await barriers[0].reset()


async def test_the_tasks_of_the_same_process_have_heard_of_it_when_it_is_confirmed(
    world: World,
) -> None:
    barrier = world.client().barrier("x", 3)
    tasks = waits(barrier, 2)
    await waiting(barrier, 2)
    reply = barrier.abort()
    assert barrier.broken
    assert barrier.n_waiting == 0
    await reply
    async with asyncio.timeout(1):  # no heartbeat is needed, however messages come
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.BrokenBarrierError] * 2
    await barrier.reset()


async def test_at_a_broken_barrier_nobody_waits_until_it_is_reset(world: World) -> None:
    one, two = world.client().barrier("x", 2), world.client().barrier("x", 2)
    assert await one.abort() is None  # type: ignore[func-returns-value]
    for barrier in (one, two):
        with pytest.raises(asyncio.BrokenBarrierError, match=r"^Barrier aborted \(barrier 'x'\)$"):
            await barrier.wait()
        assert barrier.broken
    assert await two.reset() is None  # type: ignore[func-returns-value]
    assert not two.broken
    assert sorted(await asyncio.gather(*waits(one), *waits(two))) == [0, 1]
    assert not one.broken


async def test_resetting_when_nobody_waits_changes_nothing(world: World) -> None:
    one, two = world.client().barrier("x", 2), world.client().barrier("x", 2)
    await one.reset()
    assert not one.broken
    await asyncio.gather(*waits(one), *waits(two))
    await asyncio.create_task(one.reset())
    assert one.n_waiting == 0
    await asyncio.gather(*waits(one), *waits(two))


async def test_what_follows_a_reset_or_abort_that_nobody_awaited_comes_after_it(
    world: World,
) -> None:
    barrier, other = world.client().barrier("x", 2), world.client().barrier("x", 2)
    for _ in range(3):
        barrier.reset()
        await asyncio.gather(*waits(barrier, 2))
        barrier.abort()
        with pytest.raises(asyncio.BrokenBarrierError, match="Barrier aborted"):
            await barrier.wait()
        for _ in range(2):
            barrier.abort()
            barrier.reset()
        await asyncio.gather(*waits(barrier, 2))
    barrier.abort()
    await barrier.reset()
    assert not (await other.info()).broken


async def test_what_nobody_awaited_is_done_when_the_client_is_closed(world: World) -> None:
    one, other = world.client(), world.client().barrier("x", 2)
    barrier = one.barrier("x", 2)
    for _ in range(3):
        barrier.reset()
        barrier.abort()
    await one.aclose()
    assert (await other.info()).broken
    await other.reset()


async def test_who_waits_while_a_reset_is_on_its_way_waits_for_it_and_is_not_broken(
    world: World,
) -> None:
    barrier = world.client().barrier("x", 2)
    before = waits(barrier)
    await waiting(barrier, 1)
    barrier.reset()
    after = waits(barrier)
    with pytest.raises(asyncio.BrokenBarrierError):
        await before[0]
    await waiting(barrier, 1)
    assert sorted(await asyncio.gather(*after, *waits(barrier))) == [0, 1]


async def test_a_wait_cancelled_behind_a_reset_was_never_there(world: World) -> None:
    barrier = world.client().barrier("x", 2)
    reply = barrier.reset()
    tasks = waits(barrier)
    await asyncio.sleep(0)
    await dropped(tasks)
    await reply
    assert (await barrier.info()).waiting == 0


async def test_once_a_generation_is_complete_all_its_parties_pass(world: World) -> None:
    """Unlike asyncio's, where it depends on who has run."""
    for how in ("reset", "abort"):
        one, two = world.client().barrier(how, 3), world.client().barrier(how, 3)
        tasks = waits(one, 2)
        await waiting(two, 2)
        assert await two.wait() == 2
        await getattr(two, how)()
        assert await asyncio.gather(*tasks) == [0, 1]
        await two.reset()


async def test_a_task_that_passes_and_aborts_at_once_takes_nobody_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task of its process has passed as well, but the message of that is still to come."""
    one, two = world.client().barrier("x", 3), world.client().barrier("x", 3)
    tasks = waits(one, 2)
    await waiting(two, 2)
    heard = one._arrivals.heard
    messages: list[Any] = []
    monkeypatch.setattr(one._arrivals, "heard", lambda *message: messages.append(message))
    assert await two.wait() == 2
    await settled(lambda: len(messages) == 2)
    heard(*messages[1])
    assert await tasks[1] == 1
    await one.abort()
    assert await tasks[0] == 0
    await one.reset()


async def test_a_reset_while_one_generation_drains_breaks_those_who_wait_for_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = world.client().barrier("x", 2), world.client().barrier("x", 2)
    held: list[Any] = []
    leave = slow._arrivals._leave
    monkeypatch.setattr(slow._arrivals, "_leave", held.append)
    first = waits(slow)
    await waiting(fast, 1)
    await asyncio.gather(fast.wait(), *first)
    tasks = waits(fast)
    await waiting(fast, 1)
    await world.client().barrier("x", 2).reset()
    with pytest.raises(asyncio.BrokenBarrierError):
        await tasks[0]
    assert (await fast.info()).state == "draining"
    monkeypatch.undo()
    leave(held[0])
    assert sorted(await asyncio.gather(*waits(fast, 2))) == [0, 1]


async def test_one_party_that_fails_aborts_for_all_and_a_reset_lets_them_begin_anew(
    world: World,
) -> None:
    """threading's and asyncio's own test of both, over processes."""
    parties = 4
    clients = [world.client() for _ in range(2)]
    broken: list[int] = []
    passed: list[int] = []

    async def work(number: int) -> None:
        client = clients[number % 2]
        barrier, meeting = client.barrier("x", parties), client.barrier("meeting", parties)
        index = await barrier.wait()
        try:
            if index == parties // 2:
                await barrier.abort()
            else:
                await barrier.wait()
                raise AssertionError("it passed a barrier at which one was missing")
        except asyncio.BrokenBarrierError:
            broken.append(number)
        if await meeting.wait() == 0:
            await barrier.reset()
        await meeting.wait()
        await barrier.wait()
        passed.append(number)

    await asyncio.gather(*(work(i) for i in range(parties)))
    assert len(broken) == parties - 1
    assert len(passed) == parties
    assert not any(client.barrier("x", parties).broken for client in clients)


# -- agreement ------------------------------------------------------------------------------------


async def test_processes_that_disagree_on_the_parties_are_told_both_numbers(world: World) -> None:
    one, two = world.client().barrier("x", 3), world.client().barrier("x", 4)
    tasks = waits(one)
    await waiting(one, 1)
    with pytest.raises(ValueError, match=r"barrier 'x' was made with 4 parties here.* with 3"):
        await two.wait()
    await asyncio.gather(*tasks, *waits(one, 2))
    # Nobody waits, nobody drains: whoever comes first says how many they are.
    await drained(one)
    assert sorted(await asyncio.gather(*waits(two, 4))) == [0, 1, 2, 3]


async def test_the_parties_must_be_a_number_of_tasks(world: World) -> None:
    client = world.client()
    for wrong in (0, -4):
        with pytest.raises(ValueError, match="parties must be > 0"):
            client.barrier("x", wrong)
    for odd in (True, 2.0, "2", None):
        with pytest.raises(TypeError, match="parties must be an int"):
            client.barrier("x", odd)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parties"):
        client.barrier("x", 2**40)
    with pytest.raises(ValueError, match="lease"):
        client.barrier("x", 2, lease=0)
    with pytest.raises(ValueError, match="timeout"):
        await client.barrier("x", 2).wait(timeout=-1)
    with pytest.raises(TypeError):
        await client.barrier("x", 2)  # type: ignore[misc]
    assert client.barrier("x", 2).parties == 2


# -- what is known --------------------------------------------------------------------------------


async def test_repr_tells_the_state(world: World) -> None:
    one, two = world.client().barrier("x", 3), world.client().barrier("x", 3)
    assert repr(one).endswith(" 'x' [filling, waiters:0/3]>")
    tasks = waits(one)
    await waiting(two, 1)
    tasks += waits(two)
    await settled(lambda: repr(two).endswith(" 'x' [filling, waiters:2/3]>"))
    seen: list[str] = []
    for party in one._arrivals.parties.values():
        party.future.add_done_callback(lambda _: seen.append(repr(one)))
    tasks += waits(two)
    await asyncio.gather(*tasks)
    assert "[draining, waiters:0/3]>" in seen[0] or "[filling, waiters:0/3]>" in seen[0]
    assert repr(one).endswith(" [filling, waiters:0/3]>")
    await one.abort()
    assert repr(one).endswith(" 'x' [broken]>")
    reply = one.reset()
    if world.kind != "memory":
        assert repr(one).endswith(" 'x' [resetting, waiters:0/3]>")
    await reply
    assert repr(one).endswith(" 'x' [filling, waiters:0/3]>")


async def test_a_party_that_has_passed_and_not_run_is_draining(world: World) -> None:
    barrier = world.client().barrier("x", 2)
    tasks = waits(barrier)
    await waiting(barrier, 1)
    (party,) = barrier._arrivals.parties.values()
    barrier._arrivals.heard(b"t", party.token, [0, 5], 0.0)
    assert repr(barrier).endswith(" 'x' [draining, waiters:0/2]>")
    assert barrier.n_waiting == 0
    assert await tasks[0] == 0
    assert barrier.n_waiting == (0 if world.kind == "memory" else 5)
    await waiting(barrier, 0)
    await settled(lambda: barrier.n_waiting == 0)


async def test_info_tells_who_waits(world: World) -> None:
    one, two = world.client(label="first one"), world.client(label="zweite")
    barrier = one.barrier("x", 3)
    assert await barrier.info() == BarrierInfo("x", 3, 0, False, 0, "filling", ())
    tasks = waits(barrier)
    await waiting(barrier, 1)
    tasks += waits(two.barrier("x", 3))
    await waiting(barrier, 2)
    info = await barrier.info()
    assert [waiter.label for waiter in info.waiters] == ["first one", "zweite"]
    assert all(0 <= waiter.waited < 5 for waiter in info.waiters)
    # Told by another who was made with another number.
    assert (await one.barrier("x", 7).info()).parties == 3
    await barrier.abort()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await barrier.info() == BarrierInfo("x", 3, 0, True, 0, "broken", ())
    await barrier.reset()


async def test_n_waiting_counts_those_of_other_processes(world: World) -> None:
    one, two = world.client().barrier("x", 9), world.client().barrier("x", 9)
    tasks = waits(one, 3)
    assert one.n_waiting == 0
    await asyncio.sleep(0)
    assert one.n_waiting == 3
    await waiting(two, 3)
    others = waits(two)
    await settled(lambda: two.n_waiting == 4)
    assert (await one.info()).waiting == one.n_waiting == 4
    await dropped(tasks)
    await settled(lambda: one.n_waiting == 1)
    await dropped(others)
    await settled(lambda: two.n_waiting == 0)
    assert (await one.info()).waiting == one.n_waiting == 0


async def test_making_one_needs_no_loop_and_no_server() -> None:
    def make() -> dsync.Barrier:
        client = dsync.Client("redis://127.0.0.1:1")
        barrier = client.barrier("x", 2)
        assert (barrier.n_waiting, barrier.broken, barrier.parties) == (0, False, 2)
        with pytest.raises(RuntimeError):
            barrier.reset()
        return barrier

    await asyncio.to_thread(make)


async def test_a_second_loop_is_refused(world: World) -> None:
    barrier = world.client().barrier("x", 1)
    await barrier.wait()

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="different event loop"):
            asyncio.run(barrier.wait())
        with pytest.raises(RuntimeError):
            barrier.abort()

    await asyncio.to_thread(elsewhere)
    assert not (await barrier.info()).broken
    assert not barrier.broken


# -- leases, messages, copies ---------------------------------------------------------------------


async def test_a_party_whose_process_is_silent_leaves_when_its_lease_ends(world: World) -> None:
    dead, other = world.client().barrier("x", 2, lease=0.2), world.client().barrier("x", 2)
    tasks = waits(dead)
    silent(dead)
    await waiting(other, 1)
    await waiting(other, 0)
    others = waits(other)
    await waiting(other, 1)
    assert not others[0].done()
    assert await other.wait() == 1
    assert not tasks[0].done()
    await asyncio.gather(*others)
    await dropped(tasks)


async def test_a_process_that_lives_keeps_its_parties_there_beyond_their_lease(
    world: World,
) -> None:
    barrier = world.client().barrier("x", 5, lease=0.3)
    tasks = waits(barrier, 4)
    await waiting(barrier, 4)
    before = {waiter.token for waiter in (await barrier.info()).waiters}
    await asyncio.sleep(1.2)  # four leases: nothing is waited for
    info = await barrier.info()
    assert {waiter.token for waiter in info.waiters} == before
    assert min(waiter.waited for waiter in info.waiters) > 1
    await dropped(tasks)


async def test_those_left_behind_by_the_one_who_spoke_for_them_keep_their_places(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asked, and passed by message before it was answered."""
    barrier, other = world.client().barrier("x", 2, lease=0.3), world.client().barrier("x", 2)
    arrivals = barrier._arrivals
    first = waits(barrier)
    await waiting(other, 1)
    heard, messages = arrivals.heard, []
    monkeypatch.setattr(arrivals, "heard", lambda *message: messages.append(message))
    assert await other.wait() == 1
    await settled(lambda: len(messages) == 1)
    second = waits(barrier)  # for the next generation
    await waiting(other, 1)
    record, replies = arrivals._record, []

    class Slow:
        def run(self, transition: str, done: Callable[[Call], None], **args: Any) -> None:
            record.run(transition, lambda call: replies.append(partial(done, call)), **args)

    arrivals._beat.stop()
    arrivals._turn = 1
    monkeypatch.setattr(arrivals, "_record", Slow())
    arrivals._keep_places(False)
    await settled(lambda: len(replies) == 1)
    monkeypatch.undo()
    heard(*messages[0])
    replies[0]()
    assert await first[0] == 0
    await asyncio.sleep(1)  # three leases: nothing is waited for
    assert (await other.info()).waiting == 1
    assert await other.wait() == 1
    assert await second[0] == 0


async def test_the_longest_lease_of_a_process_counts_for_all_its_parties(world: World) -> None:
    client, other = world.client(), world.client().barrier("x", 3)
    tasks = waits(client.barrier("x", 3, lease=30)) + waits(client.barrier("x", 3, lease=0.1))
    silent(client.barrier("x", 3))
    await waiting(other, 2)
    await asyncio.sleep(0.3)
    assert (await other.info()).waiting == 2
    await other.wait()
    await asyncio.gather(*tasks)


async def test_a_process_that_was_taken_for_dead_comes_again_with_all_its_parties(
    world: World,
) -> None:
    client, other = world.client(), world.client().barrier("x", 4)
    barrier = client.barrier("x", 4, lease=0.2)
    tasks = waits(barrier, 3)
    silent(barrier)
    await waiting(other, 3)
    await waiting(other, 0)
    swept = waits(other)  # whoever comes sweeps
    await waiting(other, 1)
    barrier._arrivals._keep_places(False)  # one of them asks; the reply makes the others ask
    assert await swept[0] == 0
    assert sorted(await asyncio.gather(*tasks)) == [1, 2, 3]


async def test_a_lost_message_costs_a_heartbeat(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf, other = world.client(), world.client().barrier("x", 4)
    tasks = waits(deaf.barrier("x", 4, lease=0.3), 3)
    await waiting(other, 3)
    monkeypatch.setattr(deaf, "pushed", lambda *_: None)
    monkeypatch.setattr(deaf.homes[next(iter(deaf.homes))], "heard", lambda *_: None)
    assert await other.wait() == 3
    assert sorted(await asyncio.gather(*tasks)) == [0, 1, 2]


@pytest.mark.parametrize("how", ["reset", "abort"])
async def test_a_lost_message_of_a_break_costs_a_heartbeat(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    deaf, other = world.client(), world.client().barrier("x", 4)
    barrier = deaf.barrier("x", 4, lease=0.3)
    tasks = waits(barrier, 3)
    await waiting(other, 3)
    monkeypatch.setattr(barrier._arrivals, "heard", lambda *_: None)
    await getattr(other, how)()
    for task in tasks:
        with pytest.raises(asyncio.BrokenBarrierError, match="Abort or reset of barrier"):
            await task
    assert barrier.broken is (how == "abort")
    await other.reset()


async def test_a_party_that_hears_late_gets_its_index_and_not_the_next_generation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was silent while the others went on without it, its claim over."""
    stalled, other = world.client(), world.client().barrier("x", 2, lease=0.2)
    barrier = stalled.barrier("x", 2, lease=0.2)
    tasks = waits(barrier)
    await waiting(other, 1)
    silent(barrier)
    monkeypatch.setattr(barrier._arrivals, "heard", lambda *_: None)
    assert await other.wait() == 1
    assert sorted(await asyncio.gather(*waits(other, 2))) == [0, 1]  # after its claim
    monkeypatch.undo()
    barrier._arrivals.ask_all()
    assert await tasks[0] == 0
    assert (await other.info()).generation == 2


def ask(barrier: dsync.Barrier, transition: str, **args: Any) -> Awaitable[Any]:
    """The reply to a transition, as it is."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    record = barrier._arrivals._record
    record.run(transition, lambda call: answer.set_result(call.reply), **args)
    return answer


async def test_late_copies_of_what_is_over_do_nothing(world: World) -> None:
    client = world.client()
    barrier, other = client.barrier("x", 2), world.client().barrier("x", 2)
    common = {"inbox": client.store.channel, "memory": 60_000}
    token = client.token(30_000)
    arrive = {"token": token, "parties": 2, "lease": 30_000, **common}
    # It leaves before its own arrival comes.
    await ask(barrier, "barrier_leave", token=token, late=1, **common)
    assert (await ask(barrier, "barrier_arrive", **arrive))[0] == -3
    assert (await barrier.info()).waiting == 0
    # A reset that comes a second time breaks nobody.
    reset = {"token": client.token(0), "abort": 1, **common}
    assert await ask(barrier, "barrier_reset", **reset) == [0, 1]
    await barrier.reset()
    tasks = waits(barrier)
    await waiting(barrier, 1)
    assert await ask(barrier, "barrier_reset", **reset) == [0, 0]
    assert not (await barrier.info()).broken
    await asyncio.gather(*tasks, *waits(other))


async def test_an_arrival_asked_twice_arrives_once(world: World) -> None:
    client, other = world.client(), world.client().barrier("x", 3)
    barrier = client.barrier("x", 3)
    tasks = waits(barrier)
    await waiting(other, 1)
    for _ in range(3):
        barrier._arrivals.ask_all()
        await barrier.info()
    assert (await other.info()).waiting == 1
    await asyncio.gather(*tasks, *waits(other, 2))


async def test_a_store_that_fails_tells_each_task_by_an_error_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = world.client().barrier("x", 4)
    tasks = waits(barrier, 2)
    await waiting(barrier, 2)
    record = barrier._arrivals._record
    sent: list[str] = []

    class Failing:
        def run(self, transition: str, done: Callable[[Call], None], **args: Any) -> None:
            sent.append(transition)
            if transition == "barrier_leave":
                record.run(transition, done, **args)
                return
            call = Call(None, done, 0.0)
            call.attempts = 1
            call.reply = dsync.StoreUnavailable("out of reach")
            done(call)

    monkeypatch.setattr(barrier._arrivals, "_record", Failing())
    tasks += waits(barrier)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["out of reach"] * 3
    assert len({id(result) for result in results}) == 3
    assert sent == ["barrier_arrive", *["barrier_leave"] * 3]
    reply = barrier.abort()
    with pytest.raises(dsync.StoreUnavailable):
        await reply
    with pytest.raises(dsync.StoreUnavailable):
        await barrier.info()
    monkeypatch.undo()
    await waiting(barrier, 0)
    await barrier.reset()


async def test_an_abort_that_fails_and_that_nobody_awaits_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = world.client().barrier("x", 4)

    class Failing:
        def run(self, transition: str, done: Callable[[Call], None], **args: Any) -> None:
            call = Call(None, done, 0.0)
            call.reply = dsync.StoreUnavailable("out of reach")
            done(call)

    monkeypatch.setattr(barrier._arrivals, "_record", Failing())
    barrier.abort()
    await settled(lambda: len(world.errors) == 1)
    assert isinstance(world.errors.pop(), dsync.StoreUnavailable)
