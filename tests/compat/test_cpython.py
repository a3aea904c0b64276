"""CPython's own tests of asyncio's primitives, run against `dsync.local`.

They come from the interpreter's `test` package, unmodified, so each Python brings its own.  Only
what they find as `asyncio.Lock` and its kin is replaced.
"""

import asyncio
import importlib.util
import types
import unittest
from typing import Any

import pytest

from dsync import local

SPEC = None
try:
    SPEC = importlib.util.find_spec("test.test_asyncio.test_locks")
except ModuleNotFoundError:
    pass
if SPEC is None:
    pytest.skip("this Python comes without its `test` package", allow_module_level=True)


class _Asyncio(types.ModuleType):
    """asyncio, with our classes in place of its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(local if name in local.__all__ else asyncio, name)


def _tests() -> list[tuple[str, type[unittest.TestCase]]]:
    assert SPEC is not None
    assert SPEC.loader is not None
    module: Any = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    module.asyncio = _Asyncio("asyncio")
    cases = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, unittest.TestCase)
    ]
    assert len(cases) >= 5  # Lock, Event, Condition, Semaphore, Barrier
    loader = unittest.TestLoader()
    return [(name, case) for case in cases for name in loader.getTestCaseNames(case)]


@pytest.mark.parametrize(
    ("name", "case"), _tests(), ids=lambda value: getattr(value, "__name__", value)
)
def test_cpython_says(name: str, case: type[unittest.TestCase]) -> None:
    result = unittest.TestResult()
    case(name).run(result)
    for _, traceback in result.failures + result.errors:
        pytest.fail(traceback)
    assert result.testsRun == 1
    assert not result.skipped
