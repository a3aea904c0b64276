"""Factories: a client's methods that make primitives by name."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from dsync.arguments import checked_count, checked_lease
from dsync.arrivals import Arrivals
from dsync.barrier import Barrier, checked_parties
from dsync.cohort import Cohort
from dsync.condition import Condition
from dsync.event import Event
from dsync.event_bus import EventBus
from dsync.flag import Flag
from dsync.flight import Flight
from dsync.holding import checked_terms
from dsync.hub import Hub
from dsync.jobs import Jobs
from dsync.lease import OnLost, Terms
from dsync.lock import Lock
from dsync.names import checked_name
from dsync.outbox import Outbox
from dsync.quota import Quota
from dsync.rate_limiter import RateLimiter, checked_rate
from dsync.semaphore import BoundedSemaphore, Semaphore

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Factories"]

DEFAULT_TERMS: Terms = Terms()


class Factories(Jobs):
    """The part of Client that makes primitives.

    What this process has of a name is there once, for all objects of that name, as long as somebody
    has one of them, waits or holds.
    """

    def __init__(self) -> None:
        self._new_cohort: Callable[..., Cohort] = Cohort
        self._cohorts: WeakValueDictionary[tuple[str, str], Cohort] = WeakValueDictionary()
        self._flags: WeakValueDictionary[str, Flag] = WeakValueDictionary()  # by channel
        self._arrivals: WeakValueDictionary[str, Arrivals] = WeakValueDictionary()  # by name
        self._hubs: WeakValueDictionary[str, Hub] = WeakValueDictionary()  # by name
        self.outboxes: WeakValueDictionary[str, Outbox] = WeakValueDictionary()  # by bus
        self._flights: WeakValueDictionary[str, Flight] = WeakValueDictionary()  # by key
        self._quotas: WeakValueDictionary[tuple[str, str], Quota] = WeakValueDictionary()

    def lock(
        self,
        name: str,
        *,
        lease: float = 30.0,
        renew: bool = True,
        max_hold: float | None = None,
        on_lost: OnLost = "cancel",
        fair: bool = False,
        max_waiters: int | None = None,
        linger: float = 0.0,
    ) -> Lock:
        """The lock of this name.

        Args:
            name: any text but the empty one.
            lease: seconds for which it stays ours if this process goes silent.
            renew: keep it renewed while it is held.
            max_hold: seconds after which it is lost whatever happens; renewal does not pass it.
            on_lost: "cancel" the body of `async with`, or only "flag" the loss on the lease.
            fair: strict order of arrival over all processes.
            max_waiters: how many tasks of this process may wait; one more gets TooManyWaiters.
            linger: seconds for which this process keeps it after a release that nobody waits for,
                so that its next acquire needs no network; who comes to wait elsewhere gets it at
                once, who only tries does not.  0: not at all.

        Raises:
            ValueError, TypeError: an argument cannot be used; the message names it.
        """
        terms = checked_terms(lease, renew, max_hold, on_lost, fair, max_waiters, linger)
        return Lock(self._cohort("lock", name, 1, fences=True), name, terms)

    def semaphore(
        self,
        name: str,
        value: int = 1,
        *,
        lease: float = 30.0,
        renew: bool = True,
        max_hold: float | None = None,
        on_lost: OnLost = "cancel",
        fair: bool = False,
        max_waiters: int | None = None,
        linger: float = 0.0,
    ) -> Semaphore:
        """The semaphore of this name, with `value` permits; the rest as for `lock()`."""
        terms = checked_terms(lease, renew, max_hold, on_lost, fair, max_waiters, linger)
        return Semaphore(self._cohort("semaphore", name, value), name, terms)

    def bounded_semaphore(
        self,
        name: str,
        value: int = 1,
        *,
        lease: float = 30.0,
        renew: bool = True,
        max_hold: float | None = None,
        on_lost: OnLost = "cancel",
        fair: bool = False,
        max_waiters: int | None = None,
        linger: float = 0.0,
    ) -> BoundedSemaphore:
        """The bounded semaphore of this name, with `value` permits; the rest as for `lock()`.

        It shares its permits with the `semaphore()` of the same name.
        """
        terms = checked_terms(lease, renew, max_hold, on_lost, fair, max_waiters, linger)
        return BoundedSemaphore(self._cohort("semaphore", name, value), name, terms)

    def event(
        self, name: str, *, ttl: float | None = None, max_waiters: int | None = None
    ) -> Event:
        """The event of this name.

        Args:
            name: any text but the empty one.
            ttl: seconds for which a `set()` of this object lasts at least; None: until a `clear()`.
            max_waiters: how many tasks of this process may wait; one more gets TooManyWaiters.

        Raises:
            ValueError, TypeError: an argument cannot be used; the message names it.
        """
        checked_name(name)
        if ttl is not None:
            ttl = checked_lease("ttl", ttl)
        if max_waiters is not None:
            checked_count("max_waiters", max_waiters)
        flag = Flag(self._client, name)
        flag = self._flags.setdefault(flag.channel, flag)
        return Event(flag, name, ttl, max_waiters)

    def condition(
        self,
        name: str,
        lock: Lock | None = None,
        *,
        lease: float = 30.0,
        renew: bool = True,
        max_hold: float | None = None,
        on_lost: OnLost = "cancel",
        fair: bool = False,
        max_waiters: int | None = None,
    ) -> Condition:
        """The condition of this name over `lock`, a Lock of this client, or over one of its own.

        The keyword arguments are those of `lock()`, for its own, less `linger`; times are seconds.

        Raises:
            ValueError, TypeError: an argument cannot be used; `lock` is another client's, or there
                is one, and keyword arguments as well.
        """
        checked_name(name)
        terms = checked_terms(lease, renew, max_hold, on_lost, fair, max_waiters)
        if lock is None:
            lock = Lock(self._cohort("condition", name, 1, fences=True), name, terms)
        elif not isinstance(lock, Lock):
            raise TypeError(f"lock must be a Lock of this client, got {lock!r}")
        elif getattr(getattr(lock, "_cohort", None), "client", None) is not self:
            raise ValueError(f"lock must be a Lock of this client, got another's: {lock!r}")
        elif terms != DEFAULT_TERMS:
            raise TypeError("give lease and the like to the lock, not to a condition over it")
        return Condition(lock, name)

    def barrier(self, name: str, parties: int, *, lease: float = 30.0) -> Barrier:
        """The barrier of this name, which `parties` tasks of all processes pass together.

        Args:
            name: any text but the empty one.
            parties: how many; all who wait at it have to agree on that.
            lease: seconds for which a waiting process that goes silent is counted on.

        Raises:
            ValueError, TypeError: an argument cannot be used; the message names it.
        """
        checked_name(name)
        parties = checked_parties(parties)
        lease = checked_lease("lease", lease)
        arrivals = Arrivals(self._client, name)
        return Barrier(self._arrivals.setdefault(name, arrivals), name, parties, lease)

    def rate_limiter(
        self, name: str, rate: float, per: float = 1.0, burst: int | None = None
    ) -> RateLimiter:
        """The rate limiter of this name: `rate` units per `per` seconds, for all processes.

        Args:
            name: any text but the empty one.
            rate: units per `per`; RateLimiter.parse() reads it, and `per`, from "600/minute".
            per: seconds.
            burst: units that may be taken at once, after a pause; by default what one period
                brings.  1 spreads them evenly.

        Raises:
            ValueError, TypeError: an argument cannot be used; the message names it.
        """
        return self._rate_limiter("rate", name, rate, per, burst)

    @property
    def _client(self) -> "Client":
        return cast("Client", self)

    def _rate_limiter(
        self, kind: str, name: str, rate: float, per: float, burst: int | None
    ) -> RateLimiter:
        checked_name(name)
        rate, per, burst = checked_rate(rate, per, burst)
        quota = self._quotas.get((kind, name))
        if quota is None:
            what = f"{'rate limiter' if kind == 'rate' else kind} {name!r}"
            quota = self._quotas[kind, name] = Quota(
                self._client, kind, name, what, rate, per, burst
            )
        else:
            quota.declare(rate, per, burst)
        return RateLimiter(quota, name, rate, per, burst)

    def event_bus(
        self, name: str = "default", *, codec: Any = None, max_size: int = 2**20
    ) -> EventBus:
        """The event bus of this name.

        Args:
            name: any text but the empty one.
            codec: what turns data into bytes and back: None for JSON, `bytes` for none, or
                anything with dumps and loads, or encode and decode (msgspec.msgpack, pickle:
                that runs what is in a message, so only where you trust all who may publish).
            max_size: bytes; `trigger()` refuses larger data.

        Raises:
            ValueError, TypeError: an argument cannot be used; the message names it.
        """
        checked_name(name)
        hub = Hub(self._client, name)
        return EventBus(self._hubs.setdefault(name, hub), name, codec, max_size)

    def _cohort(self, kind: str, name: str, value: int, fences: bool = False) -> Cohort:
        checked_name(name)
        checked_count("value", value)
        cohort = self._cohorts.get((kind, name))
        if cohort is None:
            cohort = self._new_cohort(self._client, kind, name, value, fences)
            self._cohorts[kind, name] = cohort
        else:
            cohort.declare(value)
        return cohort
