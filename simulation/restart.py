"""A server comes back, and everybody who was connected wants to be again."""

import random
from dataclasses import dataclass
from functools import partial

from dsync.redis.link import FIRST_BACKOFF, LONGEST_BACKOFF
from simulation.calibration import Calibration
from simulation.core import Clock, Core, percentile
from simulation.table import Table, figure

__all__ = ["Outcome", "Restart", "Setup", "restarts"]

VISITS = 4  # round trips until a client has asked: HELLO, SETNAME, SETINFO, then all the rest
ROUND_TRIP = 0.0005  # seconds, without the server
SYN_AGAIN = (1.0, 3.0)  # seconds after which a kernel repeats what a full backlog has dropped
LONGEST = 120.0  # seconds that are played through
PLAYED = 2_500  # clients at most; each stands for as many as it takes


@dataclass(frozen=True)
class Setup:
    """Who comes back, and how."""

    clients: int
    questions: float  # seconds of the core: what each asks first
    outage_timeout: float = 10.0
    backlog: int = 511  # connections that wait to be accepted; the server's tcp-backlog
    processes: int = 0  # on which clients share a core each; 0: one for each client

    @property
    def reply_timeout(self) -> float:
        return self.outage_timeout / 3


@dataclass(frozen=True)
class Outcome:
    """When each client was back, seconds, `inf` where it was not in the end; and what it took."""

    back: list[float]
    attempts: float  # connections that each client has tried
    busy: float  # seconds of the server

    def after(self, percent: float) -> float:
        """Until when so many percent were back."""
        return percentile(self.back, percent)


class Restart:
    """Plays it through.  The server is back at 0; nothing reaches it before.

    Large fleets are played by fewer clients that each cost as much more: what is in line at the
    server takes as long, so the times are the same but for the finest grain.
    """

    def __init__(self, setup: Setup, costs: Calibration, rng: random.Random) -> None:
        stands_for = -(-setup.clients // PLAYED)
        self._setup = setup
        self._clients = setup.clients // stands_for
        self._backlog = max(setup.backlog // stands_for, 1)
        self._visit = costs.connect / 1e6 / VISITS * stands_for
        self._questions = setup.questions * stands_for
        self._dial = costs.dial / 1e6 / VISITS
        self._rng = rng
        self._clock = Clock()
        self._server = Core()
        self._hosts = [Core() for _ in range(setup.processes)]
        self._unaccepted = 0
        self._attempts = 0
        self._back: list[float] = []

    def run(self) -> Outcome:
        for client in range(self._clients):
            # All have tried for a while, so they are where they are between two attempts.
            first = self._rng.uniform(0, self._backoff(10))
            self._clock.at(first, partial(self._try, client, 0))
        self._clock.run(LONGEST)
        missing = [float("inf")] * (self._clients - len(self._back))
        return Outcome(self._back + missing, self._attempts / self._clients, self._server.busy)

    def _backoff(self, attempt: int) -> float:
        """As in dsync.redis.link.Link."""
        doubled = FIRST_BACKOFF * float(2 ** min(attempt, 10))
        longest = min(LONGEST_BACKOFF, self._setup.outage_timeout / 5)
        return min(longest, doubled) * self._rng.uniform(0.5, 1.0)

    def _try(self, client: int, attempt: int) -> None:
        self._attempts += 1
        deadline = self._clock.now + self._setup.reply_timeout
        knock = partial(self._knock, client, attempt, deadline, SYN_AGAIN)
        self._clock.at(self._prepared(client), knock)

    def _prepared(self, client: int) -> float:
        """When its process has done its own part of a visit."""
        if not self._hosts:
            return self._clock.now
        return self._hosts[client % len(self._hosts)].serve(self._clock.now, self._dial)

    def _knock(self, client: int, attempt: int, deadline: float, again: tuple[float, ...]) -> None:
        """Ask the kernel for a connection; it drops what does not fit into the backlog."""
        now = self._clock.now
        if self._unaccepted >= self._backlog:
            started = deadline - self._setup.reply_timeout
            if again and started + again[0] < deadline:
                knock = partial(self._knock, client, attempt, deadline, again[1:])
                self._clock.at(started + again[0], knock)
            else:
                self._fail(client, attempt, deadline)
            return
        self._unaccepted += 1
        done = self._server.serve(now, self._visit)
        self._clock.at(done, self._accepted)
        self._next(client, attempt, deadline, 1, done)

    def _accepted(self) -> None:
        self._unaccepted -= 1

    def _next(self, client: int, attempt: int, deadline: float, visit: int, done: float) -> None:
        """Its visit is answered at `done`, if it is still there then."""
        if done > deadline:
            self._fail(client, attempt, deadline)
        elif visit == VISITS:
            self._clock.at(done, partial(self._back.append, done))
        else:
            go_on = partial(self._visited, client, attempt, deadline, visit)
            self._clock.at(done + ROUND_TRIP, go_on)

    def _visited(self, client: int, attempt: int, deadline: float, visit: int) -> None:
        """The answer has come, and the next question is made."""
        send = partial(self._send, client, attempt, deadline, visit + 1)
        self._clock.at(self._prepared(client), send)

    def _send(self, client: int, attempt: int, deadline: float, visit: int) -> None:
        now, cost = self._clock.now, self._visit
        if now > deadline:
            self._fail(client, attempt, now)
            return
        if visit == VISITS:
            # It is connected, and a new time begins to run, that for an answer.
            cost += self._questions
            attempt, deadline = 0, now + self._setup.reply_timeout
        self._next(client, attempt, deadline, visit, self._server.serve(now, cost))

    def _fail(self, client: int, attempt: int, when: float) -> None:
        """It gives up, and tries again after a while; what it has asked is answered in vain."""
        after = when + self._backoff(attempt + 1)
        self._clock.at(after, partial(self._try, client, attempt + 1))


def restarts(costs: Calibration, rng: random.Random) -> Table:
    """By the number of clients, the backlog of the server and the patience of the clients."""
    asked = ("renew", "heartbeat, lock", "heartbeat, bus")
    questions = sum(costs.script[what] + costs.io_batched for what in asked) / 1e6
    rows = []
    for clients, backlog, outage in (
        (1_000, 511, 10.0),
        (10_000, 511, 10.0),
        (10_000, 65_535, 10.0),
        (30_000, 511, 10.0),
        (30_000, 65_535, 10.0),
        (60_000, 511, 10.0),
        (60_000, 65_535, 10.0),
        (60_000, 65_535, 60.0),
        (100_000, 511, 10.0),
        (100_000, 65_535, 60.0),
    ):
        outcome = Restart(Setup(clients, questions, outage, backlog), costs, rng).run()
        rows.append(
            [
                f"{clients:,}",
                f"{backlog:,}",
                f"{outage:g} s",
                *(figure(outcome.after(percent), "s") for percent in (50, 99, 100)),
                figure(outcome.attempts),
            ]
        )
    head = [
        "clients", "`tcp-backlog`", "`outage_timeout`", "half are back in", "99 % in", "all in",
        "attempts each",
    ]  # fmt: skip
    return Table("restart", "After a restart of the server", head, rows)
