"""The play: workers come on, one is killed over the lock, one is made to oversleep, all go off."""

import asyncio
import contextlib
import re
import signal
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

import dsync
from dsync.demo.crew import Crew
from dsync.demo.journal import DIRECTOR, Journal, Journals
from dsync.demo.listener import listening
from dsync.demo.scene import Scene
from dsync.demo.upstream import Upstream
from dsync.demo.view import View, view_for
from dsync.demo.worker import GATE, LEASE, NEWS, QUEUE_SIZE, SLOTS, UPSTREAM_CAP
from dsync.redis.store import RedisStore

__all__ = ["NoServer", "perform"]

FOR_EVER = 3600.0
PATIENCE = 10.0  # seconds to wait for what should happen at once
REDRAW = 0.2  # seconds
RUN_UP = 0.5  # seconds from the opening of the gate to the kill, at least
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NoServer(Exception):
    """The server of a URL cannot be used; the text says why."""


class NobodyLeft(Exception):
    """All workers have ended by themselves."""


async def perform(
    directory: Path, url: str, own: bool, workers: int, seconds: float, plain: bool
) -> bool:
    """Run the demo; its evidence is in the directory then.  -> whether it came to its end.

    Raises:
        NoServer, StoreUnavailable: nothing was begun.
    """
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(await _reached(url))
        journal = Journal(directory, DIRECTOR)
        stack.callback(journal.close)
        journal.note(
            "set up", workers=workers, own=own,
            lease=LEASE, slots=SLOTS, cap=UPSTREAM_CAP, size=QUEUE_SIZE,
        )  # fmt: skip
        upstream = await stack.enter_async_context(Upstream(directory / "upstream"))
        before = await _commands(client)
        crew = Crew(directory, url, client.namespace, journal)
        gate = client.event(GATE, ttl=FOR_EVER)  # somebody else's server is not to keep it
        play = Play(crew, journal, Journals(directory), gate, workers, seconds)
        where = "an embedded Valkey" if own else "your server"
        count = "1 process" if workers == 1 else f"{workers} processes"
        title = f"dsync demo: {count} on {where}, leases of {LEASE:g} s."
        try:
            async with listening(client.event_bus(NEWS), journal):
                try:
                    with view_for(play.scene, title, seconds, plain) as view:
                        return await play.shown(view)
                finally:
                    await crew.dismiss()
        finally:
            after = await _commands(client)
            commands = None if before is None or after is None else after - before
            journal.note("summed up", most=upstream.most, calls=upstream.calls, commands=commands)


class Play:
    """The scenes, in order."""

    def __init__(
        self,
        crew: Crew,
        journal: Journal,
        journals: Journals,
        gate: dsync.Event,
        workers: int,
        seconds: float,
    ) -> None:
        self.scene: Scene = Scene()
        self._crew = crew
        self._journal = journal
        self._journals = journals
        self._gate = gate
        self._workers = workers
        self._seconds = seconds

    async def shown(self, view: View) -> bool:
        """Perform it before our eyes.  -> False if Ctrl-C ended it."""
        play = asyncio.ensure_future(self._perform())
        for number in SIGNALS:  # for good: a second Ctrl-C must not keep us from tidying up
            asyncio.get_running_loop().add_signal_handler(number, play.cancel)
        while not play.done():
            self._look()
            view.show()
            await asyncio.wait([play], timeout=REDRAW)
        if play.cancelled():
            return False
        with contextlib.suppress(NobodyLeft):  # the summary says why
            play.result()
        return True

    async def _perform(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(self._workers):
            await self._crew.add()
        await self._comes_true(lambda: len(self.scene.workers) >= self._workers)
        self._journal.note("opened")
        await self._gate.set()
        await asyncio.sleep(max(started + self._seconds * 0.2 - loop.time(), RUN_UP))
        await self._kill_a_holder()
        await asyncio.sleep(started + self._seconds * 0.6 - loop.time())
        await self._stop_a_holder()
        await asyncio.sleep(started + self._seconds - loop.time())

    async def _kill_a_holder(self) -> None:
        victim = self._pick(0.5)
        if await self._lingers(victim, FOR_EVER):
            await self._crew.kill(victim)
            await self._crew.add()
            await self._comes_true(lambda: self.scene.handed_over)

    async def _stop_a_holder(self) -> None:
        """Make it oversleep: when it runs again, its lease is over and so is its computing."""
        victim = self._pick(0)
        while await self._lingers(victim, LEASE * 0.7):
            await self._crew.stop(victim)
            self._look()
            overslept = victim in self.scene.holders  # else it was through before we stopped it
            if overslept:
                await asyncio.sleep(LEASE + 0.2)
            self._crew.resume(victim)
            if overslept:
                await self._comes_true(lambda: victim not in self.scene.holders)
                return

    def _pick(self, share: float) -> int:
        """One of those who live."""
        living = self._crew.living
        if not living:
            raise NobodyLeft
        return living[int(len(living) * share)]

    async def _lingers(self, number: int, seconds: float) -> bool:
        """Have a worker take so long over the ledger; True once it does."""
        self.scene.lingerer = None
        self._crew.order_to_linger(number, seconds)
        return await self._comes_true(lambda: self.scene.lingerer == number)

    async def _comes_true(self, condition: Callable[[], bool]) -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    if not self._crew.living:
                        raise NobodyLeft
                    await asyncio.sleep(0.01)
                    self._look()
        except TimeoutError:
            return False
        return True

    def _look(self) -> None:
        for event in self._journals.news():
            self.scene.apply(event)


async def _reached(url: str) -> dsync.Client:
    """A client of that server, in a namespace that nobody else uses."""
    try:
        client = dsync.connect(url, namespace=f"demo-{token_hex(6)}", outage_timeout=3)
    except (ValueError, TypeError) as error:
        raise NoServer(str(error)) from error
    if not isinstance(client.store, RedisStore):
        raise NoServer(f"processes cannot share {url}: it lives in one; use redis://host:6379")
    try:
        return await client
    except dsync.DsyncError:
        await client.aclose()
        raise


async def _commands(client: dsync.Client) -> int | None:
    """How many transitions the server has carried out, for anybody; None if it does not say."""
    store = client.store
    if not isinstance(store, RedisStore):
        return None
    try:
        statistics = await store.ask("INFO", "commandstats")
    except dsync.DsyncError:
        return None
    text = statistics.decode() if isinstance(statistics, bytes) else str(statistics)
    return sum(int(calls) for calls in re.findall(r"cmdstat_eval(?:sha)?:calls=(\d+)", text))
