"""Workers that use up what one rate limiter admits."""

import asyncio

import dsync
from chaos.work import Shift, Terms, Work
from dsync.testing import Event, Violation, admissions, failures

__all__ = ["WORK"]

RATE = 200.0  # units a second
BURST = 10
TASKS = 2  # of each process
# "What is given is counted when it is due: a process that acts on it later than that (a slow loop,
# a slow network) moves it in time.  One that is later than a second ... does not get it any more."
LATE = 1.0  # seconds


async def run(shift: Shift) -> None:
    limiter = shift.client.rate_limiter("x", RATE, burst=BURST)
    await shift.work(*(use(shift, limiter, task) for task in range(TASKS)))


async def use(shift: Shift, limiter: dsync.RateLimiter, task: int) -> None:
    who = {"of": limiter.name, "task": task}
    while True:
        amount = shift.random.randrange(1, 4)
        with shift.turn(task):
            shift.write("waiting", **who)
            try:
                await limiter.acquire(amount)
            except asyncio.CancelledError:
                shift.write("gave up", **who)
                raise
            except Exception as failed:
                shift.write("failed", why=repr(failed), **who)
            else:
                shift.write("admitted", amount=amount, **who)
        await asyncio.sleep(shift.random.uniform(0, 0.01))


def check(events: list[Event], terms: Terms) -> list[Violation]:
    return failures(events) + admissions(
        events, RATE, burst=BURST, slack=LATE, forgets=terms.forgets
    )


async def free(client: dsync.Client, terms: Terms) -> None:
    limiter = client.rate_limiter("x", RATE, burst=BURST)
    await limiter.acquire(BURST)  # behind whatever is reserved
    assert (await limiter.info()).reserved == 0, "somebody has reserved"


WORK = Work(
    "limiter", f"{RATE:g} units a second for {TASKS} tasks of each process", run, check, free,
    "admitted",
)  # fmt: skip
