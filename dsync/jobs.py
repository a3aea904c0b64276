"""Jobs: what people come for, as methods of a client; each is thin over the primitives."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from dsync.calls import Busy, Skipped
from dsync.exclusive import exclusive
from dsync.leader import Election
from dsync.limited import limited
from dsync.single_flight import single_flight

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Jobs"]

P = ParamSpec("P")
T = TypeVar("T")


class Whole(Protocol):
    """A decorator whose function runs, or raises."""

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...


class Partial(Protocol):
    """A decorator whose function may also be skipped."""

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> Callable[P, Coroutine[Any, Any, T | Skipped]]: ...


class Jobs:
    """The part of Client that runs people's functions."""

    @overload
    def exclusive(
        self,
        name: str,
        *,
        busy: Literal["wait", "raise"],
        every: float | None = None,
        timeout: float | None = None,
        lease: float = 30.0,
        max_hold: float | None = None,
    ) -> Whole: ...

    @overload
    def exclusive(
        self,
        name: str,
        *,
        busy: None = None,
        every: None = None,
        timeout: float | None = None,
        lease: float = 30.0,
        max_hold: float | None = None,
    ) -> Whole: ...

    @overload
    def exclusive(
        self,
        name: str,
        *,
        busy: Busy | None = None,
        every: float | None = None,
        lease: float = 30.0,
        max_hold: float | None = None,
    ) -> Partial: ...

    def exclusive(
        self,
        name: str,
        *,
        busy: Busy | None = None,
        every: float | None = None,
        timeout: float | None = None,
        lease: float = 30.0,
        max_hold: float | None = None,
    ) -> Any:
        """Decorate an async function: one call of it runs at a time, in all processes.

        It holds `client.lock(name)` meanwhile, which is not reentrant: a call from within itself
        waits for ever.  If the lease is lost, the function is cancelled and the call raises
        LeaseLost.  What the function raises of its own is never masked.

        Usage::

            @client.exclusive("invoices of {customer.id}")
            async def write_invoices(customer): ...

            @client.exclusive("cleanup", every=600)
            async def cleanup(): ...        # called by all processes, run by one in 10 minutes

        Args:
            name: of the lock; `{argument}` stands for an argument of the call, as in `str.format`,
                and `{{` for a brace.  Where two follow each other, the first character of what is
                between them, and `%`, are percent-encoded in the first: no two calls with
                different arguments go by one name.
            busy: what a call does that comes while another runs, or too early: "wait" for its
                turn, "skip" (return `dsync.SKIPPED`, which is false) or "raise" AcquireTimeout.
                By default it waits, and with `every` it skips.  Only "wait" queues.
            every: seconds.  The function does not begin again before so much time has passed since
                it began, whoever ran it, and however it ended: only the server's clock counts.
                Give a little less than the time between calls that come by a schedule, or one that
                comes a moment early is skipped.  What waits for its time holds the lock.  The
                value of the newest client counts.
            timeout: seconds to wait with "wait", then AcquireTimeout (at once, where the time is
                known to come later); None waits for ever.
            lease: seconds for which the lock stays ours if this process goes silent.
            max_hold: seconds after which the function is cancelled, with LeaseLost.

        Raises:
            ValueError, TypeError: an argument or the function cannot be used, or a `{field}` of
                the name is no parameter of it; the message says which.
        """
        return exclusive(
            _client(self),
            name,
            every=every,
            busy=busy,
            timeout=timeout,
            lease=lease,
            max_hold=max_hold,
        )

    @overload
    def limited(
        self,
        name: str,
        value: int,
        *,
        busy: Literal["wait", "raise"] = "wait",
        timeout: float | None = None,
        lease: float = 30.0,
        max_hold: float | None = None,
    ) -> Whole: ...

    @overload
    def limited(
        self,
        name: str,
        value: int,
        *,
        busy: Busy,
        lease: float = 30.0,
        max_hold: float | None = None,
    ) -> Partial: ...

    def limited(
        self,
        name: str,
        value: int,
        *,
        busy: Busy = "wait",
        timeout: float | None = None,
        lease: float = 30.0,
        max_hold: float | None = None,
    ) -> Any:
        """Decorate an async function: at most `value` calls of it run at a time, in all processes.

        It holds a permit of `client.semaphore(name, value)` meanwhile.  The rest is as for
        `exclusive()`.

        Args:
            name: of the semaphore, as for `exclusive()`.
            value: how many, at least 1.  Where processes disagree, the newest client's counts.
            busy: what a call does that comes while so many run: "wait" for its turn, "skip" (return
                `dsync.SKIPPED`, which is false) or "raise" AcquireTimeout.
            timeout: seconds to wait with "wait", then AcquireTimeout; None waits for ever.
            lease: seconds for which the permit stays ours if this process goes silent.
            max_hold: seconds after which the function is cancelled, with LeaseLost.

        Raises:
            ValueError, TypeError: as for `exclusive()`.
        """
        return limited(
            _client(self), name, value, busy=busy, timeout=timeout, lease=lease, max_hold=max_hold
        )

    async def single_flight(
        self,
        key: str,
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: float | Callable[[T], float],
        codec: Any = None,
        timeout: float | None = None,
        lease: float = 30.0,
    ) -> T:
        """The value of this key: the one that is kept, or else what `compute()` returns.

        However many ask at once, in all processes, one of them computes; the others wait and get
        what it found.  If it fails it alone gets the error, and if it dies or is cancelled nobody
        does: the next one computes.  A value that is kept costs one command.

        A process that stands still for longer than its lease gets what it computes, and others
        compute meanwhile; it does not overwrite what they have stored.  If the value cannot be
        stored, all who have waited in this process get it all the same, and `on_error` is told.

        Args:
            key: any text but the empty one.
            compute: an async function without arguments.
            ttl: seconds for which the value is kept, at most 366 days; or a function that tells
                them by the value, as for a token that says when it expires.
            codec: as for `event_bus()`.  Everybody gets what the codec makes of it, the one who
                computed, too.  What it cannot read is reported and computed anew.
            timeout: seconds to wait for another's value; None waits for ever, 0 not at all.  What
                this call computes itself may take longer.
            lease: seconds until another computes if the process that does goes silent.

        Raises:
            AcquireTimeout: others were still computing when the time was over.
            StoreUnavailable: the store could not be asked; nothing was computed.
            ValueError, TypeError: an argument cannot be used, nor can what `ttl` told, or the codec
                cannot encode the value; nothing was stored.
            Exception: what `compute()` raised.
        """
        return await single_flight(
            _client(self), key, compute, ttl=ttl, codec=codec, timeout=timeout, lease=lease
        )

    def leader(
        self, name: str, *, lease: float = 15.0, timeout: float | None = None, sigterm: bool = True
    ) -> Election:
        """The election of this name: `async with` waits to be elected, and leads.

        Args:
            name: any text but the empty one.
            lease: seconds after which another is elected if the leader goes silent.
            timeout: seconds to wait to be elected, then AcquireTimeout; None waits for ever.
            sigterm: resign at once on SIGTERM, where the program does not handle it: candidates
                and leaders are cancelled, and when they have left, the process ends as ever.

        Raises:
            ValueError, TypeError: an argument cannot be used; the message names it.
        """
        return Election(_client(self), name, lease, timeout, sigterm)


def _client(jobs: Jobs) -> "Client":
    return cast("Client", jobs)
