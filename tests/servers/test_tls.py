"""TLS on a real server: who is let in, what goes over it, and what is said when it cannot work."""

import asyncio
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import redis.asyncio

import dsync
from chaos.servers import Backend
from dsync.server import ServerError
from tests.conftest import settled
from tests.fault.test_rights import PASSWORDS, Heard, fails, heard
from tests.servers.conftest import Made
from tests.servers.watched import SERVICE, Sentry, watching

__all__ = ["heard"]

trustme = pytest.importorskip("trustme", reason="trustme, which makes certificates, is missing")
ROOT = Path(__file__).parent.parent.parent
AT_ONCE = 0.8  # seconds, beside other tests


@dataclass
class Papers:
    """Certificates and keys, as the options by which a URL names their files."""

    home: Path
    ca: str
    strange_ca: str
    server: tuple[str, str]  # for 127.0.0.1 and localhost
    elsewhere: tuple[str, str]  # for another host
    ours: tuple[str, str]  # a client's
    strange: tuple[str, str]  # a client's, of a CA that the server does not know


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    home = tmp_path_factory.mktemp("papers")
    known, unknown = trustme.CA(), trustme.CA()

    def file(name: str, blob: Any) -> str:
        blob.write_to_path(str(home / name))
        return str(home / name)

    def pair(name: str, issued: Any) -> tuple[str, str]:
        return (
            file(f"{name}.pem", issued.cert_chain_pems[0]),
            file(f"{name}-key.pem", issued.private_key_pem),
        )

    return Papers(
        home,
        file("ca.pem", known.cert_pem),
        file("strange-ca.pem", unknown.cert_pem),
        pair("server", known.issue_cert("127.0.0.1", "localhost")),
        pair("elsewhere", known.issue_cert("redis.example.org")),
        pair("ours", known.issue_cert("worker@example.org")),
        pair("strange", unknown.issue_cert("worker@example.org")),
    )


class Sealed:
    """A Redis that speaks TLS at one port, and none at another."""

    def __init__(self, papers: Papers, own: tuple[str, str], *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.options = (
            *("--tls-port", str(self.port), "--tls-ca-cert-file", papers.ca),
            *("--tls-cert-file", own[0], "--tls-key-file", own[1], *options),
        )
        self.backend = Backend(*self.options, binary="redis-server")

    def url(
        self, user: str = "", host: str = "127.0.0.1", scheme: str = "rediss", **of: Any
    ) -> str:
        return f"{scheme}://{user}{host}:{self.port}/0?{urlencode(of)}"


@pytest.fixture(scope="module")
def start(papers: Papers) -> Iterator[Any]:
    if shutil.which("redis-server") is None:
        pytest.skip("the embedded server has no TLS, and there is no redis-server here")
    started: list[Sealed] = []

    def make(*args: Any) -> Sealed:
        try:
            started.append(Sealed(papers, *args))
        except ServerError as exc:
            if "tls" not in str(exc).lower():
                raise
            pytest.skip("this redis-server is built without TLS")
        return started[-1]

    yield make
    for each in started:
        each.backend.close()


@pytest.fixture(scope="module")
def strict(start: Any, papers: Papers) -> Sealed:
    """A server that wants a certificate of everybody."""
    made: Sealed = start(papers.server)
    return made


@pytest.fixture(scope="module")
def lenient(start: Any, papers: Papers) -> Sealed:
    """A server that wants none of anybody."""
    made: Sealed = start(papers.server, "--tls-auth-clients", "no")
    return made


def let_in(papers: Papers) -> dict[str, str]:
    """The options that make a client welcome."""
    cert, key = papers.ours
    return {"ssl_ca_certs": papers.ca, "ssl_certfile": cert, "ssl_keyfile": key}


# -- what goes over it -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_with_certificates_of_both_sides_processes_take_turns(
    strict: Sealed, papers: Papers, client: Made, scheme: str
) -> None:
    url = strict.url(scheme=scheme, **let_in(papers))
    one, two = client(url).lock("x"), client(url).lock("x")
    async with one:
        waiting = asyncio.create_task(two.acquire())
        await settled(lambda: "waiters:1" in repr(two))
    async with asyncio.timeout(1):  # it is told: asking would take longer
        await waiting
    await two.release()


async def test_messages_of_many_records_arrive_whole_and_in_order(
    lenient: Sealed, papers: Papers, client: Made
) -> None:
    url = lenient.url(ssl_ca_certs=papers.ca)
    one, two = (client(url).event_bus(codec=bytes) for _ in range(2))
    sent = [bytes([number]) * (2**number + 17) for number in range(20)]
    async with one.subscribe("*") as events:
        for data in sent:
            two.trigger("x", data)
        async with asyncio.timeout(10):
            for data in sent:
                message = await anext(events)
                assert isinstance(message, dsync.Message)
                assert message.data == data


async def test_when_the_connection_is_cut_it_is_made_again_and_nothing_is_lost(
    lenient: Sealed, papers: Papers, client: Made
) -> None:
    one, two = (client(lenient.url(ssl_ca_certs=papers.ca)).lock("x") for _ in range(2))
    await one.acquire()
    waiting = asyncio.create_task(two.acquire())
    await settled(lambda: "waiters:1" in repr(two))
    async with redis.asyncio.Redis.from_url(lenient.backend.url) as admin:
        await admin.client_kill_filter(_type="pubsub")
    assert one.lease is not None
    async with asyncio.timeout(5):
        assert await one.locked()
        assert one.lease.held
        await one.release()
        await waiting
    await two.release()


async def test_a_client_of_ones_own_brings_its_certificates(strict: Sealed, papers: Papers) -> None:
    cert, key = papers.ours
    own = redis.asyncio.Redis(
        port=strict.port, host="localhost", ssl=True,
        ssl_ca_certs=papers.ca, ssl_certfile=cert, ssl_keyfile=key,
    )  # fmt: skip
    async with dsync.Client(redis=own) as one, one.lock("x"):
        assert await own.exists("{dsync:lock:x}:holders")
    await own.aclose()


PROGRAM = """
import asyncio, sys
import dsync

async def main(url):
    async with dsync.connect(url) as one, dsync.connect(url) as two:
        async def work(client):
            for _ in range(20):
                async with client.lock("x"), client.semaphore("y", 2):
                    await asyncio.sleep(0)
        await asyncio.gather(*(work(client) for client in (one, two) for _ in range(5)))
    print(type(asyncio.get_running_loop()).__module__.partition(".")[0], "done")
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_works_without_a_warning_on(strict: Sealed, papers: Papers, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    run = f"\nimport {loop}\n{loop}.run(main(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(PROGRAM) + run,
         strict.url(**let_in(papers))],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=30,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.stdout, errors) == (f"{loop} done\n", [])


async def test_sentinels_speak_it_as_well(
    start: Any, papers: Papers, tmp_path: Path, client: Made
) -> None:
    primary = start(papers.server)
    sealed = [word for word in primary.options if word not in ("--tls-port", str(primary.port))]
    config = watching(primary.port, 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (*sealed, "--tls-replication", "yes", "--tls-port", str(port))
    with await asyncio.to_thread(Sentry, config, *options, binary="redis-server"):
        url = f"rediss+sentinel://127.0.0.1:{port}/{SERVICE}?{urlencode(let_in(papers))}"
        admin = redis.asyncio.Redis.from_url(primary.backend.url)
        async with admin, client(url).lock("x"):
            assert await admin.exists("{dsync:lock:x}:holders")
        stranger = client(url.replace(quote(papers.ca, safe=""), quote(papers.strange_ca, safe="")))
        with pytest.raises(dsync.StoreUnavailable, match=r"certificate of Redis at shop \(sen"):
            await stranger


# -- what is said when it cannot work --------------------------------------------------------------


async def refusal(url: str, **kwargs: Any) -> tuple[str, float]:
    """What it says, and after how many seconds."""
    client = dsync.Client(url, **kwargs)
    began = time.monotonic()
    try:
        with pytest.raises(dsync.StoreUnavailable) as raised:
            await client
    finally:
        await client.aclose()
    return str(raised.value), time.monotonic() - began


async def test_a_certificate_of_an_unknown_ca_is_told_at_once(
    strict: Sealed, papers: Papers
) -> None:
    for given in ({}, {"ssl_ca_certs": papers.strange_ca}):
        text, took = await refusal(strict.url(**given))
        assert "cannot be verified" in text
        assert "?ssl_ca_certs=" in text
        assert took < AT_ONCE


async def test_a_certificate_of_another_host_is_told_at_once(
    start: Any, papers: Papers, client: Made
) -> None:
    server = start(papers.elsewhere, "--tls-auth-clients", "no")
    for host in ("127.0.0.1", "localhost"):
        text, took = await refusal(server.url(host=host, ssl_ca_certs=papers.ca))
        assert "not valid for" in text
        assert "connect by a name that it is made out to" in text
        assert took < AT_ONCE
    lax = server.url(ssl_ca_certs=papers.ca, ssl_check_hostname="false")
    async with client(lax).lock("x"):
        pass


async def test_who_brings_no_certificate_is_told_what_to_give(
    strict: Sealed, papers: Papers
) -> None:
    """TLS 1.3: the server says so after the handshake, and hangs up; either may be seen first."""
    text, _ = await refusal(strict.url(ssl_ca_certs=papers.ca), outage_timeout=0.5)
    assert "?ssl_certfile=" in text
    assert "ssl_keyfile=" in text


async def test_who_brings_a_certificate_of_a_ca_unknown_to_the_server_is_told(
    strict: Sealed, papers: Papers
) -> None:
    cert, key = papers.strange
    url = strict.url(ssl_ca_certs=papers.ca, ssl_certfile=cert, ssl_keyfile=key)
    text, _ = await refusal(url, outage_timeout=0.5)
    assert "?ssl_certfile=" in text


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
async def test_a_file_that_is_not_there_is_named(
    strict: Sealed, papers: Papers, option: str
) -> None:
    text, took = await refusal(strict.url(**{**let_in(papers), option: "/nowhere/x.pem"}))
    assert f"cannot read {option}=/nowhere/x.pem" in text
    assert took < AT_ONCE


async def test_a_port_with_tls_and_without_are_told_apart(strict: Sealed, papers: Papers) -> None:
    text, _ = await refusal(strict.url(scheme="redis"), outage_timeout=0.4)
    assert "if it speaks TLS use rediss://" in text
    plain = strict.backend.url.replace("redis://", "rediss://")
    text, _ = await refusal(plain, outage_timeout=0.4)
    assert "if it does not speak TLS use redis://" in text


@pytest.mark.parametrize("password", PASSWORDS)
async def test_a_password_works_over_tls_and_is_shown_nowhere(
    lenient: Sealed, papers: Papers, heard: Heard, client: Made, password: str
) -> None:
    async with redis.asyncio.Redis.from_url(lenient.backend.url) as admin:
        await admin.execute_command(
            "ACL", "SETUSER", "app", "reset", "on", f">{password}", "~*", "&*", "+@all"
        )
    user = f"app:{quote(password, safe='')}@"
    one = client(lenient.url(user, ssl_ca_certs=papers.ca), on_error=heard.hear)
    async with one.lock("x") as lease:
        heard.look_at(one)
        heard.hear(lease)
    wrong = client(lenient.url(user.replace("@", "%21@"), ssl_ca_certs=papers.ca))
    assert "refused the user name or password" in await fails(wrong, heard)
    distrustful = client(lenient.url(user))
    assert "cannot be verified" in await fails(distrustful, heard)
    heard.check(password)
