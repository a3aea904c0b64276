"""A server that breaks a promise is found out when connecting, and what to change is said."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis.asyncio

import dsync
from chaos.servers import Backend, Clock
from dsync.redis.checkup import Finding, checkup
from dsync.testing import Proxy
from tests.conftest import RIGHTS, World
from tests.fault.test_documented import admin_of, step
from tests.servers.conftest import Made
from tests.test_links import OwnConnection, Stub, politely

Start = Callable[..., Backend]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers with the options that a test gives."""
    with ExitStack() as stack:
        yield lambda *options, **kwargs: stack.enter_context(Backend(*options, **kwargs))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged as a warning since this was asked last."""
    caplog.set_level(logging.WARNING, "dsync")

    def told() -> list[str]:
        found = [each.getMessage() for each in caplog.records if each.name == "dsync"]
        caplog.clear()
        return found

    return told


async def findings(client: dsync.Client, severity: str = "warning") -> list[str]:
    return [str(each) for each in await checkup(client) if each.severity == severity]


async def only(client: dsync.Client) -> str:
    """The one warning that there is."""
    [found] = await findings(client)
    return found


# -- nothing to say --------------------------------------------------------------------------------


async def test_a_server_as_it_should_be_is_not_talked_about(
    real: World, told: Callable[[], list[str]]
) -> None:
    one = real.client()
    await one
    assert told() == []
    assert await findings(one) == []
    assert await findings(one, "error") == []


async def test_what_may_not_be_asked_is_not_guessed(
    start: Start, client: Made, told: Callable[[], list[str]]
) -> None:
    """The documented rights are enough, and say nothing of the memory; that evicts here."""
    backend = start("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    async with admin_of(backend) as admin:
        await admin.execute_command(
            "ACL", "SETUSER", "app", "reset", "on", ">x", *RIGHTS, "~{dsync:*", "&dsync:*"
        )
    one = client(backend.url.replace("//", "//app:x@"))
    await one
    assert told() == []
    [version] = await checkup(one)
    assert version.severity == "info", "the version is told to everybody"


async def test_in_memory_and_on_a_fake_there_is_nothing_to_examine(world: World) -> None:
    one = await world.client()
    assert {each.severity for each in await checkup(one)} <= {"info"}


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["volatile-ttl", "volatile-lru", "allkeys-random"])
async def test_a_server_that_evicts_leases(
    start: Start, client: Made, told: Callable[[], list[str]], policy: str
) -> None:
    one = client(start("--maxmemory", "50mb", "--maxmemory-policy", policy).url)
    await one
    [warning] = told()
    assert f"maxmemory-policy {policy}" in warning
    assert "set maxmemory-policy noeviction" in warning
    await one
    assert told() == [], "once is enough"


async def test_a_policy_without_a_bound_is_no_danger_yet(start: Start, client: Made) -> None:
    one = client(start("--maxmemory-policy", "allkeys-lru").url)
    assert await findings(one) == []
    assert any("no maxmemory" in each for each in await findings(one, "info"))


async def test_a_server_that_has_little_memory_left(start: Start, client: Made) -> None:
    backend = start("--maxmemory", "50mb", "--maxmemory-policy", "noeviction")
    one = client(backend.url)
    assert await findings(one) == []
    async with admin_of(backend) as admin:
        for number in range(47):
            await admin.set(f"junk:{number}", "x" * 1_000_000)
    found = await only(one)
    assert "of its maxmemory" in found
    assert "raise maxmemory" in found


async def test_a_server_that_hangs_up_on_large_messages(start: Start, client: Made) -> None:
    one = client(start("--client-output-buffer-limit", "pubsub 100kb 0 0").url)
    found = await only(one)
    assert "102400 bytes" in found
    assert "32mb 8mb 60" in found
    assert await findings(client(start("--client-output-buffer-limit", "pubsub 0 0 0").url)) == []


@pytest.mark.parametrize(
    ("rights", "missing"),
    [
        (("+@all", "~*", "resetchannels"), "publish its messages, listen to them:"),
        (("+@all", "-@scripting", "~*", "&*"), "run scripts:"),
        (("+@all", "%R~*", "&*"), "write its keys:"),
        (("+@all", "~{dsync:*", "&dsync:*", "-subscribe"), "listen to them:"),
        (("+@all", "~{shop:*", "&shop:*"), "write its keys, read its keys, publish"),
    ],
)
async def test_a_user_without_rights_is_told_which_and_what_to_allow(
    start: Start, client: Made, rights: tuple[str, ...], missing: str
) -> None:
    backend = start()
    async with admin_of(backend) as admin:
        await admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">x", *rights)
        one = client(backend.url.replace("//", "//app:x@"))
        found = await only(one)
        assert f"does not let this user {missing}" in found
        allowed = found.partition("ACL SETUSER ... ")[2].split()
        await admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">x", *allowed)
        assert await findings(one) == [], "what it says to allow is enough"


async def test_a_replica(start: Start, client: Made) -> None:
    backend = start("--replicaof", "127.0.0.1 1")
    found = await only(client(backend.url))
    assert "is a replica" in found
    assert "redis+sentinel://" in found


async def test_a_node_of_a_cluster_that_is_taken_for_a_server(start: Start, client: Made) -> None:
    found = await only(client(start("--cluster-enabled", "yes").url))
    assert "one node of a cluster" in found
    assert "redis+cluster://" in found


async def test_what_a_crash_costs_is_good_to_know(start: Start, client: Made) -> None:
    careless, careful = start(), start("--appendonly", "yes", "--appendfsync", "always")
    assert any("LeaseLost" in each for each in await findings(client(careless.url), "info"))
    found = await findings(client(careful.url), "info")
    assert any("a restart loses nothing" in each for each in found)


@pytest.fixture
def clock() -> Iterator[Clock]:
    if Clock.library() is None:
        pytest.skip("there is no libfaketime here: apt-get install libfaketime")
    with Clock() as made:
        yield made


@pytest.mark.parametrize(("off", "how"), [(3600, "ahead of"), (-3600, "behind")])
async def test_a_clock_that_is_far_off(
    start: Start, client: Made, clock: Clock, off: float, how: str
) -> None:
    backend = start(binary=clock.binary)
    one = client(backend.url)
    assert await findings(one) == []
    await step(clock, backend, off)
    found = await only(one)
    assert how in found
    seconds = int(found.partition(" s ")[0].rpartition(" ")[2])
    assert abs(seconds - 3600) < 30


async def test_a_clock_that_jumps_while_it_is_watched(
    start: Start, client: Made, clock: Clock
) -> None:
    backend = start(binary=clock.binary)
    one = await client(backend.url)
    assert not any("jumped" in str(each) for each in await checkup(one, watch=0.05))
    watching = asyncio.create_task(checkup(one, watch=1.0))
    await asyncio.sleep(0)
    await step(clock, backend, -5)
    [found] = [each for each in await watching if "jumped" in each.what]
    assert found.severity == "warning"
    assert "jumped by -" in found.what


# -- what stops it ---------------------------------------------------------------------------------


def of_version(server: str, version: str) -> Callable[[list[str]], bytes | None]:
    def answer(command: list[str]) -> bytes | None:
        if command[0] != "HELLO":
            return politely(command)
        words = {"server": server, "version": version, "mode": "standalone", "role": "master"}
        lines = "".join(f"+{name}\r\n+{value}\r\n" for name, value in words.items())
        return f"%{len(words) + 1}\r\n{lines}+proto\r\n:3\r\n".encode()

    return answer


@pytest.mark.parametrize("version", ["6.2.14", "6.0.16"])
async def test_a_server_that_is_too_old_is_refused(client: Made, version: str) -> None:
    async with Stub(of_version("redis", version)) as stub:
        one = client(stub.url)
        with pytest.raises(dsync.StoreUnavailable, match=rf"is version {version}: .*7\.0 or newer"):
            await one
        [error] = [each for each in await checkup(one) if each.severity == "error"]
        assert isinstance(error, Finding)
        await one.aclose()


@pytest.mark.parametrize(
    ("server", "version"),
    [("redis", "7.0.0"), ("redis", "10.0.1"), ("valkey", "7.2.4"), ("other", "1.2"), ("x", "?")],
)
async def test_others_are_not(client: Made, server: str, version: str) -> None:
    async with Stub(of_version(server, version)) as stub:
        one = await client(stub.url)
        await one.aclose()


# -- how it asks -----------------------------------------------------------------------------------


async def test_it_takes_one_round_trip(start: Start, client: Made) -> None:
    async with Proxy.to(start().url) as proxy:
        one = client(proxy.url)
        await one.lock("x").locked()  # it is connected
        proxy.delay = 0.2
        began = time.monotonic()
        await one
        assert 0.4 <= time.monotonic() - began < 0.79
        proxy.delay = 0
        await one.aclose()


async def test_it_writes_nothing(start: Start, client: Made) -> None:
    backend = start()
    await checkup(client(backend.url))
    async with admin_of(backend) as admin:
        assert await admin.dbsize() == 0


async def test_a_client_of_ones_own_is_asked_as_well(start: Start) -> None:
    backend = start("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    for protocol in (2, 3):
        pool = redis.asyncio.ConnectionPool.from_url(
            backend.url, connection_class=OwnConnection, protocol=protocol
        )
        own: Any = redis.asyncio.Redis.from_pool(pool)
        async with dsync.Client(redis=own) as one:
            assert "allkeys-lru" in await only(one)
            assert any(f"RESP{protocol}" in each for each in await findings(one, "info"))
        await own.aclose()


async def test_a_server_that_is_not_there_is_told_as_ever(client: Made) -> None:
    with pytest.raises(dsync.StoreUnavailable, match=r"could not be asked for 0\.2 s"):
        await checkup(client("redis://127.0.0.1:1", outage_timeout=0.2))
