"""The play: workers come on, one is killed over the lock, one is made to oversleep, all go off."""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dsync
from dsync.demo import worker
from dsync.demo.crew import Crew
from dsync.demo.journal import DIRECTOR, Event, Journal, Journals
from dsync.demo.scene import Scene
from dsync.demo.upstream import Upstream
from dsync.demo.view import View, view_for
from dsync.redis import RedisStore

__all__ = ["NoServer", "perform"]

FOR_EVER = 3600.0
OVERSLEEP = worker.LEASE + 0.3  # seconds a holder is stopped for
REDRAW = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NoServer(Exception):
    """The server of a URL cannot be used; the text says why."""


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


async def perform(
    directory: Path, url: str, own: bool, workers: int, seconds: float, plain: bool
) -> bool:
    """Run the demo; its evidence is in the directory then.  -> whether it came to its end."""
    async with contextlib.AsyncExitStack() as stack:
        client = await _checked_client(url, stack)
        journal = Journal(directory, DIRECTOR)
        stack.callback(journal.close)
        journal.note(
            "set up", workers=workers, own=own,
            lease=worker.LEASE, slots=worker.SLOTS, cap=worker.UPSTREAM_CAP,
        )  # fmt: skip
        upstream = await stack.enter_async_context(Upstream(directory / "upstream"))
        before = await _commands(client)
        crew = Crew(directory, url, client.namespace, journal)
        title = (
            f"dsync demo: {workers} processes on "
            f"{'an embedded Valkey' if own else 'your server'}, leases of {worker.LEASE:g} s."
        )
        play = Play(crew, journal, Journals(directory), workers, seconds)
        try:
            with view_for(play.scene, title, seconds, plain) as view:
                return await play.perform(view)
        finally:
            await crew.dismiss()
            after = await _commands(client)
            commands = None if before is None or after is None else after - before
            journal.note(
                "summed up", most=upstream.most, calls=upstream.calls, commands=commands
            )


class Play:
    """The scenes, in order."""

    def __init__(
        self, crew: Crew, journal: Journal, journals: Journals, workers: int, seconds: float
    ) -> None:
        self.scene = Scene()
        self._crew = crew
        self._journal = journal
        self._journals = journals
        self._workers = workers
        self._seconds = seconds

    async def perform(self, view: View) -> bool:
        """-> False if it was interrupted."""
        play = asyncio.ensure_future(self._scenes())
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, play.cancel)
        try:
            while not play.done():
                self.look()
                view.show()
                await asyncio.wait([play], timeout=REDRAW)
            self.look()
            if play.cancelled():
                return False
            play.result()
            return True
        finally:
            play.cancel()
            # From here on a second Ctrl-C
            for number in SIGNALS:
                loop.remove_signal_handler(number)
