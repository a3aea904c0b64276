"""One run of `dsync lock`: wait, hold, run, release."""

import argparse
import asyncio
import os
import time
from typing import Any

from dsync.cli.child import Child, forwarding
from dsync.cli.options import LOST, address, say
from dsync.client import Client
from dsync.errors import AcquireTimeout, DsyncError, LeaseLost
from dsync.exclusive import Pace
from dsync.lease import Lease, margin
from dsync.lock import Lock
from dsync.semaphore import Semaphore

__all__ = ["Errand"]

SHARE = 0.6  # of the time from our end of the lease to the server's, for COMMAND to tidy up
LOOK = 0.1  # seconds between two looks at how long the lease lasts


class Errand:
    """One run of a command: wait, hold, run, release."""

    def __init__(self, args: argparse.Namespace, client: Client) -> None:
        self.args = args
        self.client = client
        self.what: str = f"{'lock' if args.slots is None else 'semaphore'} {args.name!r}"
        self.thing: Lock | Semaphore
        if args.slots is None:
            self.thing = client.lock(args.name, lease=args.lease)
        else:
            self.thing = client.semaphore(args.name, args.slots, lease=args.lease)
        self.child: Child | None = None  # once it runs
        self.task: asyncio.Task[object] | None = None  # until it has run
        self.interrupted: int = 0  # the signal that came before

    async def run(self) -> int:
        """-> the exit code"""
        self.task = asyncio.current_task()
        child = Child()
        kept = True
        with forwarding(self._signal):
            try:
                lease = await self._in_turn()
                if lease is None:
                    return 128 + self.interrupted if self.interrupted else int(self.args.otherwise)
                try:
                    self._watch_over(child, lease)
                    child.start(self.args.run_command, self._environ(lease))
                    self.child, kept = child, False
                    code, kept = await self._keep(child, lease)
                finally:
                    self.child = self.task = None
                    child.close(spare=kept)
                    kept = await self._release(told=not kept) and kept
            finally:
                child.close(spare=kept)
        if not kept:
            return LOST
        return code if code >= 0 else 128 - code

    def _signal(self, number: int) -> None:
        if self.child is not None:
            self.child.signal(number)
        elif self.task is not None and not self.interrupted:  # else it is over, but for the release
            self.interrupted = number
            self.task.cancel()

    # -- getting it -------------------------------------------------------------------------------

    async def _in_turn(self) -> Lease | None:
        """The lease; None if it was not to be had, or a signal came."""
        began = time.monotonic()
        try:
            try:
                lease = await self._acquire()
            except AcquireTimeout:
                say("lock", f"{self.what} {await self._who_has_it()}")
                return None
        except asyncio.CancelledError:
            if not self.interrupted or self.task is None:
                raise
            self.task.uncancel()
            return None
        if lease is not None:
            self._tell(f"{self.what} acquired after {time.monotonic() - began:.3f} s")
        return lease

    async def _acquire(self) -> Lease | None:
        args = self.args
        no_wait = args.no_wait or (args.every is not None and args.timeout is None)
        ends = None if args.timeout is None else time.monotonic() + args.timeout
        lease = await self.thing._acquire(0 if no_wait else args.timeout)
        if args.every is not None and not await self._is_time(ends):
            return None
        # A grant by message is good for a few seconds only, until it is renewed.
        while lease.held and lease.hold is not None and lease.hold.length < args.lease:
            if not lease.hold.renewing:
                lease.hold.cohort.renew(lease.hold)
            await asyncio.sleep(0.002)
        return lease

    async def _is_time(self, ends: float | None) -> bool:
        """Whether a run may begin now: it has, then.  What may not gives the lock back."""
        assert isinstance(self.thing, Lock)
        pace = Pace(self.client, self.thing, self.args.every, None)
        due = False
        try:
            if ends is None:
                due = await pace.due()
            else:
                await pace.wait(ends)
                due = True
        except AcquireTimeout:
            pass
        finally:
            if not due:
                await self._release()
        if not due:
            say("lock", f"{self.what}: one has begun less than {self.args.every:g} s ago")
        return due

    async def _who_has_it(self) -> str:
        try:
            if isinstance(self.thing, Lock):
                holder = (await self.thing.info()).holder
                if holder is not None:
                    return (
                        f"is held by {holder.label} on {holder.host}, pid {holder.pid}, "
                        f"for {holder.held:.0f} s"
                    )
            elif isinstance(self.thing, Semaphore):
                info = await self.thing.info()
                return f"has none of its {info.value} slots free; {info.waiting} wait"
        except DsyncError:
            pass
        return "was not to be had in time"

    # -- having it --------------------------------------------------------------------------------

    def _environ(self, lease: Lease) -> dict[str, str]:
        environ = {key: value for key, value in os.environ.items() if key != "DSYNC_FENCE"}
        environ |= {"DSYNC_NAME": self.args.name, "DSYNC_URL": address(self.args)}
        if lease.fence is not None:
            environ["DSYNC_FENCE"] = str(lease.fence)
        return environ

    def _watch_over(self, child: Child, lease: Lease) -> None:
        """Tell the guard until when the lease lasts.

        We give up at the deadline, the server a margin later: in between the command ends.
        """
        if lease.hold is None or not lease.held:
            raise lease.error()
        hold = lease.hold
        room = margin(hold.length) * SHARE
        kill_at = hold.deadline + room
        child.live_until(min(hold.deadline, kill_at - (self.args.kill_after or 0.0)), kill_at)

    async def _keep(self, child: Child, lease: Lease) -> tuple[int, bool]:
        """-> its exit code, and whether the lock was ours until it ended"""
        lost = asyncio.ensure_future(lease.lost.wait())
        watched: set[asyncio.Future[Any]] = {child.ended, lost}
        try:
            # If we stood still, the guard may have begun to end it, whatever the server says.
            while lease.held and time.monotonic() < child.term_at:
                if child.ended.done():
                    return self._ended(child.ended.result()), True
                self._watch_over(child, lease)
                await asyncio.wait(watched, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
        why = f"{self.what} was lost: it could not be renewed in time"
        say("lock", f"{why if lease.held else lease.error()}; COMMAND is ended")
        self.client.outage_timeout = 1.0  # for what is left to be said to a server that may be gone
        await child.end(self.args.kill_after or child.kill_at - child.term_at)
        return self._ended(child.ended.result() if child.ended.done() else 0), False

    def _ended(self, code: int) -> int:
        self._tell(f"COMMAND ended by signal {-code}" if code < 0 else f"COMMAND ended with {code}")
        return code

    async def _release(self, *, told: bool = False) -> bool:
        """-> whether it was ours until now"""
        try:
            await self.thing.release()
        except LeaseLost as error:
            if not told:
                say("lock", f"{error}; COMMAND has ended")
            return False
        except DsyncError as error:
            say("lock", f"{error}; the lock ends with its lease")
        return True

    def _tell(self, text: str) -> None:
        if self.args.verbose:
            say("lock", text)
