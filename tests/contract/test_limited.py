"""limited: so many calls of a function at a time, in all processes."""

import asyncio
import inspect
from typing import Any

import pytest

import dsync
from tests.conftest import World, settled


async def test_so_many_calls_run_at_a_time_over_all_processes(world: World) -> None:
    inside = most = 0

    async def call() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1

    calls = [world.client().limited("x", 3)(call) for _ in range(3)]
    await asyncio.gather(*(call() for call in calls for _ in range(6)))
    assert most == 3


async def test_the_result_and_the_error_are_those_of_the_function(world: World) -> None:
    @world.client().limited("x", 1)
    async def halve(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number // 2

    assert await halve(4) == 2
    with pytest.raises(ValueError, match=r"^3$"):
        await halve(3)
    assert await halve(number=6) == 3


class Full:
    """A function of which as many calls run as may."""

    def __init__(self, world: World, **kwargs: Any) -> None:
        self.runs = 0
        self.may_end = asyncio.Event()
        self.call = world.client().limited("x", 2, **kwargs)(self.body)
        self.others = world.client().limited("x", 2)(self.body)
        self.tasks: list[asyncio.Task[Any]] = []

    async def body(self) -> str:
        self.runs += 1
        await self.may_end.wait()
        return "done"

    async def __aenter__(self) -> "Full":
        self.tasks = [asyncio.create_task(self.others()) for _ in range(2)]
        await settled(lambda: self.runs == 2, "two run")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.may_end.set()
        assert await asyncio.gather(*self.tasks) == ["done", "done"]


async def test_a_call_too_many_waits(world: World) -> None:
    async with Full(world) as full:
        third = asyncio.create_task(full.call())

        async def queued() -> bool:
            return (await world.clients[0].semaphore("x", 2).info()).waiting == 1

        await settled(queued)
        assert full.runs == 2
    assert await third == "done"


async def test_a_call_too_many_is_skipped(world: World) -> None:
    async with Full(world, busy="skip") as full:
        assert await full.call() is dsync.SKIPPED
        assert full.runs == 2
    assert await full.call() == "done"


async def test_a_call_too_many_raises_with_the_name_of_the_semaphore(world: World) -> None:
    async with Full(world, busy="raise") as full:
        with pytest.raises(dsync.AcquireTimeout, match="semaphore 'x'"):
            await full.call()
        assert full.runs == 2
    assert await full.call() == "done"


async def test_a_wait_has_an_end(world: World) -> None:
    async with Full(world, timeout=0.05) as full:
        with pytest.raises(dsync.AcquireTimeout, match=r"semaphore 'x'.* 0\.05 s"):
            await full.call()
        assert full.runs == 2
    assert await full.call() == "done"


async def test_the_semaphore_is_the_one_of_this_name(world: World) -> None:
    @world.client().limited("to {host}", 2, busy="skip")
    async def fetch(host: str) -> str:
        return host

    async with world.client().semaphore("to a", 2), world.client().semaphore("to a", 2):
        assert await fetch("a") is dsync.SKIPPED
        assert await fetch("b") == "b"
    assert await fetch("a") == "a"


async def test_a_resized_semaphore_limits_calls_to_its_size(world: World) -> None:
    permits = world.client().semaphore("x", 1)
    await permits.resize(2)
    async with Full(world) as full:  # runs two
        assert full.runs == 2


async def test_when_the_permit_is_lost_the_function_is_cancelled(world: World) -> None:
    client = world.client()
    began = asyncio.Event()

    @client.limited("x", 1, lease=0.4, max_hold=0.4)
    async def call() -> None:
        began.set()
        await asyncio.sleep(30)

    with pytest.raises(dsync.LeaseLost, match="semaphore 'x'"):
        await call()
    assert began.is_set()


BAD = [
    ({"value": 0}, ValueError),
    ({"value": -1}, ValueError),
    ({"value": True}, TypeError),
    ({"value": 2.0}, TypeError),
    ({"busy": "queue"}, ValueError),
    ({"busy": None}, ValueError),
    ({"timeout": -1}, ValueError),
    ({"timeout": "3"}, TypeError),
    ({"lease": 0}, ValueError),
    ({"max_hold": 0}, ValueError),
]


@pytest.mark.parametrize(("arguments", "error"), BAD)
def test_arguments_are_checked_where_they_are_written(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    limited: Any = dsync.connect("memory://").limited
    ((argument, value),) = arguments.items()
    with pytest.raises(error) as raised:
        limited("x", **{"value": 1} | arguments)
    assert argument in str(raised.value)
    assert repr(value) in str(raised.value)


def test_it_can_be_used_before_a_loop_runs_and_looks_like_the_function() -> None:
    client = dsync.connect("memory://")

    @client.limited("x", 1)
    async def call(number: int, *, more: str = "") -> int:
        """What it does."""
        return number

    assert (call.__name__, call.__doc__) == ("call", "What it does.")
    assert str(inspect.signature(call)) == "(number: int, *, more: str = '') -> int"
    assert inspect.iscoroutinefunction(call)

    async def main() -> int:
        async with client:
            return await call(7)

    assert asyncio.run(main()) == 7
