"""The page in a real browser: Chromium, without a window."""

import asyncio
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount

import dsync
from tests.conftest import settled, start_server
from tests.web.conftest import page_of, served

CHROMIUM = os.environ.get("DSYNC_TEST_CHROMIUM") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)
api = pytest.importorskip("playwright.async_api", reason="there is no playwright: pip install it")
expect = api.expect
expect.set_options(timeout=15_000)

# One browser for all of them, and so one loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    """The browser."""
    sandboxed = os.geteuid() != 0  # it refuses to make one for root
    async with api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=[] if sandboxed else ["--no-sandbox"]
        )
        yield browser
        await browser.close()


class Scene:
    """Clients of one namespace, and windows on the page that shows it."""

    def __init__(self, browser: Any, url: str) -> None:
        self._browser = browser
        self._url = url
        self._namespace = f"t-{uuid.uuid4().hex[:12]}"
        self.clients: list[dsync.Client] = []
        self.complaints: list[str] = []  # of the browser: errors, what its policy has stopped

    def client(self, label: str) -> dsync.Client:
        """Another process."""
        client = dsync.connect(self._url, namespace=self._namespace, label=label)
        self.clients.append(client)
        return client

    @asynccontextmanager
    async def page(self, **options: Any) -> AsyncIterator[Any]:
        """The page in a window, and nothing to complain about."""
        app = page_of(self.client("viewer"), **options)
        async with served(app, app.state.feed) as url, self.window(url) as window:
            yield window
            assert not self.complaints

    @asynccontextmanager
    async def window(self, url: str, **more: Any) -> AsyncIterator[Any]:
        """This address in a window, and its table when there is one."""
        context = await self._browser.new_context(**more)
        window = await context.new_page()
        window.on("console", lambda said: self._note(said.type, said.text))
        window.on("pageerror", lambda error: self._note("error", str(error)))
        await window.goto(url)
        await expect(window.locator("#status")).to_contain_text("live")
        yield window
        await context.close()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)


@pytest_asyncio.fixture(loop_scope="module")
async def scene(chromium: Any, server_url: str) -> AsyncIterator[Scene]:
    """A scene."""
    made = Scene(chromium, server_url)
    yield made
    for client in made.clients:
        await client.aclose()


def line(window: Any, name: str) -> Any:
    """The row of this name, without what it opens."""
    opener = window.get_by_role("button", name=name, exact=True)
    return window.get_by_role("row").filter(has=opener)


async def names(window: Any) -> list[str]:
    """Of the rows, in their order."""
    return list(await window.locator("tbody .name").all_inner_texts())


async def test_it_shows_a_hand_over_as_it_happens(scene: Scene) -> None:
    first, second = scene.client("first").lock("x"), scene.client("second").lock("x")
    async with scene.page() as window:
        await window.evaluate("window.loaded = 'once'")
        await first.acquire()
        await expect(line(window, "x")).to_contain_text("held")
        await expect(line(window, "x")).to_contain_text("first: ")
        asked = asyncio.create_task(second.acquire(), name="the next")
        await expect(line(window, "x").get_by_role("cell").nth(2)).to_have_text("1")
        await first.release()
        await asked
        await expect(line(window, "x")).to_contain_text("second: the next")
        await second.release()
        await expect(line(window, "x")).to_contain_text("free")
        assert await window.evaluate("window.loaded") == "once"


HOSTILE = {
    "<img src=x onerror=window.ran=1>": "<img src=x onerror=window.ran=1>",
    "</script><script>window.ran=1</script>": "</script><script>window.ran=1</script>",
    "</td></tr></table><iframe src=/>": "</td></tr></table><iframe src=/>",
    "a\u202egnp.exe": "a\\u{202e}gnp.exe",
    "line\r\ndata: {}\n\n": "line\\u{d}\\u{a}data: {}\\u{a}\\u{a}",
    "\u2028\x00\x1b[31m": "\\u{2028}\\u{0}\\u{1b}[31m",
    "${window.ran=1}": "${window.ran=1}",
    "日本 🔒 é": "日本 🔒 é",
}


async def test_names_of_any_kind_are_shown_as_they_are_and_do_nothing(scene: Scene) -> None:
    long = "n" * 10_000
    held = [scene.client(name).lock(name) for name in (*HOSTILE, long)]
    for lock in held:
        await lock.acquire()
    async with scene.page() as window:
        await expect(window.locator(".name")).to_have_count(len(held))
        for opener in await window.locator(".name").all():
            await opener.click()
        shown = await names(window)
        assert set(HOSTILE.values()) <= set(shown)
        assert [name for name in shown if name.startswith("n" * 80 + "%#")]
        text = await window.locator("tbody").inner_text()
        for name in HOSTILE.values():
            assert text.count(name[:20]) >= 3  # as a name, and as a label in two places
        assert await window.locator("img, iframe, tbody script").count() == 0
        assert await window.evaluate("window.ran") is None
        width = await window.evaluate("document.documentElement.scrollWidth")
        assert width <= await window.evaluate("innerWidth")
    for lock in held:
        await lock.release()


async def test_no_script_runs_even_if_markup_got_into_the_page(scene: Scene) -> None:
    """And what stops it would have been noticed in all these tests."""
    app = page_of(scene.client("viewer"))
    async with served(app, app.state.feed) as url, scene.window(url) as window:
        for markup in (
            "<img src=x: onerror=window.ran=1>",
            "<iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
            "<a href='javascript:window.ran=1' id=bad>x</a>",
            "<p style='color: red'>x</p>",
        ):
            scene.complaints.clear()
            await window.evaluate(
                "text => document.body.insertAdjacentHTML('afterend', text)", markup
            )
            if "id=bad" in markup:
                await window.locator("#bad").click()
            await settled(lambda: bool(scene.complaints), markup)
            assert "Content Security Policy" in scene.complaints[0]
        assert await window.evaluate("window.ran") is None


async def test_it_is_filtered_and_sorted(scene: Scene) -> None:
    one, other = scene.client("billing"), scene.client("shipping")
    for name in ("banana", "cherry", "apple"):
        async with one.lock(name):
            pass
    held, waiting = one.lock("banana"), other.lock("banana")
    await held.acquire()
    permit = other.semaphore("dates", 3)
    await permit.acquire()
    asked = asyncio.create_task(waiting.acquire(), name="clerk")
    async with scene.page() as window:
        await expect(line(window, "banana").get_by_role("cell").nth(2)).to_have_text("1")
        assert await names(window) == ["apple", "banana", "cherry", "dates"]
        head = window.get_by_role("columnheader")
        await expect(head.filter(has_text="Name")).to_have_attribute("aria-sort", "ascending")
        await window.get_by_role("button", name="Name").click()
        assert await names(window) == ["dates", "cherry", "banana", "apple"]
        await window.get_by_role("button", name="Waiting").click()
        await expect(head.filter(has_text="Waiting")).to_have_attribute("aria-sort", "descending")
        assert (await names(window))[0] == "banana"
        await window.get_by_role("button", name="Kind").click()
        assert (await names(window))[-1] == "dates"
        await window.get_by_role("button", name="Name").click()

        box = window.get_by_role("searchbox")
        for text, found in (
            *(("CHERR", ["cherry"]), ("clerk", ["banana"]), ("sema ship", ["dates"])),
            *(("no such", []), ("billing lock", ["banana"])),
        ):
            await box.fill(text)
            assert await names(window) == found
        await box.fill("")
        await window.get_by_label("only busy").check()
        assert await names(window) == ["banana", "dates"]
    await held.release()
    await asked
    await waiting.release()
    await permit.release()


async def test_a_row_opens_to_who_holds_and_who_waits_in_order(scene: Scene) -> None:
    holder, waiter = scene.client("holder"), scene.client("waiter")
    lock = holder.lock("x")
    await lock.acquire()
    tasks = []
    for name in ("early", "middle", "late"):
        tasks.append(asyncio.create_task(waiter.lock("x").acquire(), name=name))
        await asyncio.sleep(0)
    async with scene.page() as window:
        opener = window.get_by_role("button", name="x", exact=True)
        await expect(opener).to_have_attribute("aria-expanded", "false")
        await opener.focus()
        await window.keyboard.press("Enter")
        await expect(opener).to_have_attribute("aria-expanded", "true")
        await expect(opener).to_be_focused()
        lists = window.get_by_role("list")
        held, queued = lists.nth(0), lists.nth(1)
        for text in (
            f":{os.getpid()}",
            "held for",
            "lease left",
            f"fence {lock.fence}",
            "holder: ",
        ):
            await expect(held).to_contain_text(text)
        await expect(queued.get_by_role("listitem")).to_have_count(3)
        waiters = await queued.get_by_role("listitem").all_inner_texts()
        assert [text.partition(" ")[2].split()[0] for text in waiters] == [
            "early",
            "middle",
            "late",
        ]
        assert all("waits for" in text for text in waiters)
        assert await window.get_by_role("button", name="Release").count() == 0
        await window.keyboard.press("Enter")
        await expect(held).to_be_hidden()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await lock.release()


async def test_a_lock_is_taken_after_it_was_said_whose_it_is(scene: Scene) -> None:
    holder, waiter = scene.client("holder"), scene.client("waiter")
    lock = holder.lock("x", on_lost="flag")
    await lock.acquire()
    lease = lock.lease
    assert lease is not None
    wanting = waiter.lock("x")
    asked = asyncio.create_task(wanting.acquire())
    async with scene.page(allow_release=True) as window:
        await window.get_by_role("button", name="x", exact=True).click()
        await window.get_by_role("button", name="Release…").click()
        question = window.get_by_role("dialog")
        await expect(question).to_contain_text("Take lock “x” from its holder?")
        await expect(question).to_contain_text(f"holder: {asyncio.current_task().get_name()}")  # type: ignore[union-attr]
        await expect(question).to_contain_text(f":{os.getpid()}")
        await expect(question.get_by_role("button", name="Leave it")).to_be_focused()
        await window.keyboard.press("Escape")
        await expect(question).to_be_hidden()
        assert not lease.lost.is_set()

        await window.get_by_role("button", name="Release…").click()
        await question.get_by_role("button", name="Take it away").click()
        await asyncio.wait_for(lease.lost.wait(), 10)
        await asyncio.wait_for(asked, 10)
        await expect(line(window, "x")).to_contain_text("waiter: ")
        await expect(window.locator("#trouble")).to_be_hidden()
    await wanting.release()


async def test_paused_it_stands_still_and_asks_nobody(scene: Scene) -> None:
    app = page_of(scene.client("viewer"))
    lock = scene.client("holder").lock("x")
    async with served(app, app.state.feed) as url, scene.window(url) as window:
        await window.get_by_role("button", name="Pause").click()
        await expect(window.locator("#status")).to_have_text("paused")
        await settled(lambda: app.state.feed.viewers == 0)
        async with lock:
            await window.get_by_role("button", name="Pause").click()
            await expect(line(window, "x")).to_contain_text("held")
    assert not scene.complaints


async def test_it_says_when_it_hears_nothing_and_goes_on_by_itself(scene: Scene) -> None:
    with start_server() as server:
        port = urlsplit(server.url).port or 0
        client = dsync.connect(server.url, outage_timeout=0.2)
        app = page_of(client)
        async with served(app, app.state.feed) as url, scene.window(url) as window:
            status, trouble = window.locator("#status"), window.get_by_role("alert")
            os.kill(server.pid, signal.SIGKILL)
            await expect(status).to_have_text("server out of reach, retrying")
            await expect(trouble).to_contain_text("could not be asked")
            with start_server(port):
                await expect(status).to_contain_text("live")
                await expect(trouble).to_be_hidden()
        await client.aclose()


async def test_it_says_when_the_page_has_lost_its_own_server(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsync.web.app.RETRY", 200)
    viewer = scene.client("viewer")
    one, locked, other = page_of(viewer), page_of(viewer, token="x"), page_of(viewer)
    async with AsyncExitStack() as stack:
        async with served(one, one.state.feed) as url:
            window = await stack.enter_async_context(scene.window(url))
        status, trouble = window.locator("#status"), window.get_by_role("alert")
        await expect(status).to_have_text("connection lost, retrying")
        async with served(locked, locked.state.feed, port=urlsplit(url).port or 0):
            await expect(trouble).to_contain_text("this page needs its token")
        async with served(other, other.state.feed, port=urlsplit(url).port or 0):
            await expect(status).to_contain_text("live")
            await expect(trouble).to_be_hidden()


async def test_it_works_below_a_prefix_and_hides_its_token(scene: Scene) -> None:
    inner = page_of(scene.client("viewer"), token="sesame", allow_release=True)
    outer = Starlette(routes=[Mount("/dsync", inner)])
    lock = scene.client("holder").lock("x")
    async with (
        lock,
        served(outer, inner.state.feed) as url,
        scene.window(f"{url}/dsync/?token=sesame") as window,
    ):
        assert window.url == f"{url}/dsync/"
        await expect(line(window, "x")).to_contain_text("held")
        assert await window.evaluate("document.cookie") == ""
    assert not scene.complaints


CONTRAST = """() => {
  const light = name => {
    const color = getComputedStyle(document.documentElement).getPropertyValue(name)
    const [r, g, b] = color.match(/[0-9a-f]{2}/g).map(part => {
      const share = parseInt(part, 16) / 255
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
    })
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
  return ["--text", "--quiet", "--accent", "--good", "--warm", "--bad"].flatMap(name =>
    ["--back", "--raised"].map(back => ratio(light(name), light(back))))
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read_on_a_small_screen_and_in_the_dark(scene: Scene, scheme: str) -> None:
    lock = scene.client("a-holder-with-quite-a-long-label").lock("name-without-a-break" * 6)
    app = page_of(scene.client("viewer"), allow_release=True)
    small = {"width": 360, "height": 740}
    async with (
        lock,
        served(app, app.state.feed) as url,
        scene.window(url, viewport=small, color_scheme=scheme) as window,
    ):
        await window.locator(".name").click()
        await window.get_by_role("button", name="Release…").wait_for()
        assert await window.evaluate("document.documentElement.scrollWidth") == 360
        back = await window.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        assert min(await window.evaluate(CONTRAST)) >= 4.5
    assert not scene.complaints
