"""What is public is listed and exists, and imports point one way."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import dsync

ROOT = Path(dsync.__file__).parent
MODULES = sorted(
    ["dsync"]
    + [
        module.name
        for module in pkgutil.walk_packages([str(ROOT)], "dsync.")
        if not module.name.endswith("__main__")
    ]
)


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_is_there(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    if listed is None:
        assert not public_definitions(module), f"{name} has public names and no __all__"
        return
    assert sorted(set(listed), key=ruffs_order) == list(listed)
    for public in listed:
        assert hasattr(module, public), f"{name}.{public} is listed and does not exist"


def ruffs_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, as ruff keeps `__all__`."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def public_definitions(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def test_the_package_exports_what_it_lists_and_no_more() -> None:
    assert sorted(dsync.__all__, key=ruffs_order) == dsync.__all__
    imported = {
        name
        for name, value in vars(dsync).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert imported == set(dsync.__all__)


def test_every_error_of_the_hierarchy_is_exported() -> None:
    errors = importlib.import_module("dsync.errors")
    assert set(errors.__all__) <= set(dsync.__all__)
    for name in errors.__all__:
        assert issubclass(getattr(dsync, name), dsync.DsyncError)
        assert name in (errors.__doc__ or ""), f"{name} is missing in the tree"


# -- imports --------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a file imports, and whether it does so at once when imported itself.

    What it imports for its annotations only does not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types, later = set(), set()
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for_types |= {id(node) for node in ast.walk(block)}
        elif isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef):
            later |= {id(node) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in later
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or "", id(node) not in later


FILES = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py")}
PRIMITIVES = {
    name: path
    for name, path in FILES.items()
    if "/" not in name and name not in ("client.py", "cli.py", "demo.py", "testing.py")
}


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_a_primitive_knows_no_store(name: str) -> None:
    for module, _ in imports(PRIMITIVES[name]):
        top = module.partition(".")[0]
        assert top not in ("redis", "hiredis"), f"{name} imports {module}"
        assert not module.startswith(("dsync.redis", "dsync.local")), f"{name} imports {module}"


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("redis/")))
def test_the_store_in_redis_knows_no_primitive(name: str) -> None:
    allowed = ("dsync.redis", "dsync.store", "dsync.names", "dsync.errors", "dsync.server")
    for module, _ in imports(FILES[name]):
        assert not module.startswith("dsync") or module.startswith(allowed), module


@pytest.mark.parametrize("name", sorted(name for name in FILES if not name.startswith("demo/")))
def test_only_the_store_in_redis_imports_it_at_once(name: str) -> None:
    for module, at_once in imports(FILES[name]):
        if at_once and not name.startswith("redis/"):
            assert not module.startswith(("redis", "hiredis", "dsync.redis")), module


USES = {
    "import dsync": "import dsync",
    "a client of another kind": """
import asyncio, dsync

async def main():
    async with dsync.connect("memory://") as client:
        async with client.lock("x"), client.semaphore("y", 2):
            pass

asyncio.run(main())
""",
}


@pytest.mark.parametrize("use", USES)
def test_who_does_not_use_redis_does_not_import_it(use: str) -> None:
    tail = "\nimport sys\nprint(sorted({'redis', 'hiredis', 'dsync.redis'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", USES[use] + tail],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT.parent,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
