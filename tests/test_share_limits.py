"""examples/share_limits, for real: four workers that share two limits, and one of them killed."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.conftest import settled
from tests.test_examples import EXAMPLES, environment

app: Any = pytest.importorskip("examples.share_limits.app", reason="pip install -e '.[dev]'")
httpx2 = pytest.importorskip("httpx2", reason="pip install -e '.[dev]'")

WORKERS = 4
NAMESPACE = "example-share-limits"
POLICY = f'"key";q={app.RATE};w={app.PER}'
BOTH = re.compile(r'"key";r=(\d+);t=(\d+)')
READY = "Application startup complete"


class Upstream:
    """The slow service.  What it has begun it brings to an end, whether or not the caller lives."""

    def __init__(self) -> None:
        self.delay = 0.0  # seconds that each call takes
        self.may_go = asyncio.Event()  # no call ends before it is set
        self.may_go.set()
        self.running: list[str] = []  # what is asked for in the calls that are under way
        self.calls = 0
        self.most = 0  # calls at once
        self.url = ""

    @contextlib.asynccontextmanager
    async def open(self) -> "AsyncIterator[Upstream]":
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self.may_go.set()
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._work(head.split()[1].decode().lstrip("/"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
                await writer.drain()

    async def _work(self, name: str) -> None:
        self.running.append(name)
        self.calls += 1
        self.most = max(self.most, len(self.running))
        await asyncio.sleep(self.delay)
        await self.may_go.wait()
        self.running.remove(name)

    def busy_for(self, worker: int) -> int:
        """How many calls of this worker are under way."""
        return sum(name.startswith(f"{worker}-") for name in self.running)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    worker: int
    key: str
    sent: float  # time.monotonic()
    came: float

    @property
    def retry_after(self) -> int:
        return int(self.headers["retry-after"])

    @property
    def limit(self) -> tuple[int, int]:
        """`r` and `t` of its RateLimit header."""
        match = BOTH.fullmatch(self.headers["ratelimit"])
        assert match, self.headers
        return int(match[1]), int(match[2])

    def check(self) -> None:
        """Its header fields agree with each other and with its status."""
        assert self.status in (200, 429, 503), self
        if self.status == 503:
            assert self.retry_after == 1
            assert "ratelimit" not in self.headers
            return
        assert self.headers["ratelimit-policy"] == POLICY
        remaining, seconds = self.limit
        assert 1 <= seconds <= app.PER
        if self.status == 429:
            assert (remaining, seconds) == (0, self.retry_after)
        else:
            assert 0 <= remaining < app.RATE
            assert "retry-after" not in self.headers


class Caller:
    """One connection to the site, with an API key; after it is broken, another."""

    numbers = count()

    def __init__(self, port: int, key: str) -> None:
        self.key = key
        self.worker = 0  # whose connection it is
        self.lost: Counter[int] = Counter()  # requests that were not answered, by worker
        self._http = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            limits=httpx2.Limits(max_connections=1),
            timeout=20,
        )

    async def connect(self) -> None:
        """A request that is refused at the door, and touches no limit."""
        response = await self._http.get("/reports/none")
        assert response.status_code == 401
        self.worker = response.json()["worker"]

    async def ask(self) -> Answer:
        sent = time.monotonic()
        response = await self._http.get(
            f"/reports/{self.worker}-{next(self.numbers)}", headers={"X-API-Key": self.key}
        )
        came = time.monotonic()
        self.worker = response.json()["worker"]
        headers = dict(response.headers)
        return Answer(response.status_code, headers, self.worker, self.key, sent, came)

    async def keep_asking(self, answers: list[Answer], enough: Callable[[], bool]) -> None:
        while not enough():
            try:
                answer = await self.ask()
            except httpx2.TransportError:
                self.lost[self.worker] += 1
                continue
            answers.append(answer)
            if answer.status == 429:  # impatient, though not so much as to take all of the machine
                await asyncio.sleep(0.02)

    async def aclose(self) -> None:
        await self._http.aclose()


class Site:
    """The app under uvicorn."""

    def __init__(self, log: Path, port: int) -> None:
        self.port = port
        self._log = log
        self._callers: list[Caller] = []

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def callers(self, each: int) -> list[Caller]:
        """So many connections to each worker: those that have theirs stand still meanwhile."""
        made = [await self._one_on_each_worker() for _ in range(each)]
        return [caller for four in made for caller in four]

    async def _one_on_each_worker(self) -> list[Caller]:
        four: list[Caller] = []
        try:
            for _ in range(WORKERS):
                # Half of them with each key.
                caller = Caller(self.port, app.KEYS[len(self._callers) // WORKERS % 2])
                self._callers.append(caller)
                await caller.connect()
                four.append(caller)
                os.kill(caller.worker, signal.SIGSTOP)
        finally:
            for caller in four:
                os.kill(caller.worker, signal.SIGCONT)
        assert len({caller.worker for caller in four}) == WORKERS
        return four

    async def restarted(self) -> None:
        """The supervisor has put a new worker in the place of the one that was killed."""
        await settled(lambda: self.log().count(READY) == WORKERS + 1, self.log, within=20)

    async def aclose(self) -> None:
        for caller in self._callers:
            await caller.aclose()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().open() as opened:
        yield opened


@pytest.fixture
async def site(server_url: str, upstream: Upstream, tmp_path: Path) -> AsyncIterator[Site]:
    await forget(server_url)
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            # Port 0: uvicorn binds a free one for all workers, and says which.
            [sys.executable, str(EXAMPLES / "share_limits" / "app.py"), "0"],
            env=environment(server_url) | {"UPSTREAM_URL": upstream.url},
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:

            def up() -> bool:
                assert process.poll() is None, log.read_text()
                return log.read_text().count(READY) == WORKERS

            await settled(up, log.read_text, within=30)
            [port] = map(int, re.findall(r"http://127\.0\.0\.1:(\d+)", log.read_text()))
            made = Site(log, port)
            yield made
            await made.aclose()
            assert "Traceback" not in made.log(), made.log()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def forget(url: str) -> None:
    """What the test before has left of its limits."""
    async with redis.asyncio.Redis.from_url(url) as admin:
        async for key in admin.scan_iter(match=f"{{{NAMESPACE}:*"):
            await admin.delete(key)


def check_rate(answers: list[Answer]) -> None:
    """No key was admitted more often, in any time, than the rate and the burst allow."""
    for key in app.KEYS:
        admitted = [one for one in answers if one.key == key and one.status != 429]
        for first in admitted:
            later = sorted(one.came for one in admitted if one.sent >= first.sent)
            for number, came in enumerate(later, 1):
                allowed = app.RATE / app.PER * (came - first.sent) + app.RATE
                assert number <= allowed, f"{key}: {number} in {came - first.sent:.3f} s"


def check_load(answers: list[Answer], upstream: Upstream) -> None:
    """Both limits were reached, and neither was passed."""
    for answer in answers:
        answer.check()
    check_rate(answers)
    assert upstream.most == app.CAP
    took = max(one.came for one in answers) - min(one.sent for one in answers)
    for key in app.KEYS:
        statuses = Counter(one.status for one in answers if one.key == key)
        assert statuses.keys() == {200, 429, 503}, statuses
        # Many asked all the time, so what the rate allows was used.
        assert statuses[200] + statuses[503] >= app.RATE / app.PER * took / 2, statuses


async def load(callers: list[Caller], enough: Callable[[list[Answer]], bool]) -> list[Answer]:
    answers: list[Answer] = []
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.keep_asking(answers, lambda: enough(answers)))
    return answers


def after(seconds: float) -> Callable[[list[Answer]], bool]:
    """When that time is over, and both limits have been met with each key."""
    ends = time.monotonic() + seconds
    kinds = {(key, status) for key in app.KEYS for status in (200, 429, 503)}

    def enough(answers: list[Answer]) -> bool:
        return time.monotonic() > ends and {(one.key, one.status) for one in answers} >= kinds

    return enough


async def test_each_key_has_its_rate_and_is_told_what_is_left_and_when_to_come_back(site: Site):
    callers = await site.callers(2)
    ada, grace = ([caller for caller in callers if caller.key == key] for key in ("ada", "grace"))
    first = await ada[0].ask()
    first.check()
    assert first.limit == (app.RATE - 1, 1)

    answers = [first]
    while not any(answer.status == 429 for answer in answers):
        answers += await asyncio.gather(*(caller.ask() for caller in ada))
    for answer in answers:
        answer.check()
    check_rate(answers)
    assert len({answer.worker for answer in answers}) == WORKERS
    refused = next(answer for answer in answers if answer.status == 429)

    # That concerns nobody else, and it is over when it was said to be.
    other = await grace[0].ask()
    assert (other.status, other.limit) == (200, (app.RATE - 1, 1))
    await asyncio.sleep(refused.retry_after)
    for caller in ada:
        answer = await caller.ask()
        answer.check()
        assert answer.status == 200


async def test_limits_hold_under_load_also_when_a_worker_is_killed(site: Site, upstream: Upstream):
    upstream.delay = 0.15
    callers = await site.callers(10)
    victim = callers[0].worker
    answers = await load(callers, after(seconds=2))
    check_load(answers, upstream)
    assert len({answer.worker for answer in answers}) == WORKERS
    assert upstream.calls == sum(answer.status == 200 for answer in answers)

    dead = asyncio.Event()
    loading = asyncio.create_task(load(callers, lambda answers: dead.is_set()))
    await settled(lambda: upstream.busy_for(victim) > 0)
    os.kill(victim, signal.SIGKILL)
    dead.set()
    answers += await loading
    assert sum(caller.lost[victim] for caller in callers) >= 1

    # Its permits are not free yet; and what there is to have, the others have.
    without = await load(callers, after(seconds=3))
    check_load(without, upstream)
    assert victim not in {answer.worker for answer in without}

    await site.restarted()
    again = await load(await site.callers(10), after(seconds=2))
    check_load(again, upstream)
    workers = {answer.worker for answer in again}
    assert len(workers) == WORKERS
    assert victim not in workers
    check_rate(answers + without + again)


async def test_permits_of_a_killed_worker_come_back_when_their_lease_ends(
    site: Site, upstream: Upstream
):
    callers = await site.callers(app.CAP)
    victim = callers[0].worker
    doomed = [caller for caller in callers if caller.worker == victim]
    others = [caller for caller in callers if caller.worker != victim]
    upstream.may_go.clear()
    sent = time.monotonic()
    calls = [asyncio.create_task(caller.ask()) for caller in doomed]
    await settled(lambda: upstream.busy_for(victim) == app.CAP)

    full = await others[0].ask()
    full.check()
    assert full.status == 503
    assert full.came - full.sent >= app.PATIENCE

    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    lost = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, httpx2.TransportError) for error in lost), lost
    upstream.may_go.set()
    statuses = []
    answer = full
    while answer.status != 200:
        answer = await others[0].ask()
        answer.check()
        statuses.append(answer.status)
    assert set(statuses) == {200, 503}
    # Not before, since the server cannot know that it is dead; 2 s are for a machine that is busy.
    assert sent + app.LEASE - 0.01 <= answer.came <= killed + app.LEASE + 2

    # And all of them: as many calls as ever are made at a time, and not one more.
    upstream.may_go.clear()
    calls = [asyncio.create_task(caller.ask()) for caller in others]
    await settled(lambda: len(upstream.running) == app.CAP)
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    upstream.may_go.set()
    counted = Counter([answer.status for answer in await asyncio.gather(*calls)])
    assert counted[200] >= app.CAP
    assert counted[503] >= 1
    assert upstream.most == app.CAP

    await site.restarted()
    assert victim not in {caller.worker for caller in await site.callers(1)}
