"""Client: where primitives of one store and namespace are made, and how long it all lives."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from random import uniform
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self
from weakref import WeakSet

from dsync.arguments import checked_count, checked_seconds
from dsync.beat import BEAT
from dsync.cohort import Cohort
from dsync.declaration import Declarations
from dsync.errors import ClientClosed, StoreUnavailable
from dsync.factories import Factories
from dsync.lease import Keeper, Lease, LostHook
from dsync.names import checked_name, identify
from dsync.patience import Patience
from dsync.store import Home, Listener, Store
from dsync.telemetry import Disconnected, Hook, Reconnected, Watch
from dsync.witnessed import Witnessed

if TYPE_CHECKING:
    from dsync.roll import Respondent

__all__ = ["Client", "connect"]

log: logging.Logger = logging.getLogger("dsync")
ErrorHook = Callable[[BaseException], object]

_clients: "WeakSet[Client]" = WeakSet()


def _note_fork() -> None:
    """In the child: no client is ours."""
    for client in _clients:
        client.forked = True
        for hold in client.keeper.holds():
            if hold.lease is not None:
                hold.lease.orphan()
        client._entered = None
        client.store.disown()


os.register_at_fork(after_in_child=_note_fork)


class Client(Factories):
    """Primitives by name, in one store.

    Making one does no I/O and needs no event loop.  It binds to the loop that uses it first.

    Args:
        url: `memory://`, `embedded://`, `redis://host:6379/0`, `rediss://`, `unix://`,
            `redis+sentinel://host1,host2/service`; without one `$DSYNC_URL`, else
            `redis://localhost:6379`.
        redis: a `redis.asyncio.Redis` of your own instead of a URL.  dsync makes its connection
            with the settings of its pool; the client itself stays yours to close.
        namespace: what keys begin with; clients see each other's primitives in the same one.
        label: who this process is, in `info()` and in errors; by default the program's name.
        outage_timeout: seconds for which Redis may be out of reach before StoreUnavailable.
        replicas: what is granted or renewed counts when so many replicas have it, else it is given
            back, as StoreUnavailable: for locks and semaphores, and what is made of them.
        on_error: called with what failed and nobody awaited; by default the event loop's
            exception handler is.
        on_lost: called with each Lease that is lost.
        slow_wait: seconds after which a task that still waits for a lock or a permit is logged, as
            a warning that names who holds it; None never.  Leaders may wait for ever.
        on_event: called with what happens here, as `dsync.telemetry` has it; one or several.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        redis: Any = None,
        namespace: str = "dsync",
        label: str | None = None,
        outage_timeout: float = 10.0,
        replicas: int = 0,
        slow_wait: float | None = 60.0,
        on_error: ErrorHook | None = None,
        on_lost: LostHook | None = None,
        on_event: Hook | Sequence[Hook] | None = None,
    ) -> None:
        if url is not None and redis is not None:
            raise TypeError("give either a url or a redis client, not both")
        super().__init__()
        self.namespace: str = checked_name(namespace, "namespace")
        self.label: str = checked_name(label or _program() or "python", "label")
        self.outage_timeout: float = checked_seconds("outage_timeout", outage_timeout, zero=False)
        self._on_error = on_error
        self._on_lost = on_lost
        self.watch: Watch = Watch(on_event)
        client_id = identify(self.label, os.getpid(), token_hex(6))
        self.store: Store = self._open(url, redis, client_id)
        self.replicas: int = checked_count("replicas", replicas)
        if replicas:
            from dsync.redis.replicas import witness_for

            witness = witness_for(self.store, replicas, self.outage_timeout)
            self._new_cohort = partial(Witnessed, witness)
        self.client_id = client_id
        self.keeper: Keeper = Keeper()
        self._deferred: list[Callable[[], None]] = []  # until there is a loop
        # Who wants to hear what is said on a channel.
        self._listeners: dict[str, Listener] = {}
        # Every token of ours that asks or holds, and whose it is.
        self.homes: dict[str, Home] = {}
        # All beats of this client fall on one grid in time, each client's on another.
        self.phase: float = uniform(0, BEAT)
        self._probed = 0.0  # when somebody last saw to the connection, time.monotonic()
        self._warned: set[str] = set()
        self._checked = False  # how the server is set up
        self._counter = 0
        self.declarations: Declarations = Declarations()
        self.patience: Patience | None = None if slow_wait is None else Patience(slow_wait)
        self._respondent: Respondent | None = None  # once somebody has asked
        self._broken_at: float | None = None  # since when a connection is broken
        self._loop: asyncio.AbstractEventLoop | None = None
        self.forked = False  # this is a child of the process that made it
        self._closed = False
        # The loop, as long as nothing stands against using the client on it.
        self._entered: asyncio.AbstractEventLoop | None = None
        _clients.add(self)

    def _open(self, url: str | None, redis: Any, client_id: str) -> Store:
        if redis is None:
            url = url if url is not None else os.environ.get("DSYNC_URL", "redis://localhost:6379")
            if not isinstance(url, str):
                raise TypeError(
                    f"url must be a str, got {type(url).__name__}: {repr(url)[:80]}; a client of "
                    "redis-py goes into dsync.Client(redis=...)"
                )
            if url.startswith("memory://"):
                from dsync.local.store import MemoryStore

                return MemoryStore(client_id, self, self.namespace, url[len("memory://") :])
        from dsync.redis.store import RedisStore

        return RedisStore(client_id, self, self.namespace, url, redis, self.outage_timeout)

    # -- lifetime ---------------------------------------------------------------------------------

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} can be neither pickled nor copied, and nothing that it has made; "
            "another process makes its own client, and the same thing by its name"
        )

    def enter(self) -> asyncio.AbstractEventLoop:
        """Called before anything is asked: this loop, this process, and open.  -> the loop"""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if not self.forked:
                raise RuntimeError(
                    f"no running event loop, and {self!r} needs one: call it from a coroutine; "
                    "from another thread by loop.call_soon_threadsafe()"
                ) from None
        else:
            if self._entered is loop:
                return loop
        return self._check_in()

    def _check_in(self) -> asyncio.AbstractEventLoop:
        if self.forked:
            raise RuntimeError(
                f"{self!r} was made before a fork and belongs to the parent process; "
                "make a client in the child"
            )
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ClientClosed(f"{self!r} is closed: make a new one with dsync.connect()")
        if self._loop is not loop:
            if self._loop is not None:
                raise RuntimeError(
                    f"{self!r} is bound to a different event loop; make one client for each loop"
                )
            self._loop = loop
        self._entered = loop
        deferred, self._deferred = self._deferred, []
        for action in deferred:
            action()
        return loop

    async def check(self) -> Self:
        """Ask the server for a sign of life, the first time also how it is set up.

        What about that breaks a promise is logged, with what to change.

        Raises:
            StoreUnavailable: there was none, or dsync does not work there; the message says why.
        """
        self.enter()
        if self._checked or not self.store.distant:
            await self.store.check()
            return self
        from dsync.redis.checkup import checkup

        for finding in await checkup(self):
            if finding.severity == "error":
                raise StoreUnavailable(str(finding))
            if finding.severity == "warning":
                self.disagreement(f"{finding.what}:", f"{finding.why}; {finding.remedy}")
        self._checked = True
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.check().__await__()

    async def __aenter__(self) -> Self:
        return await self.check()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Release what is held, fail what waits, and wait until the server has confirmed all.

        Holders see LeaseLost, waiters ClientClosed.  Closing twice is fine.
        """
        if self._closed:
            return
        if self._loop is not None:
            self.enter()
            for home in {id(home): home for home in self.homes.values()}.values():
                home.close()
            for listener in list(self._listeners.values()):
                listener.close()
        self._closed = True
        self._entered = None
        if self.patience is not None:
            self.patience.end()
        self.keeper.close()
        if self._loop is not None:
            try:
                await self._drain()
            finally:
                await self.store.aclose()

    async def _drain(self) -> None:
        """Wait until all that was asked is answered, as long as there are answers."""
        progress = None
        while progress != self.store.progress:
            progress = self.store.progress
            try:
                async with asyncio.timeout(self.outage_timeout):
                    await self.store.drain()
                return
            except TimeoutError:
                pass
        log.warning("%r was closed with commands that Redis has not confirmed", self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<dsync.Client {self.client_id} [{state}, namespace:{self.namespace!r}]>"

    # -- what cohorts need ----------------------------------------------------------------------

    def token(self, claim: int) -> str:
        """A name for one acquisition, made before anything is sent.

        `claim`: ms for which a grant by message is good.
        """
        self._counter += 1
        return f"{self.client_id}.{self._counter}/{claim}"

    def when_bound(self, action: Callable[[], None]) -> None:
        """Do it now, or when a loop uses the client for the first time."""
        if self._entered is None and not _loop_runs():
            self._deferred.append(action)
        else:
            self.enter()
            action()

    def listen(self, listener: Listener) -> None:
        """From now on it hears what is said on its channel."""
        self._listeners[listener.channel] = listener
        self.store.subscribe(listener.channel)

    def ignore(self, listener: Listener) -> None:
        """It does not want to hear of it any more."""
        del self._listeners[listener.channel]
        self.store.unsubscribe(listener.channel)

    def cohorts(self) -> Iterator[Cohort]:
        """What is wanted, waited for or held here."""
        return iter(list(self._cohorts.values()))

    def probes(self) -> bool:
        """Whether somebody is to see if the connection is alive: once in a beat, for all."""
        now = time.monotonic()
        due = now - self._probed > BEAT / 2
        if due:
            self._probed = now
        return due

    def listening(self) -> bool:
        """Whether messages reach us at the moment."""
        return self.store.listening

    def report(
        self, error: BaseException, message: str = "a write failed that nobody awaited"
    ) -> None:
        """Something failed and nobody awaited it."""
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception:
                log.exception("the on_error hook failed on %r", error)
        elif self._loop is not None and not self._loop.is_closed():
            self._loop.call_exception_handler({"message": f"dsync: {message}", "exception": error})

    def lost(self, cohort: Cohort, lease: Lease) -> None:
        """A lease was lost: say so, and call the hooks."""
        log.warning("%s", lease.error())
        if self.watch.hooks:
            cohort.tell_lost(lease)
        if self._on_lost is not None:
            try:
                self._on_lost(lease)
            except Exception:
                log.exception("the on_lost hook failed on %r", lease)

    def disagreement(self, what: str, how: str) -> None:
        """The store has another value than the one this process declared: say so once."""
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s %s", what, how)

    # -- what the store delivers ------------------------------------------------------------------

    def pushed(self, message: list[bytes], evidence: float) -> None:
        """A message for this process."""
        try:
            kind, token = message[0], message[1].decode()
            numbers = [int(part) for part in message[2:]]
            home = self.homes.get(token)
            if home is not None:
                home.heard(kind, token, numbers, evidence)
            elif kind == b"?":
                self._called(token, numbers)
            elif kind == b"g" and token.startswith(f"{self.client_id}."):  # else it is forged
                self._refuse_grant(token)
        except (ValueError, IndexError, OverflowError):
            log.warning("somebody else wrote on our channel: %.200r", message)

    def _called(self, asker: str, numbers: list[int]) -> None:
        """Somebody wants to know what the tasks here hold and wait for."""
        if self._respondent is None:
            from dsync.roll import Respondent

            self._respondent = Respondent(self)
        if not self._closed:
            self._respondent.asked(asker, numbers)

    def _refuse_grant(self, token: str) -> None:
        """Give back what nobody here wants.

        Who wanted it has left meanwhile; or the server has gone back in time, and grants what was
        wanted then.  The message does not say of what it is: those who wait ask for them all.
        """
        for cohort in list(self._cohorts.values()):
            if cohort.requests:
                cohort.abandon(token)

    def news(self, channel: str, payload: bytes) -> None:
        """A message on a channel that we listen to."""
        listener = self._listeners.get(channel)
        if listener is not None:
            try:
                listener.heard(payload)
            except (ValueError, OverflowError):
                log.warning("somebody else wrote on our channel %s: %.200r", channel, payload)

    def tuned(self, channel: str, refused: BaseException | None) -> None:
        """We listen to a channel from now on, or are not allowed to."""
        listener = self._listeners.get(channel)
        if listener is not None:
            listener.tuned(refused)

    def gap(self) -> None:
        """Messages may have been lost: everybody who waits or holds asks again."""
        started = time.monotonic()
        # Holders first: who hears of a loss must hear of it before a waiter here gets its turn.
        self.keeper.renew_now()
        for home in {id(home): home for home in self.homes.values()}.values():
            home.ask_all()
        for listener in list(self._listeners.values()):
            listener.ask_all()
        log.info("connected again; asked after everything in %.3f s", time.monotonic() - started)
        broken, self._broken_at = self._broken_at, None
        if broken is not None and self.watch.hooks:
            outage = time.monotonic() - broken
            self.watch.tell(Reconnected("client", self.namespace, outage))

    def disconnected(self, trouble: BaseException) -> None:
        """A connection has broken."""
        if self._broken_at is None:
            self._broken_at = time.monotonic()
        if self.watch.hooks:
            self.watch.tell(Disconnected("client", self.namespace, str(trouble)))


def _program() -> str:
    """What runs, by its file's name, which may be no text to the system."""
    return os.fsencode(os.path.basename(sys.argv[0])).decode(errors="replace")


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def connect(
    url: str | None = None,
    *,
    namespace: str = "dsync",
    label: str | None = None,
    outage_timeout: float = 10.0,
    replicas: int = 0,
    slow_wait: float | None = 60.0,
    on_error: ErrorHook | None = None,
    on_lost: LostHook | None = None,
    on_event: Hook | Sequence[Hook] | None = None,
) -> Client:
    """A Client for this URL; the arguments and errors are those of `Client`.

    ::

        client = dsync.connect("redis://localhost:6379")         # no I/O yet
        client = await dsync.connect("redis://localhost:6379")   # and checks the server
        async with dsync.connect("memory://") as client: ...     # and closes
    """
    return Client(
        url,
        namespace=namespace,
        label=label,
        outage_timeout=outage_timeout,
        replicas=replicas,
        slow_wait=slow_wait,
        on_error=on_error,
        on_lost=on_lost,
        on_event=on_event,
    )
