"""The stream, from a real server to real connections."""

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import httpx2
import pytest

import dsync
from tests.conftest import World, settled, start_server
from tests.web.conftest import EVERY, page_of, row, served, watching


async def test_it_begins_with_what_the_page_needs_to_know(real: World) -> None:
    app = page_of(real.client(), allow_release=True)
    async with served(app, app.state.feed) as url, watching(url) as viewer:
        first = await viewer.event()
    about = {"namespace": real.namespace, "every": EVERY, "retry": 2000, "csrf": app.state.csrf}
    assert first == {"retry": "2000", "event": "about", "data": about}


async def test_a_reader_is_given_no_key(real: World) -> None:
    app = page_of(real.client())
    async with served(app, app.state.feed) as url, watching(url) as viewer:
        assert (await viewer.event())["data"]["csrf"] is None
        async with real.client().lock("x"):
            seen = await viewer.until(lambda snapshot: row(snapshot, "x").get("held"))
    assert "token" not in row(seen, "x")["holders"][0]


async def test_a_change_is_seen_with_the_next_look(real: World) -> None:
    client = real.client()
    app = page_of(client, every=0.5)
    async with served(app, app.state.feed) as url, watching(url) as viewer:
        await viewer.until(lambda snapshot: "rows" in snapshot)
        async with client.lock("x"):
            # One look may be under way, for which it came too late.
            looks = [await viewer.event() for _ in range(2)]
            assert row(looks[-1]["data"], "x")["held"] == 1


async def test_all_viewers_see_the_same_looks(real: World) -> None:
    app = page_of(real.client())
    async with served(app, app.state.feed) as url, watching(url) as one, watching(url) as other:
        times = [
            {(await viewer.until(lambda snapshot: "at" in snapshot))["at"] for _ in range(5)}
            for viewer in (one, other)
        ]
    assert len(times[0] & times[1]) >= 4


async def test_when_the_last_viewer_is_gone_nothing_is_left(real: World) -> None:
    app = page_of(real.client())
    feed = app.state.feed
    async with served(app, feed) as url:
        before = asyncio.all_tasks()
        async with AsyncExitStack() as viewers:
            for _ in range(5):
                await viewers.enter_async_context(watching(url))
            await settled(lambda: feed.viewers == 5)
        await settled(lambda: feed.viewers == 0)
        await settled(lambda: asyncio.all_tasks() <= before, lambda: str(asyncio.all_tasks()))


async def test_a_viewer_that_does_not_read_holds_up_nobody(real: World) -> None:
    client = real.client()
    app = page_of(client, every=0.02)
    async with AsyncExitStack() as held, served(app, app.state.feed) as url:
        for i in range(100):
            await held.enter_async_context(client.lock(f"{'long name ' * 10}{i}"))
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((urlsplit(url).hostname, urlsplit(url).port))
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with deaf:
            async with watching(url) as viewer:
                await settled(lambda: app.state.feed.viewers == 2)
                for n in range(10):  # far more than fits between us and who does not read
                    async with client.lock(f"x{n}"):
                        await viewer.until(lambda seen, n=n: row(seen, f"x{n}").get("held"))
                assert app.state.feed.viewers == 2
        await settled(lambda: app.state.feed.viewers == 0)


async def test_it_goes_on_when_the_server_behind_is_back() -> None:
    with start_server() as first:
        port = urlsplit(first.url).port
        client = dsync.connect(first.url, outage_timeout=0.2)
        app = page_of(client)
        async with served(app, app.state.feed) as url, watching(url) as viewer:
            await viewer.until(lambda seen: "rows" in seen)
            os.kill(first.pid, signal.SIGKILL)
            seen = await viewer.until(lambda seen: "error" in seen)
            assert "127.0.0.1" in seen["error"]
            with start_server(port or 0):
                await viewer.until(lambda seen: "rows" in seen, within=10)
        await client.aclose()


@pytest.mark.parametrize("path", ["/events", "/api/overview", "/"])
async def test_asking_for_the_head_starts_nothing(real: World, path: str) -> None:
    app = page_of(real.client())
    async with served(app, app.state.feed) as url, httpx2.AsyncClient() as browser:
        answer = await browser.head(url + path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert app.state.feed.viewers == 0


async def test_no_more_than_so_many_watch_though_they_come_at_once(
    real: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.web.app.VIEWERS", 3)
    app = page_of(real.client())
    async with served(app, app.state.feed) as url, httpx2.AsyncClient() as browser:

        async def watch() -> int:
            async with browser.stream("GET", f"{url}/events") as answer:
                if answer.status_code == 200:
                    await full.wait()
                return answer.status_code

        full = asyncio.Event()
        watchers = [asyncio.create_task(watch()) for _ in range(8)]
        await settled(lambda: sum(task.done() for task in watchers) == 5, "five are refused")
        full.set()
        assert sorted(await asyncio.gather(*watchers)) == [200] * 3 + [503] * 5
        await settled(lambda: app.state.feed.streams == 0)


async def test_who_reads_nothing_makes_room_for_others(
    real: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.web.app.STUCK", 0.2)
    client = real.client()
    for n in range(200):  # a look that no buffer holds for long
        await client.event(f"{n} {'x' * 100}").set()
    app = page_of(client, every=0.05)
    async with served(app, app.state.feed) as url:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(f"GET /events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            await settled(lambda: app.state.feed.streams == 1)
            await settled(lambda: app.state.feed.streams == 0, within=20)
    for n in range(200):
        await client.event(f"{n} {'x' * 100}").clear()


async def test_a_crowd_is_sent_busy_ones_first(
    real: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.web.app.ROWS", 2)
    client = real.client()
    for name in ("a", "b", "c"):
        await client.event(name).set()
        await client.event(name).clear()
    async with client.lock("z"):
        app = page_of(client)
        async with served(app, app.state.feed) as url, watching(url) as viewer:
            seen = await viewer.until(lambda snapshot: row(snapshot, "z").get("held"))
    assert [each["name"] for each in seen["rows"]] == ["a", "z"]
    assert seen["unsent"] == 2
