"""What cannot work is refused with an error that a person can act on, and leaves nothing behind."""

import asyncio
import contextlib
import math
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

import dsync
from dsync.server import Server
from tests.conftest import World, left_running, settled

HUGE = 10**400  # more than a float can be

SECONDS = [
    (-1, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (HUGE, ValueError),
    (True, TypeError),
    ("30", TypeError),
    ([30], TypeError),
]
LEASES = [*SECONDS, (0, ValueError), (0.049, ValueError), (1e9, ValueError)]
COUNTS = [
    (-1, ValueError),
    (2**53, ValueError),
    (True, TypeError),
    (1.5, TypeError),
    ("1", TypeError),
]
NAMES = [
    ("", ValueError),
    ("\ud800", ValueError),
    (None, TypeError),
    (b"x", TypeError),
    (5, TypeError),
]
TERMS = [
    *(("lease", value, error) for value, error in [*LEASES, (None, TypeError)]),
    *(("max_hold", value, error) for value, error in LEASES),
    *(("max_waiters", value, error) for value, error in COUNTS),
    *(("renew", value, TypeError) for value in (1, 0, None, "yes")),
    *(("fair", value, TypeError) for value in (1, None)),
    *(("on_lost", value, ValueError) for value in ("canel", "", None, True)),
]


def short(value: object) -> str | None:
    """The name of a parameter that is too long to print."""
    return "huge" if value == HUGE else None


def says(raised: pytest.ExceptionInfo[Exception], argument: str, value: object) -> None:
    """The message names the argument and shows the value, unless it is longer than a message."""
    text = str(raised.value)
    assert argument in text
    if value != "" and value != HUGE:
        assert repr(value) in text


@pytest.mark.parametrize(("argument", "value", "error"), TERMS, ids=short)
@pytest.mark.parametrize("factory", ["lock", "semaphore", "bounded_semaphore"])
def test_terms_are_checked_where_an_object_is_made(
    factory: str, argument: str, value: object, error: type[Exception]
) -> None:
    client = dsync.connect("memory://")
    with pytest.raises(error) as raised:
        getattr(client, factory)("x", **{argument: value})
    assert type(raised.value) is error
    says(raised, argument, value)
    assert not client._cohorts, "something was made"


@pytest.mark.parametrize(("value", "error"), [*COUNTS, (None, TypeError), (math.nan, TypeError)])
def test_the_value_of_a_semaphore_is_a_count(value: Any, error: type[Exception]) -> None:
    client = dsync.connect("memory://")
    for make in (client.semaphore, client.bounded_semaphore):
        with pytest.raises(error) as raised:
            make("x", value)
        says(raised, "value", value)
    assert not client._cohorts


@pytest.mark.parametrize(("value", "error"), NAMES)
def test_a_name_is_a_text_that_is_not_empty(value: Any, error: type[Exception]) -> None:
    client = dsync.connect("memory://")
    for make in (client.lock, client.semaphore, client.bounded_semaphore):
        with pytest.raises(error) as raised:
            make(value)
        says(raised, "name", value)
    with pytest.raises(error) as raised:
        dsync.connect("memory://", namespace=value)
    says(raised, "namespace", value)


@pytest.mark.parametrize(
    ("value", "error"), [*SECONDS, (0, ValueError), (None, TypeError)], ids=short
)
def test_outage_timeout_is_a_number_of_seconds(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        dsync.connect("memory://", outage_timeout=value)
    says(raised, "outage_timeout", value)


@pytest.mark.parametrize(("value", "error"), SECONDS, ids=short)
async def test_a_timeout_is_a_number_of_seconds(
    world: World, value: Any, error: type[Exception]
) -> None:
    client = world.client()
    for thing in (client.lock("x"), client.semaphore("x")):
        with pytest.raises(error) as raised:
            await thing.acquire(timeout=value)
        says(raised, "timeout", value)
        assert not thing.locked()
    assert await world.keys() == {}


@pytest.mark.parametrize(("value", "error"), [*COUNTS, (None, TypeError)])
async def test_resize_takes_a_count(world: World, value: Any, error: type[Exception]) -> None:
    semaphore = world.client().semaphore("x", 2)
    with pytest.raises(error) as raised:
        await semaphore.resize(value)
    says(raised, "value", value)
    assert await world.keys() == {}


@pytest.mark.parametrize(
    "label", ["größe", "two words", "a\nb", "tab\there", "{x}:y", "🔒", "x" * 500]
)
async def test_any_text_can_be_a_label_and_a_name(world: World, label: str) -> None:
    client = world.client(label=label, outage_timeout=2)
    async with client.lock(label), client.semaphore(label * 10):
        info = await client.lock(label).info()
        assert info.holder is not None
        assert info.holder.label == label[:40]


@pytest.mark.parametrize(("argument", "value", "error"), TERMS, ids=short)
def test_terms_of_a_condition_are_checked_where_it_is_made(
    argument: str, value: object, error: type[Exception]
) -> None:
    client = dsync.connect("memory://")
    with pytest.raises(error) as raised:
        client.condition("x", **{argument: value})  # type: ignore[arg-type]
    assert type(raised.value) is error
    says(raised, argument, value)
    assert not client._cohorts, "something was made"


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        *(("ttl", value, error) for value, error in LEASES),
        *(("max_waiters", value, error) for value, error in COUNTS),
    ],
    ids=short,
)
def test_arguments_of_an_event_are_checked_where_it_is_made(
    argument: str, value: Any, error: type[Exception]
) -> None:
    client = dsync.connect("memory://")
    with pytest.raises(error) as raised:
        client.event("x", **{argument: value})
    assert type(raised.value) is error
    says(raised, argument, value)
    assert not client._flags, "something was made"


@pytest.mark.parametrize(("value", "error"), NAMES)
def test_a_name_of_an_event_or_condition_is_a_text_that_is_not_empty(
    value: Any, error: type[Exception]
) -> None:
    client = dsync.connect("memory://")
    lock = client.lock("x")
    for make in (client.event, client.condition, lambda name: client.condition(name, lock)):
        with pytest.raises(error) as raised:
            make(value)
        says(raised, "name", value)


@pytest.mark.parametrize(("value", "error"), SECONDS, ids=short)
async def test_a_timeout_of_a_wait_is_a_number_of_seconds(
    world: World, value: Any, error: type[Exception]
) -> None:
    client = world.client()
    event, condition = client.event("x"), client.condition("x")
    async with condition as lease:
        for wait in (
            lambda: event.wait(timeout=value),
            lambda: condition.wait(timeout=value),
            lambda: condition.wait_for(lambda: False, timeout=value),
            lambda: condition.acquire(timeout=value),
        ):
            with pytest.raises(error) as raised:
                await wait()
            says(raised, "timeout", value)
            assert lease.held, "it began to wait"
    assert not event._flag.waiters
    assert not condition._waiting()


@pytest.mark.parametrize("value", ["2", None, [1], 1.5, math.nan])
async def test_notify_takes_a_count(world: World, value: Any) -> None:
    condition = world.client().condition("x")
    async with condition as lease:
        with pytest.raises(TypeError):
            condition.notify(value)
        assert lease.hold is not None
        assert not lease.hold.notices


RATES = [
    *((value, ValueError) for value in (0, -1, 9e-10, 1.1e9, math.nan, math.inf, -math.inf, HUGE)),
    *((value, TypeError) for value in (True, "10", None, [10], 1j)),
]


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        *(("rate", value, error) for value, error in RATES),
        *(("per", value, error) for value, error in [*SECONDS, (0, ValueError)]),
        *(("per", value, error) for value, error in [(9e-4, ValueError), (None, TypeError)]),
        *(("burst", value, error) for value, error in [*COUNTS, (0, ValueError)]),
        *(("name", value, error) for value, error in NAMES),
    ],
    ids=short,
)
def test_arguments_of_a_rate_limiter_are_checked_where_it_is_made(
    argument: str, value: Any, error: type[Exception]
) -> None:
    client = dsync.connect("memory://")
    arguments: dict[str, Any] = {"name": "x", "rate": 10, argument: value}
    with pytest.raises(error) as raised:
        client.rate_limiter(**arguments)
    assert type(raised.value) is error
    says(raised, argument, value)
    assert not client._quotas, "something was made"


def test_a_rate_limiter_that_takes_decades_to_refill_is_refused() -> None:
    client = dsync.connect("memory://")
    with pytest.raises(ValueError, match=r"burst of 2147483648 takes more than ten years"):
        client.rate_limiter("x", 1e-9, per=1e6, burst=2**31)
    with pytest.raises(ValueError, match="ten years"):
        client.rate_limiter("x", 1, per=1e300)
    assert not client._quotas


@pytest.mark.parametrize(("value", "error"), [*COUNTS, (0, ValueError), (None, TypeError)])
async def test_an_amount_is_a_count_of_one_or_more(
    world: World, value: Any, error: type[Exception]
) -> None:
    limiter = world.client().rate_limiter("x", 10)
    for attempt in (limiter.acquire, limiter.try_acquire):
        with pytest.raises(error) as raised:
            await attempt(value)
        says(raised, "amount", value)
    assert await world.keys() == {}


@pytest.mark.parametrize(("value", "error"), SECONDS, ids=short)
async def test_a_timeout_of_a_rate_limiter_is_a_number_of_seconds(
    world: World, value: Any, error: type[Exception]
) -> None:
    limiter = world.client().rate_limiter("x", 10)
    with pytest.raises(error) as raised:
        await limiter.acquire(timeout=value)
    says(raised, "timeout", value)
    assert await world.keys() == {}


# -- where to connect -----------------------------------------------------------------------------


@pytest.mark.parametrize("url", [b"redis://h", 6379, ["redis://h"], Path("sock")])
def test_a_url_is_a_text(url: Any) -> None:
    with pytest.raises(TypeError) as raised:
        dsync.connect(url)
    says(raised, "url", url)


def test_a_url_and_a_client_are_one_too_many() -> None:
    with pytest.raises(TypeError, match="either a url or a redis client"):
        dsync.Client("redis://h", redis=redis.asyncio.Redis())


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "unknown scheme"),
        ("localhost:6379", "unknown scheme"),
        ("http://h:6379", "unknown scheme 'http'"),
        ("redis://h:port", "port must be a number"),
        ("redis://h:70000", "port must be a number"),
        ("redis://h/one", "database must be a number, got 'one'"),
        ("redis://h?db=one", "db"),
        ("redis://h?socket_timeout=long", "socket_timeout"),
        ("redis://h?no_such_option=1", "no_such_option"),
        ("unix://", "names no socket"),
        ("unix:///", "names no socket"),
        ("redis://[::1", "redis://[::1"),
    ],
)
def test_an_unusable_url_is_refused_at_once_and_shown(url: str, complaint: str) -> None:
    with pytest.raises(ValueError) as raised:
        dsync.connect(url)
    assert complaint in str(raised.value)
    assert repr(url) in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@h",
        "redis://:hunter2@h:port",
        "redis://user:hunter2@h/one",
        "redis://user:hunter2@[::1",
        # Passwords that somebody forgot to escape.
        "redis://user:hunter2#x@h:6379",
        "redis://user:x#hunter2@h:6379",
        "redis://user:hunter2/x@h:6379",
        "redis://user:x?hunter2@h:6379",
        # redis-py takes it from here as well.
        "redis://h/one?password=hunter2",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    with pytest.raises(ValueError) as raised:
        dsync.connect(url)
    shown: BaseException | None = raised.value
    while shown is not None:
        assert "hunter2" not in str(shown)
        shown = shown.__cause__


async def refusal(url: str, **kwargs: Any) -> tuple[str, float]:
    """What the error says that connecting ends with, and how long that took."""
    before = asyncio.all_tasks()
    client = dsync.connect(url, **kwargs)
    began = time.monotonic()
    with pytest.raises(dsync.StoreUnavailable) as raised:
        await client
    took = time.monotonic() - began
    with pytest.raises(dsync.StoreUnavailable):
        await client.lock("x").acquire()
    await client.aclose()
    await settled(lambda: not left_running(before), lambda: f"left: {left_running(before)}")
    assert "hunter2" not in str(raised.value)
    return str(raised.value), took


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


AT_ONCE = 0.5


async def test_nobody_at_that_port_is_told_after_outage_timeout() -> None:
    port = free_port()
    text, took = await refusal(f"redis://:hunter2@127.0.0.1:{port}", outage_timeout=0.3)
    assert f"127.0.0.1:{port} could not be asked for 0.3 s" in text
    assert 0.29 < took < 0.3 + AT_ONCE


async def test_no_socket_at_that_path_is_told_after_outage_timeout(tmp_path: Path) -> None:
    text, took = await refusal(f"unix://{tmp_path}/sock", outage_timeout=0.3)
    assert f"{tmp_path}/sock could not be asked for 0.3 s" in text
    assert took < 0.3 + AT_ONCE


async def test_an_unknown_host_is_told_after_outage_timeout() -> None:
    text, _ = await refusal("redis://no-such-host.invalid", outage_timeout=0.3)
    assert "no-such-host.invalid:6379 could not be asked" in text


async def test_a_database_that_is_not_there_is_told_at_once(server_url: str) -> None:
    text, took = await refusal(server_url.rpartition("/")[0] + "/9999")
    assert "has no such database" in text
    assert took < AT_ONCE


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that wants a password."""
    with Server.start(port=0, extra_args=("--requirepass", "hunter2")) as started:
        yield started


@pytest.mark.parametrize(
    ("login", "complaint"),
    [
        ("", "wants a password"),
        (":hunter22@", "refused the user name or password"),
        ("nobody:hunter2@", "refused the user name or password"),
    ],
)
async def test_a_wrong_or_missing_password_is_told_at_once(
    guarded: Server, login: str, complaint: str
) -> None:
    text, took = await refusal(guarded.url.replace("//", f"//{login}"))
    assert complaint in text
    assert "redis://" in text, "it says how to give one"
    assert took < AT_ONCE


async def test_the_right_password_is(guarded: Server) -> None:
    url = guarded.url.replace("//", "//:hunter2@")
    async with dsync.connect(url) as client, client.lock("x"):
        pass


async def test_tls_to_a_port_without_is_told_for_what_it_is(server_url: str) -> None:
    """The server takes our greeting for half a line, and says nothing."""
    text, took = await refusal(server_url.replace("redis://", "rediss://"), outage_timeout=0.6)
    assert "TLS" in text or "rediss" in text
    assert took < 0.6 + AT_ONCE


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A Redis that speaks TLS only: its port, and its certificate, which nobody knows."""
    binary, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if binary is None or openssl is None:
        pytest.skip("the embedded server has no TLS, and here is no redis-server with openssl")
    home = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", home / "key.pem",
         "-out", home / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    options: list[str | Path] = [
        "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--tls-cert-file", home / "cert.pem", "--tls-key-file", home / "key.pem",
        "--tls-ca-cert-file", home / "cert.pem", "--tls-auth-clients", "no",
    ]  # fmt: skip
    with subprocess.Popen([binary, *options], cwd=home, stdout=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        pytest.skip("this redis-server has no TLS either")
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            yield port, home / "cert.pem"
        finally:
            process.kill()


async def test_a_certificate_that_nobody_vouches_for_is_told_at_once(tls: tuple[int, Path]) -> None:
    text, took = await refusal(f"rediss://127.0.0.1:{tls[0]}")
    assert "certificate" in text
    assert "ssl_ca_certs" in text
    assert took < AT_ONCE


async def test_with_its_ca_tls_works(tls: tuple[int, Path]) -> None:
    url = f"rediss://127.0.0.1:{tls[0]}?ssl_ca_certs={tls[1]}"
    async with dsync.connect(url) as client, client.lock("x") as lease:
        assert lease.held


async def test_no_tls_to_a_port_with_it_is_told(tls: tuple[int, Path]) -> None:
    text, took = await refusal(f"redis://127.0.0.1:{tls[0]}", outage_timeout=0.5)
    assert f"127.0.0.1:{tls[0]}" in text
    assert took < 0.5 + AT_ONCE


# -- what else may live under our keys ------------------------------------------------------------

PARTS = ("state", "holders", "waiters", "alive", "left")


async def foreign(world: World, key: str, kind: str) -> object:
    """Put something under `key`; -> how it looks."""
    if kind == "string":
        await world.admin.set(key, "mine", px=60_000)
    elif kind == "list":
        await world.admin.rpush(key, "mine")
    elif kind == "hash":
        await world.admin.hset(key, "mine", "1")
    await world.admin.pexpire(key, 60_000)
    return await world.admin.dump(key)


@contextlib.asynccontextmanager
async def keeps(world: World, *keys: str) -> AsyncIterator[None]:
    before = {key: await world.admin.dump(key) for key in keys}
    yield
    for key, value in before.items():
        assert await world.admin.dump(key) == value, f"{key} was changed"


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
@pytest.mark.parametrize("part", PARTS)
async def test_a_foreign_value_under_our_key_is_left_alone(
    real: World, part: str, kind: str
) -> None:
    client = real.client()
    lock = client.lock("x")
    key = real.key("lock", "x", part)
    await foreign(real, key, kind)
    async with keeps(real, key):
        if part in ("state", "holders"):
            for step in (lock.acquire, lock.try_acquire, lock.info):
                with pytest.raises(dsync.ForeignKey, match="another namespace") as raised:
                    await step()
                assert real.key("lock", "x", "")[:-1] in str(raised.value)
        else:
            # Nobody waits and nobody has left, so it may not look there.
            with contextlib.suppress(dsync.ForeignKey):
                await lock.acquire()
                await lock.release()
    await real.admin.delete(key)


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
@pytest.mark.parametrize("part", ["waiters", "alive", "left"])
async def test_a_waiter_who_meets_a_foreign_value_leaves_no_trace(
    real: World, part: str, kind: str
) -> None:
    holder, other = real.client().lock("x"), real.client().lock("x")
    await holder.acquire()
    key = real.key("lock", "x", part)
    await foreign(real, key, kind)
    async with keeps(real, key):
        with pytest.raises(dsync.ForeignKey):
            await other.acquire(timeout=2)
    await real.admin.delete(key)
    info = await holder.info()
    assert info.waiters == ()
    await holder.release()


async def test_a_newer_record_is_not_touched(real: World) -> None:
    client = real.client()
    lock, semaphore = client.lock("x"), client.semaphore("x", 2)
    keys = [real.key(kind, "x", "state") for kind in ("lock", "semaphore")]
    for key in keys:
        await real.admin.hset(key, mapping={"schema": 2, "limit": 7})
        await real.admin.pexpire(key, 60_000)
    async with keeps(real, *keys):
        for step in (
            lock.acquire, lock.try_acquire, lock.info, lock.force_release, semaphore.acquire,
            semaphore.info, lambda: semaphore.resize(3), semaphore.release,
        ):  # fmt: skip
            with pytest.raises(dsync.SchemaMismatch, match=r"schema 2, this one knows 1"):
                await step()
    assert set(await real.keys()) == set(keys)


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
@pytest.mark.parametrize("part", ["state", "left"])
async def test_a_foreign_value_under_an_events_key_is_left_alone(
    real: World, part: str, kind: str
) -> None:
    event = real.client().event("x")
    key = real.key("event", "x", part)
    await foreign(real, key, kind)
    async with keeps(real, key):
        steps: list[Any] = [event.set, event.clear]
        if part == "state":
            steps += [event.is_set, lambda: event.wait(timeout=2)]
        for step in steps:
            with pytest.raises(dsync.ForeignKey, match="another namespace") as raised:
                await step()
            assert real.key("event", "x", "")[:-1] in str(raised.value)
    assert not event._flag.waiters
    await real.admin.delete(key)


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
async def test_a_foreign_value_in_place_of_the_sleepers_is_left_alone(
    real: World, kind: str
) -> None:
    condition, other = real.client().condition("x"), real.client().condition("x")
    key = real.key("condition", "x", "sleepers:x")
    await foreign(real, key, kind)
    async with keeps(real, key):
        await condition.acquire()
        with pytest.raises(dsync.ForeignKey, match="another namespace"):
            await condition.wait()
        with pytest.raises(dsync.LeaseLost):
            condition.release()
        await other.acquire(timeout=2)
        other.notify()
        with pytest.raises(dsync.ForeignKey, match="another namespace"):
            await other.release()
        assert not condition._waiting()
        assert await condition.lock.try_acquire(), "whatever failed, the lock is free"
        await condition.release()
    await real.admin.delete(key)


async def test_a_newer_record_of_an_event_or_condition_is_not_touched(real: World) -> None:
    client = real.client()
    event, condition = client.event("x"), client.condition("x")
    keys = [real.key(kind, "x", "state") for kind in ("event", "condition")]
    for key in keys:
        await real.admin.hset(key, mapping={"schema": 2})
        await real.admin.pexpire(key, 60_000)
    async with keeps(real, *keys):
        for step in (event.set, event.clear, event.is_set, event.wait, condition.acquire):
            with pytest.raises(dsync.SchemaMismatch, match=r"schema 2, this one knows 1"):
                await step()
    assert set(await real.keys()) == set(keys)


@pytest.mark.parametrize("text", ["mine", "1", "1 2 3", "1 x", "", "{}", None])
async def test_a_foreign_value_under_a_rate_limiters_key_is_left_alone(
    real: World, text: str | None
) -> None:
    """A number or three may be anybody's; they are no record of a newer dsync."""
    client = real.client()
    limiter = client.rate_limiter("x", 10)
    key = real.key("rate", "x", "state")
    if text is None:
        await foreign(real, key, "list")
    else:
        await real.admin.set(key, text, px=60_000)
    async with keeps(real, key):
        for step in (limiter.acquire, limiter.try_acquire, limiter.info):
            with pytest.raises(dsync.ForeignKey, match="another namespace") as raised:
                await step()
            assert real.key("rate", "x", "")[:-1] in str(raised.value)
    assert not client.homes
    await real.admin.delete(key)


async def test_a_newer_record_of_a_rate_limiter_is_not_touched(real: World) -> None:
    client = real.client()
    limiter = client.rate_limiter("x", 10)
    key = real.key("rate", "x", "state")
    await real.admin.set(key, "2 1800000000000000 and what else there will be", px=60_000)
    async with keeps(real, key):
        for step in (limiter.acquire, limiter.try_acquire, limiter.info):
            with pytest.raises(dsync.SchemaMismatch, match=r"schema 2, this one knows 1"):
                await step()
    assert not client.homes
    assert set(await real.keys()) == {key}


async def test_one_waiter_more_than_allowed_is_turned_away(world: World) -> None:
    holder = world.client().lock("x")
    crowd = world.client().lock("x", max_waiters=2)

    async def use() -> None:
        async with crowd:
            pass

    await holder.acquire()
    waiting = [asyncio.create_task(use()) for _ in range(2)]
    await settled(lambda: queued(crowd), "they wait")
    with pytest.raises(dsync.TooManyWaiters, match=r"lock 'x': 2 tasks .*max_waiters=2"):
        await crowd.acquire(timeout=5)
    await holder.release()
    await asyncio.gather(*waiting)
    assert not await crowd.locked()


async def queued(lock: dsync.Lock) -> bool:
    # Answered behind what was asked before, so this process knows it too.
    return len((await lock.info()).waiters) == 1


async def test_nothing_is_left_of_what_was_refused(real: World) -> None:
    client = real.client()
    with pytest.raises(ValueError):
        client.lock("x", lease=-1)
    with pytest.raises(ValueError):
        await client.lock("x").acquire(timeout=-1)
    await client.aclose()
    assert await real.keys() == {}
    names = [each["name"] for each in await real.admin.client_list()]
    assert not [name for name in names if client.client_id in name]
