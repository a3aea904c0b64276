"""exclusive: one call of a function at a time, in all processes; with `every`, not too often."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, assert_type

import pytest

import dsync
from dsync.calls import Name
from tests.conftest import World, settled
from tests.contract.test_cancellation import at_every_step


async def nothing_left(world: World, name: str = "x") -> None:
    """Nobody holds the lock of this name and nobody waits for it."""

    async def empty() -> bool:
        info = await world.clients[0].lock(name).info()
        return info.holder is None and not info.waiters

    await settled(empty, "nobody holds, nobody waits")


async def queued(world: World, count: int, name: str = "x") -> None:
    """So many requests wait for the lock of this name."""

    async def stand() -> bool:
        return len((await world.clients[0].lock(name).info()).waiters) == count

    await settled(stand, f"{count} wait")


# -- one at a time ---------------------------------------------------------------------------------


async def test_one_call_runs_at_a_time_over_all_processes(world: World) -> None:
    inside = most = runs = 0

    async def call() -> None:
        nonlocal inside, most, runs
        runs += 1
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1

    calls = [world.client().exclusive("x")(call) for _ in range(3)]
    await asyncio.gather(*(call() for call in calls for _ in range(5)))
    assert (most, runs) == (1, 15)


async def test_the_result_and_the_error_are_those_of_the_function(world: World) -> None:
    @world.client().exclusive("x")
    async def halve(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number // 2

    assert await halve(4) == 2
    with pytest.raises(ValueError, match=r"^3$"):
        await halve(3)
    assert await halve(number=6) == 3  # the one that failed has given the lock back


async def test_it_is_the_lock_of_this_name(world: World) -> None:
    @world.client().exclusive("x", busy="skip")
    async def call() -> str:
        return "ran"

    async with world.client().lock("x"):
        assert await call() is dsync.SKIPPED
    assert await call() == "ran"


class Running:
    """A function that runs in another process until it may end."""

    def __init__(self, world: World, **kwargs: Any) -> None:
        self.runs = 0
        self.may_end = asyncio.Event()
        self.call = world.client().exclusive("x", **kwargs)(self.body)
        self.other = world.client().exclusive("x")(self.body)

    async def body(self) -> str:
        self.runs += 1
        await self.may_end.wait()
        return "done"

    async def __aenter__(self) -> "Running":
        self.task = asyncio.create_task(self.other())
        await settled(lambda: self.runs == 1, "it runs")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.may_end.set()
        assert await self.task == "done"


async def test_a_call_that_comes_while_another_runs_waits_for_its_turn(world: World) -> None:
    async with Running(world) as running:
        second = asyncio.create_task(running.call())
        await queued(world, 1)
        assert running.runs == 1
    assert await second == "done"
    assert running.runs == 2


async def test_a_call_that_comes_while_another_runs_is_skipped(world: World) -> None:
    async with Running(world, busy="skip") as running:
        assert await running.call() is dsync.SKIPPED
        assert running.runs == 1
    assert await running.call() == "done"


async def test_a_call_that_comes_while_another_runs_raises_with_the_name_of_the_lock(
    world: World,
) -> None:
    async with Running(world, busy="raise") as running:
        with pytest.raises(dsync.AcquireTimeout, match="lock 'x'"):
            await running.call()
        assert running.runs == 1
    assert await running.call() == "done"


async def test_a_wait_has_an_end(world: World) -> None:
    async with Running(world, timeout=0.05) as running:
        with pytest.raises(dsync.AcquireTimeout, match=r"lock 'x'.* 0\.05 s"):
            await running.call()
        assert running.runs == 1
    assert await running.call() == "done"


@pytest.mark.parametrize("busy", ["skip", "raise"])
async def test_who_does_not_wait_leaves_those_who_do_in_their_places(
    world: World, busy: Any
) -> None:
    order = []

    async def note(who: str) -> None:
        order.append(who)

    waits = world.client().exclusive("x")(note)
    hasty: Any = world.client().exclusive("x", busy=busy)(note)
    async with world.client().lock("x") as lease:
        waiter = asyncio.create_task(waits("waiter"))
        await queued(world, 1)
        probe = world.client().lock("x")
        for _ in range(5):
            calling = asyncio.create_task(hasty("hasty"))
            while not calling.done():
                assert len((await probe.info()).waiters) == 1, "it has queued"
                await asyncio.sleep(0)
            if busy == "skip":
                assert await calling is dsync.SKIPPED
            else:
                with pytest.raises(dsync.AcquireTimeout):
                    await calling
        assert lease.held
    await waiter
    assert order == ["waiter"]


def test_skipped_is_false_and_one_and_says_what_it_is() -> None:
    assert not dsync.SKIPPED
    assert dsync.SKIPPED is dsync.Skipped.SKIPPED
    assert repr(dsync.SKIPPED) == "dsync.SKIPPED"


async def test_a_call_in_another_of_the_same_lock_is_told_apart_from_one_elsewhere_by_nothing(
    world: World,
) -> None:
    """The lock is not reentrant, as in asyncio: a call from within would wait for ever."""

    @world.client().exclusive("x", timeout=0.05)
    async def call(depth: int) -> None:
        if depth:
            await call(depth - 1)

    with pytest.raises(dsync.AcquireTimeout):
        await call(1)
    await call(0)


# -- loss and cancellation -------------------------------------------------------------------------


async def test_when_the_lease_is_lost_the_function_is_cancelled_and_the_call_says_so(
    world: World,
) -> None:
    ended: list[str] = []

    @world.client().exclusive("x")
    async def call() -> None:
        began.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    began = asyncio.Event()
    running = asyncio.create_task(call())
    await began.wait()
    assert await world.client().lock("x").force_release()
    with pytest.raises(dsync.LeaseLost, match="lock 'x' was lost"):
        await running
    assert ended == ["cancelled"]
    assert not running.cancelling()


async def test_what_the_function_raises_on_a_loss_is_not_masked(world: World) -> None:
    @world.client().exclusive("x", lease=0.4, max_hold=0.4)
    async def call() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise KeyError("cleaning up") from None

    with pytest.raises(KeyError) as raised:
        await call()
    assert any("lock 'x' was lost" in note for note in raised.value.__notes__)


async def test_max_hold_ends_a_function_that_takes_too_long(world: World) -> None:
    @world.client().exclusive("x", lease=0.4, max_hold=0.9)
    async def call() -> None:
        await asyncio.sleep(30)

    started = time.monotonic()
    with pytest.raises(dsync.LeaseLost):
        await call()
    assert 0.6 < time.monotonic() - started < 0.95


async def test_a_held_lock_is_renewed_while_the_function_runs(world: World) -> None:
    other = world.client().lock("x")

    @world.client().exclusive("x", lease=0.3)
    async def call() -> None:
        ends = time.monotonic() + 1
        while time.monotonic() < ends:
            assert not await other.try_acquire()
            await asyncio.sleep(0.02)

    await call()


@pytest.mark.parametrize("late", [False, True], ids=["before", "just after"])
@pytest.mark.parametrize("busy", ["wait", "skip", "raise"])
@pytest.mark.parametrize("every", [None, 0.001], ids=["", "every"])
async def test_cancelled_at_any_point_a_call_leaves_nothing_behind(
    world: World, busy: Any, every: float | None, late: bool
) -> None:
    client = world.client()

    @client.exclusive("x", every=every, busy=busy)
    async def call() -> None:
        await asyncio.sleep(0)

    async def once() -> None:
        try:
            await call()
        except dsync.AcquireTimeout:
            pass  # too early

    async def look() -> None:
        await nothing_left(world)
        assert await probe.try_acquire()
        await probe.release()

    probe = world.client().lock("x")
    steps = await at_every_step(once, look, late)
    assert steps >= 1


# -- names -----------------------------------------------------------------------------------------


@dataclass
class User:
    id: int
    name: str = "Ada"

    def __repr__(self) -> str:
        return f"<User {self.id}>"


async def plain(user_id: int, user: Any = None, /, what: str = "mail", *more: Any, **rest: Any):
    """A function with all kinds of parameters."""


NAMES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("x", (1,), {}, "x"),
    ("user:{user_id}", (7,), {}, "user:7"),
    ("{user_id}", ("any text: {x} \0 ü % /",), {}, "any text: {x} \0 ü % /"),
    ("{what} of {user_id}", (7,), {}, "mail of 7"),
    ("{what} of {user_id}", (7,), {"what": "post"}, "post of 7"),
    ("{user.id}/{user.name}", (1, User(3)), {}, "3/Ada"),
    ("{user}", (1, User(3)), {}, "<User 3>"),
    ("{user[k]}", (1, {"k": "v"}), {}, "v"),
    ("{more[0]} {rest[b]}", (1, 2, "w", "m"), {"b": "r"}, "m r"),
    ("{user_id:05d}", (7,), {}, "00007"),
    ("{what!r}", (7,), {}, "'mail'"),
    ("{user_id:{what}}", (7, None, "03"), {}, "007"),
    ("{{user_id}}", (7,), {}, "{user_id}"),
    ("{{{user_id}}}", (7,), {}, "{7}"),
    ("{user}", (1,), {}, "None"),
]


@pytest.mark.parametrize(("text", "args", "kwargs", "name"), NAMES)
def test_a_name_is_made_of_the_arguments_of_the_call(
    text: str, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> None:
    assert Name(text, plain)(args, kwargs) == name


@pytest.mark.parametrize("between", [":", "-", "/", " of ", "::", "}}", "═", "._%"])
def test_calls_with_different_arguments_never_go_by_one_name(between: str) -> None:
    pieces = ["", "x", between.replace("}}", "}"), "%", "%25", "═", "%E2%95%90", "%3A", "%2D"]
    texts = {one + two for one in pieces for two in pieces}
    name = Name(f"a{{user_id}}{between}{{what}}z", plain)
    names = {name((one, None, two), {}): (one, two) for one in texts for two in texts}
    assert len(names) == len(texts) ** 2


@pytest.mark.parametrize("between", ["", "and", "2", "%", "é"])
def test_fields_that_cannot_be_told_apart_are_refused(between: str) -> None:
    with pytest.raises(ValueError, match=r"between \{user_id\} and \{what\}") as raised:
        Name(f"{{user_id}}{between}{{what}}", plain)
    assert "plain()" in str(raised.value)


@pytest.mark.parametrize("field", ["user_ID", "", "0", "self", "other.id", "what:{width}", "a b"])
def test_a_field_that_is_no_parameter_is_refused_where_it_is_written(field: str) -> None:
    with pytest.raises(ValueError, match="no parameter of") as raised:
        dsync.connect("memory://").exclusive(f"x{{{field}}}")(plain)
    named = "width" if "width" in field else field
    assert f"{{{named}}}" in str(raised.value)
    assert "plain" in str(raised.value)


@pytest.mark.parametrize("text", ["{", "a}", "{user_id", "{user_id!z}", "{user_id!}"])
def test_a_name_with_a_brace_too_many_is_refused_where_it_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="plain") as raised:
        dsync.connect("memory://").exclusive(text)(plain)
    assert repr(text) in str(raised.value)


async def test_an_empty_name_is_refused(world: World) -> None:
    @world.client().exclusive("{text}")
    async def call(text: str) -> str:
        return text

    with pytest.raises(ValueError, match=r"'\{text\}' of .*call\(\) is empty"):
        await call("")
    assert await call(" ") == " "


async def test_what_has_no_text_of_its_own_names_nothing(world: World) -> None:
    """Its text is another in each process: no two would exclude each other."""

    class Plain:
        async def method(self) -> None:
            pass

    call: Any = world.client().exclusive("{self}")(Plain.method)
    with pytest.raises(TypeError, match=r"\{self\} is <.* at 0x"):
        await call(Plain())
    texts: Any = world.client().exclusive("{user_id}")(plain)
    await texts("<Plain object at 0x7f0123>")  # a text is a text


async def test_arguments_that_do_not_fit_are_refused_as_the_function_would(world: World) -> None:
    call: Any = world.client().exclusive("{user_id}")(plain)
    with pytest.raises(TypeError, match=r"plain\(\).*user_id"):
        await call()


async def test_calls_of_different_names_run_at_the_same_time(world: World) -> None:
    async with Meeting() as met:

        @world.client().exclusive("user:{user_id}")
        async def call(user_id: int) -> None:
            await met.wait()

        await asyncio.gather(call(1), call(2))


class Meeting:
    """Two that wait for each other."""

    async def __aenter__(self) -> asyncio.Barrier:
        self._timeout = asyncio.timeout(5)
        await self._timeout.__aenter__()
        return asyncio.Barrier(2)

    async def __aexit__(self, *exc: Any) -> None:
        await self._timeout.__aexit__(*exc)


# -- what can be decorated -------------------------------------------------------------------------


async def test_methods_can_be_decorated(world: World) -> None:
    client = world.client()

    class Mailer:
        def __init__(self, sender: str) -> None:
            self.sender = sender

        @client.exclusive("{self.sender} to {user.id}")
        async def mail(self, user: User) -> str:
            info = await client.lock(f"{self.sender} to {user.id}").info()
            return "held" if info.holder else "free"

        @classmethod
        @client.exclusive("class {cls.__name__}")
        async def named(cls) -> str:
            return cls.__name__

        @staticmethod
        @client.exclusive("static")
        async def alone(number: int) -> int:
            return number

    assert await Mailer("me").mail(User(3)) == "held"
    assert await Mailer.named() == "Mailer"
    assert await Mailer.alone(3) == 3


def test_it_can_be_used_before_a_loop_runs_and_looks_like_the_function() -> None:
    client = dsync.connect("memory://")

    @client.exclusive("x", every=60)
    async def call(number: int, *, more: str = "") -> int:
        """What it does."""
        return number

    assert (call.__name__, call.__doc__) == ("call", "What it does.")
    assert str(inspect.signature(call)) == "(number: int, *, more: str = '') -> int"
    assert inspect.iscoroutinefunction(call)

    async def main() -> list[Any]:
        async with client:
            return [await call(7), await call(8)]

    assert asyncio.run(main()) == [7, dsync.SKIPPED]


def sync() -> None:
    pass


async def items() -> Any:
    yield 1


class Callable_:
    async def __call__(self) -> None:
        pass

    @classmethod
    async def method(cls) -> None:
        pass


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (sync, "only an async function can be decorated, got function sync"),
        (items, "items is an async generator"),
        (Callable_(), "got Callable_ <"),
        (vars(Callable_)["method"], "got classmethod Callable_.method"),
        (None, "got NoneType None"),
        (asyncio.sleep(0), "got coroutine sleep"),
    ],
    ids=("sync", "generator", "callable", "classmethod", "none", "coroutine"),
)
@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_what_is_no_async_function_is_refused(function: Any, says: str) -> None:
    client: Any = dsync.connect("memory://")
    for decorator in (client.exclusive("x"), client.limited("x", 1)):
        with pytest.raises(TypeError) as raised:
            decorator(function)
        assert says in str(raised.value)


def test_the_decorator_without_a_name_is_refused() -> None:
    client: Any = dsync.connect("memory://")
    with pytest.raises(TypeError, match="name must be a str, got function"):

        @client.exclusive
        async def call() -> None:
            pass


BAD = [
    ({"name": ""}, ValueError),
    ({"name": 5}, TypeError),
    ({"name": "\ud800"}, ValueError),
    ({"busy": "queue"}, ValueError),
    ({"busy": 1}, ValueError),
    ({"busy": ["wait"]}, ValueError),
    ({"every": 0}, ValueError),
    ({"every": 0.0001}, ValueError),
    ({"every": -5}, ValueError),
    ({"every": float("inf")}, ValueError),
    ({"every": 1e9}, ValueError),
    ({"every": True}, TypeError),
    ({"every": "600"}, TypeError),
    ({"timeout": -1}, ValueError),
    ({"timeout": "3"}, TypeError),
    ({"timeout": float("nan")}, ValueError),
    ({"lease": 0}, ValueError),
    ({"lease": None}, TypeError),
    ({"max_hold": 0}, ValueError),
    ({"max_hold": "1"}, TypeError),
]


@pytest.mark.parametrize(("arguments", "error"), BAD, ids=str)
def test_arguments_are_checked_where_they_are_written(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    exclusive: Any = dsync.connect("memory://").exclusive
    ((argument, value),) = arguments.items()
    with pytest.raises(error) as raised:
        exclusive(**{"name": "x"} | arguments)
    assert argument in str(raised.value)
    assert value == "" or str(value) in str(raised.value) or repr(value) in str(raised.value)


@pytest.mark.parametrize(
    "arguments", [{"busy": "skip"}, {"busy": "raise"}, {"every": 60}, {"every": 6, "busy": "skip"}]
)
def test_a_timeout_for_who_does_not_wait_is_refused(arguments: dict[str, Any]) -> None:
    exclusive: Any = dsync.connect("memory://").exclusive
    with pytest.raises(ValueError, match=r"timeout=3 goes with busy='wait' only, got '"):
        exclusive("x", timeout=3, **arguments)


async def types(client: dsync.Client) -> None:
    """Not run: what type checkers have to make of it."""

    async def call(number: int, *, more: str = "") -> str:
        return more

    assert_type(await client.exclusive("x")(call)(1, more=""), str)
    assert_type(await client.exclusive("x", timeout=3)(call)(1), str)
    assert_type(await client.exclusive("x", busy="raise")(call)(1), str)
    assert_type(await client.exclusive("x", busy="wait", every=3)(call)(1), str)
    assert_type(await client.exclusive("x", busy="raise", every=3)(call)(1), str)
    assert_type(await client.exclusive("x", busy="skip")(call)(1), str | dsync.Skipped)
    assert_type(await client.exclusive("x", every=3)(call)(1), str | dsync.Skipped)
    assert_type(await client.limited("x", 3)(call)(1), str)
    assert_type(await client.limited("x", 3, timeout=3)(call)(1), str)
    assert_type(await client.limited("x", 3, busy="raise")(call)(1), str)
    assert_type(await client.limited("x", 3, busy="skip")(call)(1), str | dsync.Skipped)

    result = await client.exclusive("x", every=3)(call)(1)
    if result is not dsync.SKIPPED:
        assert_type(result, str)
    if isinstance(result, dsync.Skipped):
        return
    assert_type(result, str)

    client.exclusive("x", every=3, timeout=3)  # type: ignore[call-overload]
    client.exclusive("x", busy="skip", timeout=3)  # type: ignore[call-overload]
    client.exclusive("x")(sync)  # type: ignore[arg-type]
    await client.exclusive("x")(call)("1")  # type: ignore[arg-type]

    class Mailer:
        @client.exclusive("x")
        async def mail(self, number: int) -> str:
            return ""

    assert_type(await Mailer().mail(3), str)
    await Mailer().mail("3")  # type: ignore[arg-type]


# -- every -----------------------------------------------------------------------------------------


class Starts:
    """When a function began, and who ran it, over all processes of a world."""

    def __init__(self, world: World, every: float, **kwargs: Any) -> None:
        self.times: list[float] = []
        self.results: list[Any] = []
        self._world = world
        self._kwargs = {"every": every, **kwargs}

    def process(self, body: Callable[[], Awaitable[Any]] | None = None) -> Any:
        """Another process's function."""

        async def call() -> Any:
            self.times.append(time.monotonic())
            return await body() if body is not None else "ran"

        return self._world.client().exclusive("x", **self._kwargs)(call)

    def gaps(self) -> list[float]:
        return [two - one for one, two in zip(self.times, self.times[1:], strict=False)]


# The server counts from the moment at which it lets a call begin; the answer takes its time.
WAY = 0.05
SOON = r"(599\.\d+|600\.000)"  # of 600 seconds, a moment after they began


async def until_run(call: Any) -> Any:
    """Call until it is not skipped."""
    while (result := await call()) is dsync.SKIPPED:
        await asyncio.sleep(0.002)
    return result


async def test_a_function_does_not_begin_again_before_its_time_whoever_runs_it(
    world: World,
) -> None:
    starts = Starts(world, 0.3)
    one, two = starts.process(), starts.process()
    assert await one() == "ran"
    for call in (one, two):
        assert await call() is dsync.SKIPPED
    assert await until_run(two) == "ran"
    assert await one() is dsync.SKIPPED
    assert await until_run(one) == "ran"
    assert min(starts.gaps()) > 0.3 - WAY
    assert max(starts.gaps()) < 0.3 + 0.2


async def test_it_does_not_begin_again_after_it_failed_or_was_cancelled_either(
    world: World,
) -> None:
    starts = Starts(world, 0.3)

    async def fail() -> None:
        raise ValueError("mine")

    failing, cancelled = starts.process(fail), starts.process(asyncio.Event().wait)
    with pytest.raises(ValueError, match="mine"):
        await failing()
    assert await failing() is dsync.SKIPPED
    task = asyncio.create_task(until_run(cancelled))
    await settled(lambda: len(starts.times) == 2)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await cancelled() is dsync.SKIPPED
    assert await until_run(starts.process()) == "ran"
    assert min(starts.gaps()) > 0.3 - WAY
    assert len(starts.times) == 3


async def test_a_call_that_runs_for_longer_than_its_time_is_still_the_only_one(
    world: World,
) -> None:
    starts = Starts(world, 0.05)
    may_end = asyncio.Event()
    long = asyncio.create_task(starts.process(may_end.wait)())
    await settled(lambda: len(starts.times) == 1)
    other = starts.process()
    while time.monotonic() < starts.times[0] + 0.15:
        assert await other() is dsync.SKIPPED
    may_end.set()
    await long
    assert await other() == "ran"  # its time has come long ago


async def test_too_early_it_raises_when_the_next_may_begin(world: World) -> None:
    starts = Starts(world, 600, busy="raise")
    one, two = starts.process(), starts.process()
    await one()
    for call in (one, two):
        with pytest.raises(dsync.AcquireTimeout, match=rf"lock 'x'.* in {SOON} s.* every 600 s"):
            await call()
    await nothing_left(world)
    assert len(starts.times) == 1


async def test_too_early_it_waits_for_its_time(world: World) -> None:
    starts = Starts(world, 0.2, busy="wait")
    calls = [starts.process() for _ in range(4)]
    assert await asyncio.gather(*(call() for call in calls)) == ["ran"] * 4
    assert min(starts.gaps()) > 0.2 - WAY
    assert max(starts.gaps()) < 0.2 + 0.15


async def test_a_time_that_comes_too_late_is_said_at_once_and_nothing_is_held(
    world: World,
) -> None:
    starts = Starts(world, 600, busy="wait", timeout=30)
    one, two = starts.process(), starts.process()
    await one()
    began = time.monotonic()
    with pytest.raises(dsync.AcquireTimeout, match=rf"in {SOON} s"):
        await two()
    assert time.monotonic() - began < 5
    await nothing_left(world)


async def test_a_timeout_counts_from_the_call_over_the_lock_and_the_time(world: World) -> None:
    starts = Starts(world, 1.0, busy="wait", timeout=0.6)
    call = starts.process()
    await call()
    async with world.client().lock("x"):
        second = asyncio.create_task(call())
        await queued(world, 1)
        # The lock is free before 0.6 s are over, and its time comes after.
        await settled(lambda: time.monotonic() > starts.times[0] + 0.3)
    with pytest.raises(dsync.AcquireTimeout):
        await second
    assert time.monotonic() < starts.times[0] + 1.0
    assert len(starts.times) == 1


async def sleeping(world: World, starts: Starts, call: Any) -> "asyncio.Task[Any]":
    """A call that holds the lock and waits for its time."""
    await starts.process()()
    task: asyncio.Task[Any] = asyncio.create_task(call())

    async def holds() -> bool:
        return (await world.clients[0].lock("x").info()).holder is not None

    await settled(holds)
    return task


async def test_only_the_holder_of_the_lock_waits_for_the_time_the_others_wait_for_the_lock(
    world: World,
) -> None:
    starts = Starts(world, 0.5, busy="wait")
    first = await sleeping(world, starts, starts.process())
    others = [asyncio.create_task(starts.process()()) for _ in range(2)]
    await queued(world, 2)
    first.cancel()  # while it sleeps: it gives the lock, and the time, to the next
    await asyncio.gather(*others)
    assert first.cancelled()
    assert len(starts.times) == 3
    assert min(starts.gaps()) > 0.5 - WAY
    assert max(starts.gaps()) < 0.5 + 0.2
    await nothing_left(world)


async def test_a_lease_lost_while_it_waits_for_its_time_costs_nobody_the_time(
    world: World,
) -> None:
    starts = Starts(world, 0.5, busy="wait")
    first = await sleeping(world, starts, starts.process())
    assert await world.client().lock("x").force_release()
    with pytest.raises(dsync.LeaseLost):
        await first
    assert len(starts.times) == 1
    await starts.process()()
    assert 0.5 - WAY < starts.gaps()[0] < 0.5 + 0.2


@pytest.mark.parametrize("lease", [0.3, 0.8])
async def test_max_hold_counts_from_the_moment_the_function_begins(
    world: World, lease: float
) -> None:
    """Not from when the lock is held: it may wait for its time much longer."""
    starts = Starts(world, 1.2, busy="wait", lease=lease, max_hold=0.6)
    call = starts.process(asyncio.Event().wait)
    task = await sleeping(world, starts, call)
    with pytest.raises(dsync.LeaseLost):
        await task
    assert starts.gaps()[0] > 1.2 - WAY
    assert 0.3 < time.monotonic() - starts.times[1] < 0.65
    async with world.client().lock("x"):
        pass  # another has it when the lease has ended


async def test_a_limiter_of_the_users_by_the_same_name_is_another_thing(world: World) -> None:
    limiter = world.client().rate_limiter("x", 1, per=600)
    assert await limiter.try_acquire()
    starts = Starts(world, 600)
    assert await starts.process()() == "ran"
    assert (await limiter.info()).remaining == 0
    assert (await world.client().rate_limiter("y", 1, per=600).info()).remaining == 1


async def test_each_name_has_its_own_time(world: World) -> None:
    @world.client().exclusive("user:{user_id}", every=600)
    async def call(user_id: int) -> int:
        return user_id

    assert [await call(1), await call(2), await call(1)] == [1, 2, dsync.SKIPPED]


async def test_a_call_that_is_skipped_for_the_lock_takes_no_time(world: World) -> None:
    starts = Starts(world, 600)
    call = starts.process()
    async with world.client().lock("x"):
        assert await call() is dsync.SKIPPED
    assert await call() == "ran"


async def test_when_processes_disagree_the_newest_clients_time_counts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    old = Starts(world, 600).process()
    assert await old() == "ran"
    starts = Starts(world, 0.2)
    new = starts.process()
    # What is left of the old time is left of the new one: the change lets nothing begin at once.
    began = time.monotonic()
    assert await new() is dsync.SKIPPED
    assert await until_run(new) == "ran"
    assert time.monotonic() - began < 0.5
    assert await until_run(old) == "ran"
    assert time.monotonic() - starts.times[0] < 0.5
    assert "x" in caplog.text
