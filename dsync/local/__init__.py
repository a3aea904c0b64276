"""asyncio's primitives with asyncio's constructors, for one process: no name, no client, no server.

They are the classes of `dsync`, so code written against those runs on these::

    from dsync import local as asyncio_sync
"""

from dsync.holding import Holding
from dsync.lease import Terms
from dsync.local.cohort import LocalCohort
from dsync.lock import Lock as _Lock
from dsync.semaphore import BoundedSemaphore as _BoundedSemaphore
from dsync.semaphore import Semaphore as _Semaphore

__all__ = ["BoundedSemaphore", "Lock", "Semaphore"]

_TERMS = Terms()


class Lock(_Lock):
    """asyncio.Lock, with `timeout=`, `try_acquire()`, `fence`, and calls that may be awaited."""

    def __init__(self) -> None:
        Holding.__init__(self, LocalCohort("the lock", 1, fences=True), "", _TERMS)

    def _known_locked(self) -> bool:
        return bool(self._held)


class Semaphore(_Semaphore):
    """asyncio.Semaphore, with `timeout=`, `try_acquire()`, and calls that may be awaited."""

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("Semaphore initial value must be >= 0")
        Holding.__init__(self, LocalCohort("the semaphore", value, fences=False), "", _TERMS)


class BoundedSemaphore(Semaphore, _BoundedSemaphore):
    """asyncio.BoundedSemaphore: ValueError on releasing more often than acquiring."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
