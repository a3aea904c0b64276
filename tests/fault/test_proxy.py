"""The proxy does to a connection what it says, and nothing else."""

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from dsync.server import Server
from dsync.testing import Proxy

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def connection(proxy: Proxy) -> AsyncIterator[Connection]:
    """Bare: a client would hide what happens."""
    reader, writer = await dial(proxy)
    yield reader, writer
    writer.close()


async def dial(proxy: Proxy) -> Connection:
    return await asyncio.open_connection("127.0.0.1", urlsplit(proxy.url).port)


async def echo(connection: Connection, text: bytes) -> bytes:
    reader, writer = connection
    writer.write(b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(text), text))
    await reader.readline()
    return (await reader.readline()).strip()


async def test_what_passes_with_jitter_stays_in_order(proxy: Proxy, connection: Connection) -> None:
    proxy.jitter = 0.01
    reader, writer = connection
    for number in range(300):
        writer.write(b"ECHO %d\r\n" % number)
        await asyncio.sleep(0)  # a packet each
    for number in range(300):
        await reader.readline()
        assert await reader.readline() == b"%d\r\n" % number


def test_a_user_and_a_database_of_the_url_stay() -> None:
    proxy = Proxy.to("redis://me:it%20is@127.0.0.1:1/3")
    assert (proxy._user, proxy._path) == ("me:it%20is@", "/3")


async def test_a_throttle_lets_no_more_bytes_through_than_it_says(
    proxy: Proxy, connection: Connection
) -> None:
    assert await echo(connection, b"x" * 20_000) == b"x" * 20_000
    proxy.throttle = 50_000
    began = time.monotonic()
    assert await echo(connection, b"x" * 20_000) == b"x" * 20_000
    assert time.monotonic() - began > 0.8  # there and back
    proxy.throttle = 0
    assert await echo(connection, b"again") == b"again"


async def test_one_way_may_be_cut_alone(proxy: Proxy, connection: Connection) -> None:
    assert await echo(connection, b"before") == b"before"
    proxy.cut("replies")
    reader, writer = connection
    writer.write(b"SET proxy-was-here yes\r\n")
    assert await reader.read() == b""  # the end, and no reply
    other = await dial(proxy)
    other[1].write(b"GETDEL proxy-was-here\r\n")
    assert await other[0].readline() == b"$3\r\n", "the request had arrived"
    other[1].close()


async def test_a_proxy_that_refuses_resets_new_connections_until_it_is_healed(
    proxy: Proxy, connection: Connection
) -> None:
    proxy.refusing = True
    assert await echo(connection, b"still here") == b"still here"
    reader, writer = await dial(proxy)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    proxy.heal()
    healed = await dial(proxy)
    assert await echo(healed, b"hello") == b"hello"
    healed[1].close()


async def test_a_new_target_is_for_connections_to_come(
    proxy: Proxy, connection: Connection
) -> None:
    assert await echo(connection, b"before") == b"before"
    with Server.start(port=0) as other:
        proxy.retarget(other.url)
        assert await echo(connection, b"still there") == b"still there"
        moved = await dial(proxy)
        moved[1].write(b"CONFIG GET port\r\n")
        port = b"%d" % (urlsplit(other.url).port or 0)
        assert port in await moved[0].readuntil(port + b"\r\n")
        moved[1].close()
