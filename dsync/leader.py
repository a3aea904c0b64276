"""Leader election: of all that want to lead under one name, one does."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from dsync.arguments import checked_lease, checked_seconds
from dsync.beat import Beat
from dsync.lease import Lease, Terms
from dsync.lock import Lock
from dsync.names import checked_name, tag, who
from dsync.sigterm import sigterm

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Election", "Leader"]


@dataclass(frozen=True, slots=True)
class Leader:
    """Who led at the moment of asking.  Times are seconds."""

    label: str
    host: str
    pid: int
    fence: int  # of its term: greater than those of all leaders before
    held: float  # since it was elected
    is_me: bool  # whether it is this client


class Election:
    """A place in an election, made by `client.leader(name)`.

    One candidate leads at a time, of all processes that use the same name; they are elected in the
    order in which they came.  Each `async with` is a candidacy, and a term when its body begins.
    A leader that goes silent is succeeded when its lease (seconds) ends.

    Usage::

        async with client.leader("scheduler") as term:
            await schedule(fence=term.fence)

    If the term is lost, the body is cancelled and leaves as LeaseLost.  It resigns when the body
    has ended, and the next candidate leads at once.
    """

    def __init__(
        self, client: "Client", name: str, lease: float, timeout: float | None, sigterm: bool
    ) -> None:
        checked_name(name)
        lease = checked_lease("lease", lease)
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        if not isinstance(sigterm, bool):
            raise TypeError(f"sigterm must be True or False, got {sigterm!r}")
        self.name = name
        self._client = client
        self._sigterm = sigterm
        self._channel = tag(client.namespace, "election", name)[1:-1]
        self._seat = Seat(client, name, lease, timeout, self._channel)

    async def __aenter__(self) -> Lease:
        if not self._sigterm:
            return await self._seat.__aenter__()
        sigterm.stand(self._client)
        try:
            term = await self._seat.__aenter__()
        except BaseException:
            await sigterm.leave()
            raise
        sigterm.elected(term)
        return term

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._seat.__aexit__(exc_type, exc, traceback)
        finally:
            if self._sigterm:
                await sigterm.leave()

    async def leader(self) -> Leader | None:
        """Who leads now, as the server says, or None.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        return (await self._look())[0]

    async def observe(self) -> AsyncGenerator[Leader | None, None]:
        """Who leads now, at once, and then whoever leads after each change; None: nobody does.

        It follows within the time of a message.  What a lost message, or a leader that died, would
        have told is seen within 2 s, and when the leader's lease ends.  Who iterates slowly gets
        the newest state, not all that were in between.

        Raises:
            StoreUnavailable: the store could not be asked, so nobody knows; observe anew.
        """
        self._client.enter()
        lookout = Lookout.of(self._client, self._channel)
        stirred = lookout.join()
        known = -1  # the fence of who was told last
        try:
            while True:
                stirred.clear()  # before the look, so that no change falls in between
                leader, ms = await self._look()
                lookout.beat.start(ms)
                fence = 0 if leader is None else leader.fence
                if fence != known:
                    known = fence
                    yield leader
                await stirred.wait()
        finally:
            lookout.leave(stirred)

    async def _look(self) -> tuple[Leader | None, int]:
        """Who leads, and in how many ms that ends at the earliest, if nobody renews it."""
        info = await self._seat.info()
        holder = info.holder
        if holder is None:
            return None, 0
        is_me = who(holder.token)[0] == self._client.client_id
        leader = Leader(holder.label, holder.host, holder.pid, info.fence, holder.held, is_me)
        return leader, int(holder.lease_left * 1000)

    def __repr__(self) -> str:
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x} {self.name!r} "
            f"[{self._seat.describe()}]>"
        )


class Seat(Lock):
    """The lock that the leader holds.  Who takes it or leaves it tells the observers."""

    def __init__(
        self, client: "Client", name: str, lease: float, timeout: float | None, channel: str
    ) -> None:
        cohort = client._cohort("leader", name, 1, fences=True)
        super().__init__(cohort, name, Terms(lease=lease, fair=True))
        self._timeout = timeout
        self._channel = channel
        self._record = client.store.at("election", name)

    async def _acquire(self, timeout: float | None) -> Lease:
        return await super()._acquire(self._timeout)

    def _hold(self, lease: Lease) -> None:
        super()._hold(lease)
        self._tell()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc, traceback)
        finally:
            self._tell()  # not before: a release that has to be sent again would come after it

    def _tell(self) -> None:
        """Make all observers look: by an event that is set for a moment.

        Nobody waits for it to arrive: observers look from time to time anyway.
        """
        self._record.run(
            "event_set",
            lambda call: None,
            token=self._cohort.client.token(0),
            channel=self._channel,
            ttl=1,
            tombstone=1,  # a second copy makes them look once more, and that is all
        )

    def describe(self) -> str:
        """How things stand, for a repr."""
        waiting = self._cohort.waiting()
        extra = f", candidates:{waiting}" if waiting else ""
        term = self.lease
        if term is not None and term.held:
            return f"leading, fence:{term.fence}{extra}"
        return f"not leading{extra}"


class Lookout:
    """The observers of one election in this process: tells them when to look.

    Each has an event, which is set when things may have changed since it was cleared.
    """

    def __init__(self, client: "Client", channel: str) -> None:
        self.client = client
        self.channel = channel
        self.beat: Beat = Beat(client, self._stir)
        # It listens as long as there are any, or until the client closes.
        self._observers: set[asyncio.Event] = set()

    @classmethod
    def of(cls, client: "Client", channel: str) -> "Lookout":
        """The one that listens to this channel already, or a new one."""
        listener = client._listeners.get(channel)
        return listener if isinstance(listener, Lookout) else cls(client, channel)

    def join(self) -> asyncio.Event:
        """One observer more.  -> its event"""
        stirred = asyncio.Event()
        self._observers.add(stirred)
        if len(self._observers) == 1:
            self.client.listen(self)
        return stirred

    def leave(self, stirred: asyncio.Event) -> None:
        """One observer less; without any it does not listen."""
        self._observers.discard(stirred)
        if not self._observers:
            self.beat.stop()
            if self.client._listeners.get(self.channel) is self:
                self.client.ignore(self)

    def _stir(self, missed: bool = False) -> None:
        for stirred in self._observers:
            stirred.set()

    def heard(self, payload: bytes) -> None:
        """Somebody was elected, or has resigned."""
        self._stir()

    def tuned(self, refused: BaseException | None) -> None:
        """It hears of every change from now on, or (refused) never."""
        self._stir()

    def ask_all(self) -> None:
        """Messages may have been lost."""
        self._stir()

    def close(self) -> None:
        """The client closes: they look, and hear of it."""
        self.beat.stop()
        self.client.ignore(self)
        self._stir()
