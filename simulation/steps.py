"""Transitions carried out one after the other, as if by processes that do not exist."""

import asyncio
from collections.abc import Iterable
from functools import partial

import dsync
from dsync.names import tag
from dsync.store import Arg, Call
from simulation.meter import Meter

__all__ = ["ACQUIRE", "LOCK", "MEMORY", "RELEASE", "Args", "Step", "Steps", "named", "queue"]

CHUNK = 100  # transitions that leave in one write
ROUNDS = 5
# ms; longer than any measurement: nobody is dropped as dead.
SILENCE, LEASE, MEMORY = 600_000, 600_000, 60_000
Args = dict[str, Arg]
Step = tuple[str, str, str, Args]  # kind, name, transition, arguments

LOCK: Args = {"block": 64, "inbox": "calibration:inbox:", "silence": SILENCE}
ACQUIRE: Args = {**LOCK, "declared": 1, "stamp": 0, "lease": LEASE, "wait": 1}
RELEASE: Args = {**LOCK, "tombstone": 0}


def named(args: Args, number: int) -> Args:
    """The same arguments, with the token of the process of this number."""
    return {**args, "token": f"process-{number}.1/5000"}


def queue(name: str, size: int, first: int = 0) -> list[Step]:
    """So many processes want one lock: the first of all gets it, the others wait, or ask again."""
    return [
        ("lock", name, "permit_acquire", named(ACQUIRE, first + number)) for number in range(size)
    ]


class Steps:
    """Carries out transitions, and reads what the server has spent on them."""

    def __init__(self, client: dsync.Client, meter: Meter) -> None:
        self._client = client
        self._meter = meter

    async def do(self, steps: Iterable[Step]) -> None:
        """Carry them out in order."""
        steps = list(steps)
        for start in range(0, len(steps), CHUNK):
            chunk = steps[start : start + CHUNK]
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            answered = partial(_answered, done, [len(chunk)])
            for kind, name, transition, args in chunk:
                self._client.store.at(kind, name).run(transition, answered, **args)
            await done

    async def cost(self, steps: Iterable[Step]) -> float:
        """µs inside the script, of each of them."""
        with self._meter.measured() as spent:
            await self.do(steps)
        return spent.script / spent.calls

    def expire(self, kind: str, name: str, part: str, count: int | None = None) -> None:
        """Make the first `count` members of one of its keys, or all, as old as can be."""
        key = f"{tag(self._client.namespace, kind, name)}:{part}"
        members = self._meter.admin.zrange(key, 0, -1 if count is None else count - 1)
        for start in range(0, len(members), 1000):
            self._meter.admin.zadd(key, dict.fromkeys(members[start : start + 1000], 1.0))


def _answered(done: "asyncio.Future[None]", left: list[int], call: Call) -> None:
    left[0] -= 1
    if done.done():
        return
    if isinstance(call.reply, BaseException):
        done.set_exception(call.reply)
    elif left[0] == 0:
        done.set_result(None)
