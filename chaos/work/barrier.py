"""Workers that pass a barrier together, again and again, more of them than fit through at once."""

import asyncio

import dsync
from chaos.work import Shift, Terms, Work
from dsync.testing import Event, Violation, failures, generations

__all__ = ["WORK"]

PARTIES = 4
TASKS = 2  # of each process


async def run(shift: Shift) -> None:
    barrier = shift.client.barrier("x", PARTIES, lease=shift.terms.lease)
    await shift.work(*(walk(shift, barrier, task) for task in range(TASKS)))


async def walk(shift: Shift, barrier: dsync.Barrier, task: int) -> None:
    who = {"of": "x", "task": task}
    while True:
        with shift.turn(task):
            shift.write("waiting", **who)
            try:
                index = await barrier.wait()
            except asyncio.CancelledError:
                shift.write("gave up", **who)
                raise
            except Exception as failed:
                shift.write("failed", why=repr(failed), **who)
            else:
                shift.write("passed", index=index, **who)
        await asyncio.sleep(shift.random.uniform(0, 0.03))


def check(events: list[Event], terms: Terms) -> list[Violation]:
    return failures(events) + generations(events, PARTIES, terms.lease, forgets=terms.forgets)


async def free(client: dsync.Client, terms: Terms) -> None:
    barrier = client.barrier("x", PARTIES, lease=terms.lease)
    passed = await asyncio.gather(*(barrier.wait() for _ in range(PARTIES)))
    assert sorted(passed) == list(range(PARTIES)), "somebody waits at the barrier"
    info = await barrier.info()
    assert not info.broken, "the barrier is broken"
    assert info.waiting == 0, "somebody waits at the barrier"


WORK = Work(
    "barrier", f"{PARTIES} of {TASKS} tasks of each process pass", run, check, free, "passed"
)
