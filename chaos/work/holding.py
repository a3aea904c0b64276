"""What workers do with whatever is held."""

import asyncio

import dsync
from chaos.work import Shift, Terms
from dsync.leader import Election
from dsync.testing import (
    Event,
    Violation,
    failures,
    fences,
    losses,
    overlaps,
    stale_writes,
    stranded,
)

__all__ = ["checked_holds", "fenced", "hold"]


async def hold(
    shift: Shift, thing: dsync.Lock | dsync.Semaphore | Election, task: int, rest: float = 0.01
) -> None:
    """Hold it for a random time, again and again: for a few ms mostly, at times for 0.1 - 0.3 s.

    `rest`: seconds, the longest between two holds.
    """
    who = {"of": thing.name, "task": task}
    random = shift.random
    while not shift.ending.is_set():
        shift.write("waiting", **who)
        lease: dsync.Lease | None = None
        try:
            async with thing as lease:
                shift.write("held", fence=lease.fence, **who)
                shift.leases[lease] = who
                steps = random.randrange(20, 60) if random.random() < 0.03 else random.randrange(3)
                for _ in range(steps):
                    await asyncio.sleep(random.uniform(0, 0.01 if steps > 3 else 0.003))
                    if lease.held:
                        shift.write("step", fence=lease.fence, **who)
                if lease.held:  # a stop may come where nothing is awaited, and last for too long
                    shift.write("leaving", **who)
        except dsync.LeaseLost as lost:
            shift.write("lost", why=str(lost), **who)
        except Exception as failed:
            shift.write("failed", why=repr(failed), **who)
        finally:
            if lease is not None:
                shift.leases.pop(lease, None)
        await asyncio.sleep(random.uniform(0, rest))


def checked_holds(events: list[Event], terms: Terms, limit: int) -> list[Violation]:
    """What is true of everything that is held."""
    found = overlaps(events, limit, terms.overlap) + failures(events)
    found += stranded(events, terms.lease, limit)
    return found if terms.loses else found + losses(events)


def fenced(events: list[Event], terms: Terms) -> list[Violation]:
    """What is true of everything that is held under a fence."""
    return fences(events, terms.overlap) + stale_writes(events, terms.overlap)
