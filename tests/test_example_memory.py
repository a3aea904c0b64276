"""Every example in memory: what are processes elsewhere are tasks here, each with its own client.

config_reload.py and token_refresh.py run in memory as they are: see test_examples.py and
test_example_token.py.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import json
import sqlite3
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dsync
from dsync.testing import VirtualClock
from tests.conftest import settled
from tests.test_examples import EXAMPLES


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    """A memory that only this test knows; $DSYNC_URL names it."""
    url = f"memory://{uuid.uuid4().hex}"
    monkeypatch.setenv("DSYNC_URL", url)
    return url


def example(name: str) -> Any:
    """One more copy of a module, as each process has its own."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_a_renamed_user_is_renamed_in_the_caches_of_all(url: str, tmp_path: Path):
    copies = [example("cache_invalidation") for _ in range(3)]
    database = tmp_path / "users.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO users VALUES (7, 'Ada')")
    names = await asyncio.gather(*(one.serve(url, database, n) for n, one in enumerate(copies)))
    assert names == ["Grace"] * 3


def test_workers_of_the_compose_file_write_one_at_a_time(
    url: str, capsys: pytest.CaptureFixture[str]
):
    async def main() -> None:
        await asyncio.gather(*(example("compose_worker").work(3) for _ in range(3)))

    with VirtualClock():
        asyncio.run(main())
    fences = [int(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(fences) == 9
    assert fences == sorted(set(fences))


def test_a_fleet_finishes_what_it_has_begun(url: str):
    module = example("graceful_shutdown")

    async def main() -> list[tuple[int, int]]:
        async with dsync.connect(url, namespace=module.NAMESPACE) as client:
            async with client.event_bus().subscribe("worker.*") as news:
                fleet = [asyncio.create_task(module.work(url, number)) for number in range(3)]
                await asyncio.sleep(1)
                await client.event("stop").set()
                results = await asyncio.gather(*fleet)
                heard = [await anext(news) for _ in range(6)]
            await client.event("stop").clear()
        told = [message.event for message in heard if isinstance(message, dsync.Message)]
        assert told == ["worker.started"] * 3 + ["worker.left"] * 3
        return results

    with VirtualClock():
        results = asyncio.run(main())
    assert all(begun == finished > 0 for begun, finished in results), results


def test_each_night_one_process_makes_the_report_and_no_charge_is_lost(url: str, tmp_path: Path):
    copies = [example("nightly_job") for _ in range(3)]

    async def main() -> int:
        return sum(await asyncio.gather(*(one.serve(tmp_path) for one in copies)))

    with VirtualClock():
        assert asyncio.run(main()) == 3
    assert set(Counter((tmp_path / "sent").read_text().split()).values()) == {3}
    assert [(tmp_path / name).read_text() for name in copies[0].CUSTOMERS] == ["9"] * 3


async def test_a_leader_that_goes_is_followed_and_writes_no_more(url: str, tmp_path: Path):
    module = example("singleton_worker")
    journal = tmp_path / "journal"

    def written() -> list[int]:
        return [int(line) for line in journal.read_text().split()] if journal.exists() else []

    fleet = [asyncio.create_task(module.work(url, journal)) for _ in range(2)]
    await settled(lambda: len(written()) > 2)
    [first] = set(written())
    # Which of the two leads cannot be seen from outside: it was the first to ask.
    fleet[0].cancel()
    await settled(lambda: len(set(written())) == 2)
    fleet[1].cancel()
    assert all(map(asyncio.Task.cancelled, (await asyncio.wait(fleet))[0]))
    assert written() == sorted(written())
    assert written()[0] == first


# -- the web services ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(name: str) -> AsyncIterator[tuple[Any, Any]]:
    """A service without a server around it: its module, and a client of HTTP that asks it."""
    httpx2 = pytest.importorskip("httpx2", reason="pip install -e '.[dev]'")
    pytest.importorskip("starlette", reason="pip install -e '.[dev]'")
    pytest.importorskip("uvicorn", reason="pip install -e '.[dev]'")
    module: Any = importlib.import_module(f"examples.{name}.app")
    transport = httpx2.ASGITransport(module.app)
    async with (
        module.lifespan(module.app),
        httpx2.AsyncClient(transport=transport, base_url="http://here") as browser,
    ):
        yield module, browser


async def test_every_browser_hears_what_is_published_until_it_is_gone(url: str):
    async with running("fan_out") as (module, http):
        streams = [module.stream(module.app) for _ in range(3)]
        for stream in streams:
            assert (await anext(stream)).startswith("event: listening\n")
        assert (await http.get("/status")).json()["streams"] == 3
        await streams.pop().aclose()
        assert (await http.get("/status")).json()["streams"] == 2
        news = {"hello": "world"}
        assert (await http.post("/publish", json=news)).status_code == 202
        for stream in streams:
            *_, data = (await anext(stream)).strip().splitlines()
            assert json.loads(data.removeprefix("data: ")) == news
        module.end_all(module.app.state.streams)
        for stream in streams:
            assert [rest async for rest in stream] == []


def test_what_is_over_a_limit_is_refused_and_what_is_under_it_is_served(url: str):
    async def main() -> None:
        async with running("share_limits") as (module, http):

            async def ask(key: str) -> int:
                answer = await http.get("/reports/7", headers={"X-API-Key": key})
                return int(answer.status_code)

            answers = Counter(
                await asyncio.gather(*(ask("ada") for _ in range(module.RATE + 5)), ask("eve"))
            )
            # Upstream takes 0.2 s: CAP calls begin now, in 0.2 and in 0.4 s, within PATIENCE.
            assert answers == {401: 1, 429: 5, 200: 3 * module.CAP, 503: 20 - 3 * module.CAP}
            await asyncio.sleep(module.PER)
            assert await ask("ada") == 200

    with VirtualClock():
        asyncio.run(main())
