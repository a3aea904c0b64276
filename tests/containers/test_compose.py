"""docker-compose.yml: what it says, and that its workers make progress and recover."""

import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.images import CLI, build_worker

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
OWN_WORKER = "dsync-test-worker"
OUTAGE = 3.0  # seconds


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
    return found


def test_every_server_says_when_it_is_healthy_and_who_uses_it_waits_for_that(
    services: dict[str, dict[str, Any]],
) -> None:
    servers = {name for name, service in services.items() if "healthcheck" in service}
    assert servers == {"redis", "valkey"}
    for name, service in services.items():
        if name not in servers:
            [(server, condition)] = service["depends_on"].items()
            assert condition == {"condition": "service_healthy"}
            assert f"//{server}:6379" in service["environment"]["DSYNC_URL"]
            # One asks for its profile, or for none, and gets all that belong together.
            assert service.get("profiles") == services[server].get("profiles")


def test_three_workers_contend_and_somebody_looks_on(services: dict[str, dict[str, Any]]) -> None:
    for prefix in ("", "valkey-"):
        assert services[f"{prefix}worker"]["deploy"]["replicas"] == 3
        assert services[f"{prefix}view"]["command"][-1] == "--watch"


def test_every_image_can_be_named_by_the_environment(services: dict[str, dict[str, Any]]) -> None:
    images = {service["image"] for service in services.values()}
    builds = [service["build"] for service in services.values() if "build" in service]
    images |= {build["args"]["PYTHON_IMAGE"] for build in builds}
    names = {re.fullmatch(r"\$\{(DSYNC_[A-Z]+_IMAGE):-\S+\}", image) for image in images}
    assert None not in names
    assert {match[1] for match in names if match} == {
        *("DSYNC_REDIS_IMAGE", "DSYNC_VALKEY_IMAGE", "DSYNC_WORKER_IMAGE", "DSYNC_PYTHON_IMAGE")
    }


def test_what_the_worker_image_is_made_of_is_there(services: dict[str, dict[str, Any]]) -> None:
    build = services["worker"]["build"]
    recipe = (ROOT / build["context"] / build["dockerfile"]).read_text()
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (.*)", recipe, re.MULTILINE)]
    paths = [path for each in copied for path in each]
    for path in paths:
        assert (ROOT / build["context"] / path).exists(), path
    # The package's build reads these, and the file that it names must be among what is copied.
    assert {"pyproject.toml", "README.md", "LICENSE", "dsync"} <= {*paths}


class Project:
    """docker-compose.yml, up, under a name of its own."""

    def __init__(self, command: list[str], images: dict[str, str]) -> None:
        name = f"dsync-test-{uuid.uuid4().hex[:8]}"
        self._command = [*command, "--project-name", name, "--file", str(FILE)]
        self._environment = {**os.environ, **images}

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, *services: str) -> str:
        return self("logs", "--no-color", *services)

    def fences(self, worker: str) -> dict[str, list[int]]:
        """With what each worker has written, by its host."""
        found: dict[str, list[int]] = {}
        for host, fence in re.findall(r"(\w+)/\d+ writes with fence (\d+)", self.log(worker)):
            found.setdefault(host, []).append(int(fence))
        return found

    def wait(self, condition: Callable[[], bool], what: str, within: float = 30) -> None:
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.log()}"
            time.sleep(0.1)


def compose_command() -> list[str] | None:
    """`docker compose`, or its predecessor `docker-compose`; None: neither."""
    plugin = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    if plugin and plugin.returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.fixture(scope="module")
def worker_image(engine: Any) -> str:
    build_worker(engine, OWN_WORKER)
    return OWN_WORKER


@pytest.fixture
def project(request: pytest.FixtureRequest, server_image: str) -> Iterator[Project]:
    command = compose_command()
    if command is None:
        pytest.skip("an engine, but neither `docker compose` nor docker-compose is installed")
    if CLI is None:
        pytest.skip("no redis-cli or valkey-cli here, with which a health check could ask")
    images = {f"DSYNC_{name}_IMAGE": server_image for name in ("REDIS", "VALKEY")}
    images["DSYNC_WORKER_IMAGE"] = request.getfixturevalue("worker_image")
    made = Project(command, images)
    try:
        yield made
    finally:
        made("--profile", "valkey", "down", "--timeout", "1", "--volumes")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("server", ["redis", "valkey"])
def test_workers_make_progress_and_recover_when_the_server_was_away(
    project: Project, server: str
) -> None:
    worker, view = ("worker", "view") if server == "redis" else ("valkey-worker", "valkey-view")
    project("--profile", server, "up", "--detach", "--no-build", server, worker, view)

    def each_has(more_than: dict[str, int]) -> bool:
        found = project.fences(worker)
        return len(found) == 3 and all(len(found[host]) > more_than.get(host, 0) for host in found)

    project.wait(lambda: each_has({}), "three workers have written")
    project("stop", "--timeout", "1", server)
    before = {host: len(fences) for host, fences in project.fences(worker).items()}
    time.sleep(OUTAGE)
    assert {host: len(fences) for host, fences in project.fences(worker).items()} == before
    project("start", server)
    project.wait(lambda: each_has(before), "all three have written again")
    written = project.fences(worker)
    assert all(fences == sorted(fences) for fences in written.values())
    every = [fence for fences in written.values() for fence in fences]
    assert len(every) == len(set(every)), "no two wrote with the same fence"
    assert re.search(r"[12] of 2 desks taken, \d waiting; \w+/\d+ writes", project.log(view))
    assert "Traceback" not in project.log()
