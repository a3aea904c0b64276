"""The application: what it shows, and to whom it says no."""

import asyncio
import re
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import dsync
from dsync.web.app import STATIC, VIEWERS
from tests.conftest import World, start_server
from tests.web.conftest import asking, page_of, row, served, watching


async def test_the_overview_tells_who_holds_and_who_waits(real: World) -> None:
    holder, waiter = real.client(label="holder"), real.client(label="waiter")
    async with holder.lock("invoices"), asking(page_of(real.client())) as browser:
        asked = asyncio.create_task(waiter.lock("invoices").acquire(), name="the next")
        async with asyncio.timeout(5):
            while True:
                answer = await browser.get("/api/overview")
                found = row(answer.json(), "invoices")
                if found["waiting"] and found["waiters"][0]["task"]:
                    break
        assert answer.status_code == 200
        assert (found["kind"], found["held"], found["waiting"]) == ("lock", 1, 1)
        assert found["holders"][0]["label"] == "holder"
        assert (found["waiters"][0]["label"], found["waiters"][0]["task"]) == ("waiter", "the next")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def test_a_pattern_leaves_out_the_others(real: World) -> None:
    client = real.client()
    page = page_of(client, pattern="i*")
    async with client.lock("in"), client.lock("out"), asking(page) as browser:
        rows = (await browser.get("/api/overview")).json()["rows"]
    assert [each["name"] for each in rows] == ["in"]


async def test_it_shows_what_is_in_memory(real: World) -> None:
    client = dsync.connect("memory://web")
    async with client, client.lock("here"), asking(page_of(client)) as browser:
        assert row((await browser.get("/api/overview")).json(), "here")["held"] == 1


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")],
)
async def test_the_page_and_its_parts_are_there(real: World, path: str, media_type: str) -> None:
    async with asking(page_of(real.client())) as browser:
        answer = await browser.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == media_type
    assert answer.text


@pytest.mark.parametrize("path", ["/nothing", "/static/../app.py", "/%2e%2e/app.py", "/page.html"])
async def test_what_is_not_there_is_not_found(real: World, path: str) -> None:
    async with asking(page_of(real.client())) as browser:
        answer = await browser.get(path)
    assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods_are_not_allowed(real: World, method: str) -> None:
    async with asking(page_of(real.client(), allow_release=True)) as browser:
        for path in ("/", "/page.js", "/page.css", "/api/overview", "/events"):
            answer = await browser.request(method, path)
            assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})


async def test_nothing_is_changed_by_getting_anything(real: World) -> None:
    client = real.client()
    app = page_of(client, allow_release=True)

    async def stored() -> dict[str, bytes]:
        return {key: await real.admin.dump(key) for key in await real.keys()}

    async with client.lock("x"), client.semaphore("y", 2), served(app, app.state.feed) as url:
        before = await stored()
        async with asking(app) as browser, watching(url) as viewer:
            await viewer.until(lambda snapshot: row(snapshot, "x"))
            for path in ("/", "/page.js", "/page.css", "/api/overview"):
                assert (await browser.get(path)).status_code == 200
            token = row((await browser.get("/api/overview")).json(), "x")["holders"][0]["token"]
            release = f"/api/release?kind=lock&name=x&token={token}"
            assert (await browser.get(release)).status_code == 405
            assert (await browser.head("/events")).status_code == 200
        assert await stored() == before


async def test_a_server_that_is_away_is_told_as_json() -> None:
    with start_server() as server:
        client = dsync.connect(server.url, outage_timeout=0.2)
        await client.check()
    async with asking(page_of(client)) as browser:
        answer = await browser.get("/api/overview")
    await client.aclose()
    assert answer.status_code == 503
    assert list(answer.json()) == ["error"]


async def test_a_mistake_of_ours_is_told_without_a_traceback(real: World) -> None:
    app = page_of(real.client())
    app.state.feed = None
    async with asking(app) as browser:
        answer = await browser.get("/api/overview")
    assert answer.status_code == 500
    assert answer.json() == {"error": "this went wrong here: see the log"}
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("every", [0, -1, float("nan"), "1", None])
async def test_times_that_are_none_are_refused(real: World, every: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="every"):
        page_of(real.client(), every=every)


async def test_it_works_under_a_prefix_of_another_service(real: World) -> None:
    client = real.client()
    inner = page_of(client, token="secret")
    outer = Starlette(routes=[Mount("/dsync", inner)])
    async with client.lock("x"), asking(outer) as browser:
        answer = await browser.get("/dsync/?token=secret")
        assert (answer.status_code, answer.headers["location"]) == (303, "./")
        assert "path=/dsync/;" in answer.headers["set-cookie"].lower()
        assert (await browser.get("/dsync/page.js")).status_code == 200
        assert row((await browser.get("/dsync/api/overview")).json(), "x")
        answer = await browser.get("/dsync")
        assert (answer.status_code, answer.headers["location"]) == (307, "http://localhost/dsync/")


@pytest.mark.parametrize("name", ["page.html", "page.js", "page.css"])
def test_the_page_needs_nobody_else_and_asks_below_its_own_address(name: str) -> None:
    text = (STATIC / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?:|@import|url\(|(?:src|href)=[\"']?/|fetch\([\"']?/", text)


async def test_there_is_an_end_to_how_many_may_watch(real: World) -> None:
    app = page_of(real.client())
    async with asking(app) as browser:
        app.state.feed.streams = VIEWERS
        answer = await browser.get("/events")
    assert answer.status_code == 503
