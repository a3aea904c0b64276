"""SIGTERM in a process that takes part in elections: it resigns, then ends as it would have ended.

`asyncio.run()` does nothing about SIGTERM: the process would be gone at once, and everybody else
would wait for its lease to end.
"""

import asyncio
import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from dsync.errors import DsyncError
from dsync.lease import Lease

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["sigterm"]

GRACE = 1.0  # seconds for the server to confirm what was sent last


class Sigterm:
    """Handles SIGTERM while candidates and leaders live in the main thread, if nobody else does.

    The first one cancels them, as `Task.cancel()` does; when the last has left, it is raised again
    and takes its default course.  So does a second one, at once.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None  # on which all of these live
        self._candidates: set[asyncio.Task[Any]] = set()
        self._terms: set[Lease] = set()  # some may have ended
        self._clients: set[Client] = set()  # whose they are
        self._came = False

    def stand(self, client: "Client") -> None:
        """The current task waits to be elected from now on; `elected()` or `leave()` follows."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        if self._loop is not loop:
            self._forget()  # a loop that was left in the middle of it
            self._loop = loop
        self._candidates.add(task)
        self._clients.add(client)
        if self._came:
            task.cancel(msg="dsync: SIGTERM")
        elif signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            with suppress(ValueError):  # this is a subinterpreter
                signal.signal(signal.SIGTERM, self._heard)

    def elected(self, term: Lease) -> None:
        """The current task waits no more: it leads."""
        task = asyncio.current_task()
        if task in self._candidates:
            self._candidates.remove(task)
            self._terms.add(term)

    async def leave(self) -> None:
        """The current task does not wait any more, or its term is over.

        If it was the last one here after a SIGTERM, the process ends.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        task = asyncio.current_task()
        self._candidates -= {task}
        self._terms = {term for term in self._terms if term.held}
        if self._candidates or self._terms:
            return
        clients, self._clients = self._clients, set()
        if self._came:
            try:
                await _confirmed(clients)
            finally:
                self._go()
        elif signal.getsignal(signal.SIGTERM) == self._heard:  # else somebody has replaced it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._came = True
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._resign)
        else:
            self._go()

    def _resign(self) -> None:
        # Who does not hold any more is on the way out: nothing is to interrupt that.
        leaders = {term.owner for term in self._terms if term.held}
        for task in self._candidates | leaders:
            if task is not None:
                task.cancel(msg="dsync: SIGTERM")
        if not (self._candidates or self._terms):
            self._go()  # the last one left when it came

    def _go(self) -> None:
        self._came = False
        # It returns where the system ignores it (process 1 of a container), or somebody handles
        # it by now.  Then the program goes on, in a task that was cancelled.
        signal.raise_signal(signal.SIGTERM)

    def _forget(self) -> None:
        self._loop = None
        self._candidates = set()
        self._terms = set()
        self._clients = set()
        self._came = False

    def disown(self) -> None:
        """In a forked child: they are the parent's, and so is the handler."""
        self._forget()
        if signal.getsignal(signal.SIGTERM) == self._heard:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


async def _confirmed(clients: "set[Client]") -> None:
    """Wait until the servers have carried out what these clients have sent, but not for long."""
    with suppress(DsyncError, TimeoutError):
        async with asyncio.timeout(GRACE):
            await asyncio.gather(*(client.check() for client in clients))


sigterm: Sigterm = Sigterm()
os.register_at_fork(after_in_child=sigterm.disown)
