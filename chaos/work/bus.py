"""Workers that tell each other things on one bus, and count what they hear and what they miss."""

import asyncio
import os

import dsync
from chaos.work import Shift, Terms, Work
from dsync.testing import Event, Violation, deliveries, failures

__all__ = ["WORK"]

# Seconds for which subscribers listen on when nobody publishes any more, and for which a message
# may be under way when nothing is wrong.
GRACE = 1.0
WITHIN = 0.6


async def run(shift: Shift) -> None:
    bus = shift.client.event_bus("x")
    await shift.work(listen(shift, bus), publish(shift, bus), grace=GRACE)


async def listen(shift: Shift, bus: dsync.EventBus) -> None:
    who = {"of": bus.name, "task": "subscriber"}
    try:
        async with bus.subscribe() as messages:
            shift.write("subscribed", **who)
            async for message in messages:
                if isinstance(message, dsync.Gap):
                    shift.write("gap", missed=message.missed, **who)
                else:
                    shift.write("heard", **message.data, **who)
    except Exception as failed:
        shift.write("failed", why=repr(failed), **who)
    finally:
        shift.write("left", **who)


async def publish(shift: Shift, bus: dsync.EventBus) -> None:
    """Some at once, of which the last is awaited, and the others then."""
    who = {"of": bus.name, "task": "publisher"}
    publisher = [os.getpid(), "publisher"]
    number = 0
    while not shift.ending.is_set():
        with shift.turn("publisher"):
            sent = []
            for _ in range(shift.random.randrange(1, 4)):
                number += 1
                shift.write("publishing", number=number, **who)
                sent.append((number, bus.trigger("x", {"publisher": publisher, "number": number})))
            for its, reply in reversed(sent):
                try:
                    await reply
                except Exception as failed:
                    shift.write("failed", why=repr(failed), **who)
                else:
                    shift.write("published", number=its, **who)
            if shift.random.random() < 0.3:
                await asyncio.sleep(shift.random.uniform(0, 0.1))  # it listens on
        await asyncio.sleep(shift.random.uniform(0.1, 0.3))


def check(events: list[Event], terms: Terms) -> list[Violation]:
    return failures(events) + deliveries(events, WITHIN, forgets=terms.forgets)


async def free(client: dsync.Client, terms: Terms) -> None:
    bus = client.event_bus("x")
    async with bus.subscribe() as messages:
        await bus.trigger("x", "the last")
        async for message in messages:
            assert isinstance(message, dsync.Message), f"{message} where nothing was lost"
            assert message.data == "the last", "somebody still publishes"
            return


WORK = Work(
    "bus", "each process publishes on one bus, and listens", run, check, free, "heard",
    queues=False,
)  # fmt: skip
