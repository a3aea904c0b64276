"""Images `FROM scratch` around this machine's own programs: nothing has to be downloaded.

One holds a Redis or Valkey server and its command line, the other Python, dsync and a worker.
"""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from dsync.server import find_binary
from tests.conftest import BINARY

__all__ = ["CLI", "build_server", "build_worker"]

ROOT = Path(__file__).parents[2]
SITE = "/opt/site"
# Of Python's library, what no worker imports.
LEFT_OUT = {
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data"),
    *("site-packages", "dist-packages", "__pycache__"),
}


def _server() -> str:
    return BINARY or shutil.which("redis-server") or find_binary()


def _cli() -> str | None:
    server = _server()
    beside = re.sub(r"-server$", "-cli", server)
    if beside != server and os.access(beside, os.X_OK):
        return beside
    return shutil.which("redis-cli") or shutil.which("valkey-cli")


CLI = _cli()  # health checks ask with it; None: there is none here


def build_server(engine: Any, tag: str) -> None:
    """An image of the server that the tests use; it listens to everybody and keeps nothing."""
    programs = {"redis-server": _server()} | ({"redis-cli": CLI} if CLI else {})
    with context() as made:
        for name, path in programs.items():
            made.add(path, f"/usr/local/bin/{name}")
            made.link(f"/usr/local/bin/{name.replace('redis', 'valkey')}", name)
        made.add_libraries(programs.values())
        made.build(
            engine, tag,
            "EXPOSE 6379",
            'CMD ["redis-server", "--protected-mode", "no", "--save", ""]',
        )  # fmt: skip


def build_worker(engine: Any, tag: str) -> None:
    """An image as examples/compose_worker.Dockerfile makes one, of what is installed here."""
    python = os.path.realpath(sys.executable)
    library = sysconfig.get_path("stdlib")
    with context() as made:
        made.add(python, python)
        made.link("/usr/local/bin/python", python)
        made.add(library, library)
        packages = {"dsync": ROOT / "dsync"}
        for name in ("redis", "hiredis"):
            found = importlib.util.find_spec(name)
            assert found is not None
            assert found.origin is not None
            packages[name] = Path(found.origin).parent
        for name, folder in packages.items():
            made.add(folder, f"{SITE}/{name}")
        made.add(ROOT / "examples/compose_worker.py", "/dsync/examples/compose_worker.py")
        shared = [path for each in (library, packages["hiredis"]) for path in _shared(Path(each))]
        made.add_libraries([python, *shared])
        made.build(
            engine, tag,
            f"ENV PYTHONPATH={SITE} PYTHONDONTWRITEBYTECODE=1",
            "WORKDIR /dsync",
            'CMD ["python", "-u", "examples/compose_worker.py"]',
        )  # fmt: skip


def _shared(folder: Path) -> Iterable[str]:
    return (
        str(path)
        for path in folder.rglob("*.so")
        if not LEFT_OUT & {*path.relative_to(folder).parts}
    )


@contextlib.contextmanager
def context() -> "Iterator[Context]":
    with (
        tempfile.TemporaryFile() as file,
        tarfile.open(fileobj=file, mode="w", dereference=True) as tar,
    ):
        yield Context(file, tar)


class Context:
    """What an image is built from, in a file of its own: `docker build` takes a tar archive."""

    def __init__(self, file: IO[bytes], tar: tarfile.TarFile) -> None:
        self._file = file
        self._tar = tar
        self._folders: set[str] = set()  # where libraries are

    def add(self, path: str | Path, target: str) -> None:
        """A file or a folder, as `target` in the image; links as what they point to."""
        self._tar.add(path, f"root{target}", filter=_wanted)

    def link(self, target: str, to: str) -> None:
        made = tarfile.TarInfo(f"root{target}")
        made.type, made.linkname = tarfile.SYMTYPE, to
        self._tar.addfile(made)

    def add_libraries(self, programs: Iterable[str]) -> None:
        """What the loader needs for them, itself included."""
        listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
        for path in sorted(set(re.findall(r"(/\S+) \(0x", listed.stdout))):
            self.add(path, path)
            self._folders.add(os.path.dirname(path))

    def build(self, engine: Any, tag: str, *instructions: str) -> None:
        """The image, under this name, in place of the one that had it."""
        text = "\n".join([
            "FROM scratch", "COPY root /", "ENV PATH=/usr/local/bin:/usr/bin:/bin",
            f"ENV LD_LIBRARY_PATH={':'.join(sorted(self._folders))}", *instructions,
        ]).encode()  # fmt: skip
        recipe = tarfile.TarInfo("Dockerfile")
        recipe.size = len(text)
        self._tar.addfile(recipe, io.BytesIO(text))
        self._tar.close()
        self._file.seek(0)
        engine.images.build(fileobj=self._file, custom_context=True, tag=tag, rm=True)


def _wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = os.path.basename(member.name)
    return None if name in LEFT_OUT or name.startswith("config-") else member
