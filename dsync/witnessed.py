"""A cohort whose holds count only when replicas know them: locks and semaphores with `replicas=`.

Nothing of a grant or a renewal is believed before it is witnessed.  What a grant brings is renewed
at once: only of its own writes can a connection ask who has them, and a grant by message was
written by another's.
"""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from dsync.cohort import Cohort
from dsync.errors import StoreUnavailable
from dsync.lease import Hold, Lease, Terms
from dsync.line import Sleeper
from dsync.sleepers import Sleepers
from dsync.store import Call

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.redis.replicas import Verdict, Witness

__all__ = ["Witnessed"]


class Witnessed(Cohort):
    """A cohort whose holds count only when replicas know them."""

    def __init__(
        self, witness: "Witness", client: "Client", kind: str, name: str, *args: Any
    ) -> None:
        super().__init__(client, kind, name, *args)
        self._witness = witness
        self._key: str = client.store.at(kind, name).key  # type: ignore[attr-defined]
        # A hold is proven from its first confirmation on; those that somebody waits for are here.
        self._proven: set[str] = set()
        self._proofs: dict[str, asyncio.Future[Verdict]] = {}

    @property
    def sleepers(self) -> Sleepers:
        return _Sleepers(self)

    async def acquire(self, terms: Terms, timeout: float | None) -> Lease:
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            lease = await super().acquire(terms, timeout)
            limit = asyncio.timeout_at(ends if timeout else None)
            try:
                async with limit:
                    if await self._proven_or_put_away(lease):
                        return lease
            except TimeoutError:
                if not limit.expired():
                    raise
                assert timeout is not None
                raise self._too_late(timeout) from None
            timeout = None if ends is None else max(ends - time.monotonic(), 0)

    async def try_acquire(self, terms: Terms) -> Lease | None:
        while True:
            lease = await super().try_acquire(terms)
            if lease is None or await self._proven_or_put_away(lease):
                return lease

    async def _proven_or_put_away(self, lease: Lease) -> bool:
        """Whether replicas know the lease; else it was lost.  Raises StoreUnavailable."""
        try:
            verdict = await self.proof(lease)
            if verdict is not None:
                raise self.not_proven(verdict)
        except BaseException:
            self.put_away(lease)
            raise
        held = lease.held
        if not held:
            self.put_away(lease)
        return held

    def not_proven(self, verdict: StoreUnavailable) -> StoreUnavailable:
        return StoreUnavailable(f"{self.what} was granted and given back: {verdict}")

    def proof(self, lease: Lease) -> "asyncio.Future[Verdict]":
        """Settled when replicas know the lease, or do not, or it is lost."""
        hold = lease.hold
        assert hold is not None
        proof: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if not lease.held or hold.token in self._proven:
            proof.set_result(None)
            return proof
        self._proofs[hold.token] = proof
        if not hold.renewing:
            self.renew(hold)
        return proof

    def _may_idle(self, hold: Hold) -> bool:
        return hold.token in self._proven and super()._may_idle(hold)

    def renew(self, hold: Hold, block: int = 0) -> None:
        hold.renewing = True
        length = hold.next_length()
        done = self._witness.expect(self._key, partial(self._witnessed, hold, length))
        self.permits.renew(hold.token, length, block, done)

    def _witnessed(
        self, hold: Hold, length: float, call: Call, verdict: "Verdict", proves: bool
    ) -> None:
        """A renewal was answered, and its replicas counted, if that `proves` anything."""
        proof = self._proofs.get(hold.token)
        failed = isinstance(call.reply, BaseException)
        if failed or call.reply[0] == 0 or (proves and verdict is None):
            self._renewed(hold, length, call)
            if hold.token in self.holds and not failed:
                self._proven.add(hold.token)
                self._settle(hold.token, None)
            elif failed and proof is not None:
                self._settle(hold.token, StoreUnavailable(*call.reply.args))
            return
        hold.renewing = False
        if hold.token not in self.holds:
            return
        if proof is None:
            self.client.keeper.failed(hold)
        elif proves or verdict is not None:
            self._settle(hold.token, verdict)
        else:
            self.renew(hold)

    def _settle(self, token: str, verdict: "Verdict") -> None:
        proof = self._proofs.pop(token, None)
        if proof is not None and not proof.done():
            proof.set_result(verdict)

    def expire(self, hold: Hold) -> None:
        late = StoreUnavailable(f"its lease of {hold.length:g} s ended before replicas had it")
        self._settle(hold.token, late)
        super().expire(hold)

    def drop(self, hold: Hold) -> None:
        super().drop(hold)
        self._proven.discard(hold.token)
        self._settle(hold.token, None)


class _Sleepers(Sleepers):
    """Those who wake hold the lock only when replicas know that."""

    _cohort: Witnessed

    async def woken(self, sleeper: Sleeper) -> asyncio.CancelledError | None:
        cancelled: asyncio.CancelledError | None = None
        while True:
            cancelled = await super().woken(sleeper) or cancelled
            lease = sleeper.lease
            if lease is None:
                return cancelled
            proof = self._cohort.proof(lease)
            while not proof.done():
                try:
                    await asyncio.wait([proof])
                except asyncio.CancelledError as exc:
                    cancelled = exc
            verdict = proof.result()
            if verdict is not None:
                sleeper.lease, sleeper.error = None, self._cohort.not_proven(verdict)
                self._cohort.put_away(lease)
            if verdict is not None or lease.held:
                return cancelled
