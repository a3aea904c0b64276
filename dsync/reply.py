"""Reply: call it now, await the server's answer."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, cast

__all__ = ["Reply"]

T = TypeVar("T")

_PENDING: Any = object()


class Reply(Coroutine[Any, Any, T]):
    """What asyncio's plain calls return here: the local answer at once, the server's on await.

    A write (`lock.release()`) is on its way when the Reply exists; awaiting it returns when the
    server has confirmed, or raises.  A write that nobody awaits and that fails is reported to the
    client's `on_error` hook, or else to the event loop's exception handler.

    A read (`lock.locked()`) has a truth value, what this process knows now; only awaiting it asks.

    A cancelled await cancels nothing but the waiting.  It is a coroutine, too, so what takes
    asyncio's (`create_task(barrier.reset())`) takes it.
    """

    # _outcome: the result, an exception, or _PENDING.
    # _awaited: somebody has taken responsibility for a failure.
    # _steps: this Reply as a coroutine, once somebody drives it as one.
    __slots__ = ("_ask", "_awaited", "_known", "_outcome", "_report", "_steps", "_waiters")

    def __init__(
        self,
        outcome: Any = _PENDING,
        *,
        known: Any = None,
        ask: "Callable[[Reply[T]], None] | None" = None,
        report: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._outcome = outcome
        self._known = known
        self._ask = ask
        self._report = report
        self._awaited = False
        self._waiters: list[asyncio.Future[None]] = []
        self._steps: Generator[Any, None, T] | None = None

    def settle(self, outcome: Any) -> None:
        """The store has answered; an exception is raised to whoever awaits, or reported."""
        self._outcome = outcome
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __bool__(self) -> bool:
        return bool(self._known)

    def __repr__(self) -> str:
        outcome = self._outcome
        state = "pending" if outcome is _PENDING else f"answered: {outcome!r}"
        return f"<dsync.Reply [{self._known!r}, {state}]>"

    def __await__(self) -> Generator[Any, None, T]:
        if self._ask is not None:
            ask, self._ask = self._ask, None
            ask(self)
        if self._outcome is _PENDING:
            # A future for each task that awaits: a cancelled one must not take the rest along.
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            yield from waiter
        self._awaited = True
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return cast(T, self._outcome)

    def send(self, value: Any) -> Any:
        """As a coroutine: its next step."""
        if self._steps is None:
            self._steps = self.__await__()
        try:
            return self._steps.send(value)
        except BaseException:
            self._steps = None  # at its end; it may be awaited again
            raise

    def throw(self, *exc: Any) -> Any:
        """As a coroutine: an exception at the point where it waits."""
        if self._steps is None:
            self._steps = self.__await__()
        try:
            return self._steps.throw(*exc)
        except BaseException:
            self._steps = None
            raise

    def close(self) -> None:
        """As a coroutine: nobody waits any more."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()

    def __del__(self) -> None:
        # Settled, failed, and nobody ever looked.  While it is pending the store holds a
        # reference (`settle`), so this runs only afterwards.
        if (
            not self._awaited
            and self._report is not None
            and isinstance(self._outcome, BaseException)
        ):
            self._report(self._outcome)
