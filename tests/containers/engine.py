"""A Docker engine for as long as a command runs: `python -m tests.containers.engine COMMAND …`.

Where an engine answers already, that one is used.  Else dockerd is started with its data, socket
and process id in a directory of its own, and ended and removed with the command; that takes Linux,
root, and Debian's `docker.io` or the like.  It leaves the machine's network alone: it writes no
rules, forwards nothing, and publishes ports on 127.0.0.1 only.

Exits as the command does, or with 69 (EX_UNAVAILABLE) and the reason if there is no engine.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker

__all__ = ["NoEngine", "connect", "running"]

ALONE = (
    *("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
    *("--ip", "127.0.0.1", "--log-level", "warn"),
)
# overlay2 is quick and needs the kernel's help, vfs works everywhere.
STORAGE = ("overlay2", "vfs")
BRIDGE = "docker0"  # dockerd makes it, and leaves it behind


class NoEngine(Exception):
    """There is no Docker engine here, and why."""


def connect(address: str | None = None) -> docker.DockerClient:
    """A client of the engine there; None: at $DOCKER_HOST, or at its usual place.

    Raises:
        NoEngine: none answers.
    """
    address = address or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    kind, _, place = address.partition("://")
    try:
        if kind == "unix":  # a client that finds nobody leaves its socket open
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(place)
        client = docker.DockerClient(base_url=address, timeout=60)
        client.ping()
    except (docker.errors.DockerException, OSError) as exc:
        raise NoEngine(f"no Docker engine answers at {address} ({exc})") from exc
    return client


@contextlib.contextmanager
def running() -> Iterator[dict[str, str]]:
    """The environment in which a command finds an engine.

    Raises:
        NoEngine: none answers, and none can be started.
    """
    try:
        connect().close()
    except NoEngine as exc:
        reason = str(exc)
    else:
        yield {}
        return
    binary = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if binary is None:
        raise NoEngine(f"{reason}, and dockerd is not installed")
    if os.geteuid() != 0:
        raise NoEngine(f"{reason}, and only root can start one")
    bridged = Path("/sys/class/net", BRIDGE).exists()
    home = Path(tempfile.mkdtemp(prefix="dsync-docker-"))
    try:
        with _started(binary, home) as address:
            yield {
                "DOCKER_HOST": address,
                # On a virtual machine that looks like a container testcontainers would go by the
                # gateway, where nothing is published.
                "TESTCONTAINERS_CONNECTION_MODE": "docker_host",
                "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
            }
    finally:
        shutil.rmtree(home, ignore_errors=True)
        if not bridged and shutil.which("ip"):
            subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


@contextlib.contextmanager
def _started(binary: str, home: Path) -> Iterator[str]:
    log = ""
    for storage in STORAGE:
        with (home / "log").open("w+") as output:
            address = f"unix://{home}/docker.sock"
            command = [
                binary, *ALONE, "--storage-driver", storage, "--host", address, "--data-root",
                str(home / storage), "--exec-root", str(home / "run"), "--pidfile",
                str(home / "pid"),
            ]  # fmt: skip
            with subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            ) as engine:
                try:
                    if _came_up(engine, address):
                        yield address
                        return
                finally:
                    engine.terminate()  # which ends its containers and its containerd, too
            log = (home / "log").read_text(errors="replace")
    raise NoEngine(f"dockerd does not start here; its log ends:\n{log[-2000:]}")


def _came_up(engine: "subprocess.Popen[bytes]", address: str) -> bool:
    deadline = time.monotonic() + 30
    while engine.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(NoEngine):  # not yet
            connect(address).close()
            return True
        time.sleep(0.05)
    return False


def main(command: list[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return os.EX_USAGE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
    try:
        with running() as found:
            return subprocess.run(command, env={**os.environ, **found}, check=False).returncode
    except NoEngine as error:
        print(error, file=sys.stderr)
        return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
