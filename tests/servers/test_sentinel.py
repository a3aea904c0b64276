"""Sentinels say who the primary is, and dsync goes there: at first, and after every failover."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio
from redis.asyncio.sentinel import Sentinel

import dsync
from chaos.servers import Backend
from dsync.testing import Proxy
from tests.conftest import RIGHTS, settled
from tests.fault.test_documented import LEASE, Rivals, admin_of
from tests.servers.conftest import Made, Watch
from tests.servers.watched import SERVICE, Sentry, watching

FAILOVER = 12.0  # seconds: one second and a half alone, more beside other tests


# -- failover --------------------------------------------------------------------------------------


async def test_when_the_primary_is_killed_under_load_all_go_on_with_the_promoted_replica(
    watch: Watch, client: Made, tasks: Any, rivals: Rivals
) -> None:
    watched = await watch(3)
    served: list[int] = []

    async def work(number: int, lock: dsync.Lock) -> None:
        history, who = rivals.history, {"of": "x", "task": str(number)}
        while True:
            try:
                async with lock as lease:
                    history.write("held", fence=lease.fence, **who)
                    await asyncio.sleep(0.002)
                    served.append(number)
                    history.write("step", fence=lease.fence, **who)
            except dsync.LeaseLost as lost:
                history.write("lost", why=str(lost), **who)

    keeper = client(watched.url()).lock("kept", lease=20)
    await keeper.acquire()
    clients = [client(watched.url()) for _ in range(3)]
    for number in range(9):
        tasks(work(number, clients[number % 3].lock("x", lease=LEASE)))
    await settled(lambda: len(set(served)) == 9, "all have held it")
    await watched.caught_up()
    await asyncio.to_thread(watched.primary.kill)
    before = len(served)
    await settled(lambda: len(served) > before + 100, "they go on", within=FAILOVER)
    await settled(lambda: len(set(served[before:])) == 9, "all hold it again")
    assert keeper.lease is not None
    assert keeper.lease.held
    assert await keeper.locked()
    await keeper.release()
    assert all(one.store.link.address.startswith(SERVICE) for one in clients)  # type: ignore[attr-defined]
    rivals.check_fences()


async def test_after_a_failover_that_lost_a_grant_the_holder_is_told_and_the_fence_separates(
    watch: Watch, client: Made, tasks: Any, rivals: Rivals
) -> None:
    watched = await watch(1)
    one, two = client(watched.url()), client(watched.url())
    await two.check()
    watched.lag()
    old = tasks(rivals.hold(one, "old", insist=True))
    await settled(lambda: rivals.held("old"))
    await asyncio.to_thread(watched.primary.kill)
    tasks(rivals.hold(two, "new"))
    async with asyncio.timeout(FAILOVER):
        await old
    await settled(lambda: rivals.held("new"), within=FAILOVER)
    assert rivals.overlap() < LEASE
    assert len(rivals.history.events("lost")) == 1
    rivals.check_that_the_fence_separates_them()


async def test_a_failover_on_request_leads_everybody_away_from_the_demoted_primary(
    watch: Watch, client: Made, tasks: Any
) -> None:
    watched = await watch(1)
    holder, waiter = (client(watched.url()).lock("x", lease=20) for _ in range(2))
    await holder.acquire()
    lease = holder.lease
    waiting = tasks(waiter.acquire())
    await settled(lambda: "waiters:1" in repr(waiter))
    await watched.caught_up()
    await watched.fail_over()
    await settled(lambda: watched.led_by(watched.replica), "it is promoted", within=FAILOVER)
    async with asyncio.timeout(FAILOVER):
        await holder.release()
        await waiting
    assert lease is not None
    assert waiter.lease is not None
    assert (waiter.lease.fence or 0) > (lease.fence or 0)
    async with admin_of(watched.replica) as admin:
        assert await admin.zcard("{dsync:lock:x}:holders") == 1, "it is the new one that was asked"
    await waiter.release()


# -- whom to believe -------------------------------------------------------------------------------


@pytest.fixture
def sentry(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Starts sentinels that have not heard of each other."""
    started: list[Sentry] = []

    def start(backend: Backend, *more: str, options: tuple[str, ...] = ()) -> Sentry:
        started.append(Sentry(watching(backend.port, 9, *more), *options))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    with await asyncio.to_thread(Backend) as made:
        yield made


@pytest.fixture
async def other() -> AsyncIterator[Backend]:
    with await asyncio.to_thread(Backend) as made:
        yield made


def url_of(*sentries: Sentry, service: str = SERVICE, user: str = "", query: str = "") -> str:
    nodes = ",".join(f"127.0.0.1:{each.port}" for each in sentries)
    return f"redis+sentinel://{user}{nodes}/{service}{query}"


async def held_at(backend: Backend, name: str = "x") -> bool:
    async with admin_of(backend) as admin:
        return bool(await admin.exists(f"{{dsync:lock:{name}}}:holders"))


async def test_a_sentinel_that_has_not_heard_of_the_new_primary_is_not_believed(
    sentry: Any, backend: Backend, other: Backend, client: Made
) -> None:
    stale, fresh = sentry(backend), sentry(other, f"config-epoch {SERVICE} 7")
    for each in (url_of(stale, fresh), url_of(fresh, stale)):
        async with client(each).lock("x"):
            assert await held_at(other)
            assert not await held_at(backend)


async def test_a_replica_is_not_used_even_if_the_sentinels_take_it_for_the_primary(
    sentry: Any, backend: Backend, other: Backend, client: Made
) -> None:
    url = url_of(sentry(other))
    async with admin_of(other) as admin:
        await admin.replicaof("127.0.0.1", backend.port)
    one = client(url, outage_timeout=0.5)
    with pytest.raises(dsync.StoreUnavailable, match=f"{other.port} is no primary, though the sen"):
        await one


async def test_a_user_who_may_not_ask_for_the_role_is_served_all_the_same(
    sentry: Any, backend: Backend, client: Made
) -> None:
    password = "/@:?#[]!$&'()*+,;=%25 é\"\\"
    async with admin_of(backend) as admin:
        await admin.execute_command(
            "ACL", "SETUSER", "app", "reset", "on", f">{password}", *RIGHTS, "~{dsync:*", "&dsync:*"
        )
    user = f"app:{quote(password, safe='')}@"
    async with client(url_of(sentry(backend), user=user)).lock("x"):
        assert await held_at(backend)
    wrong = client(url_of(sentry(backend), user="app:hunter2@"))
    with pytest.raises(dsync.StoreUnavailable, match="refused the user name or password") as raised:
        await wrong
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("bad", ["refuses", "is silent"])
async def test_a_sentinel_that_is_gone_keeps_nobody_waiting(
    sentry: Any, backend: Backend, client: Made, bad: str
) -> None:
    good = [sentry(backend), sentry(backend)]
    async with Proxy.to(f"redis://127.0.0.1:{good[0].port}") as gone:
        if bad == "refuses":
            gone.refusing = True
        else:
            gone.black_hole()
        nodes = [("127.0.0.1", each) for each in (int(gone.url.rpartition(":")[2]), *ports(good))]
        began = time.monotonic()
        url = f"redis+sentinel://{','.join(f'{host}:{port}' for host, port in nodes)}/{SERVICE}"
        async with client(url).lock("x"):
            pass
        theirs = Sentinel(nodes)  # with redis-py's own patience: ten times with each of them
        master = theirs.master_for(SERVICE)
        async with dsync.Client(redis=master) as one, one.lock("x"):
            pass
        assert time.monotonic() - began < 1.5
        await master.aclose()
        await close(theirs)


def ports(sentries: list[Sentry]) -> list[int]:
    return [each.port for each in sentries]


async def close(sentinels: Sentinel) -> None:
    """Their `aclose()`, which redis-py before 8 has not."""
    for each in sentinels.sentinels:
        await each.aclose()


async def test_the_only_sentinel_left_is_enough(
    sentry: Any, backend: Backend, client: Made
) -> None:
    last = sentry(backend)
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{last.port},127.0.0.1:2/{SERVICE}"
    async with client(url, outage_timeout=3.0).lock("x"):
        assert await held_at(backend)


async def test_no_connection_to_a_sentinel_is_kept(
    sentry: Any, backend: Backend, client: Made
) -> None:
    one = sentry(backend)
    await client(url_of(one))
    async with one.admin() as admin:

        async def alone() -> bool:
            return len(await admin.client_list()) == 1

        await settled(alone, "nobody but the admin is there")


# -- a client of one's own -------------------------------------------------------------------------


async def test_a_master_of_ones_own_sentinel_works_and_stays_ones_own(
    sentry: Any, backend: Backend
) -> None:
    theirs = Sentinel([("127.0.0.1", sentry(backend).port)], db=3)
    master = theirs.master_for(SERVICE)
    await master.set("mine", 1)
    async with dsync.Client(redis=master) as one, one.lock("x"):
        assert one.store.link.address.startswith(f"{SERVICE} (sentinels 127.0.0.1:")  # type: ignore[attr-defined]
        assert await master.exists("{dsync:lock:x}:holders"), "in the same database"
    assert await master.get("mine") == b"1"
    await master.aclose()
    await close(theirs)


async def test_a_replicas_client_is_refused(sentry: Any, backend: Backend) -> None:
    theirs = Sentinel([("127.0.0.1", sentry(backend).port)])
    with pytest.raises(ValueError, match=r"master_for\(\), not slave_for\(\)"):
        dsync.Client(redis=theirs.slave_for(SERVICE))
    await close(theirs)


# -- what can be wrong -----------------------------------------------------------------------------


async def test_a_service_that_nobody_watches_is_told_at_once(
    sentry: Any, backend: Backend, client: Made
) -> None:
    one = client(url_of(sentry(backend), service="shoop"))
    with pytest.raises(dsync.StoreUnavailable, match="'shoop'; they watch 'shop'"):
        await one


async def test_the_sentinels_have_a_password_of_their_own(
    sentry: Any, backend: Backend, client: Made
) -> None:
    password = "p@ss/:&= word"
    one = sentry(backend, options=("--requirepass", password))
    query = f"?sentinel_password={quote(password, safe='')}"
    async with client(url_of(one, query=query)).lock("x"):
        assert await held_at(backend)
    for wrong in ("", "?sentinel_password=hunter2"):
        with pytest.raises(dsync.StoreUnavailable, match="do not let us ask") as raised:
            await client(url_of(one, query=wrong))
        assert "hunter2" not in str(raised.value)


async def test_the_database_is_behind_the_service(
    sentry: Any, backend: Backend, client: Made
) -> None:
    url = url_of(sentry(backend), service=f"{SERVICE}/5").replace("redis", "valkey")
    async with client(url).lock("x"), redis.asyncio.Redis(port=backend.port, db=5) as admin:
        assert await admin.exists("{dsync:lock:x}:holders")


async def test_without_any_sentinel_it_says_so(client: Made) -> None:
    one = client("redis+sentinel://127.0.0.1:1,127.0.0.1:2/shop", outage_timeout=0.3)
    with pytest.raises(dsync.StoreUnavailable, match=r"no sentinel of .*:1, .*:2 could be asked"):
        await one


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://h1,h2", "names no service"),
        ("redis+sentinel://h1,h2/", "names no service"),
        ("redis+sentinel:///shop", "names no sentinel"),
        ("redis+sentinel://h1,,h2/shop", "names no sentinel"),
        ("redis+sentinel://h1:x,h2/shop", "a port must be a number"),
        ("redis+sentinel://h1,h2:99999/shop", "a port must be a number"),
        ("redis+sentinel://u:hunter2@h1/shop/one", "the database must be a number"),
        ("redis+sentinel://h1/shop?nonsense=1", "nonsense"),
        ("redis+sentinel://h1/shop?sentinel_pass=hunter2", "sentinel_pass"),
        ("redis+sentinel://u:hunter2@h1/shop?db=one", "Invalid value"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        dsync.Client(url)
    assert "redis+sentinel://" in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("redis+sentinel://h1/shop", "h1:26379"),
        ("rediss+sentinel://u:p@h1:7,h2/shop/0?ssl_cert_reqs=none", "h1:7, h2:26379"),
        ("valkeys+sentinel://[::1],[::1]:7/shop", "::1:26379, ::1:7"),
        ("valkey+sentinel://p@ss/h1/shop%2F1", None),
    ],
)
def test_a_url_leads_to_its_sentinels(url: str, addresses: str | None) -> None:
    if addresses is None:
        with pytest.raises(ValueError, match="cannot use"):
            dsync.Client(url)
        return
    client = dsync.Client(url)
    assert client.store.link.address == f"shop (sentinels {addresses})"  # type: ignore[attr-defined]
