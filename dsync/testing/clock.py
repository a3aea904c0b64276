"""A clock that moves when a test says so, or when all else waits for it."""

import asyncio
import math
import threading
import time
from types import TracebackType
from typing import Any, Self

__all__ = ["VirtualClock"]

REAL = time.monotonic
# Seconds by which timers are late, as real ones are, or rounding would let some find themselves
# early and set themselves again for the same moment; an advance() takes along what is due so soon.
GRAIN = 1e-6


class VirtualClock:
    """While it is open `time.monotonic()` stands still, and with it asyncio's loop and dsync.

    It moves in two ways only.  `advance()` moves it by so many seconds, from timer to timer, in
    order.  And when everything on the loop waits, it jumps to the next timer: so `asyncio.sleep()`,
    every timeout, lease, beat and slot of a rate take no time, and their order is kept.

    For what runs in one thread: clients of `memory://`, and programs around them.  A server keeps
    its own time.  While `asyncio.to_thread()` is under way the clock stands.

    Usage::

        with VirtualClock() as clock:
            asyncio.run(main(clock))

    Args:
        patience: seconds that it jumps ahead by itself before it gives up, as a test that waits
            for what never comes would keep it jumping for ever.

    Raises:
        RuntimeError: another is open, or (when the loop is used) the loop is not asyncio's own.
    """

    _open: "VirtualClock | None" = None

    def __init__(self, *, patience: float = 86_400.0) -> None:
        self._patience = patience
        self._left = patience
        self._now = 0.0
        self._thread = 0
        # By the loops that were seen: their selectors, whose `select` is ours.
        self._loops: dict[asyncio.AbstractEventLoop, Any] = {}
        self._threads_busy = 0  # how many calls other threads work on for a loop
        # Where an advance() goes, and who is told when it is there and all is done.
        self._goal = 0.0
        self._arrived: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        if VirtualClock._open is not None:
            raise RuntimeError("another VirtualClock is open")
        VirtualClock._open = self
        self._thread = threading.get_ident()
        self._now = REAL()
        time.monotonic = monotonic
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """From now on time is real again, and goes back to where it really is."""
        time.monotonic = REAL
        VirtualClock._open = None
        for loop, selector in self._loops.items():
            del selector.select, loop.run_in_executor
        self._loops.clear()

    def time(self) -> float:
        """What `time.monotonic()` says, seconds."""
        return self._now

    async def advance(self, seconds: float) -> None:
        """Move by so many seconds; what became due is done, as far as it goes, on return.

        `advance(0)` lets everything run that needs no time.

        Raises:
            ValueError: `seconds` is negative.
            RuntimeError: another task is advancing the clock, or this one is not open.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be >= 0, got {seconds!r}")
        if VirtualClock._open is not self:
            raise RuntimeError("the clock is not open: use it as `with VirtualClock() as clock`")
        if self._arrived is not None:
            raise RuntimeError("another task is advancing the clock")
        loop = asyncio.get_running_loop()
        self._follow(loop)
        self._goal = self._now + seconds
        self._arrived = loop.create_future()
        try:
            await self._arrived
        finally:
            self._arrived, self._left = None, self._patience

    def _follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on this loop does not wait for time to pass."""
        if loop in self._loops:
            return
        selector = getattr(loop, "_selector", None)
        if selector is None:
            raise RuntimeError(f"a VirtualClock moves asyncio's own loops, not {loop!r}")
        self._loops[loop] = selector
        real_select, real_run = selector.select, loop.run_in_executor

        def select(timeout: float | None = None) -> Any:
            # None, or a time: all that could run has run.
            idle = timeout is None or timeout > 0
            if not idle or self._threads_busy or getattr(loop, "_executor_shutdown_called", False):
                return real_select(timeout)
            # What other processes have sent comes before time goes on.
            if (events := real_select(0)) or self._jumps(timeout):
                return events
            return real_select(timeout)

        def run_in_executor(executor: Any, func: Any, *args: Any) -> "asyncio.Future[Any]":
            self._threads_busy += 1
            future = real_run(executor, func, *args)
            future.add_done_callback(self._thread_is_done)
            return future

        selector.select = select
        loop.run_in_executor = run_in_executor  # type: ignore[assignment, method-assign]

    def _thread_is_done(self, future: "asyncio.Future[Any]") -> None:
        self._threads_busy -= 1

    def _jumps(self, timeout: float | None) -> bool:
        """Go on by `timeout`, to the next timer, or to where an advance() ends.

        -> whether there was any of these
        """
        if self._arrived is not None:
            if timeout is None or self._now + timeout > self._goal + GRAIN:
                self._now = max(self._now, self._goal)
                if not self._arrived.done():
                    self._arrived.set_result(None)
                return True
        elif timeout is None:
            return False
        else:
            self._left -= timeout
            if self._left < 0:
                self._left = self._patience
                raise RuntimeError(
                    f"the virtual clock has jumped {self._patience:g} s ahead, and what the test "
                    "waits for has not come: nobody does it, or it takes longer than `patience`"
                )
        self._now += timeout + GRAIN
        return True


def monotonic() -> float:
    """In place of `time.monotonic()`; who sets a timer asks it first, so every loop is seen.

    A module that is imported meanwhile may keep it: then it follows the next clock as well.
    """
    clock = VirtualClock._open
    if clock is None or threading.get_ident() != clock._thread:
        return REAL()
    loop = asyncio._get_running_loop()
    if loop is not None:
        clock._follow(loop)
    return clock._now
