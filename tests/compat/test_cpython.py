"""CPython's own tests of asyncio's locks, run against `dsync.local`.

They come from the interpreter's `test` package, so each Python brings its own, with what it has
fixed through the years.  Only `asyncio.Lock` and its kin are replaced in them.
"""

import asyncio
import importlib.util
import types
import unittest
from collections import deque
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


class _Inside:
    """The private names that the tests look at, told from what dsync has instead."""

    _cohort: Any

    @property
    def _waiters(self) -> deque[Any]:
        # asyncio keeps a waiter in here until its task has run; dsync counts those.
        waking = [True] * self._cohort._waking
        return deque([*waking, *(waiter.future for waiter in self._cohort.waiters)])

    @property
    def _value(self) -> int:
        return int(self._cohort.value)


class Lock(_Inside, local.Lock):
    pass


class Semaphore(_Inside, local.Semaphore):
    pass


class BoundedSemaphore(_Inside, local.BoundedSemaphore):
    pass


class _Asyncio(types.ModuleType):
    """asyncio, with our classes in place of its own."""

    Lock = Lock
    Semaphore = Semaphore
    BoundedSemaphore = BoundedSemaphore

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def _tests() -> list[tuple[str, type[unittest.TestCase]]]:
    assert SPEC is not None
    assert SPEC.loader is not None
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    module.asyncio = _Asyncio("asyncio")  # type: ignore[attr-defined]
    return [
        (name, case)
        for case in (module.LockTests, module.SemaphoreTests)
        for name in unittest.TestLoader().getTestCaseNames(case)
    ]


# What they test is a private detail of asyncio's way, not its behaviour.
NOT_OURS = {("SemaphoreTests", "test_repr"): "puts mocks into asyncio's private queue"}


@pytest.mark.parametrize(
    ("name", "case"), _tests(), ids=lambda value: getattr(value, "__name__", value)
)
def test_cpython_says(name: str, case: type[unittest.TestCase]) -> None:
    if (case.__name__, name) in NOT_OURS:
        pytest.skip(NOT_OURS[case.__name__, name])
    result = unittest.TestResult()
    case(name).run(result)
    for _, traceback in result.failures + result.errors:
        pytest.fail(traceback)
    assert result.testsRun == 1
