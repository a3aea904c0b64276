"""Barrier: asyncio's, across processes."""

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from dsync.arguments import checked_count, checked_seconds
from dsync.info import Queued, waiters_of
from dsync.reply import Reply

if TYPE_CHECKING:
    from dsync.arrivals import Arrivals

__all__ = ["Barrier", "BarrierInfo", "checked_parties"]


def checked_parties(parties: object) -> int:
    """`parties`, if so many can pass together."""
    if isinstance(parties, int) and not isinstance(parties, bool) and parties < 1:
        raise ValueError(f"parties must be > 0, got {parties}")
    return checked_count("parties", parties)


@dataclass(frozen=True, slots=True)
class BarrierInfo:
    """The state of a barrier at one moment; the list stops at the first 1000."""

    name: str
    parties: int  # as those who wait, or waited last, have come with
    waiting: int  # also for the next generation, while the last one drains
    broken: bool
    generation: int  # how often it has tripped
    state: str  # "filling", "draining" or "broken"
    waiters: tuple[Queued, ...]  # in order of arrival


class Barrier:
    """A point that `parties` tasks, of all processes, pass together, made by `client.barrier()`.

    Usage::

        barrier = client.barrier("loaded", 4)
        index = await barrier.wait()    # 0 to 3, another one for each of the four

    It may be used again and again: nobody passes for the next time before all have passed for the
    last time, or died.  A party that dies while it waits leaves when its lease (seconds) ends.

    Once a generation is complete all its parties pass, whatever comes after: asyncio breaks those
    that have not run yet by an `abort()` or `reset()` that comes right then.
    """

    def __init__(self, arrivals: "Arrivals", name: str, parties: int, lease: float) -> None:
        self._arrivals = arrivals
        self._parties = parties
        self._lease = lease
        self.name = name

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until `parties` tasks wait, and return an index from 0 to parties - 1, all unlike.

        The index is the order of arrival.  A cancelled or timed-out wait leaves and breaks nothing.

        Args:
            timeout: seconds to wait; None waits for ever, 0 asks once.

        Raises:
            BrokenBarrierError: asyncio's; the barrier was reset or aborted, or has been aborted.
            ValueError: others wait at this barrier with another number of parties.
            WaitTimeout: the others did not come in time; this task has left.
            StoreUnavailable: the store could not be asked; this task has left, or leaves with its
                lease.
        """
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        wait = self._arrivals.wait(self._parties, self._lease, timeout)
        watch = self._arrivals.client.watch
        return await (watch.waking("barrier", self.name, wait) if watch.hooks else wait)

    def reset(self) -> Reply[None]:
        """Empty it: who waits gets BrokenBarrierError, and a broken barrier works again.

        Sent at once, and what this process does next comes after it; awaited, it is confirmed.
        Those of a generation that is complete pass, even if they have yet to hear of that.  Those
        who wait for the next one meanwhile are broken, too; asyncio lets them wait on.

        Raises:
            StoreUnavailable: awaited, it was not confirmed; it may have been reset, or not.
        """
        return self._arrivals.change(abort=False)

    def abort(self) -> Reply[None]:
        """Break it: who waits gets BrokenBarrierError, and so does who comes, until `reset()`.

        Sent at once, and what this process does next comes after it; awaited, it is confirmed.
        Those of a generation that is complete pass, even if they have yet to hear of that.

        Raises:
            StoreUnavailable: awaited, it was not confirmed; it may have been broken, or not.
        """
        return self._arrivals.change(abort=True)

    @property
    def parties(self) -> int:
        """How many tasks pass it together."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many tasks wait, of all processes, as far as this one has heard: see `info()`.

        0 while tasks of this process that have passed have yet to run.
        """
        return self._arrivals.waiting()

    @property
    def broken(self) -> bool:
        """Whether it has been aborted, as far as this process has heard: see `info()`."""
        return self._arrivals.broken

    async def info(self) -> BarrierInfo:
        """Who waits, over all processes.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        parties, generation, broken, waiting, draining, waiters = await self._arrivals.info()
        state = "broken" if broken else "draining" if draining else "filling"
        return BarrierInfo(
            self.name,
            parties or self._parties,
            waiting,
            bool(broken),
            generation,
            state,
            waiters_of(waiters),
        )

    async def __aenter__(self) -> int:
        return await self.wait()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __repr__(self) -> str:
        extra = self._arrivals.state()
        if not self.broken:
            extra += f", waiters:{self.n_waiting}/{self.parties}"
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x} {self.name!r} [{extra}]>"
        )
