"""Workers that stand for one election, lead in turn, and watch who leads."""

import asyncio
from contextlib import aclosing

import dsync
from chaos.work import Shift, Terms, Work
from chaos.work.holding import checked_holds, fenced, hold
from dsync.leader import Election
from dsync.testing import Event, Violation, sightings

__all__ = ["WORK"]

REST = 0.03  # seconds, the longest between two candidacies


async def run(shift: Shift) -> None:
    # A worker has a handler for SIGTERM of its own, which asks it to end.
    election = shift.client.leader("x", lease=shift.terms.lease, sigterm=False)
    observer = asyncio.create_task(watch(shift, election))
    await hold(shift, election, 0, rest=REST)
    observer.cancel()
    await asyncio.wait([observer])


async def watch(shift: Shift, election: Election) -> None:
    """Write down who leads, whenever that changes."""
    who = {"of": election.name, "task": "observer"}
    try:
        async with aclosing(election.observe()) as leaders:
            async for leader in leaders:
                if leader is None:
                    shift.write("saw", fence=None, **who)
                else:
                    shift.write("saw", fence=leader.fence, leader=leader.pid, **who)
    except Exception as failed:
        shift.write("failed", why=repr(failed), **who)
    finally:
        shift.write("left", **who)


def check(events: list[Event], terms: Terms) -> list[Violation]:
    found = checked_holds(events, terms, 1) + fenced(events, terms)
    return found + sightings(events, terms.lease, forgets=terms.forgets)


async def free(client: dsync.Client, terms: Terms) -> None:
    election = client.leader("x", lease=terms.lease, sigterm=False)
    async with election as term:
        leader = await election.leader()
        assert leader is not None, "nobody is seen to lead"
        assert leader.is_me, "another is seen to lead"
        assert leader.fence == term.fence, "another term is seen"
    assert await election.leader() is None, "somebody leads"


WORK = Work("leader", "each process is a candidate, and observes who leads", run, check, free)
