"""Flight: the tasks of this process that want the value of one key.

One of them at a time, the pilot, works for all: it looks whether the value is kept, queues with the
pilots of other processes for the lock of the key, looks again, computes, and lands the value in the
store.  The others follow: they get what it has found, or its place if it fails.
"""

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dsync.codec import Codec
from dsync.errors import AcquireTimeout, BadMessage, ClientClosed, DsyncError, LeaseLost
from dsync.lease import Lease, Terms
from dsync.names import tag
from dsync.reply import Reply
from dsync.store import Arg, Call

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.cohort import Cohort

__all__ = ["Ask", "Flight"]

T = TypeVar("T")

MESSAGE_BYTES = 64 * 1024  # of a larger value the message says only that it is there


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """One call: what it wants, and for how long it waits."""

    compute: Callable[[], Awaitable[T]]
    milliseconds: Callable[[T], int]  # for which the value is kept
    codec: Codec
    terms: Terms  # of the lock
    timeout: float | None  # seconds
    ends: float  # when it is over, time.monotonic(); inf: never


@dataclass(frozen=True, slots=True)
class Landing(Generic[T]):
    """A value: as the store has it, and as the codec of one call reads it."""

    payload: bytes
    value: T


class Landed(Exception):
    """Ends the wait for the lock: the value is there."""

    def __init__(self, landing: Landing[Any]) -> None:
        self.landing = landing


class Flight:
    """One key, seen from this process."""

    def __init__(self, client: "Client", key: str) -> None:
        self.client = client
        self.key = key
        self.what: str = f"single_flight {key!r}"
        self.channel: str = tag(client.namespace, "flight", key)[1:-1]
        self._record = client.store.at("flight", key)
        # The task that works for all, or whose turn it is to; None only if nobody follows.
        self._pilot: asyncio.Task[Any] | None = None
        self._doing = ""  # what the pilot does, for messages
        # In order of arrival.  Each gets a payload, None (it is the pilot now), or an error.
        self._followers: dict[asyncio.Future[bytes | None], asyncio.Task[Any]] = {}
        self._token = client.token(0)  # under which the client knows that somebody follows
        self._unreadable: bytes | None = None  # what was reported last

    # -- tasks ----------------------------------------------------------------------------------

    async def value(self, ask: Ask[T]) -> T:
        """What is kept, or what somebody computes meanwhile, or else what this call does."""
        task = asyncio.current_task()
        assert task is not None
        if self._pilot is task:
            raise RuntimeError(f"{self.what}: compute() asks for the value that it computes")
        if self._pilot is not None and ask.timeout == 0:
            return await self._look_once(ask)
        try:
            while self._pilot not in (None, task):
                payload = await self._follow(ask, task)
                landing = None if payload is None else self.read(ask, payload)
                if landing is not None:
                    return landing.value
            self._pilot = task
            return await self._fly(ask)
        finally:
            if self._pilot is task:
                self._pass_on()

    async def _look_once(self, ask: Ask[T]) -> T:
        landing = await self._look(ask)
        if landing is None:
            raise self._too_late(ask, f"a task of this process {self._doing}")
        return landing.value

    async def _follow(self, ask: Ask[Any], task: "asyncio.Task[Any]") -> bytes | None:
        """What the pilot has found; None: this task is the pilot now."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()

        def time_out() -> None:
            if not future.done():
                doing = f"a task of this process {self._doing}"
                future.set_exception(self._too_late(ask, doing))

        timer = None
        if ask.timeout is not None:
            timer = loop.call_later(max(ask.ends - time.monotonic(), 0), time_out)
        self._followers[future] = task
        self.client.homes[self._token] = self
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            del self._followers[future]
            if not self._followers:
                self.client.homes.pop(self._token, None)

    def _pass_on(self) -> None:
        """The pilot has found nothing: the next is the pilot."""
        self._pilot = None
        for future, task in self._followers.items():
            if not future.done():
                self._pilot = task
                future.set_result(None)
                return

    def _share(self, payload: bytes) -> None:
        """The pilot has found it: everybody gets it."""
        self._pilot = None
        for future in self._followers:
            if not future.done():
                future.set_result(payload)

    def _fail(self, error: DsyncError) -> None:
        """The store cannot be asked: each would wait as long again to hear that."""
        for future in self._followers:
            if not future.done():
                own = type(error)(*error.args)
                own.__cause__ = error.__cause__
                future.set_exception(own)

    def _too_late(self, ask: Ask[Any], doing: str) -> AcquireTimeout:
        return AcquireTimeout(
            f"{self.what} had no value within {ask.timeout:g} s: {doing}; "
            "this call has computed nothing"
        )

    # -- the pilot ------------------------------------------------------------------------------

    async def _fly(self, ask: Ask[T]) -> T:
        """Find the value or compute it, and share it."""
        lease: Lease | None = None
        cohort: Cohort | None = None
        try:
            try:
                self._doing = "asks the store"
                landing = await self._look(ask)
                if landing is None:
                    # Not our `_record`: a lock and a value are two records.
                    cohort = self.client._cohort("single_flight", self.key, 1, fences=True)
                    landing, lease = await self._queue(ask, cohort)
                if landing is None:
                    landing = await self._look(ask)
            except AcquireTimeout:
                raise
            except DsyncError as error:
                self._fail(error)
                raise
            if landing is None:
                assert lease is not None
                self._doing = "computes it"
                return await self._compute(ask, lease)
            self._share(landing.payload)
            return landing.value
        finally:
            if lease is not None and cohort is not None:
                self._give_back(cohort, lease)

    async def _queue(
        self, ask: Ask[T], cohort: "Cohort"
    ) -> tuple[Landing[T], None] | tuple[None, Lease]:
        """Wait until the value lands, or until it is up to this process to compute it."""
        lease = await cohort.try_acquire(ask.terms)
        if lease is not None:
            if cohort.watch.hooks:
                self._tell_acquired(cohort, lease, 0.0)
            return None, lease
        left = ask.ends - time.monotonic()
        if left <= 0:
            raise self._too_late(ask, "another process computes it")
        self._doing = "waits for another process that computes it"
        radio = Radio(self, ask, cohort)
        self.client.listen(radio)
        try:
            began = time.monotonic()
            lease = await cohort.acquire(ask.terms, None if left == math.inf else left)
            if cohort.watch.hooks:
                self._tell_acquired(cohort, lease, time.monotonic() - began)
            return None, lease
        except Landed as landed:
            return landed.landing, None
        except AcquireTimeout:
            raise self._too_late(ask, "another process computes it") from None
        finally:
            radio.off = True
            self.client.ignore(radio)

    async def _compute(self, ask: Ask[T], lease: Lease) -> T:
        awaitable = ask.compute()
        if not inspect.isawaitable(awaitable):
            raise TypeError(
                f"{self.what}: compute must be an async function, but {ask.compute!r} returned "
                f"{type(awaitable).__name__}: {awaitable!r:.200}"
            )
        computed = await awaitable
        # Whatever is wrong with it is raised, for this value would never be kept: each call would
        # compute it again, and nobody would notice.
        ttl = ask.milliseconds(computed)
        payload = ask.codec.dumps(self.what, computed)
        value: T = ask.codec.loads(payload)
        try:
            if await self._land(payload, ttl, lease):
                self._share(payload)
            # Else somebody was given the lock after us, and has stored a newer value already.
        except DsyncError as error:
            # Who has waited for the value gets it all the same.
            self.client.report(error, f"{self.what}: its value was computed, but not stored")
            self._share(payload)
        return value

    def _give_back(self, cohort: "Cohort", lease: Lease) -> None:
        """The lock is the next one's.  If it was lost meanwhile, that does no harm."""
        try:
            hold = cohort.still_held(lease)
        except LeaseLost:
            return
        cohort.drop(hold)
        cohort.tell_released(lease)
        release = cohort.permits.bury if hold.tombstone else cohort.permits.release
        release(hold.token, self._given_back)

    def _tell_acquired(self, cohort: "Cohort", lease: Lease, waited: float) -> None:
        lease.owner = asyncio.current_task()
        cohort.tell_acquired(lease, waited)

    def _given_back(self, call: Call) -> None:
        if isinstance(call.reply, BaseException):
            self.client.report(call.reply, f"{self.what}: others have to wait until its lease ends")

    # -- what the store says --------------------------------------------------------------------

    async def _look(self, ask: Ask[T]) -> Landing[T] | None:
        found, payload = await self._ask_store("flight_look")
        return self.read(ask, payload) if found else None

    async def _land(self, payload: bytes, ttl: int, lease: Lease) -> bool:
        """Store and tell it.  -> whether it is what is kept now"""
        assert lease.fence is not None
        (kept,) = await self._ask_store(
            "flight_land",
            fence=lease.fence,
            value=payload,
            ttl=ttl,
            channel=self.channel,
            most=MESSAGE_BYTES,
        )
        return bool(kept)

    async def _ask_store(self, transition: str, **args: Arg) -> list[Any]:
        self.client.enter()
        reply: Reply[list[Any]] = Reply()
        self._record.run(transition, lambda call: reply.settle(call.reply), **args)
        return await reply

    def look(self, done: Callable[[bytes], None]) -> None:
        """Look without waiting; `done` is called with what is kept, if something is."""

        def looked(call: Call) -> None:
            if type(call.reply) is list and call.reply[0]:
                done(call.reply[1])

        self._record.run("flight_look", looked)

    def read(self, ask: Ask[T], payload: bytes) -> Landing[T] | None:
        """What the codec makes of it; what it cannot read is as good as nothing."""
        try:
            return Landing(payload, ask.codec.loads(payload))
        except Exception as error:  # each codec has errors of its own
            if payload != self._unreadable:
                self._unreadable = payload
                bad = BadMessage(
                    f"{self.what}: {ask.codec.name} cannot decode the value that is kept "
                    f"({type(error).__name__}: {error}); it is computed anew"
                )
                bad.__cause__ = error
                self.client.report(bad, str(bad))
            return None

    # -- as the client's: somebody follows ------------------------------------------------------

    def heard(self, kind: bytes, token: str, numbers: list[int], evidence: float) -> None:
        """Nobody writes to followers."""

    def ask_all(self) -> None:
        """The pilot asks."""

    def close(self) -> None:
        """The client closes: nobody waits.  Who computes goes on."""
        self._fail(ClientClosed(f"{self.what}: the client was closed while this task waited"))


class Radio:
    """What a pilot listens to while it stands in the queue for the lock.

    A message spares it the queue.  If one is lost, the pilot looks when it has the lock.
    """

    def __init__(self, flight: Flight, ask: Ask[Any], cohort: "Cohort") -> None:
        self.channel: str = flight.channel
        self.off = False  # the pilot waits no more
        self._flight = flight
        self._ask = ask
        self._cohort = cohort

    def heard(self, payload: bytes) -> None:
        """A value has landed."""
        if payload[:1] == b"v":
            self._landed(payload[1:])
        elif payload == b"look":
            self._flight.look(self._landed)
        else:
            raise ValueError(payload)

    def _landed(self, payload: bytes) -> None:
        landing = None if self.off else self._flight.read(self._ask, payload)
        if landing is not None:
            for waiter in self._cohort.waiters:  # there is but one pilot
                waiter.fail(Landed(landing))

    def tuned(self, refused: BaseException | None) -> None:
        """Refused or not: the queue is the truth."""

    def ask_all(self) -> None:
        """Messages may have been lost."""
        self._flight.look(self._landed)

    def close(self) -> None:
        """The client closes; the cohort tells the pilot."""
