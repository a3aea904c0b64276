"""What other sites' pages, other people and strange names cannot do."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import dsync
from dsync.web.app import BODY, STATIC
from dsync.web.guard import HEADERS
from tests.conftest import World, settled
from tests.web.conftest import asking, page_of, row, served, watching

HOSTILE = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "a\u202egnp.exe",
    "line\r\n\r\ndata: {}\r\n\r\n", "\u2028\u2029\x00\x1b[31m", '"};alert(1);//', "n" * 10_000,
]  # fmt: skip


# -- under which name -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8377", "localhost.evil.example", "127.0.0.1.evil.example",
        "localhost@evil.example", "evil.example#localhost", "10.0.0.1", "0.0.0.0", "[::2]", "",
        "localhost:8377:1", "localhost/x", "local host", "2130706433", "[::1", "*",
    ],
)  # fmt: skip
async def test_another_name_that_leads_here_gets_nothing(real: World, host: str) -> None:
    async with asking(page_of(real.client())) as browser:
        for path in ("/", "/api/overview", "/events", "/nothing"):
            answer = await browser.get(path, headers={"Host": host})
            assert answer.status_code == 400
            assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8377", "127.0.0.1:1", "[::1]:8377"])
async def test_its_own_names_do(real: World, host: str) -> None:
    async with asking(page_of(real.client())) as browser:
        assert (await browser.get("/", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("hosts", "allowed", "refused"),
    [
        (["ops.example"], "ops.example:443", "localhost"),
        (["0.0.0.0", "box"], "10.1.2.3:8377", "evil.example"),
        (["0.0.0.0", "box"], "box", "0x7f000001"),
        (["::"], "[fe80::1]:8377", "localhost"),
        (["[::1]"], "[::1]", "127.0.0.1"),
        (["*"], "anything.example", ""),
    ],
)
async def test_names_can_be_given(
    real: World, hosts: list[str], allowed: str, refused: str
) -> None:
    async with asking(page_of(real.client(), hosts=hosts)) as browser:
        assert (await browser.get("/", headers={"Host": allowed})).status_code == 200
        assert (await browser.get("/", headers={"Host": refused})).status_code == 400


async def test_two_names_at_once_are_none(real: World) -> None:
    async with asking(page_of(real.client())) as browser:
        both = [("Host", "localhost"), ("Host", "evil.example")]
        assert (await browser.get("/", headers=both)).status_code == 400


# -- from other sites -----------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket"])
async def test_pages_of_other_sites_cannot_have_us_look(real: World, site: str, mode: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    async with asking(page_of(real.client())) as browser:
        for path in ("/", "/page.js", "/api/overview", "/events"):
            assert (await browser.get(path, headers=headers)).status_code == 403


async def test_a_link_on_another_site_may_lead_here(real: World) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with asking(page_of(real.client())) as browser:
        assert (await browser.get("/", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("path", "code", "options"),
    [
        ("/", 200, {}), ("/page.js", 200, {}), ("/page.css", 200, {}), ("/api/overview", 200, {}),
        ("/nothing", 404, {}), ("/api/release", 405, {"allow_release": True}),
        ("/", 401, {"token": "x"}), ("/?token=x", 303, {"token": "x"}), ("/", 400, {"hosts": []}),
    ],
)  # fmt: skip
async def test_every_answer_says_what_a_browser_may_do_with_it(
    real: World, path: str, code: int, options: Any
) -> None:
    async with asking(page_of(real.client(), **options)) as browser:
        answer = await browser.get(path)
    assert answer.status_code == code
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    policy = dict(each.split(" ", 1) for each in HEADERS["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'",
        "connect-src": "'self'", "img-src": "'self' data:", "frame-ancestors": "'none'",
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert "access-control-allow-origin" not in answer.headers
    assert "set-cookie" not in answer.headers or code == 303


# -- the token ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [{}, {"Authorization": "Bearer no"}, {"Cookie": "dsync=secret"}, {"Authorization": "é"}],
)
async def test_without_the_token_there_is_nothing(real: World, shown: dict[str, str]) -> None:
    headers = [(name.encode(), value.encode()) for name, value in shown.items()]
    async with asking(page_of(real.client(), token="secret")) as browser:
        for path in ("/", "/page.js", "/api/overview", "/events", "/nothing"):
            for query in ("", "?token=", "?token=no", "?token=secret2", "?token=%ff"):
                answer = await browser.get(path + query, headers=headers)
                assert answer.status_code == 401
                assert "secret" not in answer.text


async def test_the_token_is_shown_once_and_leaves_the_address(real: World) -> None:
    app = page_of(real.client(), token="sec ret")
    async with asking(app) as browser:
        answer = await browser.get("/?token=sec%20ret")
        assert (answer.status_code, answer.headers["location"]) == (303, "./")
        cookie = answer.headers["set-cookie"].lower()
        assert "; httponly" in cookie
        assert "; samesite=lax" in cookie
        for path in ("/", "/page.js", "/api/overview"):  # the browser has the cookie now
            assert (await browser.get(path)).status_code == 200
    async with asking(app) as program:
        bearer = {"Authorization": "Bearer sec ret"}
        assert (await program.get("/api/overview", headers=bearer)).status_code == 200


async def test_the_cookie_of_an_encrypted_page_stays_encrypted(real: World) -> None:
    app = page_of(real.client(), token="secret")
    async with asking(app, "https://localhost") as browser:
        answer = await browser.get("/?token=secret")
    assert "; secure" in answer.headers["set-cookie"].lower()


# -- taking away ----------------------------------------------------------------------------------


class Held:
    """A lock that is held, and a page from which somebody wants to take it."""

    def __init__(self, browser: httpx2.AsyncClient, lock: dsync.Lock, wish: Any, csrf: str) -> None:
        self.browser = browser
        self.lock = lock
        assert lock.lease is not None
        self.lease = lock.lease
        self.wish = wish
        # As our own page asks.
        self.headers = {
            "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "X-Dsync-Csrf": csrf
        }  # fmt: skip

    async def post(self, wish: Any = None, **headers: str | None) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {k: v for k, v in {**self.headers, **named}.items() if v is not None}
        return await self.browser.post("/api/release", json=wish or self.wish, headers=sent)

    async def is_held(self) -> bool:
        info = await self.lock.info()
        return info.holder is not None and not self.lease.lost.is_set()


@asynccontextmanager
async def held(real: World, **options: Any) -> AsyncIterator[Held]:
    lock = real.client(label="holder").lock("x", on_lost="flag")
    await lock.acquire()
    app = page_of(real.client(), **{"allow_release": True} | options)
    async with asking(app) as browser:
        holder = row((await browser.get("/api/overview")).json(), "x")["holders"][0]
        wish = {"kind": "lock", "name": "x", "token": holder.get("token", "")}
        yield Held(browser, lock, wish, app.state.csrf or "")
    with suppress(dsync.LeaseLost):  # it was taken
        await lock.release()


async def test_who_may_release_takes_it_from_its_holder_and_the_next_has_it(real: World) -> None:
    async with held(real) as page:
        waiter = real.client(label="waiter").lock("x")
        asked = asyncio.create_task(waiter.acquire())
        await settled(lambda: _waits(page.lock))
        answer = await page.post()
        assert answer.status_code == 200
        assert answer.json()["held"] is True
        assert answer.json()["from"].startswith("holder (")
        await asyncio.wait_for(page.lease.lost.wait(), 5)
        await asyncio.wait_for(asked, 5)
        await waiter.release()
        assert (await page.post()).json()["held"] is False  # and nobody else is touched


async def _waits(lock: dsync.Lock) -> bool:
    return bool((await lock.info()).waiters)


async def test_a_permit_is_taken_from_one_holder_of_several(real: World) -> None:
    app = page_of(real.client(), allow_release=True)
    semaphore = real.client().semaphore("x", 2, on_lost="flag")
    await semaphore.acquire()
    await semaphore.acquire()
    async with asking(app) as browser:
        first = row((await browser.get("/api/overview")).json(), "x")["holders"][0]
        headers = {"Origin": "http://localhost", "X-Dsync-Csrf": app.state.csrf}
        wish = {"kind": "semaphore", "name": "x", "token": first["token"]}
        answer = await browser.post("/api/release", json=wish, headers=headers)
        assert answer.json()["held"] is True
    assert (await semaphore.info()).held == 1
    with pytest.raises(dsync.LeaseLost):
        for _ in range(2):
            await semaphore.release()


async def test_a_service_that_uses_the_semaphore_itself_keeps_its_value(real: World) -> None:
    client, other = real.client(), real.client().semaphore("x", 5)
    mine = client.semaphore("x", 5)
    await mine.acquire()
    await other.acquire()
    app = page_of(client, allow_release=True)
    async with asking(app) as browser:
        (row,) = (await browser.get("/api/overview")).json()["rows"]
        theirs = next(h for h in row["holders"] if not h["token"].startswith(client.client_id))
        headers = {"origin": "http://localhost", "x-dsync-csrf": app.state.csrf}
        wish = {"kind": "semaphore", "name": "x", "token": theirs["token"]}
        assert (await browser.post("/api/release", json=wish, headers=headers)).status_code == 200
    assert mine.value == 5
    for _ in range(4):
        assert await mine.try_acquire()
    for _ in range(5):
        await mine.release()
    with pytest.raises(dsync.LeaseLost):
        await other.release()


@pytest.mark.parametrize("prefix", ["/t/a; Domain=evil.example", "/t/€"])
async def test_the_cookie_of_a_mounted_page_is_for_its_path_alone(real: World, prefix: str) -> None:
    app = Starlette(routes=[Mount("/t/{tenant}", page_of(real.client(), token="secret"))])
    async with asking(app) as browser:
        answer = await browser.get(f"{prefix}/?token=secret")
    assert answer.status_code == 303
    assert answer.headers["set-cookie"].endswith(f"; Path={quote(prefix)}/; SameSite=lax")


async def test_nothing_can_be_taken_where_that_was_not_allowed(real: World) -> None:
    async with held(real, allow_release=False) as page:
        assert "token" not in page.wish or not page.wish["token"]
        token = (await page.lock.info()).holder.token  # type: ignore[union-attr]
        answer = await page.post({**page.wish, "token": token})
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})
        assert await page.is_held()


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Dsync_Csrf": None}, {"X_Dsync_Csrf": ""}, {"X_Dsync_Csrf": "0" * 64},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"},
        {"Origin": "http://localhost.evil.example"}, {"Origin": "localhost"}, {"Origin": ""},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"}, {"Sec_Fetch_Site": "cross-site", "Origin": None},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
        {"Sec_Fetch_Site": None, "Origin": None},
    ],
    ids=str,
)  # fmt: skip
async def test_only_our_own_page_may_take_anything(real: World, headers: Any) -> None:
    async with held(real) as page:
        answer = await page.post(**headers)
        assert answer.status_code == 403
        assert list(answer.json()) == ["error"]
        assert await page.is_held()


@pytest.mark.parametrize("headers", [{"Sec_Fetch_Site": None}, {"Origin": None}], ids=str)
async def test_one_of_two_signs_that_it_is_our_page_will_do(real: World, headers: Any) -> None:
    async with held(real) as page:
        assert (await page.post(**headers)).json()["held"] is True


async def test_the_token_of_the_page_is_needed_for_taking_too(real: World) -> None:
    app = page_of(real.client(), allow_release=True, token="secret")
    lock = real.client().lock("x")
    async with lock, asking(app) as browser:
        holder = (await lock.info()).holder
        assert holder is not None
        wish = {"kind": "lock", "name": "x", "token": holder.token}
        headers = {"Origin": "http://localhost", "X-Dsync-Csrf": app.state.csrf}
        answer = await browser.post("/api/release", json=wish, headers=headers)
        assert answer.status_code == 401
        assert await lock.locked()


async def test_the_key_of_one_page_does_not_fit_another_unless_they_share_a_secret(
    real: World,
) -> None:
    client = real.client()
    keys = [page_of(client, allow_release=True).state.csrf for _ in range(2)]
    assert keys[0] != keys[1]
    same = {page_of(client, allow_release=True, secret="s").state.csrf for _ in range(2)}
    assert len(same) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"1", b"{}", b'{"kind": "lock"}', b"\xff", b"[" * 60_000,
        b'{"kind": "event", "name": "x", "token": "a:b:1:c.1"}',
        b'{"kind": ["lock"], "name": "x", "token": "a:b:1:c.1"}',
        b'{"kind": "lock", "name": "", "token": "a:b:1:c.1"}',
        b'{"kind": "lock", "name": 7, "token": "a:b:1:c.1"}',
        b'{"kind": "lock", "name": "x", "token": ""}',
        b'{"kind": "lock", "name": "x", "token": 7}',
        b'{"kind": "lock", "name": "x", "token": null}',
        b'{"kind": "lock", "name": "x", "token": "a:b:c"}',
        b'{"kind": "lock", "name": "x", "token": "a:b:c:d.e"}',
        b'{"kind": "lock", "name": "\\ud800", "token": "a:b:1:c.1"}',
        b'{"kind": "lock", "name": "x", "token": "a:b:1:\\ud800.1"}',
    ],
)  # fmt: skip
async def test_nonsense_is_refused(real: World, body: bytes) -> None:
    app = page_of(real.client(), allow_release=True)
    headers = {
        "Origin": "http://localhost", "X-Dsync-Csrf": app.state.csrf,
        "Content-Type": "application/json; charset=utf-8",
    }  # fmt: skip
    async with asking(app) as browser:
        answer = await browser.post("/api/release", content=body, headers=headers)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert "Traceback" not in answer.text


async def test_a_name_that_is_not_all_there_is_not_taken_for_another(real: World) -> None:
    app = page_of(real.client(), allow_release=True)
    lock = real.client().lock("n" * 10_000)
    async with lock, asking(app) as browser:
        found = (await browser.get("/api/overview")).json()["rows"][0]
        wish = {"kind": "lock", "name": found["name"], "token": found["holders"][0]["token"]}
        headers = {"Origin": "http://localhost", "X-Dsync-Csrf": app.state.csrf}
        answer = await browser.post("/api/release", json=wish, headers=headers)
        assert answer.status_code == 400
        assert "dsync release" in answer.json()["error"]
        assert await lock.locked()


async def test_what_a_form_can_send_is_refused(real: World) -> None:
    async with held(real) as page:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            assert (await page.post(Content_Type=kind)).status_code == 415
        assert await page.is_held()


async def test_what_is_too_long_is_not_read(real: World) -> None:
    async with held(real) as page:
        answer = await page.post({**page.wish, "more": "x" * BODY})
        assert answer.status_code == 413
        assert await page.is_held()


# -- what it is called ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
async def test_a_name_of_any_kind_is_data_and_stays_in_its_line(real: World, name: str) -> None:
    app = page_of(real.client())
    lock = real.client(label=name).lock(name)
    async with lock, served(app, app.state.feed) as url, watching(url) as viewer:
        assert (await viewer.event())["event"] == "about"
        event = await viewer.event()
        found = event["data"]["rows"][0]
        assert list(event) == ["data"]
        assert found["name"] == name or ("%#" in found["name"] and found["name"][:80] == name[:80])
        assert found["holders"][0]["label"] == name[:40]
        async with asking(app) as browser:
            text = (await browser.get("/api/overview")).content
        assert re.fullmatch(rb"[ -~]*", text)
        assert json.loads(text)


def test_nothing_is_made_of_text_but_text() -> None:
    script = (STATIC / "page.js").read_text()
    found = re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|srcdoc"
        r"|DOMParser|createContextualFragment|setTimeout\([\"']|javascript:",
        script,
    )
    assert not found
    page = (STATIC / "page.html").read_text()
    assert not re.findall(r"\son\w+=|\sstyle=|<style|<script(?! type=\"module\" src=)", page)


async def test_the_servers_password_does_not_reach_the_page(real: World) -> None:
    app = page_of(real.client(), allow_release=True)
    password = real.url.partition("@")[0].rpartition(":")[2]
    assert len(password) == 32
    async with asking(app) as browser, served(app, app.state.feed) as url, watching(url) as viewer:
        told = [await viewer.event(), await viewer.event()]
        overview = (await browser.get("/api/overview")).text
    assert password not in overview + json.dumps(told)
