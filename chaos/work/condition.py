"""Workers that sleep at a condition, and others that notify them, one or some or all."""

import asyncio
from dataclasses import replace
from typing import Any

import dsync
from chaos.work import Shift, Terms, Work
from chaos.work.holding import checked_holds, fenced
from dsync.testing import Event, Violation, wake_ups

__all__ = ["WORK"]

CONSUMERS = 2  # of each process
# Seconds for which those that sleep wait on when nobody notifies any more: who was notified and
# has not heard of it sleeps for longer than a heartbeat, and is seen.
GRACE = 2.6


async def run(shift: Shift) -> None:
    condition = shift.client.condition("x", shift.client.lock("x", lease=shift.terms.lease))
    consumers = (consume(shift, condition, task) for task in range(CONSUMERS))
    await shift.work(*consumers, produce(shift, condition), grace=GRACE)


async def consume(shift: Shift, condition: dsync.Condition, task: int) -> None:
    who = {"of": "x", "task": task}
    while not shift.ending.is_set():
        shift.write("waiting", **who)
        leases: list[dsync.Lease] = []
        try:
            async with condition as lease:
                _holds(shift, lease, who, leases)
                await _sleep(shift, condition, who, leases)
                await _use(shift, leases[-1], who)
        except (asyncio.CancelledError, Exception) as error:
            _say(shift, error, who)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            for lease in leases:
                shift.leases.pop(lease, None)


async def _sleep(
    shift: Shift, condition: dsync.Condition, who: dict[str, Any], leases: list[dsync.Lease]
) -> None:
    """Wait until notified, at times not for long; the lock is held again when this returns."""
    timeout = shift.random.uniform(0.02, 0.2) if shift.random.random() < 0.3 else None
    shift.write("asleep", **who)
    shift.write("leaving", **who)
    more = {}
    try:
        await condition.wait(timeout)
    except (asyncio.CancelledError, dsync.WaitTimeout) as gave_up:
        more["why"] = type(gave_up).__name__
        if isinstance(gave_up, asyncio.CancelledError):
            raise
    finally:
        # "wait() holds the lock again when it raises CancelledError or WaitTimeout."
        lease = condition.lock.lease
        if lease is not None and lease not in leases and lease.held:
            _holds(shift, lease, who, leases)
            shift.write("awake", **more, **who)
            if "CancelledError" in more.values():
                shift.write("leaving", **who)


async def _use(shift: Shift, lease: dsync.Lease, who: dict[str, Any]) -> None:
    """The end of a body."""
    try:
        await asyncio.sleep(shift.random.uniform(0, 0.003))
    except asyncio.CancelledError:
        if lease.held:  # it is not lost: the shift has ended
            shift.write("leaving", **who)
        raise
    if lease.held:
        shift.write("step", fence=lease.fence, **who)
        shift.write("leaving", **who)


async def produce(shift: Shift, condition: dsync.Condition) -> None:
    who = {"of": "x", "task": "producer"}
    random = shift.random
    times = 0
    while not shift.ending.is_set():
        times += 1
        shift.write("waiting", **who)
        leases: list[dsync.Lease] = []
        try:
            async with condition as lease:
                _holds(shift, lease, who, leases)
                # All only at first: that makes good for notifications that were lost before.
                n = None if times <= 5 and random.random() < 0.3 else random.randrange(1, 4)
                if n is None:
                    condition.notify_all()
                else:
                    condition.notify(n)
                shift.write("notified", n=n, **who)
                shift.write("leaving", **who)
            shift.write("released", **who)
        except (asyncio.CancelledError, Exception) as error:
            _say(shift, error, who)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            for lease in leases:
                shift.leases.pop(lease, None)
        await asyncio.sleep(random.uniform(0.1, 0.3))  # fewer than sleep, or it does, too


def _holds(
    shift: Shift, lease: dsync.Lease, who: dict[str, Any], leases: list[dsync.Lease]
) -> None:
    shift.write("held", fence=lease.fence, **who)
    shift.leases[lease] = who
    leases.append(lease)


def _say(shift: Shift, error: BaseException, who: dict[str, Any]) -> None:
    if isinstance(error, asyncio.CancelledError):
        shift.write("gave up", **who)
    elif isinstance(error, dsync.LeaseLost):
        shift.write("lost", why=str(error), **who)
    else:
        shift.write("failed", why=repr(error), **who)


def check(events: list[Event], terms: Terms) -> list[Violation]:
    # "Several of a process that has just died cost a claim or two between them."
    twice = replace(terms, lease=2 * terms.lease)
    found = checked_holds(events, twice, 1) + fenced(events, terms)
    return found + wake_ups(events, terms.lease, forgets=terms.forgets)


async def free(client: dsync.Client, terms: Terms) -> None:
    condition = client.condition("x", client.lock("x", lease=terms.lease))
    async with condition:
        condition.notify_all()  # nobody sleeps: the next to take the lock is ourselves
    async with condition:
        pass
    # locked() tells whether somebody waits, too: the dead whom that notified, for a while.
    assert await condition.lock.try_acquire(), "the lock is held"
    await condition.release()


WORK = Work("condition", f"{CONSUMERS} tasks of each process sleep, one notifies", run, check, free)
