"""What `dsync.local` shares: waiting tasks, the loop they wait on, answers that are known."""

import asyncio
import sys
from collections.abc import Callable, Generator
from typing import Any, cast

from dsync.reply import Reply

__all__ = ["NO", "YES", "Waiter", "Waiting", "current_task", "wake"]

# A waiting task: True wakes it, False tells it that its time is up.
Waiter = asyncio.Future[bool]


class Waiting:
    """Binds an object to the first loop that it has to wait on, and shows its state as asyncio."""

    _loop: asyncio.AbstractEventLoop | None = None

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self.__dict__.setdefault("_loop", loop)  # of two threads, only one can be the first
        if self._loop is not loop:
            raise RuntimeError(f"{self!r} is bound to a different event loop")
        return loop

    def _waiter(self, timeout: float | None) -> Waiter:
        """A waiter whose time is up in `timeout` seconds, to be put into a queue and awaited."""
        loop = self._get_loop()
        waiter: Waiter = loop.create_future()
        if timeout is not None:
            timer = loop.call_later(timeout, wake, waiter, False)
            waiter.add_done_callback(lambda _: timer.cancel())
        return waiter

    def _extra(self) -> str:
        """The state, in asyncio's words."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{object.__repr__(self)[1:-1]} [{self._extra()}]>"


def wake(waiter: Waiter, result: bool = True) -> bool:
    """Let a waiter go on.  -> whether it was still waiting."""
    if waiter.done():
        return False
    waiter.set_result(result)
    return True


class Known(int):
    """What `locked()` and `is_set()` return: a Reply that is answered, and made only once.

    It is a number, as a bool is, so what counts, compares or sorts asyncio's bools does not notice.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, bool]:
        return bool(self)
        yield  # never: this makes it a generator

    def send(self, value: Any) -> Any:
        raise StopIteration(bool(self))

    def throw(self, exc: BaseException) -> Any:
        raise exc

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return repr(bool(self))


Reply.register(Known)  # pyright: ignore[reportAttributeAccessIssue]
YES, NO = cast("Reply[bool]", Known(True)), cast("Reply[bool]", Known(False))


if sys.version_info >= (3, 12):
    _current_task = asyncio.current_task

    def current_task() -> "asyncio.Task[Any] | None":
        """The task that runs; None outside of tasks and of loops, where locks work as well."""
        try:
            return _current_task()
        except RuntimeError:
            return None

else:
    # There it is written in Python, and takes longer than the rest of an acquire.
    _running_loop = asyncio._get_running_loop  # None where there is none
    _task_of: Callable[[Any], asyncio.Task[Any] | None]
    _task_of = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]

    def current_task() -> "asyncio.Task[Any] | None":
        """The task that runs; None outside of tasks and of loops, where locks work as well."""
        return _task_of(_running_loop())
