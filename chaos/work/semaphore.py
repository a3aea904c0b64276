"""Workers that contend for the permits of one semaphore."""

import asyncio

import dsync
from chaos.work import Shift, Terms, Work
from chaos.work.holding import checked_holds, hold
from dsync.testing import Event, Violation

__all__ = ["WORK"]

PERMITS = 3
TASKS = 2  # of each process


async def run(shift: Shift) -> None:
    semaphore = shift.client.semaphore("x", PERMITS, lease=shift.terms.lease)
    async with asyncio.TaskGroup() as group:
        for task in range(TASKS):
            group.create_task(hold(shift, semaphore, task))


def check(events: list[Event], terms: Terms) -> list[Violation]:
    return checked_holds(events, terms, PERMITS)


async def free(client: dsync.Client, terms: Terms) -> None:
    semaphore = client.semaphore("x", PERMITS, lease=terms.lease)
    await asyncio.gather(*(semaphore.acquire() for _ in range(PERMITS)))
    assert (await semaphore.info()).held == PERMITS, "there are not as many permits as before"
    for _ in range(PERMITS):
        await semaphore.release()
    assert (await semaphore.info()).held == 0, "permits are held"


WORK = Work("semaphore", f"{PERMITS} permits, two tasks in each process", run, check, free)
