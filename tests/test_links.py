"""Both ways to a server under the same tests: whatever breaks, each call is answered once."""

import asyncio
import math
import re
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fakeredis
import hiredis
import pytest
import redis.asyncio

import dsync
from dsync.redis.pooled import PooledLink
from dsync.redis.store import RedisStore
from dsync.redis.wire import Wire
from dsync.store import Call
from tests.conftest import World, left_running, settled

ROOT = Path(__file__).parent.parent
KINDS = ("wire", "pooled", "fakeredis")


class OwnConnection(redis.asyncio.Connection):
    """A connection whose socket is not redis-py's to give away, as far as dsync can see."""

    async def _connect(self) -> None:
        await super()._connect()


class Rig:
    """A link, what it delivered, and an admin's connection to the same server."""

    def __init__(self, kind: str, url: str, outage_timeout: float = 10.0) -> None:
        self.kind = kind
        self.id = f"rig:{uuid.uuid4().hex[:12]}"
        self.pushes: list[tuple[list[bytes], float]] = []
        self.gaps = self.breaks = 0
        self.told: list[tuple[str, bytes]] = []  # on which channel, what
        self.tunings: list[tuple[str, BaseException | None]] = []
        self.own: Any = None  # the client that a pooled link uses
        if kind == "fakeredis":
            server = fakeredis.FakeServer()
            self.own = fakeredis.FakeAsyncRedis(server=server)
            self.admin: Any = fakeredis.FakeAsyncRedis(server=server)
        else:
            self.admin = redis.asyncio.Redis.from_url(url)
            if kind == "pooled":
                pool = redis.asyncio.ConnectionPool.from_url(
                    url, connection_class=OwnConnection, client_name=f"dsync:{self.id}"
                )
                self.own = redis.asyncio.Redis.from_pool(pool)
        self.store = RedisStore(
            self.id, self, "t", None if self.own else url, self.own, outage_timeout
        )
        self.link = self.store.link
        assert type(self.link) is (Wire if kind == "wire" else PooledLink)
        self.list = f"t-{self.id}"  # a key to scribble on

    def pushed(self, message: list[bytes], evidence: float) -> None:
        self.pushes.append((message, evidence))

    def gap(self) -> None:
        self.gaps += 1

    def disconnected(self, trouble: BaseException) -> None:
        self.breaks += 1

    def news(self, channel: str, payload: bytes) -> None:
        self.told.append((channel, payload))

    def tuned(self, channel: str, refused: BaseException | None) -> None:
        self.tunings.append((channel, refused))

    def send(self, *command: Any) -> "asyncio.Future[Call]":
        """Call it now; the future brings the answered Call."""
        future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        # Answered twice would raise InvalidStateError here.
        self.link.call(
            command, lambda call: None if future.cancelled() else future.set_result(call)
        )
        return future

    async def ask(self, *command: Any) -> Any:
        reply = (await self.send(*command)).reply
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def ready(self) -> None:
        await self.ask("PING")
        await settled(lambda: self.link.listening, "the subscription is confirmed")

    async def connections(self) -> list[str]:
        clients = await self.admin.client_list()
        return [each["id"] for each in clients if each["name"].startswith(f"dsync:{self.id}")]

    async def kill(self) -> None:
        for number in await self.connections():
            await self.admin.client_kill_filter(_id=number)

    async def close(self) -> None:
        await self.store.aclose()
        await self.admin.delete(self.list)
        if self.own is not None:
            assert await self.own.ping(), "a client that was lent is not ours to close"
            await self.own.aclose()
        await self.admin.aclose()


@asynccontextmanager
async def rig_of(kind: str, url: str, outage_timeout: float = 10.0) -> AsyncIterator[Rig]:
    before = asyncio.all_tasks()
    rig = Rig(kind, url, outage_timeout)
    try:
        yield rig
    finally:
        await rig.close()
    await settled(lambda: not left_running(before), lambda: f"left: {left_running(before)}")


@pytest.fixture(params=KINDS)
async def rig(request: pytest.FixtureRequest, server_url: str) -> AsyncIterator[Rig]:
    async with rig_of(request.param, server_url) as made:
        yield made


@pytest.fixture(params=KINDS[:2])
async def real_rig(request: pytest.FixtureRequest, server_url: str) -> AsyncIterator[Rig]:
    async with rig_of(request.param, server_url) as made:
        yield made


# -- in order, all at once, and each by itself ----------------------------------------------------


async def test_every_call_is_answered_once_and_in_order(rig: Rig) -> None:
    answered: list[bytes] = []
    for i in range(300):
        rig.link.call(("ECHO", str(i)), lambda call: answered.append(call.reply))
        if i % 7 == 0:
            await asyncio.sleep(0)
    await rig.link.drain()
    assert answered == [str(i).encode() for i in range(300)]


async def test_a_thousand_calls_of_one_tick_leave_together(rig: Rig) -> None:
    await rig.ready()
    writes = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal writes
            writes += 1
            return function(*args, **kwargs)

        return count

    class Counting:
        def __init__(self, transport: Any) -> None:
            self.transport = transport
            self.write = counted(transport.write)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.transport, name)

    if isinstance(rig.link, Wire):
        connection = rig.link._connection
        assert connection is not None
        connection._transport = Counting(connection._transport)
    else:
        rig.own.pipeline = counted(rig.own.pipeline)
    futures = [rig.send("ECHO", str(i)) for i in range(1000)]
    calls = await asyncio.gather(*futures)
    assert [int(call.reply) for call in calls] == list(range(1000))
    # The first leaves at once, the rest with the end of the tick.
    assert writes <= 2


async def test_a_script_that_the_server_forgot_is_sent_and_the_rest_unharmed(rig: Rig) -> None:
    await rig.ready()
    await rig.admin.script_flush()
    record = rig.store.at("lock", rig.id)
    before = rig.send("ECHO", "before")
    healed: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
    record.run("permit_info", healed.set_result)
    behind = rig.send("ECHO", "behind")
    assert [(await before).reply, (await behind).reply] == [b"before", b"behind"]
    assert list((await healed).reply)[:4] == [-1, 0, 0, 0]  # nobody has declared a limit
    assert ((await before).attempts, (await behind).attempts) == (1, 1)
    known: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
    record.run("permit_info", known.set_result)
    assert (await known).attempts == 1, "now the server knows it"


async def test_an_error_hits_only_the_call_that_made_it(rig: Rig) -> None:
    await rig.admin.set(rig.list, "x", px=60_000)
    replies = [
        (await future).reply
        for future in [
            rig.send("ECHO", "a"),
            rig.send("NO-SUCH-COMMAND", "x"),
            rig.send("ZCARD", rig.list),
            rig.send("ECHO", "b"),
        ]
    ]
    assert (replies[0], replies[3]) == (b"a", b"b")
    assert type(replies[1]) is dsync.StoreUnavailable
    assert "unknown command" in str(replies[1])
    assert type(replies[2]) is dsync.ForeignKey


async def test_a_message_comes_with_what_is_known_about_its_age(rig: Rig) -> None:
    began = time.monotonic()
    await rig.ready()
    assert await rig.admin.publish(rig.store.channel + rig.id, "w a.1 0 1") == 1
    await settled(lambda: bool(rig.pushes), "the message")
    [(message, evidence)] = rig.pushes
    assert message == [b"w", b"a.1", b"0", b"1"]
    if rig.kind == "wire":
        assert began <= evidence <= time.monotonic()
    else:
        assert evidence == -math.inf


async def test_drain_waits_for_all_that_was_called_and_for_nothing_else(rig: Rig) -> None:
    await rig.link.drain()
    futures = [rig.send("ECHO", str(i)) for i in range(50)]
    await rig.link.drain()
    assert all(future.done() for future in futures)


async def test_a_call_after_closing_fails_and_one_before_is_answered_or_fails(rig: Rig) -> None:
    await rig.ready()
    last = rig.send("PING")
    await rig.store.aclose()
    assert isinstance((await last).reply, dsync.ClientClosed | bytes | str | bool)
    with pytest.raises(dsync.ClientClosed, match=r"make a new one"):
        await rig.ask("PING")
    await rig.link.drain()


async def test_a_bug_in_a_callback_stops_nobody_else(rig: Rig) -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    try:
        rig.link.call(("PING",), lambda call: 1 / 0)  # type: ignore[arg-type]
        assert await rig.ask("ECHO", "x") == b"x"
    finally:
        loop.set_exception_handler(None)
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]


# -- connections break ----------------------------------------------------------------------------


async def test_what_was_in_flight_when_the_connection_broke_is_sent_again_in_order(
    real_rig: Rig,
) -> None:
    rig = real_rig
    await rig.ready()
    await rig.admin.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
    try:
        futures = [rig.send("RPUSH", rig.list, i) for i in range(20)]
        await asyncio.sleep(0.05)  # they are with the server, which holds them back
        await rig.kill()
    finally:
        await rig.admin.execute_command("CLIENT", "UNPAUSE")
    calls = await asyncio.gather(*futures)
    assert [call.reply for call in calls] == list(range(1, 21))
    assert [int(each) for each in await rig.admin.lrange(rig.list, 0, -1)] == list(range(20))
    assert {call.attempts for call in calls} == {2}
    # An answer's lease counts from the sending of what was answered.
    assert all(call.sent > call.issued for call in calls)


async def test_a_gap_is_announced_once_and_then_messages_come_again(real_rig: Rig) -> None:
    rig = real_rig
    await rig.ready()
    assert rig.gaps == 0
    await rig.kill()
    await settled(lambda: rig.gaps == 1, "the gap")
    await settled(lambda: rig.link.listening, "it listens again")
    await rig.ask("PING")
    await settled(lambda: listeners(rig), "the server knows our channel")
    await rig.admin.publish(rig.store.channel + rig.id, "w a.1 0 1")
    await settled(lambda: bool(rig.pushes), "a message")
    assert rig.gaps == 1


async def listeners(rig: Rig) -> bool:
    [(_, number)] = await rig.admin.pubsub_numsub(rig.store.channel + rig.id)
    return bool(number == 1)


async def test_a_channel_is_heard_from_its_confirmation_on_until_it_is_left(rig: Rig) -> None:
    await rig.ready()
    rig.link.subscribe(f"{rig.id}:a")
    rig.link.subscribe(f"{rig.id}:b")
    await settled(lambda: len(rig.tunings) == 2, "both are confirmed")
    assert sorted(rig.tunings) == [(f"{rig.id}:a", None), (f"{rig.id}:b", None)]
    await rig.admin.publish(f"{rig.id}:a", b"one two\nthree \xff")
    await rig.admin.publish(f"{rig.id}:b", b"")
    await settled(lambda: len(rig.told) == 2, "both are heard")
    assert rig.told == [(f"{rig.id}:a", b"one two\nthree \xff"), (f"{rig.id}:b", b"")]
    assert rig.pushes == [], "they are not messages for the process"
    rig.link.unsubscribe(f"{rig.id}:a")
    if rig.kind != "fakeredis":  # it keeps counting those who have gone
        await settled(partial(nobody_listens, rig, f"{rig.id}:a"), "the server knows")
    await rig.admin.publish(f"{rig.id}:b", b"still")
    await settled(lambda: len(rig.told) == 3, "the other is still heard")


async def nobody_listens(rig: Rig, channel: str) -> bool:
    return dict(await rig.admin.pubsub_numsub(channel)) == {channel.encode(): 0}


async def test_channels_are_heard_again_after_a_reconnect(real_rig: Rig) -> None:
    rig = real_rig
    await rig.ready()
    channels = [f"{rig.id}:{number}" for number in range(20)]
    for channel in channels:
        rig.link.subscribe(channel)
    await settled(lambda: len(rig.tunings) == 20, "all are confirmed")
    rig.link.unsubscribe(channels.pop())
    for _ in range(3):
        rig.gaps = 0
        await rig.kill()
        rig.link.subscribe(channels[0])  # again, and in the middle of it
        await settled(lambda: rig.gaps > 0, "the gap is announced")
        await rig.ask("PING")  # answers are those of what was asked
        rig.told.clear()
        for channel in channels:
            await settled(partial(listens, rig, channel), "the server knows")
            await rig.admin.publish(channel, channel)
        await settled(lambda: len(rig.told) >= 19, "all are heard again")
        assert rig.told == [(channel, channel.encode()) for channel in channels]


async def listens(rig: Rig, channel: str) -> bool:
    return dict(await rig.admin.pubsub_numsub(channel)) == {channel.encode(): 1}


@pytest.mark.parametrize("kind", KINDS[:2])
async def test_a_server_that_stands_still_is_given_up_after_outage_timeout(
    kind: str, server_url: str
) -> None:
    async with rig_of(kind, server_url, outage_timeout=0.6) as rig:
        await rig.ready()
        await rig.admin.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
        try:
            began = time.monotonic()
            async with asyncio.timeout(3):
                reply = (await rig.send("SET", rig.list, "x", "PX", 1000)).reply
            took = time.monotonic() - began
        finally:
            await rig.admin.execute_command("CLIENT", "UNPAUSE")
        assert type(reply) is dsync.StoreUnavailable
        address = server_url.partition("//")[2].partition("/")[0]
        assert f"Redis at {address} could not be asked for 0.6 s" in str(reply)
        assert 0.59 < took < 0.6 + 0.3
        assert await rig.ask("ECHO", "again") == b"again"


# -- servers that misbehave -----------------------------------------------------------------------


class Stub:
    """A server on this machine that speaks as much RESP as a test wants."""

    def __init__(self, answer: Callable[[list[str]], bytes | None]) -> None:
        self.answer = answer  # -> what to send; None: hang up
        self.heard: list[list[str]] = []
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        parser = hiredis.Reader(encoding="utf-8")
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.heard.append(command)
                    answer = self.answer(command)
                    if answer is None:
                        return
                    writer.write(answer)
        except ConnectionError:
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def __aenter__(self) -> "Stub":
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await settled(lambda: not self._open, "its connections are gone")


def politely(command: list[str]) -> bytes:
    """What a server says to the usual commands of a client that says hello."""
    name = command[0].upper()
    if name == "HELLO":
        return b"%2\r\n+server\r\n+stub\r\n+proto\r\n:3\r\n"
    if name == "SUBSCRIBE":
        channel = command[1].encode()
        return b">3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(channel), channel)
    if name == "TIME":
        return b"*2\r\n$10\r\n1800000000\r\n$1\r\n0\r\n"
    return b"+OK\r\n"


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
    ],
    ids=lambda text: text.partition(" ")[0],
)
async def test_what_a_server_cannot_do_right_now_is_asked_again(refusal: str) -> None:
    left = 2

    def answer(command: list[str]) -> bytes:
        nonlocal left
        if command[0] == "INCR" and left:
            left -= 1
            return f"-{refusal}\r\n".encode()
        return politely(command)

    async with Stub(answer) as stub, rig_on(stub) as rig:
        call = await rig.send("INCR", "x")
        assert call.reply == b"OK"
        assert sum(command[0] == "INCR" for command in stub.heard) == 3
        assert call.attempts == 1, "what was refused was not carried out"
        reconnects = 2 if refusal.startswith("READONLY") else 0
        assert stub.connections == 1 + reconnects


@pytest.mark.parametrize("refusal", ["LOADING for ever", "BUSY for ever"])
async def test_what_a_server_cannot_do_for_too_long_fails_with_its_reason(refusal: str) -> None:
    def answer(command: list[str]) -> bytes:
        return f"-{refusal}\r\n".encode() if command[0] == "INCR" else politely(command)

    async with Stub(answer) as stub, rig_on(stub, 0.4) as rig:
        began = time.monotonic()
        reply = (await rig.send("INCR", "x")).reply
        assert type(reply) is dsync.StoreUnavailable
        assert f"127.0.0.1:{stub.port}" in str(reply)
        assert refusal in str(reply)
        assert 0.39 < time.monotonic() - began < 0.4 + 0.5


@asynccontextmanager
async def rig_on(stub: Stub, outage_timeout: float = 5.0) -> AsyncIterator[Rig]:
    """A Wire to a stub; nobody else talks to it."""
    rig = Rig("wire", stub.url, outage_timeout)
    try:
        yield rig
    finally:
        await rig.store.aclose()
        await rig.admin.aclose()


async def test_a_server_without_resp3_is_told_at_once() -> None:
    def answer(command: list[str]) -> bytes:
        return b"-ERR unknown command 'HELLO'\r\n" if command[0] == "HELLO" else politely(command)

    async with Stub(answer) as stub, rig_on(stub) as rig:
        began = time.monotonic()
        reply = (await rig.send("PING")).reply
        assert type(reply) is dsync.StoreUnavailable
        assert f"127.0.0.1:{stub.port} does not speak RESP3" in str(reply)
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("when", ["HELLO", "SUBSCRIBE", "PING"])
@pytest.mark.parametrize("how", ["hangs up", "talks rubbish", "says nothing"])
async def test_a_server_that_is_none_is_given_up_after_outage_timeout(how: str, when: str) -> None:
    answers = {"hangs up": None, "talks rubbish": b"HTTP/1.1 400 Bad\r\n\r\n", "says nothing": b""}

    def answer(command: list[str]) -> bytes | None:
        return answers[how] if command[0] == when else politely(command)

    async with Stub(answer) as stub, rig_on(stub, 0.6) as rig:
        began = time.monotonic()
        async with asyncio.timeout(5):
            reply = (await rig.send("PING")).reply
        took = time.monotonic() - began
        assert type(reply) is dsync.StoreUnavailable, reply
        assert f"Redis at 127.0.0.1:{stub.port} could not be asked for 0.6 s" in str(reply)
        assert 0.59 < took < 0.6 + 0.4
        assert stub.connections < 60, "it is not called again and again without a pause"


# -- other people's clients and servers -----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[:2])
async def test_without_a_right_to_our_channels_waiters_are_served_by_asking(
    kind: str, real: World
) -> None:
    await real.admin.acl_setuser(
        "mute", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"],
        reset_channels=True,
    )  # fmt: skip
    url = real.url_of("mute", "pw")
    pool = redis.asyncio.ConnectionPool.from_url(url, connection_class=OwnConnection)
    own = redis.asyncio.Redis.from_pool(pool)
    make = {"redis": own} if kind == "pooled" else {"url": url}
    one, two = (dsync.Client(**make, namespace=real.namespace) for _ in range(2))
    try:
        holder, waiter = one.lock("x"), two.lock("x")
        await holder.acquire()
        waiting = asyncio.create_task(waiter.acquire())
        await settled(lambda: waits(real), "it waits")
        assert not two.listening()
        began = time.monotonic()
        await holder.release()
        await waiting
        assert time.monotonic() - began < 2.2
        await waiter.release()

        # Many grants at once are all found, before their claims run out.
        many = two.semaphore("s", 0, fair=True)
        tasks = [asyncio.create_task(many.acquire()) for _ in range(12)]

        async def all_wait() -> bool:
            return (await many.info()).waiting == 12

        await settled(all_wait, "twelve wait")
        await one.semaphore("s", 0).resize(12)
        await asyncio.wait_for(asyncio.gather(*tasks), 2.2)
        assert (await many.info()).held == 12
    finally:
        await one.aclose()
        await two.aclose()
        await own.aclose()
        await real.admin.acl_deluser("mute")


async def waits(world: World) -> bool:
    return bool(await world.admin.zcard(world.key("lock", "x", "waiters")))


@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "text"])
@pytest.mark.parametrize("kind", ["redis", "own sockets", "fakeredis"])
async def test_a_client_of_ones_own_is_used_and_stays_ones_own(
    kind: str, decode: bool, server_url: str
) -> None:
    own: Any
    if kind == "fakeredis":
        own = fakeredis.FakeAsyncRedis(decode_responses=decode)
    elif kind == "redis":
        own = redis.asyncio.Redis.from_url(server_url, decode_responses=decode)
    else:
        pool = redis.asyncio.ConnectionPool.from_url(
            server_url, connection_class=OwnConnection, decode_responses=decode
        )
        own = redis.asyncio.Redis.from_pool(pool)
    async with own:
        namespace = f"t-{uuid.uuid4().hex[:12]}"
        async with dsync.Client(redis=own, namespace=namespace, label="mine") as one:
            other = dsync.Client(redis=own, namespace=namespace, label="other")
            lock, second = one.lock("x"), other.lock("x")
            await lock.acquire()
            info = await lock.info()
            assert info.holder is not None
            assert info.holder.label == "mine"
            waiting = asyncio.create_task(second.acquire())
            await settled(lambda: queued(second), "it waits")
            await lock.release()
            async with asyncio.timeout(3):
                await waiting
            await second.release()
            await other.aclose()
            async with one.semaphore("y", 2):
                pass
        assert await own.set("t-mine", "1", px=1000)
        assert await own.get("t-mine") == ("1" if decode else b"1")


async def queued(lock: dsync.Lock) -> bool:
    return len((await lock.info()).waiters) == 1


async def test_a_client_that_cannot_be_used_is_refused_by_name() -> None:
    with redis.Redis() as blocking, pytest.raises(TypeError, match="blocking"):
        dsync.Client(redis=blocking)
    for wrong in ("redis://h", 5, object()):
        with pytest.raises(TypeError, match=rf"redis\.asyncio\.Redis.*{type(wrong).__name__}"):
            dsync.Client(redis=wrong)


PROGRAM = """
import asyncio, sys
import dsync

async def main(url):
    async with dsync.connect(url, namespace="t-loops") as one:
        async with dsync.connect(url, namespace="t-loops") as two:
            async def work(client):
                for _ in range(20):
                    async with client.lock("x"), client.semaphore("y", 2):
                        await asyncio.sleep(0)
            await asyncio.gather(*(work(client) for client in (one, two) for _ in range(5)))
    print(type(asyncio.get_running_loop()).__module__.partition(".")[0], "done")
"""
RUN = {
    "asyncio": "asyncio.run(main(sys.argv[1]), debug=True)",
    "uvloop": "import uvloop\nuvloop.run(main(sys.argv[1]), debug=True)",
}


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("loop", RUN)
def test_it_works_without_a_warning_on(loop: str, transport: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    from dsync.server import Server

    with Server.start(port=0 if transport == "tcp" else None) as server:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c",
             textwrap.dedent(PROGRAM) + RUN[loop], server.url],
            capture_output=True, text=True, check=False, cwd=ROOT, timeout=30,
        )  # fmt: skip
    # The loop's debug mode may find a slow step on a busy machine; that is no warning of ours.
    errors = re.sub(r"^Executing <.*\n", "", done.stderr, flags=re.MULTILINE)
    assert (done.stdout, errors) == (f"{loop} done\n", "")


async def test_closing_while_a_server_cannot_be_reached_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = asyncio.all_tasks()
    client = dsync.connect(f"redis://127.0.0.1:{port}", outage_timeout=0.3)
    waiting = asyncio.create_task(client.lock("x").acquire())
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises((dsync.ClientClosed, dsync.StoreUnavailable)):
        await waiting
    await settled(lambda: not left_running(before), lambda: f"left: {left_running(before)}")


async def test_a_refused_subscription_that_is_cut_off_desynchronises_nothing() -> None:
    """It waits out a backoff while its connection breaks, and belongs to no other."""
    refused = cut = False

    def answer(command: list[str]) -> bytes | None:
        nonlocal refused, cut
        if command[0] == "SUBSCRIBE" and not refused:
            refused = True
            return b"-BUSY for now\r\n"
        if command[0] == "CUT" and not cut:
            cut = True
            return None
        if command[0] == "ECHO":
            return f"+{command[1]}\r\n".encode()
        return politely(command)

    async with Stub(answer) as stub, rig_on(stub) as rig:
        await rig.send("CUT")
        for i in range(20):
            assert (await rig.send("ECHO", f"e{i}")).reply == f"e{i}".encode()
        await settled(lambda: rig.link.listening)
