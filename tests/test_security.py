"""What comes over the wire, or is called something strange, is data and nothing else."""

import ast
import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import dsync
from dsync.names import plain, tag
from dsync.redis.script import SCRIPTS, TEXTS
from tests.conftest import RIGHTS, World, settled

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "dsync").rglob("*.py"))
# What can make code of data, by the module it is in or by its own name.
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "code", "runpy", "ctypes"}
BUILTINS = {"eval", "exec", "compile", "__import__", "globals", "setattr"}

NASTY = [
    "plain", " ", "a b", "a\r\nb", "\r\n$3\r\nSET\r\n", "*1\r\n$8\r\nFLUSHALL\r\n", "$0\r\n\r\n",
    "\0", "%", "%s%n", "%7D", "{", "}", "{}", "}{", "{x}:holders", "}:holders", ":", "::", "*", "?",
    "[a-z]", "a:lock:b", "host:1:2:abc.7/5000", "host:1:2:abc.7/5000/x", "a.b/c", "'", '"', "\\",
    "']] redis.call('FLUSHALL') --", "redis.call", "KEYS[1]", "é🔒\u202e", "\x1b[31m", "-", "+OK",
    ">3\r\n$7\r\nmessage", "_", "n" * 5000, "é" * 200,
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.text("{}:%*/. \r\n\0$é", min_size=1, max_size=8),
)


# -- no code of data -------------------------------------------------------------------------------


def makers_of_code(text: str) -> list[str]:
    """What in a module's text could run what it is given as data."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in ("import_module", "system", "popen"):
            found.append(node.attr)
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            found.append("shell=")
        found += [name for name in names if name.partition(".")[0] in MODULES]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_can_make_code_of_data(path: Path) -> None:
    assert not makers_of_code(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from marshal import loads", "import yaml.loader", "eval('1')",
        "f = exec", "importlib.import_module(name)", "subprocess.run(x, shell=True)",
    ],
)  # fmt: skip
def test_what_could_make_code_of_data_would_be_found(text: str) -> None:
    assert makers_of_code(text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_calls_commands_by_their_literal_names_only_and_runs_no_text(name: str) -> None:
    text = re.sub(r"--.*", "", SCRIPTS[name].text)
    called = re.findall(r"redis\.(p?call)\s*\(\s*(.)", text)
    assert called
    assert {first for _, first in called} == {"'"}
    assert not re.search(r"\b(loadstring|load|dofile|setfenv|getfenv|require|debug)\b", text)


def test_only_our_own_texts_are_sent_as_scripts() -> None:
    """No name, value or message ever becomes part of one: they are all there at import."""
    on_disk = {script.text for script in SCRIPTS.values()}
    assert set(TEXTS.values()) == on_disk


# -- names -----------------------------------------------------------------------------------------

KINDS = st.sampled_from(
    ("lock", "semaphore", "condition", "event", "barrier", "bus", "rate", "every", "leader",
     "election", "single_flight", "inbox")
)  # fmt: skip
PARTS = st.sampled_from(("state", "holders", "waiters", "sleepers:x", "left", "value"))
PRIMITIVES = st.tuples(TEXT, KINDS, TEXT)


@given(PRIMITIVES, PARTS, PRIMITIVES, PARTS)
@example(("a", "lock", "x"), "holders", ("a", "lock", "x}:holders"), "holders")
@example(("a", "bus", "x"), "state", ("a:bus", "x", "x"), "state")
def test_two_primitives_never_share_a_key_or_a_channel(
    one: tuple[str, str, str], part: str, other: tuple[str, str, str], other_part: str
) -> None:
    keys = (f"{tag(*one)}:{part}", f"{tag(*other)}:{other_part}")
    assert (keys[0] == keys[1]) == ((one, part) == (other, other_part))
    channels = (tag(*one)[1:-1], tag(*other)[1:-1])
    assert (channels[0] == channels[1]) == (one == other)


@given(TEXT, TEXT)
@example("a/b", "a%2Fb")
@example("a.b", "a%2Eb")
def test_two_conditions_of_one_lock_never_share_a_queue(one: str, other: str) -> None:
    assert (plain(one) == plain(other)) == (one == other)
    assert not set(plain(one)) & set("/. {}\r\n\0")


@given(TEXT, TEXT)
def test_a_namespace_is_nobody_elses_beginning(one: str, other: str) -> None:
    """So rights on `{<namespace>:*` are rights on that one alone."""
    prefix = tag(one, "lock", "x").partition(":")[0] + ":"
    assert tag(other, "lock", "x").startswith(prefix) == (one == other)


class Monitor:
    """What the server carries out: commands, and what scripts call."""

    LINE = re.compile(rb"\+[0-9.]+ \[\d+ (\S+)\] (.*)")
    WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def until(self, end: bytes) -> list[tuple[bool, list[bytes]]]:
        """Whether by a script, and its words, up to the one that echoes `end`."""
        found: list[tuple[bool, list[bytes]]] = []
        while True:
            line = await asyncio.wait_for(self._reader.readline(), 5)
            match = self.LINE.fullmatch(line.rstrip())
            assert match is not None, line
            words = self.WORD.findall(match[2])
            if words == [b"ECHO", end]:
                return found
            found.append((match[1] == b"lua", words))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def monitoring(url: str) -> AsyncIterator[Monitor]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    made = Monitor(reader, writer)
    try:
        yield made
    finally:
        await made.close()


async def use_everything(client: dsync.Client, other: dsync.Client, name: str) -> None:
    """Every primitive of this name, with it as every text that there is; one command at a time."""
    async with client.lock(name):
        assert not await other.lock(name).try_acquire()
        assert (await other.lock(name).info()).holder is not None
    async with client.semaphore(name, 2):
        pass
    await client.event(name).set()
    assert await client.event(name).wait()
    await client.event(name).clear()
    condition = client.condition(name, lock=client.lock(name))
    async with condition:
        with pytest.raises(dsync.WaitTimeout):
            await condition.wait(timeout=0.001)
        condition.notify()
    assert await client.barrier(name, 1).wait() == 0
    await client.barrier(name, 1).reset()
    async with client.event_bus(name).subscribe(name.replace("*", "\\*")) as events:
        await client.event_bus(name).trigger(name, name)
        message = await anext(events)
        assert isinstance(message, dsync.Message)
        assert (message.event, message.data) == (name, name)
    assert await client.rate_limiter(name, 5).try_acquire()

    async def compute() -> str:
        return name

    assert await client.single_flight(name, compute, ttl=1) == name
    assert await other.single_flight(name, compute, ttl=1) == name
    async with client.leader(name, sigterm=False) as term:
        assert term.held
        assert await client.leader(name).leader() is not None
    await client.store.drain()


def verbs(heard: list[tuple[bool, list[bytes]]]) -> set[tuple[bool, bytes]]:
    """Which commands, and by scripts or not; of scripts, which."""
    return {
        (by_script, b" ".join(words[:2] if words[0] in (b"EVALSHA", b"EVAL") else words[:1]))
        for by_script, words in heard
    }


async def test_no_name_leads_to_another_command_key_or_channel(real: World) -> None:
    for script in SCRIPTS.values():
        await real.admin.script_load(script.text)
    client, other = real.client(), real.client()
    plain: set[tuple[bool, bytes]] = set()
    for _ in range(5):  # in several runs, all that time can make of them
        async with monitoring(real._direct) as monitor:
            await use_everything(client, other, f"plain {_}")
            await real.admin.echo("end")
            plain |= verbs(await monitor.until(b"end"))
    assert len(plain) > 20
    tagged = re.compile(b"\\{?%b:[a-z_]+:[!-z|~]*(\\}:[!-z|~]+)?" % real.namespace.encode())
    for name in NASTY:
        async with monitoring(real._direct) as monitor:
            await use_everything(client, other, name)
            await real.admin.echo("end")
            heard = await monitor.until(b"end")
        assert verbs(heard) <= plain, name
        for _, words in heard:
            if words[0] == b"EVALSHA":
                for key in words[3 : 3 + int(words[2])]:
                    assert tagged.fullmatch(key), (name, key)
            elif words[0] in (b"PUBLISH", b"SUBSCRIBE", b"UNSUBSCRIBE"):
                assert tagged.fullmatch(words[1]), (name, words)


async def test_a_namespace_and_a_label_can_be_any_text(server_url: str, real: World) -> None:
    for text in NASTY:
        client = dsync.Client(server_url, namespace=real.namespace + text, label=text)
        other = dsync.Client(server_url, namespace=real.namespace + text, label="other")
        async with client, other:
            await use_everything(client, other, "x")
            async with client.lock("y"):
                waiting = asyncio.create_task(other.lock("y").acquire())
                await settled(lambda: is_queued(client))  # noqa: B023
                info = await other.lock("y").info()
                assert info.holder is not None
                assert info.holder.label == text[:40]
                assert info.waiters[0].label == "other"
            await asyncio.wait_for(waiting, 2)
        # One connection name, however strange: no spaces, no line ends.
        assert re.fullmatch("[!-~]+", client.client_id)
        prefix = tag(real.namespace + text, "lock", "x").partition(":")[0]
        keys = [key async for key in real.admin.scan_iter(match=f"{{{real.namespace}*", count=500)]
        for key in keys:
            if key.decode().startswith(prefix + ":"):
                assert ":event:" in key.decode() or await real.admin.pttl(key) > 0
                await real.admin.delete(key)


async def is_queued(client: dsync.Client) -> bool:
    return len((await client.lock("y").info()).waiters) == 1


STRANGE = ["a b\r\n{c}", "*", "", "x" * 300, "caf\udce9.py"]


@pytest.mark.parametrize("what", ["program", "host"])
@pytest.mark.parametrize("name", STRANGE, ids=ascii)
async def test_a_program_and_a_host_can_be_called_anything(
    real: World, what: str, name: str
) -> None:
    """Both come from outside, and are bytes to the system: undecodable ones are surrogates here."""
    program = mock.patch.object(sys, "argv", [name])
    host = mock.patch.object(socket, "gethostname", return_value=name)
    with program if what == "program" else host:
        client = real.client()
    assert re.fullmatch("[!-~]+", client.client_id)
    async with client.lock("x"):
        assert (await real.client().lock("x").info()).holder is not None


@pytest.mark.parametrize("suffix", ["", " eu", "é", "{}", "a:b", "*", "n" * 200], ids=ascii)
async def test_the_rights_that_a_refusal_names_are_enough(real: World, suffix: str) -> None:
    """As keys begin with what the namespace is written as, whatever it is called."""
    namespace, user = real.namespace + suffix, f"{real.namespace}-user"
    await real.admin.execute_command("ACL", "SETUSER", user, "reset", "on", ">pw", *RIGHTS)
    parts = urlsplit(real.url)
    url = parts._replace(netloc=f"{user}:pw@{parts.hostname}:{parts.port}").geturl()
    try:
        async with dsync.Client(url, namespace=namespace) as client:
            with pytest.raises(dsync.StoreUnavailable) as refused:
                await client.lock("x").acquire()
        rights = str(refused.value).rpartition("; allow ")[2].split(" ")
        await real.admin.execute_command("ACL", "SETUSER", user, *rights)
        async with dsync.Client(url, namespace=namespace) as client, client.lock("x"):
            await settled(client.listening)
    finally:
        await real.admin.acl_deluser(user)


# -- messages from others --------------------------------------------------------------------------

HUGE = b"9" * 400  # an int, and more than a float can hold
# What somebody with a right to our channels may say there.
GARBAGE = [
    b"", b" ", b"\r\n", b"\0\xff\xfe", b"\xff" * 100, b"1", b"1 2", b"1 2 3", b"0 0 0", b"-1 -1 -1",
    b"x y z", b"1 1", b"1 1 -1 4", b"g", b"g x", b"look", b"l", b"*1\r\n$8\r\nFLUSHALL\r\n",
    b"1 " + HUGE + b" " + HUGE, b"1 5 " + HUGE, b"1 " + b"9" * 5000 + b" 1", b"nan inf -inf",
    HUGE + b" 1 a b {}", b"1 " + HUGE + b" a b {}", b"1 2 %ff \xff {}", b"v{",
    b"v" + b"[" * 100_000, b"m" * 1_000_000, b"{" * 100_000,
]  # fmt: skip
SAID = [
    b"", b"0", b"0 0", b"1 1000 0 1", b"1 1000 0 1 7", HUGE, b"1 " + HUGE + b" 0 1",
    HUGE + b" 1000 0 1", b"0 " + HUGE, HUGE + b" " + HUGE, b"1 1000 " + HUGE + b" " + HUGE,
    b"-1 -1 -1 -1", b"1 -1000 0 1", b"-9 -9", b"x", b"1.5 2 3 4", b"\xff", b"1_000 1",
]  # fmt: skip


class Line:
    """Watches a client: its connection stays the same, and nothing is raised in its reader."""

    def __init__(self, world: World, client: dsync.Client) -> None:
        self._world = world
        self._client = client
        self._raised: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: self._raised.append(context)
        )

    async def connections(self) -> list[str]:
        clients = await self._world.admin.client_list()
        return [c["id"] for c in clients if c["name"] == f"dsync:{self._client.client_id}"]

    async def unharmed(self, before: list[str]) -> None:
        await self._client.check()
        assert not self._raised, self._raised
        assert await self.connections() == before, "the connection was dropped"


@pytest.fixture
async def line(real: World) -> AsyncIterator[Callable[[dsync.Client], Awaitable[Line]]]:
    async def watched(client: dsync.Client) -> Line:
        await client.check()
        await settled(client.listening)
        return Line(real, client)

    yield watched
    asyncio.get_running_loop().set_exception_handler(None)


@pytest.mark.parametrize("words", GARBAGE, ids=lambda words: repr(words[:20]))
async def test_garbage_on_any_channel_stops_nobody(real: World, line: Any, words: bytes) -> None:
    client, holder = real.client(), real.client()
    reported: list[BaseException] = []
    client._on_error = reported.append  # a bad message on a bus is told
    watch = await line(client)
    before = await watch.connections()
    bus = client.event_bus("x")
    heard: list[Any] = []
    await bus.on("n", heard.append, on_gap=lambda gap: None)
    event = client.event("x")
    assert not event.is_set()
    landing, flying = flight(holder)
    await settled(lambda: is_held(real, "single_flight"))
    following = asyncio.create_task(client.single_flight("x", never, ttl=60))
    observing = client.leader("x").observe()
    assert await anext(observing) is None
    await settled(lambda: len(client._listeners) == 4)
    for channel in (*client._listeners, client.store.channel + client.client_id):
        assert await real.admin.publish(channel, words) == 1
    await watch.unharmed(before)
    landing.set()
    assert await asyncio.wait_for(following, 5) == await flying == 1
    await observing.aclose()
    await watch.unharmed(before)
    assert all(isinstance(error, dsync.BadMessage) for error in reported)


async def never() -> int:
    raise AssertionError("another computes it")


def flight(client: dsync.Client) -> "tuple[asyncio.Event, asyncio.Task[int]]":
    """A process that computes 1 until it may land."""
    landing = asyncio.Event()

    async def compute() -> int:
        await landing.wait()
        return 1

    return landing, asyncio.create_task(client.single_flight("x", compute, ttl=60))


async def is_held(real: World, kind: str, name: str = "x") -> bool:
    return bool(await real.admin.zcard(real.key(kind, name, "holders")))


@pytest.mark.parametrize("said", SAID, ids=lambda said: repr(said[:20]))
@pytest.mark.parametrize("kind", [b"g", b"w", b"l", b"t", b"b", b"", b"?"])
async def test_nothing_said_of_our_tokens_stops_the_reader(
    real: World, line: Any, kind: bytes, said: bytes
) -> None:
    """Of one that holds, one that waits, one that sleeps, one at a barrier; then all goes on."""
    real.leftovers_allowed = True
    client, other = real.client(), real.client()
    watch = await line(client)
    before = await watch.connections()
    await client.lock("held").acquire()
    blocker = other.lock("wanted")
    await blocker.acquire()

    async def want() -> None:
        async with client.lock("wanted"):  # if it believes that
            await asyncio.sleep(60)

    async def sleep() -> None:
        async with (condition := client.condition("x")):
            await condition.wait()

    rate = client.rate_limiter("x", 1, per=1000)
    await rate.acquire()
    waits = (want(), sleep(), client.barrier("x", 2).wait(), rate.acquire())
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(wait) for wait in waits]
    await settled(lambda: len(client.homes) == 5, "all have asked")
    await client.check()
    for token in list(client.homes):
        await real.admin.publish(
            client.store.channel + client.client_id, b" ".join((kind, token.encode(), said))
        )
    await watch.unharmed(before)
    for task in tasks:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    await blocker.release()
    async with asyncio.timeout(8):
        async with client.lock("wanted"), client.condition("x"), client.semaphore("x", 1):
            pass
    await watch.unharmed(before)


async def forge(real: World, client: dsync.Client, *words: str | int) -> None:
    """Say something to a client as if the store had."""
    text = " ".join(map(str, words))
    assert await real.admin.publish(client.store.channel + client.client_id, text) == 1


@pytest.mark.parametrize("claim", [1000, 10**9], ids=["as asked", "longer"])
async def test_a_forged_grant_is_found_out_before_the_lease_that_was_asked_for_ends(
    real: World, claim: int
) -> None:
    """Rights on our channels are rights on our locks, but only until the store is asked."""
    holder, client = real.client().lock("x"), real.client()
    lock = client.lock("x", lease=1.0)
    await holder.acquire()
    waiting = asyncio.create_task(lock.acquire())
    await settled(lambda: bool(lock._cohort.requests))
    await client.check()
    [token] = lock._cohort.requests
    await forge(real, client, "g", token, 2**52, claim, 0, 1)
    await asyncio.wait_for(waiting, 1)
    lease = lock.lease
    assert lease is not None
    await asyncio.wait_for(lease.lost.wait(), 1)
    with pytest.raises(dsync.LeaseLost):
        await lock.release()
    assert holder.lease is not None
    assert holder.lease.held
    await holder.release()
    await lock.acquire()
    await lock.release()


async def test_a_forged_loss_ends_the_body_and_leaves_the_lock_free(real: World) -> None:
    client = real.client()
    lock = client.lock("x")
    with pytest.raises(dsync.LeaseLost):
        async with lock as lease:
            assert lease.hold is not None
            await forge(real, client, "l", lease.hold.token)
            await asyncio.sleep(5)
    assert await real.client().lock("x").try_acquire()


async def test_a_grant_or_loss_of_a_strangers_token_is_nothing(real: World) -> None:
    client, other = real.client(), real.client()
    async with client.lock("x") as lease, other.lock("y") as theirs:
        assert theirs.hold is not None
        for kind in "gwltb":
            await forge(real, client, kind, theirs.hold.token, 1, 1000, 0, 1)
        await client.check()
        assert lease.held
        assert await client.lock("y").locked()


async def test_a_forged_grant_makes_nobody_give_away_what_another_holds(real: World) -> None:
    """Who waits gives back a grant that it does not want, but only its own."""
    client, other = real.client(), real.client()
    async with other.lock("x") as theirs:
        waiting = asyncio.create_task(client.lock("x").acquire())
        await settled(lambda: bool(client.homes))
        await client.check()
        assert theirs.hold is not None
        await forge(real, client, "g", theirs.hold.token, 1, 1000, 0, 1)
        await client.check()
        await client.check()
        assert not waiting.done()
        assert [
            t.decode() for t in await real.admin.zrange(real.key("lock", "x", "holders"), 0, -1)
        ] == [theirs.hold.token]
    assert await asyncio.wait_for(waiting, 2)


async def test_a_forged_limit_lets_nobody_in(real: World) -> None:
    """What is said of the limit moves requests, and permits come from the store alone."""
    client = real.client()
    lock = client.lock("x")
    async with lock as lease:
        assert lease.hold is not None
        waiting = [asyncio.create_task(lock.acquire()) for _ in range(5)]
        await forge(real, client, "w", lease.hold.token, 3, 100)
        await client.check()
        await client.check()
        assert not any(task.done() for task in waiting)
    for task in waiting:
        await settled(lambda: any(task.done() for task in waiting))
        assert sum(task.done() and not task.cancelled() for task in waiting) == 1
        done = next(task for task in waiting if task.done())
        waiting.remove(done)
        await lock.release()
        if not waiting:
            break


@pytest.mark.parametrize("generation", [1, 10**18], ids=["next", "far"])
async def test_a_forged_change_of_an_event_does_not_outlast_the_next_real_one(
    real: World, generation: int
) -> None:
    client, other = real.client(), real.client()
    event = client.event("x")
    await event.clear()
    event.is_set()
    await settled(client.listening)
    await client.check()
    channel = tag(real.namespace, "event", "x")[1:-1]
    now = await real.admin.hget(real.key("event", "x", "state"), "generation")
    assert await real.admin.publish(channel, f"1 {int(now or 0) + generation} -1") == 1
    await settled(lambda: bool(event.is_set()))  # believed, as any message
    assert not await event.is_set(), "what is awaited is the store's answer"
    await other.event("x").set()
    await other.event("x").clear()
    await settled(lambda: not event.is_set(), "it has heard of the real ones", 3)
    with pytest.raises(dsync.WaitTimeout):
        await event.wait(timeout=0.1)
    waiting = asyncio.create_task(event.wait())
    await client.check()
    await other.event("x").set()
    assert await asyncio.wait_for(waiting, 3)
    await event.clear()


@pytest.mark.parametrize("ahead", [1, 10**12])
async def test_a_forged_message_on_a_bus_does_not_silence_the_real_ones(
    real: World, ahead: int
) -> None:
    client, other = real.client(), real.client()
    async with client.event_bus("x").subscribe() as events:
        await other.event_bus("x").trigger("n", 0)
        first = await anext(events)
        assert isinstance(first, dsync.Message)
        hub: Any = client._hubs["x"]
        epoch, sequence = hub._position
        forged = f"{epoch} {sequence + ahead} somebody n 7"
        assert await real.admin.publish(hub.channel, forged) == 1
        await client.check()
        # The next ones are heard, or told as a gap: never nothing.
        heard: list[Any] = []
        async with asyncio.timeout(4):
            while not any(isinstance(m, dsync.Message) and m.data == "real" for m in heard):
                await other.event_bus("x").trigger("n", "real")
                try:
                    async with asyncio.timeout(0.2):
                        heard.append(await anext(events))
                except TimeoutError:
                    pass


async def test_a_forged_value_of_a_flight_is_data_only(real: World) -> None:
    """Who may publish can tell those who wait a value, and nobody who comes later."""
    client, holder = real.client(), real.client()
    landing, flying = flight(holder)
    await settled(lambda: is_held(real, "single_flight"))
    following: asyncio.Task[Any] = asyncio.create_task(client.single_flight("x", never, ttl=60))
    await settled(lambda: len(client._listeners) == 1)
    await client.check()
    [channel] = client._listeners
    await real.admin.publish(channel, b'v{"__reduce__": "os.system"}')
    assert await asyncio.wait_for(following, 3) == {"__reduce__": "os.system"}
    landing.set()
    assert await flying == 1
    assert await client.single_flight("x", never, ttl=60) == 1
