"""A small model of how the lock changes hands, walked in every order in which things can happen.

`explore()` walks breadth first through every interleaving of clients, server, messages, clock and a
few faults, and returns the shortest history that breaks a promise.  Every rule of the protocol is a
switch in `Rules`: a rule is worth keeping if the walk finds harm without it.

What is promised (`Violation` has one member for each way to break it):

*   Never do two clients believe at once that they hold the lock.
*   Each new holder has a larger fence than all holders before it.
*   Whoever waits can still be served when no more faults happen and nobody new comes.
*   A token that its living client has given up neither holds the lock nor stands in the queue
    while somebody waits.  (This one costs time only: a lease, at most.)

What is modelled:

*   The server: one holder with the end of its lease, a fence, a queue, tombstones.  `acquire`,
    `leave` and `renew` are atomic, as scripts are.
*   A client: one token for each attempt, one connection.  Commands go up in order; answers and
    pushes come down in order, the push before the answer of the command that caused it.
*   A broken connection (cut): everything on its way down is lost, commands on their way up are lost
    or become *zombies*, which the server may carry out at any later time, in their order.  The
    client keeps what is unanswered and sends it again, in order, once it is connected again.  If
    it notices late, that is a cut and then a slow tick.
*   Time: whole ticks.  The clock waits until every message has arrived and every timer that is due
    has fired; the fault `slow` lets one tick pass without waiting.  A stopped process and a slow
    network look the same: messages lie about while time goes by.  All times are kept as what is
    left or as age, so the states stay finite.
*   Local passing: a client may hand its hold to its next task without asking the server.

Tokens are made before sending, and each command may be repeated without harm: that is built in.

What is left out: clocks that run at different rates (the margin is for them), a server that loses
data, tombstones that expire too early, `try_acquire`, and the hints by which a server skips or
drops waiters that seem dead.  A heartbeat is a waiter's timer that fires early, so it adds nothing.
Fences are counted from the newest that anyone has believed.  Clients are alike, so they are
numbered by their first attempt.

To see the harm that the lack of a rule does, name it, and what may happen:

    python handover_model.py push_needs_fresh_evidence again=1 slow=1
"""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import NamedTuple

LEASE = 3  # ticks the server keeps the lock for a holder that goes silent
CLAIM = 2  # ticks it keeps the lock for a waiter that it granted unasked; shorter than LEASE
BLOCK = 2  # fences reserved by each grant: its own, and one for each local pass
NEVER = 99  # a lease that does not run out, for the runs without that rule
UNSET = -1  # no timer runs

Token = tuple[int, int]  # (client, attempt)

# Phases of a client.
IDLE, WAITING, HOLDING, LATE, CRASHED = "idle", "waiting", "holding", "late", "crashed"
# Commands.  A release is a leave by one who held.
ACQUIRE, LEAVE, RELEASE, RENEW, PING = "acquire", "leave", "release", "renew", "ping"
# Answers, and the one push.
GRANTED, QUEUED, REFUSED, DONE = "granted", "queued", "refused", "done"
RENEWED, GONE = "renewed", "gone"
PUSH = "push"


class Violation(enum.Enum):
    """The ways to break a promise."""

    UNSAFE = "two clients believe that they hold the lock"
    FENCE = "a new holder has a fence that is not larger than an earlier holder's"
    STUCK = "a living waiter can never be served again"
    ORPHAN = "a token that its living client gave up holds or queues while a client waits"


@dataclass(frozen=True)
class Rules:
    """The protocol, one switch for each rule."""

    # A granted answer is believed until the lease's end counted from when its request was sent.
    answer_counts_from_its_send: bool = True
    # A push is believed until the claim's end counted from when the last command answered before it
    # was sent; if that is over, the client asks again and believes the answer.
    push_needs_fresh_evidence: bool = True
    # A push is only for the attempt whose token it names.
    push_names_its_token: bool = True
    # Pushes and answers share a connection, so a push says when it was sent: not before the last
    # answered command.  Off: a push may be overtaken by answers, as on a connection of its own.
    pushes_keep_their_place: bool = True
    # Leaving frees the lock only if the leaving token holds it.
    leave_compares_the_token: bool = True
    # A hand-over mints a fence, as every other grant does.
    hand_over_mints_a_fence: bool = True
    # What the server keeps for a holder, or for one that it granted unasked, runs out.
    leases_expire: bool = True
    claims_expire: bool = True
    # A waiter asks again when the lease that it was told of has run out.
    waiter_asks_again: bool = True
    # After a reconnect, all that is unanswered is sent again, in order; then a waiter asks again.
    unanswered_is_sent_again: bool = True
    waiter_asks_after_reconnect: bool = True
    # A cancelled wait leaves a tombstone: an acquire that arrives later is refused.
    cancel_leaves_a_tombstone: bool = True
    # So does a release, if an acquire of its token may yet arrive: one was unanswered when its
    # connection broke and may be a zombie, or one is unanswered now and may become one.
    release_after_a_cut_leaves_a_tombstone: bool = True
    release_beside_an_acquire_leaves_a_tombstone: bool = True
    # A holder whose time ran out leaves as well, with a tombstone.
    lost_holder_leaves: bool = True
    # The next local task is let in only before the deadline, and inside the reserved fences.
    pass_checks_the_deadline: bool = True
    passes_stay_in_the_block: bool = True

    def without(self, *names: str) -> Rules:
        """The same rules, those named switched off."""
        unknown = set(names) - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}")
        return replace(self, **dict.fromkeys(names, False))


class Budget(NamedTuple):
    """How often each fault may still happen, all clients together."""

    again: int = 0  # no fault: a client wants the lock once more
    ping: int = 0  # no fault: a waiter's connection carries a command about something else
    crash: int = 0
    cut: int = 0  # a connection breaks
    zombie: int = 0  # ... and commands on their way live on
    slow: int = 0  # a tick passes although messages are on their way
    cancel: int = 0


NOTHING_MORE = Budget()


class Command(NamedTuple):
    verb: str
    attempt: int
    age: int  # ticks since it was sent, at most LEASE
    buries: bool  # leaves a tombstone


class Message(NamedTuple):
    """Server to client: an answer, in the order of the commands, or a push."""

    kind: str
    attempt: int
    value: int  # fence of a grant; ticks the holder has left when queued


class Client(NamedTuple):
    phase: str = IDLE
    attempt: int = 0
    # Waiting: ticks until it asks again, UNSET while an acquire is unanswered.
    # Holding: ticks until its own deadline; always more than 0.
    left: int = UNSET
    connected: bool = True
    # Unanswered commands, oldest first.  The first ones, as many as `down` has answers, have been
    # carried out.
    up: tuple[Command, ...] = ()
    down: tuple[Message, ...] = ()
    zombies: tuple[Command, ...] = ()
    evidence: int = CLAIM  # age of the last answered command; CLAIM is too old to prove anything
    cut: bool = False  # a connection broke while an acquire of this attempt was unanswered
    passes: int = 0  # local passes under this grant


class Server(NamedTuple):
    holder: Token | None = None
    left: int = 0  # ticks; the holder's lease has run out at 0
    fence: int = 0
    queue: tuple[Token, ...] = ()
    tombstones: frozenset[Token] = frozenset()


class State(NamedTuple):
    server: Server
    clients: tuple[Client, ...]
    budget: Budget
    fence_broke: bool = False


class Step(NamedTuple):
    label: str
    state: State
    # It will happen in the end, unless a fault prevents it: faults, zombies and newcomers will not.
    certain: bool


class Finding(NamedTuple):
    """What a walk found: the shortest history to a violation, or none."""

    violation: Violation | None
    trace: tuple[str, ...]
    states: int
    seconds: float

    def __str__(self) -> str:
        seen = f"{self.states:,} states in {self.seconds:.1f} s"
        if self.violation is None:
            return f"safe and live: {seen}"
        return "\n".join([f"{self.violation.name}: {self.violation.value} ({seen})", *self.trace])


@dataclass(frozen=True)
class Model:
    """So many clients, each wanting the lock once or more, under these rules and these faults."""

    rules: Rules = Rules()
    clients: int = 2
    budget: Budget = NOTHING_MORE
    local_tasks: bool = False
    every_order: bool = False  # also those orders that make no difference, see `_makes_no_odds`

    def start(self) -> State:
        return State(Server(), (Client(),) * self.clients, self.budget)

    # What can happen next

    def steps(self, state: State) -> Iterator[Step]:
        for index, client in enumerate(state.clients):
            if self._makes_no_odds(state, client):
                yield self._receive(state, index, 0)
                return
        for index, client in enumerate(state.clients):
            if client.phase is not CRASHED:
                yield from self._own_steps(state, index, client)
                yield from self._network_steps(state, index, client)
                yield from self._fault_steps(state, index, client)
            if client.zombies:
                command, *rest = client.zombies
                after = _with(state, index, client._replace(zombies=tuple(rest)))
                after, _ = self._carry_out(after, index, command)
                yield Step(f"server carries out a zombie {_name(index, command)}", after, False)
        if self._is_quiet(state):
            yield Step("a tick passes", self._tick(state), True)
        elif state.budget.slow:
            after = self._tick(_spend(state, "slow"))
            yield Step("FAULT a tick passes, messages still on their way", after, False)

    def _makes_no_odds(self, state: State, client: Client) -> bool:
        """The next message changes nothing but what is unanswered, so it may as well come now.

        Whether it comes before or after any other step makes no difference, except to a cut.
        """
        if not client.down or state.budget.cut or self.every_order:
            return False
        message = client.down[0]
        if message.kind is PUSH and not self.rules.push_names_its_token:
            return False
        return client.phase is IDLE or message.attempt != client.attempt

    def _own_steps(self, state: State, i: int, client: Client) -> Iterator[Step]:
        phase = client.phase
        if phase is IDLE:
            fresh = _ask(client._replace(attempt=client.attempt + 1))
            if client.attempt and state.budget.again:
                after = _with(_spend(state, "again"), i, fresh)
                yield Step(f"{_who(i)} wants the lock again", after, False)
            # Clients are alike: number them by their first attempt.
            elif not client.attempt and (i == 0 or state.clients[i - 1].attempt):
                yield Step(f"{_who(i)} wants the lock", _with(state, i, fresh), False)
        elif phase is WAITING:
            if client.left == 0:
                yield Step(f"{_who(i)}'s timer: asks again", _with(state, i, _ask(client)), True)
            if state.budget.ping:
                after = _with(_spend(state, "ping"), i, _send(client, PING))
                yield Step(f"{_who(i)} sends something else", after, False)
        elif phase is HOLDING:
            rules = self.rules
            buries = (client.cut and rules.release_after_a_cut_leaves_a_tombstone) or (
                _unanswered(client, ACQUIRE) and rules.release_beside_an_acquire_leaves_a_tombstone
            )
            after = _with(state, i, _stop(client, RELEASE, buries))
            yield Step(f"{_who(i)} releases", after, True)
            if client.left < LEASE and not _unanswered(client, RENEW):
                after = _with(state, i, _send(client, RENEW))
                yield Step(f"{_who(i)} renews", after, False)
            if self._may_pass(client):
                after = _believe(state, i, client._replace(passes=client.passes + 1), 1)
                yield Step(f"{_who(i)} passes to its next task", after, False)
        elif phase is LATE:
            yield Step(f"{_who(i)} sees that it is late", _with(state, i, self._lose(client)), True)
            if self._may_pass(client):
                late = client._replace(phase=HOLDING, left=1, passes=client.passes + 1)
                after = _believe(state, i, late, 1)
                yield Step(f"{_who(i)} passes to its next task, too late", after, False)

    def _may_pass(self, client: Client) -> bool:
        limit = BLOCK - 1 if self.rules.passes_stay_in_the_block else BLOCK
        return self.local_tasks and client.passes < limit

    def _network_steps(self, state: State, i: int, client: Client) -> Iterator[Step]:
        if not client.connected:
            yield Step(f"{_who(i)} reconnects", _with(state, i, self._reconnect(client)), True)
            return
        pending = client.up[_answers(client) :]
        if pending:
            command = pending[0]
            after, answer = self._carry_out(state, i, command)
            told = after.clients[i]
            after = _with(after, i, told._replace(down=(*told.down, answer)))
            label = f"server carries out {_name(i, command)}: {answer.kind}"
            yield Step(label, after, True)
        if client.down:
            yield self._receive(state, i, 0)
            overtaking = _first_answer(client)
            if overtaking and not self.rules.pushes_keep_their_place:
                yield self._receive(state, i, overtaking)

    def _fault_steps(self, state: State, i: int, client: Client) -> Iterator[Step]:
        budget = state.budget
        involved = client.phase is not IDLE or bool(client.up)
        exposed = bool(client.up or client.down) or client.phase is WAITING
        if budget.cut and client.connected and exposed:
            yield from self._break(_spend(state, "cut"), i, client, "connection breaks")
        if budget.crash and involved:
            yield from self._break(_spend(state, "crash"), i, client, "crashes")
        if budget.cancel and client.phase is WAITING:
            gone = _stop(client, LEAVE, self.rules.cancel_leaves_a_tombstone)
            after = _with(_spend(state, "cancel"), i, gone)
            yield Step(f"FAULT {_who(i)}'s wait is cancelled", after, False)

    def _break(self, state: State, i: int, client: Client, what: str) -> Iterator[Step]:
        """Lose what is on its way; or let what is on its way up live on, if the budget allows."""
        pending = client.up[_answers(client) :] if client.connected else ()
        if what == "crashes":
            broken = Client(CRASHED, client.attempt, zombies=client.zombies)
        else:
            cut = client.cut or (client.phase is not IDLE and _unanswered(client, ACQUIRE))
            broken = client._replace(connected=False, down=(), evidence=CLAIM, cut=cut)
        yield Step(f"FAULT {_who(i)} {what}", _with(state, i, broken), False)
        if pending and state.budget.zombie:
            haunted = broken._replace(zombies=client.zombies + pending)
            after = _with(_spend(state, "zombie"), i, haunted)
            yield Step(f"FAULT {_who(i)} {what}, its commands become zombies", after, False)

    # Time

    def _is_quiet(self, state: State) -> bool:
        """Every message has arrived, and every timer that is due has fired."""
        for client in state.clients:
            if client.up or client.down or not client.connected or client.phase is LATE:
                return False
            if client.phase is WAITING and client.left == 0:
                return False
        return True

    def _tick(self, state: State) -> State:
        server = state.server
        if 0 < server.left < NEVER:
            server = server._replace(left=server.left - 1)
        return state._replace(server=server, clients=tuple(map(self._age, state.clients)))

    def _age(self, client: Client) -> Client:
        if client.phase is CRASHED:
            return client
        if client.up:
            older = tuple(c._replace(age=min(c.age + 1, LEASE)) for c in client.up)
            client = client._replace(up=older)
        if client.evidence < CLAIM:
            client = client._replace(evidence=client.evidence + 1)
        if client.left > 0:
            client = client._replace(left=client.left - 1)
            if client.phase is HOLDING and not client.left:
                # Nothing of the old task runs on past the deadline.  Without the check, the next
                # task may still be let in before the loss is seen.
                if self.local_tasks and not self.rules.pass_checks_the_deadline:
                    return client._replace(phase=LATE, left=UNSET)
                return self._lose(client)
        return client

    # The client

    def _lose(self, client: Client) -> Client:
        if self.rules.lost_holder_leaves:
            return _stop(client, LEAVE, True)
        return client._replace(phase=IDLE, left=UNSET, cut=False, passes=0)

    def _reconnect(self, client: Client) -> Client:
        again = tuple(c._replace(age=0) for c in client.up)
        if not self.rules.unanswered_is_sent_again:
            again = ()
        client = client._replace(connected=True, up=again)
        if client.phase is WAITING and self.rules.waiter_asks_after_reconnect:
            client = _ask(client)
        return client

    def _receive(self, state: State, i: int, place: int) -> Step:
        client = state.clients[i]
        message = client.down[place]
        client = client._replace(down=client.down[:place] + client.down[place + 1 :])
        age = 0
        if message.kind is not PUSH:
            age = client.up[0].age
            client = client._replace(up=client.up[1:], evidence=min(age, CLAIM))
            if client.phase is IDLE and not client.up and not client.down:
                # Nothing is under way, so an answer comes before the next push.
                client = client._replace(evidence=CLAIM)
        mine = message.attempt == client.attempt
        if message.kind is PUSH and not self.rules.push_names_its_token:
            mine = True
        if mine and client.phase is WAITING:
            after = self._hear_waiting(state, i, client, message, age)
        elif mine and client.phase is HOLDING:
            after = _with(state, i, self._hear_holding(client, message, age))
        else:
            after = _with(state, i, client)
        return Step(f"{_who(i)} receives {_said(i, message)}", after, True)

    def _hear_waiting(self, state: State, i: int, client: Client, said: Message, age: int) -> State:
        if said.kind is GRANTED or said.kind is PUSH:
            left = self._believable(client, said.kind, age)
            if left > 0:
                holding = client._replace(phase=HOLDING, left=left)
                return _believe(state, i, holding, said.value)
            client = _ask(client)
        elif said.kind is QUEUED and not _unanswered(client, ACQUIRE):
            timer = min(said.value, LEASE) if self.rules.waiter_asks_again else UNSET
            client = client._replace(left=timer)
        return _with(state, i, client)

    def _hear_holding(self, client: Client, said: Message, age: int) -> Client:
        if said.kind is GRANTED or said.kind is RENEWED:
            left = self._believable(client, GRANTED, age)
            return client._replace(left=max(client.left, left))
        if said.kind is GONE:
            return self._lose(client)
        return client

    def _believable(self, client: Client, kind: str, age: int) -> int:
        """For how many ticks from now a grant can be believed."""
        if kind is PUSH:
            return CLAIM - (client.evidence if self.rules.push_needs_fresh_evidence else 0)
        return LEASE - (age if self.rules.answer_counts_from_its_send else 0)

    # The server

    def _carry_out(self, state: State, i: int, command: Command) -> tuple[State, Message]:
        verb, attempt, _, buries = command
        token = (i, attempt)
        before = state.server
        if verb is ACQUIRE:
            server, kind, value = self._acquire(before, token)
        elif verb is RENEW:
            server, kind, value = self._renew(before, token)
        elif verb is PING:
            server, kind, value = before, DONE, 0
        else:
            server, kind, value = self._leave(before, token, buries)
        clients = state.clients
        if server.holder != before.holder and server.holder not in (None, token):
            clients = _push(clients, server)
        after = State(server, clients, state.budget, state.fence_broke)
        return after, Message(kind, attempt, value)

    def _acquire(self, server: Server, token: Token) -> tuple[Server, str, int]:
        if token in server.tombstones:
            return server, REFUSED, 0
        lease = LEASE if self.rules.leases_expire else NEVER
        if server.holder is not None and server.left > 0:
            if server.holder == token:
                return server._replace(left=max(server.left, lease)), GRANTED, server.fence
            return _enqueue(server, token), QUEUED, server.left
        if server.queue and server.queue[0] != token:  # the holder died: the queue goes first
            server = self._hand_over(_enqueue(server, token))
            return server, QUEUED, server.left
        fence = server.fence + BLOCK
        server = Server(token, lease, fence, server.queue[1:], server.tombstones)
        return server, GRANTED, fence

    def _leave(self, server: Server, token: Token, buries: bool) -> tuple[Server, str, int]:
        if buries:
            server = server._replace(tombstones=server.tombstones | {token})
        if server.holder == token or not self.rules.leave_compares_the_token:
            if server.queue:
                return self._hand_over(server), DONE, 0
            return server._replace(holder=None, left=0), DONE, 0
        if token in server.queue:
            queue = tuple(other for other in server.queue if other != token)
            server = server._replace(queue=queue)
        return server, DONE, 0

    def _renew(self, server: Server, token: Token) -> tuple[Server, str, int]:
        if server.holder != token or server.left <= 0:
            return server, GONE, 0
        lease = LEASE if self.rules.leases_expire else NEVER
        return server._replace(left=lease), RENEWED, 0

    def _hand_over(self, server: Server) -> Server:
        """Make the head of the queue the holder, for as long as a claim lasts."""
        claim = CLAIM if self.rules.claims_expire else NEVER
        fence = server.fence + (BLOCK if self.rules.hand_over_mints_a_fence else 0)
        return Server(server.queue[0], claim, fence, server.queue[1:], server.tombstones)

    # The promises

    def broken_promise(self, state: State) -> Violation | None:
        """What is wrong with this state itself; STUCK takes the whole graph to see."""
        if sum(client.phase is HOLDING for client in state.clients) > 1:
            return Violation.UNSAFE
        if state.fence_broke:
            return Violation.FENCE
        server = state.server
        tokens = server.queue
        if server.holder is not None and server.left > 0:
            tokens += (server.holder,)
        waiting = any(client.phase is WAITING for client in state.clients)
        if waiting and not all(_cares_for(state.clients[i], attempt) for i, attempt in tokens):
            return Violation.ORPHAN
        return None


# Changes to the server and to one client


def _enqueue(server: Server, token: Token) -> Server:
    if token in server.queue:
        return server
    return server._replace(queue=(*server.queue, token))


def _push(clients: tuple[Client, ...], server: Server) -> tuple[Client, ...]:
    """Tell the new holder, if it can be told."""
    assert server.holder is not None
    i, attempt = server.holder
    client = clients[i]
    if client.phase is CRASHED or not client.connected:
        return clients  # nobody hears it
    client = client._replace(down=(*client.down, Message(PUSH, attempt, server.fence)))
    return (*clients[:i], client, *clients[i + 1 :])


def _who(i: int) -> str:
    return "ABC"[i]


def _with(state: State, i: int, client: Client) -> State:
    server, clients, budget, fence_broke = state
    return State(server, (*clients[:i], client, *clients[i + 1 :]), budget, fence_broke)


def _spend(state: State, what: str) -> State:
    budget = state.budget
    return state._replace(budget=budget._replace(**{what: getattr(budget, what) - 1}))


def _send(client: Client, verb: str, buries: bool = False) -> Client:
    return client._replace(up=(*client.up, Command(verb, client.attempt, 0, buries)))


def _ask(client: Client) -> Client:
    """Wait, with an acquire under way: one that is unanswered already will do.

    It will do after a push, too: had it been carried out before the push, its answer would have
    come before the push.
    """
    client = client._replace(phase=WAITING, left=UNSET)
    return client if _unanswered(client, ACQUIRE) else _send(client, ACQUIRE)


def _stop(client: Client, verb: str, buries: bool) -> Client:
    """Give up what it waits for or holds, and say so in the same lane as all commands before."""
    client = client._replace(phase=IDLE, left=UNSET, cut=False, passes=0)
    return _send(client, verb, buries)


def _believe(state: State, i: int, client: Client, fence: int) -> State:
    """`client` begins to hold with this fence, from which on all fences are counted."""
    state = _with(state, i, client)
    if fence <= 0:
        return state._replace(fence_broke=True)
    clients = tuple(
        c._replace(down=tuple(_count_from(m, fence) for m in c.down)) if c.down else c
        for c in state.clients
    )
    server = state.server._replace(fence=state.server.fence - fence)
    return state._replace(server=server, clients=clients)


def _count_from(message: Message, fence: int) -> Message:
    if message.kind is GRANTED or message.kind is PUSH:
        return message._replace(value=message.value - fence)
    return message


def _unanswered(client: Client, verb: str) -> bool:
    return any(c.verb is verb and c.attempt == client.attempt for c in client.up)


def _answers(client: Client) -> int:
    return sum(message.kind is not PUSH for message in client.down)


def _first_answer(client: Client) -> int:
    """The place in `down` of the first answer, or 0."""
    for place, message in enumerate(client.down):
        if message.kind is not PUSH:
            return place
    return 0


def _cares_for(client: Client, attempt: int) -> bool:
    """It waits or holds with that token, or is about to give it back, or is dead."""
    if client.phase is CRASHED or (client.attempt == attempt and client.phase is not IDLE):
        return True
    return any(c.verb in (LEAVE, RELEASE) and c.attempt == attempt for c in client.up)


def _forget(state: State) -> State:
    """Drop the tombstones that no command can meet any more: fewer states, the same histories."""
    server = state.server
    met = frozenset(
        (i, command.attempt)
        for i, client in enumerate(state.clients)
        for command in client.up + client.zombies
    )
    if server.tombstones <= met:
        return state
    return state._replace(server=server._replace(tombstones=server.tombstones & met))


# Words for people


def _name(i: int, command: Command) -> str:
    return f"{command.verb}({_who(i)}{command.attempt})"


def _said(i: int, message: Message) -> str:
    return f"{message.kind} for {_who(i)}{message.attempt}"


def describe(state: State) -> str:
    """A state on one line."""
    server = state.server
    holder = "free"
    if server.holder is not None:
        left = "ever" if server.left == NEVER else str(server.left)
        holder = f"{_who(server.holder[0])}{server.holder[1]} for {left}"
    queue = " ".join(f"{_who(i)}{attempt}" for i, attempt in server.queue)
    parts = [f"server: {holder}" + (f", queue {queue}" if queue else "")]
    for i, client in enumerate(state.clients):
        for_ = f" {client.left}" if client.left >= 0 else ""
        cut = "" if client.connected else ", cut off"
        parts.append(f"{_who(i)}: {client.phase}{for_}{cut}")
    return " | ".join(parts)


# The walk


def explore(model: Model, limit: int = 2_000_000) -> Finding:
    """Visit every state that can be reached; stop at the first that breaks a promise.

    Raises:
        RuntimeError: there are more than `limit` states.
    """
    began = time.perf_counter()
    start = model.start()
    number: dict[State, int] = {start: 0}
    order: list[State] = [start]
    came_from: list[int] = [0]
    ways_back: list[list[int]] = [[]]  # only along steps that are certain

    def found(violation: Violation | None, last: int) -> Finding:
        trace = _history(model, _path(order, came_from, last)) if violation else ()
        if violation is Violation.STUCK:
            trace += _fate(model, order[last], len(trace))
        return Finding(violation, trace, len(order), time.perf_counter() - began)

    here = 0
    while here < len(order):
        for step in model.steps(order[here]):
            after = step.state
            if after.server.tombstones:
                after = _forget(after)
            there = number.setdefault(after, len(order))
            if there == len(order):
                order.append(after)
                came_from.append(here)
                ways_back.append([])
                violation = model.broken_promise(after)
                if violation:
                    return found(violation, there)
                if there > limit:
                    raise RuntimeError(f"more than {limit:,} states: give {model} fewer faults")
            if step.certain:
                ways_back[there].append(here)
        here += 1

    stuck = min(
        (s for i in range(model.clients) for s in _never_served(order, ways_back, i)), default=None
    )
    return found(None, 0) if stuck is None else found(Violation.STUCK, stuck)


def _never_served(order: list[State], ways_back: list[list[int]], i: int) -> Iterator[int]:
    """The states where client `i` waits, and no certain steps lead to where it does not."""
    served = [state.clients[i].phase is not WAITING for state in order]
    todo = [s for s, is_served in enumerate(served) if is_served]
    while todo:
        for before in ways_back[todo.pop()]:
            if not served[before]:
                served[before] = True
                todo.append(before)
    return (s for s, is_served in enumerate(served) if not is_served)


def _path(order: list[State], came_from: list[int], last: int) -> list[State]:
    path = [last]
    while path[-1]:
        path.append(came_from[path[-1]])
    return [order[place] for place in reversed(path)]


def _history(model: Model, path: list[State]) -> tuple[str, ...]:
    lines: list[str] = []
    for number, (before, after) in enumerate(pairwise(path), start=1):
        label = next(s.label for s in model.steps(before) if _forget(s.state) == after)
        lines.append(_line(number, label, after))
    return tuple(lines)


def _fate(model: Model, state: State, number: int) -> tuple[str, ...]:
    """How it goes on from a stuck state, until nothing new happens."""
    seen = {state}
    lines: list[str] = []
    while True:
        step = next((step for step in model.steps(state) if step.certain), None)
        if step is None:
            return (*lines, "     and nothing more happens")
        state = _forget(step.state)
        if state in seen:
            return (*lines, f"     and so on for ever, from: {step.label}")
        seen.add(state)
        number += 1
        lines.append(_line(number, step.label, state))


def _line(number: int, label: str, state: State) -> str:
    return f"{number:3}. {label:<56} {describe(state)}"


def main(words: list[str]) -> None:
    """Walk without the rules named, with a budget and settings given as name=number."""
    settings = {
        name: int(number) for name, _, number in (w.partition("=") for w in words) if number
    }
    rules = Rules().without(*(word for word in words if "=" not in word))
    clients, local_tasks = settings.pop("clients", 2), bool(settings.pop("local_tasks", 0))
    print(explore(Model(rules, clients, Budget(**settings), local_tasks)))


if __name__ == "__main__":
    main(sys.argv[1:])
