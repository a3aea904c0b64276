"""docs/frameworks.md: its app under the servers it names, started as it says."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import dsync
from tests.conftest import settled
from tests.test_examples import ROOT, environment

httpx2 = pytest.importorskip("httpx2", reason="pip install -e '.[dev]'")

PAGE = (ROOT / "docs" / "frameworks.md").read_text()
APP = re.search(r"`shop\.py`:\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ (.* shop:app)$", PAGE, re.MULTILINE)
WORKERS = 4
AT_IMPORT = """
import os
import dsync

client = dsync.connect(os.environ["DSYNC_URL"])

async def app(scope, receive, send):
    assert scope["type"] == "http"
    async with client.lock("x"):
        pass
"""


@dataclass
class Running:
    """A web server with its workers."""

    process: "subprocess.Popen[bytes]"
    log_file: Path
    port: int = 0

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    async def until(self, text: str, times: int = 1) -> None:
        def said() -> bool:
            return len(re.findall(text, self.log())) >= times

        await settled(said, self.log, within=20)

    async def post(self) -> tuple[int, str]:
        """Pay, on a connection of its own.  -> status, body"""
        async with httpx2.AsyncClient(timeout=20) as browser:
            answer = await browser.post(f"http://127.0.0.1:{self.port}/orders/7/pay")
        return answer.status_code, answer.text

    async def pay(self) -> dict[str, int]:
        status, body = await self.post()
        assert status == 200, self.log()
        paid: dict[str, int] = json.loads(body)
        return paid


@contextlib.asynccontextmanager
async def started(command: str, directory: Path, url: str) -> AsyncIterator[Running]:
    """What a shell would start, on a free port and with nothing in the user's home."""
    program, *args = shlex.split(command)
    needed = [name for name in ("uvicorn", "gunicorn", "uvicorn_worker") if name in command]
    for package in ("starlette", *needed):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    if program == "gunicorn":
        args += ["--bind", "127.0.0.1:0", "--no-control-socket"]
    else:
        args += ["--port", "0"]
    log = directory / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", program, *args],
            cwd=directory,
            env=environment(url),
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            running = Running(process, log)
            await running.until("Application startup complete|ASGI server listening", times=WORKERS)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", running.log())
            assert found
            running.port = int(found[1])
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def waiting(lock: dsync.Lock, workers: int) -> bool:
    """Whether so many wait for it."""
    return len({waiter.pid for waiter in (await lock.info()).waiters}) == workers


def write_shop(directory: Path, url: str) -> None:
    assert APP
    assert "redis://localhost:6379" in APP[1]
    (directory / "shop.py").write_text(APP[1].replace("redis://localhost:6379", url))


def test_the_page_names_its_servers():
    assert [command.split()[0] for command in COMMANDS] == ["uvicorn", "gunicorn", "gunicorn"]


@pytest.mark.parametrize(
    "command",
    [*COMMANDS, *(f"{command} --preload" for command in COMMANDS if "gunicorn" in command)],
)
async def test_workers_share_the_lock_and_end_what_they_have_begun(
    command: str, server_url: str, tmp_path: Path
):
    write_shop(tmp_path, server_url)
    async with (
        dsync.connect(server_url, namespace="shop") as client,
        started(command, tmp_path, server_url) as running,
    ):
        lock = client.lock("order 7")
        async with lock:
            fence = lock.fence
            paying = [asyncio.create_task(running.pay())]
            await settled(lambda: waiting(lock, 1))
            [busy] = (await lock.info()).waiters
            os.kill(busy.pid, signal.SIGSTOP)  # so that another worker answers
            try:
                paying.append(asyncio.create_task(running.pay()))
                await settled(lambda: waiting(lock, 2))
            finally:
                os.kill(busy.pid, signal.SIGCONT)
            running.process.send_signal(signal.SIGTERM)
            await running.until("(?i)shutting down", times=WORKERS)
        paid = await asyncio.gather(*paying)
        assert len({one["worker"] for one in paid}) == 2
        assert all(one["fence"] > fence for one in paid)
        await settled(lambda: running.process.poll() is not None, running.log, within=20)
        assert "Traceback" not in running.log(), running.log()


async def test_a_client_made_before_gunicorn_forks_says_so(server_url: str, tmp_path: Path):
    (tmp_path / "early.py").write_text(AT_IMPORT)
    command = "gunicorn --preload --workers 4 --worker-class uvicorn_worker.UvicornWorker early:app"
    async with started(command, tmp_path, server_url) as running:
        status, _ = await running.post()
        assert status == 500
        await running.until(
            "RuntimeError: .* was made before a fork and belongs to the parent process; "
            "make a client in the child"
        )
