"""Barrier: asyncio's, across processes."""

from types import TracebackType

from dsync.arguments import checked_seconds
from dsync.reply import Reply

__all__ = ["Barrier"]


class Barrier:
    """A point that `parties` tasks, of all processes, pass together, made by `client.barrier()`.

    Usage::

        barrier = client.barrier("loaded", 4)
        index = await barrier.wait()    # 0 to 3, another one for each of the four
    """

    name: str

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until `parties` tasks wait, and return an index from 0 to parties - 1, all unlike.

        A cancelled or timed-out wait leaves and breaks nothing.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            BrokenBarrierError: asyncio's; the barrier was reset or aborted, or has been aborted.
            ValueError: others wait at this barrier with another number of parties.
            WaitTimeout: the others did not come in time; this task has left.
            StoreUnavailable: the store could not be asked.
        """
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        raise NotImplementedError

    def reset(self) -> Reply[None]:
        """Empty it: who waits gets BrokenBarrierError, and a broken barrier works again.

        Sent at once; awaited, that is confirmed.
        """
        raise NotImplementedError

    def abort(self) -> Reply[None]:
        """Break it: who waits gets BrokenBarrierError, and so does who comes, until `reset()`.

        Sent at once; awaited, that is confirmed.
        """
        raise NotImplementedError

    @property
    def parties(self) -> int:
        """How many tasks pass it together."""
        raise NotImplementedError

    @property
    def n_waiting(self) -> int:
        """How many tasks wait, as far as this process has heard."""
        raise NotImplementedError

    @property
    def broken(self) -> bool:
        """Whether it has been aborted, as far as this process has heard."""
        raise NotImplementedError

    async def __aenter__(self) -> int:
        return await self.wait()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass
