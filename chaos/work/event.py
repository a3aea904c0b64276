"""Workers that wait for an event, and one of them that sets it as soon as everybody waits.

So nothing makes good for a wake-up that was lost: who was forgotten waits for seconds, and is seen.
"""

import asyncio
import os
import time

import dsync
from chaos.work import Shift, Terms, Work
from dsync.testing import Event, Violation, failures, pulses

__all__ = ["WORK"]

TASKS = 2  # of each process, that wait
PATIENCE = 3.0  # seconds after which it is set though not everybody waits: beyond a heartbeat
CALM = ("nothing", "latency", "script flush")  # harms that break no connection


async def run(shift: Shift) -> None:
    event = shift.client.event("x")
    # Listen from the beginning, as a process does that has waited before.
    event.is_set()
    await event.is_set()
    pulser = asyncio.create_task(pulse(shift, event))  # is not cancelled between set and clear
    await shift.work(*(wait(shift, event, task) for task in range(TASKS)))
    await pulser


async def wait(shift: Shift, event: dsync.Event, task: int) -> None:
    who = {"of": event.name, "task": task}
    while True:
        shift.write("waiting", **who)
        try:
            if shift.random.random() < 0.2:
                with shift.turn(task):
                    await event.wait()
            else:
                await event.wait()
        except asyncio.CancelledError:
            shift.write("gave up", **who)
            raise
        except Exception as failed:
            shift.write("failed", why=repr(failed), **who)
        else:
            shift.write("woken", **who)
        await asyncio.sleep(shift.random.uniform(0, 0.02))


async def pulse(shift: Shift, event: dsync.Event) -> None:
    """Set and clear it when all wait, if it is for this process to do so."""
    who = {"of": event.name, "task": "pulser"}
    while not shift.ending.is_set():
        mine, due = _standing(shift.history.events())
        if not due:
            await asyncio.sleep(0.01 if mine else 0.1)
            continue
        # "A wait begins when the server hears of it": with 100 ms of latency, as late.
        await asyncio.sleep(shift.random.uniform(0.15, 0.2))
        with shift.turn("pulser"):
            try:
                if shift.random.random() < 0.8:
                    shift.write("pulsing", **who)
                    event.set()
                    await event.clear()
                    shift.write("pulsed", **who)
                else:
                    shift.write("setting", **who)
                    await event.set()
                    shift.write("set", **who)
                    await asyncio.sleep(shift.random.uniform(0, 0.02))
                    shift.write("clearing", **who)
                    await event.clear()
                    shift.write("cleared", **who)
            except Exception as failed:
                shift.write("failed", why=repr(failed), **who)


def _standing(events: list[Event]) -> tuple[bool, bool]:
    """(it is for this process to set it, and time to do so): the oldest that can does it."""
    here: list[int] = []
    asleep = set()
    waiting: dict[tuple[int, object], float] = {}  # since when
    begun: dict[int, float] = {}  # by whom, and when
    since = confirmed = 0.0  # when the last pulse began, and the last that was carried out
    for event in events:
        what = event["what"]
        if what == "ready":
            here.append(event["pid"])
            since = since or event["t"]
        elif what in ("killed", "ended") and event["whom"] in here:
            here.remove(event["whom"])
        elif what == "stopped":
            asleep.add(event["whom"])
        elif what == "continued":
            asleep.discard(event["whom"])
        elif what in ("pulsing", "setting"):
            since = begun[event["pid"]] = event["t"]
        elif what in ("pulsed", "set"):
            confirmed = max(confirmed, begun[event["pid"]])
        elif what == "waiting":
            waiting[event["pid"], event["task"]] = event["t"]
        elif what == "woken":
            waiting.pop((event["pid"], event["task"]), None)
    able = [pid for pid in here if pid not in asleep]
    mine = able[:1] == [os.getpid()]
    # Who has waited since before the last pulse was forgotten: that has to be seen.
    tasks = [(pid, task) for pid in able for task in range(TASKS)]
    all_wait = all(waiting.get(task, 0.0) > confirmed for task in tasks)
    return mine, mine and (all_wait or time.monotonic() - since > PATIENCE)


def check(events: list[Event], terms: Terms) -> list[Violation]:
    return failures(events) + pulses(events, forgets=terms.forgets, calm=CALM)


async def free(client: dsync.Client, terms: Terms) -> None:
    event = client.event("x")
    # "An event that is set stays": whoever was killed between set and clear has left it so.
    assert terms.deaths or not await event.is_set(), "the event is set"
    await event.clear()
    waiter = asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    await event.is_set()  # its look was answered before
    event.set()
    await event.clear()
    await waiter


WORK = Work(
    "event", f"{TASKS} tasks of each process wait for pulses of one", run, check, free, "woken"
)
