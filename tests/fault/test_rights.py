"""Users who may not do what dsync needs: each is told what is missing, and nothing hangs.

And passwords: whatever goes wrong, they are in no message, repr or log record.
"""

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import pytest

import dsync
from dsync.server import Server
from dsync.testing import Proxy
from tests.conftest import RIGHTS, World, settled

AT_ONCE = 0.8  # seconds, beside other tests
ASKED = 1.0  # seconds between two questions of one who cannot listen
EVERYTHING = ("+@all", "~*", "&*")
WITHOUT = {
    "channels": ("+@all", "~*", "resetchannels"),
    "scripts": (*EVERYTHING, "-@scripting"),
    "writing": ("+@read", "+@scripting", "+@pubsub", "+time", "+ping", "+client|setname", "~*"),
    "keys": ("+@all", "~other:*", "&*"),
    "reading keys only": ("+@all", "%R~*", "&*"),
}

Made = Callable[..., dsync.Client]


class Users:
    """Users of the server with the rights that a test gives them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.names: list[str] = []

    async def url(self, *rights: str, password: str = "secret", name: str | None = None) -> str:
        """A new user, or new rights for one; -> the URL with which it comes."""
        name = name or f"u{uuid.uuid4().hex[:8]}"
        self.names.append(name)
        await self.world.admin.execute_command(
            "ACL", "SETUSER", name, "reset", "on", f">{password}", *rights
        )
        parts = urlsplit(self.world._direct)
        netloc = f"{name}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"
        return parts._replace(netloc=netloc).geturl()

    async def client(self, *rights: str, **kwargs: Any) -> dsync.Client:
        return self.client_at(await self.url(*rights), **kwargs)

    def client_at(self, url: str, **kwargs: Any) -> dsync.Client:
        kwargs.setdefault("on_error", self.world.errors.append)
        client = dsync.Client(url, namespace=self.world.namespace, **kwargs)
        self.world.clients.append(client)
        return client


@pytest.fixture
async def users(real: World) -> AsyncIterator[Users]:
    made = Users(real)
    yield made
    for client in real.clients:
        await client.aclose()
    for name in made.names:
        await real.admin.acl_deluser(name)


async def refused(use: Callable[[], Awaitable[Any]]) -> str:
    """What the error says that this raises at once."""
    with pytest.raises(dsync.StoreUnavailable) as raised:
        async with asyncio.timeout(AT_ONCE):
            await use()
    return str(raised.value)


# -- without channels ------------------------------------------------------------------------------


@dataclass
class Wait:
    """A wait of one client, and what another does to end it."""

    wait: Coroutine[Any, Any, Any]
    waits: Callable[[], object]  # whether it has begun
    wake: Callable[[], Awaitable[Any]]
    after: Callable[[], Awaitable[Any]] | None = None


async def of_a_lock(one: dsync.Client, two: dsync.Client) -> Wait:
    held, wanted = one.lock("x"), two.lock("x")
    await held.acquire()
    waits = lambda: "waiters:1" in repr(wanted)  # noqa: E731
    return Wait(wanted.acquire(), waits, held.release, wanted.release)


async def of_a_fair_lock(one: dsync.Client, two: dsync.Client) -> Wait:
    held, wanted = one.lock("x", fair=True), two.lock("x", fair=True)
    await held.acquire()
    waits = lambda: "waiters:1" in repr(wanted)  # noqa: E731
    return Wait(wanted.acquire(), waits, held.release, wanted.release)


async def of_a_semaphore(one: dsync.Client, two: dsync.Client) -> Wait:
    held, wanted = one.semaphore("x"), two.semaphore("x")
    await held.acquire()
    waits = lambda: "waiters:1" in repr(wanted)  # noqa: E731
    return Wait(wanted.acquire(), waits, held.release, wanted.release)


async def of_an_event(one: dsync.Client, two: dsync.Client) -> Wait:
    event = two.event("x")
    waits = lambda: "waiters:1" in repr(event)  # noqa: E731
    return Wait(event.wait(), waits, one.event("x").set, one.event("x").clear)


async def of_a_condition(one: dsync.Client, two: dsync.Client) -> Wait:
    mine, condition = one.condition("x"), two.condition("x")

    async def wait() -> None:
        async with condition:
            await condition.wait()

    async def wake() -> None:
        async with mine:
            await mine.notify()

    return Wait(wait(), lambda: "waiters:1" in repr(condition), wake)


async def of_a_barrier(one: dsync.Client, two: dsync.Client) -> Wait:
    barrier, other = two.barrier("x", 2), one.barrier("x", 2)
    return Wait(barrier.wait(), lambda: "waiters:1/2" in repr(barrier), other.wait)


async def of_an_election(one: dsync.Client, two: dsync.Client) -> Wait:
    term = one.leader("x", sigterm=False)
    await term.__aenter__()

    async def lead() -> None:
        async with two.leader("x", sigterm=False):
            pass

    waits = lambda: two.homes  # noqa: E731
    return Wait(lead(), waits, lambda: term.__aexit__(None, None, None))


WAITS = [
    of_a_lock,
    of_a_fair_lock,
    of_a_semaphore,
    of_an_event,
    of_a_condition,
    of_a_barrier,
    of_an_election,
]


@pytest.mark.parametrize("of", WAITS, ids=lambda made: made.__name__)
async def test_who_cannot_listen_waits_by_asking_once_a_second(
    users: Users, of: Callable[[dsync.Client, dsync.Client], Awaitable[Wait]]
) -> None:
    one, two = [await users.client(*WITHOUT["channels"]) for _ in range(2)]
    made = await of(one, two)
    task = asyncio.create_task(made.wait)
    await settled(lambda: bool(made.waits()), "it waits")
    await two.store.drain()  # and the server knows
    assert not two.listening()
    assert not task.done()
    began = time.monotonic()
    async with asyncio.timeout(5):
        await made.wake()
        await task
    assert time.monotonic() - began < ASKED + AT_ONCE
    if made.after is not None:
        await made.after()


async def test_who_cannot_listen_hears_of_a_new_leader_within_a_heartbeat(
    users: Users, real: World
) -> None:
    watcher = await users.client(*WITHOUT["channels"])
    one = real.client()
    async with asyncio.timeout(8), aclosing(watcher.leader("x").observe()) as leaders:
        assert await anext(leaders) is None
        async with one.leader("x", sigterm=False):
            began = time.monotonic()
            found = await anext(leaders)
            assert found is not None
            assert time.monotonic() - began < 2 + AT_ONCE


async def test_who_cannot_listen_cannot_use_a_bus(users: Users) -> None:
    bus = (await users.client(*WITHOUT["channels"])).event_bus()
    assert "does not allow this user" in await refused(lambda: bus.on("x", print))
    assert "channel" in await refused(lambda: bus.trigger("x"))


async def test_who_cannot_publish_is_told_what_to_allow(users: Users, real: World) -> None:
    bus = (await users.client(*WITHOUT["channels"])).event_bus()
    assert f"&{real.namespace}:*" in await refused(lambda: bus.trigger("x"))


# -- without scripts, without writing, without keys ------------------------------------------------


async def in_body(holder: Any) -> None:
    async with holder:
        pass


async def one() -> int:
    return 1


USES: dict[str, Callable[[dsync.Client], Awaitable[Any]]] = {
    "lock": lambda client: client.lock("x").acquire(),
    "try": lambda client: client.lock("x").try_acquire(),
    "semaphore": lambda client: client.semaphore("x", 3).acquire(),
    "resize": lambda client: client.semaphore("x").resize(2),
    "event set": lambda client: client.event("x").set(),
    "condition": lambda client: in_body(client.condition("x")),
    "barrier": lambda client: client.barrier("x", 1).wait(),
    "reset": lambda client: client.barrier("x", 1).reset(),
    "rate": lambda client: client.rate_limiter("x", 10).acquire(),
    "bus": lambda client: client.event_bus().trigger("x"),
    "leader": lambda client: in_body(client.leader("x", sigterm=False)),
    "exclusive": lambda client: client.exclusive("x")(one)(),
    "flight": lambda client: client.single_flight("x", one, ttl=1),
}
READS: dict[str, Callable[[dsync.Client], Awaitable[Any]]] = {
    "locked": lambda client: client.lock("x").locked(),
    "info": lambda client: client.lock("x").info(),
    "event wait": lambda client: client.event("x").wait(),
    "is set": lambda client: client.event("x").is_set(),
    "on": lambda client: client.event_bus().on("x", print),
}


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        ("scripts", "eval"),
        ("keys", "permissions to access"),
        ("reading keys only", "permissions to access"),
    ],
)
async def test_without_rights_everything_is_refused_at_once_and_says_what_to_allow(
    users: Users, real: World, without: str, missing: str
) -> None:
    client = await users.client(*WITHOUT[without])
    for name, use in {**USES, **READS}.items():
        said = await refused(partial(use, client))
        assert "does not allow this user what dsync needs" in said, name
        assert "NOPERM" in said
        assert missing in said
        for right in (f"~{{{real.namespace}:*", *RIGHTS):
            assert right in said, name
    assert await real.keys() == {}, "nothing is held, nothing is left"


async def test_who_may_only_read_is_refused_at_once_what_writes_and_nothing_is_held(
    users: Users, real: World
) -> None:
    client = await users.client(*WITHOUT["writing"])
    for use in USES.values():
        assert "Redis at 127.0.0.1:" in await refused(partial(use, client))
    assert await real.keys() == {}
    assert not await client.lock("x").locked()
    assert (await client.semaphore("x").info()).held == 0
    assert not await client.event("x").is_set()


async def test_who_may_only_read_is_told_what_to_allow(users: Users) -> None:
    client = await users.client(*WITHOUT["writing"])
    for name, use in USES.items():
        assert "+@write" in await refused(partial(use, client)), name


async def test_who_may_not_even_name_its_connection_is_told_so_by_every_call(users: Users) -> None:
    client = await users.client(*EVERYTHING, "-client")
    for use in (lambda client: client.check(), *USES.values(), *READS.values()):
        said = await refused(partial(use, client))
        assert "does not let this user connect" in said
        assert "'client" in said


async def test_rights_that_are_taken_away_end_what_is_held_and_what_is_waited_for(
    users: Users, real: World
) -> None:
    real.leftovers_allowed = True  # who may do nothing can give nothing back
    one, two = [await users.client(*EVERYTHING) for _ in range(2)]
    holder, waiter = one.lock("x", lease=1.5), two.lock("x", lease=1.5)
    await holder.acquire()
    lease = holder.lease
    assert lease is not None
    task = asyncio.create_task(waiter.acquire())
    await settled(lambda: "waiters:1" in repr(waiter))
    for name in users.names:
        await real.admin.execute_command("ACL", "SETUSER", name, "-@scripting")
    async with asyncio.timeout(1.5 + 2 + AT_ONCE):
        await lease.lost.wait()
        with pytest.raises(dsync.StoreUnavailable, match="does not allow this user"):
            await task
    with pytest.raises(dsync.LeaseLost):
        holder.release()
    for name in users.names:
        await real.admin.execute_command("ACL", "SETUSER", name, "+@scripting")
    # The waiter could not leave its place either: that costs a claim.
    async with asyncio.timeout(1.5 + AT_ONCE), waiter:
        pass


async def test_a_user_that_is_removed_is_told_so(users: Users, real: World) -> None:
    client = await users.client(*EVERYTHING)
    await client.check()
    await real.admin.acl_deluser(users.names[-1])
    with pytest.raises(dsync.StoreUnavailable, match="refused the user name or password"):
        async with asyncio.timeout(AT_ONCE):
            await client.lock("x").acquire()


# -- passwords -------------------------------------------------------------------------------------

PASSWORDS = [
    "hunter2-plain",
    "hun/ter2@with:all?of#them&=%41",
    "hünter2 → with spaces + signs",
    "'hunter2\"\\quoted[]{}%s",
]


class Heard:
    """All that is said anywhere, and what a password looks like in it."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.log = log
        self.words: list[str] = []

    def hear(self, *things: object) -> None:
        for thing in things:
            if isinstance(thing, BaseException):
                self.words += traceback.format_exception(thing)
                self.words += [repr(thing), *map(repr, thing.args)]
            else:
                self.words += [repr(thing), str(thing)]

    def look_at(self, client: dsync.Client) -> None:
        store: Any = client.store
        self.hear(client, store, store.link, store._route, store.link.trouble, client.keeper)
        self.hear(client.lock("x"), client.event("x"), client.event_bus(), asyncio.all_tasks())

    def check(self, password: str) -> None:
        formatter = logging.Formatter("%(name)s %(message)s")
        self.words += [formatter.format(record) for record in self.log.records]
        self.words += [repr(vars(record)) for record in self.log.records]
        all_of_it = "\n".join(self.words)
        for form in {
            password, quote(password), quote(password, safe=""), quote_plus(password),
            repr(password)[1:-1], repr(password.encode())[2:-1], ascii(password)[1:-1],
        }:  # fmt: skip
            assert form not in all_of_it, f"{form} is in {all_of_it}"


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Heard:
    caplog.set_level(logging.DEBUG)
    return Heard(caplog)


async def fails(client: dsync.Client, heard: Heard) -> str:
    """What it says when it cannot connect."""
    heard.look_at(client)
    with pytest.raises(dsync.StoreUnavailable) as checked:
        await client
    with pytest.raises(dsync.StoreUnavailable) as acquired:
        await client.lock("x").acquire()
    reply = client.event("x").set()
    with pytest.raises(dsync.StoreUnavailable) as set_:
        await reply
    heard.hear(checked.value, acquired.value, set_.value, reply)
    heard.look_at(client)
    return str(checked.value)


@pytest.mark.parametrize("password", PASSWORDS)
async def test_a_password_works_percent_encoded_and_is_shown_nowhere(
    users: Users, heard: Heard, password: str
) -> None:
    asyncio.get_running_loop().set_debug(True)
    url = await users.url(*EVERYTHING, password=password)
    client = users.client_at(url, on_error=heard.hear)
    async with client, client.lock("x") as lease:
        heard.look_at(client)
        heard.hear(lease, await client.lock("x").info())
    asyncio.get_running_loop().set_debug(False)
    heard.check(password)


@pytest.mark.parametrize("password", PASSWORDS)
async def test_a_password_is_not_shown_when_it_is_wrong_or_nobody_is_there(
    users: Users, real: World, heard: Heard, password: str
) -> None:
    encoded = quote(password, safe="")
    wrong = users.client_at(real._direct.replace("//", f"//nobody:{encoded}@"))
    assert "refused the user name or password" in await fails(wrong, heard)
    async with Proxy.to(real._direct.replace("//", f"//:{encoded}@")) as proxy:
        proxy.refusing = True
        hung_up = users.client_at(proxy.url, outage_timeout=0.2)
        assert "could not be asked for 0.2 s" in await fails(hung_up, heard)
        proxy.heal()
        proxy.black_hole()
        silent = users.client_at(proxy.url, outage_timeout=0.2)
        assert "could not be asked for 0.2 s" in await fails(silent, heard)
        await hung_up.aclose()
        await silent.aclose()
    closed = users.client_at(proxy.url, outage_timeout=0.2)
    assert "could not be asked for 0.2 s" in await fails(closed, heard)
    heard.check(password)


@pytest.mark.parametrize("password", PASSWORDS)
async def test_a_password_for_a_unix_socket_is_not_shown(
    tmp_path: Path, heard: Heard, password: str
) -> None:
    def url(password: str, path: str) -> str:
        return f"unix://:{quote(password, safe='')}@{path}"

    with Server.start(extra_args=("--requirepass", password)) as server:
        path = urlsplit(server.url).path
        async with dsync.Client(url(password, path)) as client, client.lock("x") as lease:
            heard.look_at(client)
            heard.hear(lease)
        wrong = dsync.Client(url(password + "!", path), outage_timeout=0.2)
        await fails(wrong, heard)
        await wrong.aclose()
    absent = dsync.Client(url(password, path), outage_timeout=0.2)
    assert f"Redis at {path} could not be asked" in await fails(absent, heard)
    await absent.aclose()
    heard.check(password)


async def test_a_wrong_password_for_a_unix_socket_is_told_at_once() -> None:
    with Server.start(extra_args=("--requirepass", "hunter2")) as server:
        client = dsync.Client(server.url.replace("//", "//:hunter22@"), outage_timeout=0.5)
        try:
            with pytest.raises(dsync.StoreUnavailable, match="refused the user name or password"):
                await client
        finally:
            await client.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:x@hunter2@h/one",
        "redis://h/one?username=me&password=hunter2",
        "user:hunter2@h:6379",
        ":hunter2@h",
        "redis:/user:hunter2@h",
        "redis:user:hunter2@h",
        "//user:hunter2@h",
        "redis://user:x/hunter2@h",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as raised:
        dsync.Client(url)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))
