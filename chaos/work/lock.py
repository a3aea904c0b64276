"""Workers that contend for one lock, and write under its fence."""

import asyncio

import dsync
from chaos.work import Shift, Terms, Work
from chaos.work.holding import checked_holds, fenced, hold
from dsync.testing import Event, Violation

__all__ = ["WORK"]

TASKS = 2  # of each process


async def run(shift: Shift) -> None:
    lock = shift.client.lock("x", lease=shift.terms.lease)
    async with asyncio.TaskGroup() as group:
        for task in range(TASKS):
            group.create_task(hold(shift, lock, task))


def check(events: list[Event], terms: Terms) -> list[Violation]:
    return checked_holds(events, terms, 1) + fenced(events, terms)


async def free(client: dsync.Client, terms: Terms) -> None:
    async with client.lock("x", lease=terms.lease):
        pass
    assert not await client.lock("x").locked(), "the lock is held"


WORK = Work("lock", "one lock for all, two tasks in each process", run, check, free)
