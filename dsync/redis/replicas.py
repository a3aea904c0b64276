"""What replicas have of what was written: WAIT, once for all that was written in a tick."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from redis.crc import key_slot

from dsync.errors import StoreUnavailable
from dsync.redis.store import RedisStore
from dsync.redis.wire import Wire
from dsync.store import Call, Done, Store

__all__ = ["Verdict", "Witness", "witness_for"]

# Seconds for which replicas are waited for, and for which the connection stands still if they are
# silent.
PATIENCE = 1.0

# What the replicas say of a write: None, enough of them have it; or the error that says otherwise.
Verdict = StoreUnavailable | None
# Called with the answer to a write, the verdict on it, and whether that proves anything.
Judged = Callable[[Call, Verdict, bool], None]


class Witness:
    """Asks who has what was written: one WAIT for all that one link was called in a tick."""

    def __init__(self, store: RedisStore, replicas: int, outage_timeout: float) -> None:
        self._store = store
        self._replicas = replicas
        self._patience = min(PATIENCE, outage_timeout / 6)
        self._asked: dict[Any, list[_Write]] = {}  # in this tick, by link

    def expect(self, key: str, judged: Judged) -> Done:
        """The `done` of a write to this key, which is called next; `judged` has the last word."""
        cluster = self._store.cluster
        link = self._store.link if cluster is None else cluster.links[key_slot(key.encode())]
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._ask)
        write = _Write(link, judged)
        self._asked.setdefault(link, []).append(write)
        return write.answered

    def _ask(self) -> None:
        asked, self._asked = self._asked, {}
        for link, writes in asked.items():
            patience = max(int(self._patience * 1000), 1)  # ms; 0 would be for ever
            words = ("WAIT", self._replicas, patience)
            link.call(words, partial(self._counted, writes))

    def _counted(self, writes: "list[_Write]", wait: Call) -> None:
        verdict: Verdict = None
        if isinstance(wait.reply, StoreUnavailable):
            hint = " +wait" if "NOPERM" in str(wait.reply) else ""
            verdict = StoreUnavailable(f"{wait.reply}{hint}")
        elif isinstance(wait.reply, BaseException):
            verdict = StoreUnavailable(str(wait.reply))
        elif wait.reply < self._replicas:
            verdict = StoreUnavailable(
                f"{wait.reply} of {self._replicas} replicas have confirmed it within "
                f"{self._patience:g} s"
            )
        for write in writes:
            write.counted(verdict)


class _Write:
    """A command, and the WAIT behind it."""

    def __init__(self, link: Any, judged: Judged) -> None:
        self._link = link
        self._judged = judged
        self._connection = link._connection if isinstance(link, Wire) else None
        self._call: Call | None = None
        self._verdict: tuple[Verdict, bool] | None = None  # and whether it proves anything

    def answered(self, call: Call) -> None:
        self._call = call
        self._settle()

    def counted(self, verdict: Verdict) -> None:
        # WAIT speaks of what was written before it on its own connection, and of nothing else.
        same = self._connection is not None and self._link._connection is self._connection
        self._verdict = (verdict, same)
        self._settle()

    def _settle(self) -> None:
        if self._call is not None and self._verdict is not None:
            verdict, same = self._verdict
            self._judged(self._call, verdict, same and not self._call.refused)


def witness_for(store: Store, replicas: int, outage_timeout: float) -> Witness:
    """Who says what so many replicas of this store have.

    Raises:
        ValueError: nobody can.
    """
    if not isinstance(store, RedisStore):
        raise ValueError("replicas: memory:// has none")
    if store.cluster is None and not isinstance(store.link, Wire):
        raise ValueError("replicas: a client whose sockets are not redis-py's cannot ask for them")
    return Witness(store, replicas, outage_timeout)
