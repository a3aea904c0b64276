"""What is published, and whether it works where it is installed: `python -m tests.packaging`.

A program and no test: it needs a package index, which `make test` does not, and takes half a
minute.  Wheel and sdist are built and looked into; then one environment grows, from the wheel
alone by one extra after the other, as the wheel's own metadata names them.
"""

import contextlib
import email.message
import email.parser
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from tests.matrix import PYTHONS

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "dsync-redis"
# For those who work on dsync: all other extras are for users, and are installed here.
FOR_DEVELOPMENT = {"bench", "dev", "docs"}
MADE_BY_HATCHLING = {"PKG-INFO"}

HOLD = """
import asyncio, sys, dsync

async def main():
    async with dsync.connect(sys.argv[1]) as client:
        async with client.lock("packaging"), client.semaphore("packaging", 2):
            await client.event("packaging", ttl=1).set()
            await client.rate_limiter("packaging", 10).acquire()
        async with client.event_bus().subscribe("a.*") as events:
            await client.event_bus().trigger("a.b", 1)
            assert (await anext(events)).data == 1

asyncio.run(main())
"""
# Prints what cannot be imported, and why: MODULE, ERROR, MESSAGE.
IMPORT_ALL = """
import importlib, pkgutil, dsync

for module in pkgutil.walk_packages(dsync.__path__, "dsync."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(module.name, type(error).__name__, error, sep="\\t")
"""
USES_FIXTURES = """
import dsync

async def test_in_memory(dsync_client: dsync.Client) -> None:
    async with dsync_client.lock("packaging"):
        pass

def test_on_a_server(dsync_server: str) -> None:
    assert "://" in dsync_server
"""


@dataclass(frozen=True)
class Need:
    """An extra, told by what refuses without it (commands) and what works with it."""

    refuse: tuple[str, ...] = ()
    work: tuple[str, ...] = ()  # one command
    serves: str = ""  # a command that prints a URL, and serves until SIGTERM


# Modules that need an extra are found; of commands it has to be said here.
NEEDS = {
    "cli": Need(("completion bash",), ("dsync", "completion", "bash")),
    "server": Need(
        ("serve", "demo --plain"),
        ("python", "-W", "error", "-c", HOLD, "embedded://"),
        "serve",
    ),
    "prometheus": Need(),
    "otel": Need(),
    "web": Need(("web",), serves="web --port 0 --url embedded://"),  # after "server"
}


def main() -> None:
    began = time.monotonic()

    def step(what: str) -> None:
        print(f"[{time.monotonic() - began:4.1f} s] {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="dsync-packaging-") as directory:
        scratch = Path(directory)
        wheel, sdist = build(scratch)
        step(f"built {wheel.name} and {sdist.name}, and the wheel of the sdist is that of the tree")
        step(f"the wheel has {wheel_holds_what_is_imported(wheel)} files")
        step(f"the sdist has {sdist_holds_what_git_has(sdist)} files")
        metadata = metadata_of(wheel)
        extras = extras_of(metadata)
        read_well(wheel, sdist, metadata)
        step("its metadata are well-formed, and its long description can be shown")

        here = Environment(scratch / "venv", wheel)
        here.works_alone(str(metadata["Version"]))
        step("installed alone: it locks in memory, and says what each extra is for")
        for extra in extras:
            here.grow(extra)
            step(f"with [{extra}]: what needs it works")
        here.imports_all()
        here.has_fixtures()
        step("pytest finds the fixtures")
        oldest = oldest_of("redis", metadata)
        here.install(f"redis[hiredis]=={oldest}")
        here.run("python", "-W", "error", "-c", HOLD, "embedded://")
        step(f"with redis-py {oldest}, the oldest that is allowed")


def require(condition: object, complaint: str) -> None:
    if not condition:
        sys.exit(f"tests.packaging: {complaint}")


# -- wheel and sdist -------------------------------------------------------------------------------


def build(scratch: Path) -> tuple[Path, Path]:
    """The wheel of the sdist, and the sdist."""
    python_build("--outdir", str(scratch / "dist"))
    python_build("--wheel", "--outdir", str(scratch / "of-the-tree"))
    [wheel] = (scratch / "dist").glob("*.whl")
    [sdist] = (scratch / "dist").glob("*.tar.gz")
    direct = scratch / "of-the-tree" / wheel.name
    require(
        direct.is_file() and direct.read_bytes() == wheel.read_bytes(),
        "the sdist builds another wheel than the tree",
    )
    return wheel, sdist


def python_build(*arguments: str) -> None:
    command = [sys.executable, "-m", "build", *arguments, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"python -m build failed\n{done.stdout}{done.stderr}")


def wheel_holds_what_is_imported(wheel: Path) -> int:
    """The package, pytest's plugin, and nothing else.  -> how many files"""
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    kept = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dsync").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"pytest_dsync.py"}
    same(packed, kept, "the wheel")
    require("dsync/py.typed" in packed, "no py.typed in the wheel")
    lua = [name for name in packed if re.fullmatch(r"dsync/redis/lua/\w+\.lua", name)]
    require(lua, "no Lua in the wheel")
    require(any(name.endswith("/licenses/LICENSE") for name in names), "no LICENSE in the wheel")
    return len(packed)


def sdist_holds_what_git_has(sdist: Path) -> int:
    """So its documents, tests and checks work as those of a checkout do.  -> how many files"""
    with tarfile.open(sdist) as archive:
        packed = {
            member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()
        } - MADE_BY_HATCHLING
    for name in ("LICENSE", "README.md", "SECURITY.md", "docs/conf.py", "pyproject.toml"):
        require(name in packed, f"no {name} in the sdist")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        kept = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
        same(packed, kept, "the sdist")
    return len(packed)


def same(packed: set[str], kept: set[str], what: str) -> None:
    missing, strange = sorted(kept - packed), sorted(packed - kept)
    require(packed == kept, f"{what} lacks {missing}, and has what is not ours: {strange}")


# -- its metadata ----------------------------------------------------------------------------------


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def extras_of(metadata: email.message.Message) -> list[str]:
    """Those for users; NEEDS knows each of them."""
    named = set(metadata.get_all("Provides-Extra", []))
    extras = sorted(named - FOR_DEVELOPMENT)
    require(named >= FOR_DEVELOPMENT, f"an extra of {FOR_DEVELOPMENT} is gone")
    require(set(extras) == set(NEEDS), f"users' extras are {extras}; here are {sorted(NEEDS)}")
    return extras


def read_well(wheel: Path, sdist: Path, metadata: email.message.Message) -> None:
    """What an index shows: hatchling has checked that the classifiers exist."""
    check = [sys.executable, "-m", "twine", "--no-color", "check", "--strict"]
    done = subprocess.run([*check, wheel, sdist], capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"twine finds fault\n{done.stdout}{done.stderr}")
    require(metadata["Name"] == DISTRIBUTION, f"it is called {metadata['Name']}")
    require(metadata["License-Expression"] == "MIT", "it names no licence")
    pythons = tuple(re.findall(r"Python :: (3\.\d+)", str(metadata.get_all("Classifier"))))
    require(pythons == PYTHONS, f"its classifiers name {pythons}; make matrix tries {PYTHONS}")
    require(metadata["Requires-Python"] == f">={PYTHONS[0]}", metadata["Requires-Python"])


def oldest_of(package: str, metadata: email.message.Message) -> str:
    """The oldest version that the requirements allow."""
    for requirement in map(Requirement, metadata.get_all("Requires-Dist", [])):
        if requirement.name == package and requirement.marker is None:
            return next(each.version for each in requirement.specifier if each.operator == ">=")
    sys.exit(f"tests.packaging: it does not require {package}")


# -- installed -------------------------------------------------------------------------------------


class Environment:
    """One that has the wheel, and more with each extra; no source of ours is in its reach."""

    def __init__(self, home: Path, wheel: Path) -> None:
        self.bin = home / "bin"
        self.wheel = wheel
        self.grown: set[str] = set()  # the extras that it has
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "DSYNC", "VIRTUAL_ENV"))
        }
        venv.create(home, with_pip=True)
        self.install(str(wheel))

    def install(self, requirement: str) -> None:
        self.run("python", "-m", "pip", "--disable-pip-version-check", "install", "-q", requirement)
        self.run("python", "-m", "pip", "check")

    def call(
        self, program: str, *arguments: str, path: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        environ = self.environ | ({"PATH": path} if path is not None else {})
        command = [str(self.bin / program), *arguments]
        return subprocess.run(
            command, cwd=self.bin.parent, env=environ, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip

    def run(self, program: str, *arguments: str) -> str:
        """-> what it printed; it ended well."""
        done = self.call(program, *arguments)
        shown = [word if len(word) < 100 else "..." for word in (program, *arguments)]
        require(done.returncode == 0, f"{shown} ended with {done.returncode}\n{done.stderr}")
        return done.stdout

    def works_alone(self, version: str) -> None:
        self.run("python", "-W", "error", "-c", HOLD, "memory://")
        for program in (["python", "-W", "error", "-m", "dsync"], ["dsync"]):
            said = self.run(*program, "--version").strip()
            require(said == f"dsync {version}", f"{program} is {said!r}, the wheel {version}")
            self.run(*program, "--help")
        self.imports_all()
        for extra, need in NEEDS.items():
            for command in need.refuse:
                self.refuses(command, extra)

    def refuses(self, command: str, extra: str) -> None:
        """It says, in a line or two, what to install, where no server is on PATH either."""
        done = self.call("dsync", *command.split(), path=str(self.bin))
        told = f"pip install 'dsync-redis[{extra}]'" in done.stderr and done.stderr.count("\n") < 3
        told = told and "Traceback" not in done.stderr and not done.stdout
        code = done.returncode
        require(0 < code < 128 and told, f"dsync {command} ends with {code}\n{done.stderr}")

    def imports_all(self) -> None:
        """What cannot be imported says which extra it needs, and that is one that is not here.

        Parts of a command need not: the command says it.
        """
        lacking = NEEDS.keys() - self.grown
        for line in self.run("python", "-W", "error", "-c", IMPORT_ALL).splitlines():
            module, error, text = line.split("\t")
            named = re.search(r"pip install 'dsync-redis\[(\w+)\]'", text)
            of_a_command = module.startswith("dsync.cli.") and error == "ModuleNotFoundError"
            understood = named[1] in lacking if named else of_a_command and lacking
            require(understood, f"with the extras {self.grown}: {module}: {error}: {text}")

    def grow(self, extra: str) -> None:
        self.install(f"{self.wheel}[{extra}]")
        self.grown.add(extra)
        self.imports_all()
        need = NEEDS[extra]
        if need.work:
            self.run(*need.work)
        if need.serves:
            with self.serving(need.serves) as url:
                require("://" in url, f"dsync {need.serves} printed {url!r}")

    @contextlib.contextmanager
    def serving(self, command: str) -> Iterator[str]:
        """-> the first line that it prints; it ends well when it is told to."""
        program = [str(self.bin / "dsync"), *command.split()]
        with subprocess.Popen(
            program, cwd=self.bin.parent, env=self.environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                yield process.stdout.readline()
                process.send_signal(signal.SIGTERM)
                require(process.wait(30) == 0, f"dsync {command} ended with {process.returncode}")
            finally:
                process.kill()

    def has_fixtures(self) -> None:
        """The plugin works by its entry point, with whatever pytest is the newest."""
        self.install("pytest-asyncio")
        (self.bin.parent / "test_fixtures.py").write_text(USES_FIXTURES)
        told = self.run(
            "python", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function",
            "test_fixtures.py",
        )  # fmt: skip
        require("2 passed" in told, told)


if __name__ == "__main__":
    main()
