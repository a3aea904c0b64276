"""A small model of how a notification reaches a sleeper, walked in every order of things.

The lock's own hand-over is handover_model.py's subject; this one takes it as given (whoever is
granted believes it for long enough, or not at all) and looks at what a condition adds: a queue of
sleepers, the move to the lock's queue, waking without a notification, and passing one on.

`explore()` walks every interleaving and returns the shortest history that breaks a promise.  Every
rule of the protocol is a switch in `Rules`.

What is modelled:

*   The server: one holder, whose lease may have run out; its queue; the sleepers; tombstones.
    `acquire`, `yield`, `wake` and `bury` are atomic, as scripts are.  A lease that has run out is
    only found when the next command comes.
*   Clients with one task each.  "W" waits once, and releases.  "N" notifies one, and releases.
*   One connection each: commands go up and answers and grants come down in order.  When it breaks
    (cut), what comes down is lost, what goes up is lost or lives on as *zombies*, and what is
    unanswered is sent again; then the client asks after each of its tokens, once it is answered.
*   The client's bookkeeping as it is in sleepers.py and cohort.py: who asks, who asks again, heirs.
*   Faults, each for so many times: a crash, a cut, a zombie, a cancellation; `slow`: a grant runs
    out before its message has come, or its release; `refuse`: the server refuses a command for a
    moment (it does not know the script), so that those behind it come first.
*   A beat: a token that waits is asked for.  It will come when it is of use; `beat`: also else.

Left out: several conditions on one lock, silence (it only makes a dead client's turn end earlier),
servers that lose data, and `StoreUnavailable`.
"""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

Token = tuple[int, int, bool]  # client, number, whether it is a sleeper's
Words = tuple[object, ...]

IDLE, WANT, HOLD, SLEEP, ENDED, CRASHED = "idle", "want", "hold", "sleep", "ended", "crashed"
GRANTED, QUEUED, REFUSED, ASLEEP = "granted", "queued", "refused", "asleep"


class Violation(enum.Enum):
    UNSAFE = "two clients believe that they hold the lock"
    TWICE = "a token stands in two places"
    GHOST = "a client asks for a sleeper whose task is gone"
    STUCK = "a task never gets the lock that it waits for"
    LOST = "a notification reaches nobody although somebody sleeps"
    SPURIOUS = "a wait returns without a notification although nobody died or was slow"
    ORPHAN = "a token that its living client has given up holds, waits or sleeps in the store"


@dataclass(frozen=True)
class Rules:
    """The protocol, one switch for each rule."""

    # The server.
    # A sleeper gets an heir only if it has not been notified.
    heir_only_if_not_notified: bool = True
    # Waking a sleeper that is not there leaves a tombstone, for it may yet come.
    waking_leaves_a_tombstone: bool = True
    # Who yields joins the sleepers only if it held the lock.
    only_a_holder_falls_asleep: bool = True
    # ... and notifies only if it held the lock or had been notified.
    only_a_holder_notifies: bool = True
    # A notification whose owner has died goes to the next.
    the_dead_pass_on: bool = True
    # ... also if the owner lives, and its release comes after the end of its lease.
    the_late_pass_on: bool = True
    # A sleeper that asks finds the lease that has run out.
    sleepers_move_the_queue: bool = True
    # The client.
    # Whoever sleeps asks, once in a while and after a reconnect.
    sleepers_ask: bool = True
    # Who was cancelled and notified passes it on with its release.
    the_cancelled_pass_on: bool = True
    # A token whose question was repeated, or is unanswered, is released with a tombstone.
    release_leaves_a_tombstone: bool = True
    # ... also if what was repeated only kept a sleeper's place.
    keeping_counts_as_asking: bool = True
    # A sleeper that is woken under its heir's name leaves a tombstone if its question was repeated.
    woken_sleeper_leaves_a_tombstone: bool = True
    # A token has one question on its way: who is cancelled beside it, is woken by the next one.
    one_question_at_a_time: bool = True
    # An heir that has its place already hears the second answer as the first.
    heir_hears_twice: bool = True
    # A sleeper that had been notified has no heir any more.
    notified_has_no_heir: bool = True
    # What an heir gets ends the sleeper's own place as well.
    heir_ends_the_sleeper: bool = True
    # What a task is granted that has the lock already, or had it, is given back.
    who_is_served_takes_no_more: bool = True
    # An heir leaves if its sleeper has got the lock all the same.
    heir_leaves_if_not_needed: bool = True

    def without(self, *names: str) -> Rules:
        unknown = set(names) - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"no such rule: {', '.join(sorted(unknown))}")
        return replace(self, **dict.fromkeys(names, False))


class Budget(NamedTuple):
    cut: int = 0
    zombie: int = 0
    crash: int = 0
    cancel: int = 0
    slow: int = 0
    refuse: int = 0
    beat: int = 0


NOTHING = Budget()


class Command(NamedTuple):
    verb: str
    token: Token
    other: Token | None = None  # the sleeper of a yield, the heir of a wake
    number: int = 0  # notifications of a yield
    own: bool = False  # ... of its own, not passed on
    buries: bool = False
    resent: bool = False


class Answer(NamedTuple):
    said: object  # what became of the token, or whether a yield's held
    woken: bool = False
    stale: bool = False


class Client(NamedTuple):
    program: str
    phase: str = IDLE
    made: int = 0  # tokens
    held: Token | None = None
    buries: bool = False  # its release has to leave a tombstone
    asks: Token | None = None  # a token that is nobody's heir: of an acquire
    sleeper: Token | None = None  # that we hear of
    heir: Token | None = None  # that we hear of
    named: Token | None = None  # the heir that the sleeper's questions name
    current: Token | None = None  # what the task waits under
    notified: bool = False
    cancelled: bool = False
    asking: frozenset[Token] = frozenset()
    again: frozenset[Token] = frozenset()
    resent: frozenset[Token] = frozenset()
    connected: bool = True
    up: tuple[Command, ...] = ()
    down: tuple[tuple[Token, bool] | Answer, ...] = ()  # (granted, stale) or an answer
    zombies: tuple[Command, ...] = ()


class Server(NamedTuple):
    holder: Token | None = None
    ended: bool = False  # the holder's lease
    queue: tuple[Token, ...] = ()
    sleepers: tuple[Token, ...] = ()
    left: frozenset[Token] = frozenset()


class State(NamedTuple):
    server: Server
    clients: tuple[Client, ...]
    budget: Budget
    due: int = 0  # notifications given, not passed to nobody, and not returned from yet
    faulty: bool = False  # a crash or a slow grant has been: returning too often is allowed


class Step(NamedTuple):
    label: str
    state: State
    certain: bool


class Finding(NamedTuple):
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
    """`programs`: one letter for each client; of the W's, a small one sleeps from the start."""

    rules: Rules = Rules()
    programs: str = "wN"
    budget: Budget = NOTHING
    tolerates: tuple[Violation, ...] = ()  # to see what else comes of it

    def start(self) -> State:
        clients: list[Client] = []
        asleep: list[Token] = []
        for i, program in enumerate(self.programs):
            client = Client(program.upper())
            if program == "w":
                token = (i, 1, True)
                asleep.append(token)
                client = client._replace(phase=SLEEP, made=1, sleeper=token, current=token)
            clients.append(client)
        return State(Server(sleepers=tuple(asleep)), tuple(clients), self.budget)

    # -- what can happen --------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step]:
        for i, client in enumerate(state.clients):
            if client.phase is not CRASHED:
                yield from self._client_steps(state, i, client)
            if client.zombies:
                rest = client._replace(zombies=client.zombies[1:])
                after, _ = self._carry_out(_with(state, i, rest), client.zombies[0])
                yield Step(f"server carries out a zombie {_said(client.zombies[0])}", after, False)
        server = state.server
        if server.holder and not server.ended:
            owner = state.clients[server.holder[0]]
            ended = state._replace(server=server._replace(ended=True))
            if owner.phase is CRASHED or not _cares(owner, server.holder):
                yield Step("the holder's lease runs out", ended, True)
            elif owner.held != server.holder and state.budget.slow:
                i, holder = server.holder[0], server.holder
                down = tuple(_staled(owner, place, holder) for place in range(len(owner.down)))
                after = _with(_spend(ended, "slow"), i, owner._replace(down=down))
                yield Step("FAULT the grant runs out unheard", after._replace(faulty=True), False)

    def _client_steps(self, state: State, i: int, client: Client) -> Iterator[Step]:
        who, budget = "ABCD"[i], state.budget
        if client.phase is IDLE:
            token, wants = _fresh(i, client)
            wants = _send(wants._replace(phase=WANT, asks=token, current=token), token)
            yield Step(f"{who} wants the lock", _with(state, i, wants), False)
        elif client.phase is HOLD and client.program == "W":
            if client.current is None:  # it has not slept yet
                yield Step(f"{who} waits", _with(state, i, self._sleep(i, client)), True)
            else:
                yield Step(f"{who} releases", _with(state, i, self._release(client)), True)
        elif client.phase is HOLD:
            yield Step(f"{who} notifies", _with(state, i, self._release(client)), True)
        elif client.phase is SLEEP and not client.cancelled and budget.cancel:
            roused = client._replace(cancelled=True)
            mine = client.sleeper
            if mine is not None and mine == client.current and not client.notified:
                if mine in client.asking and self.rules.one_question_at_a_time:
                    roused = roused._replace(again=roused.again | {mine})
                else:
                    roused = _send(roused, mine)
            yield Step(f"{who} is cancelled", _with(_spend(state, "cancel"), i, roused), False)
        for token in _requests(client):
            if client.connected and token not in client.asking and self._asks(client, token):
                useful = state.server.ended or not _placed(state.server, token, client)
                asked = _with(state, i, _send(client, token))
                if useful:
                    yield Step(f"{who} asks for {_name(token)}", asked, True)
                elif budget.beat:
                    yield Step(f"{who} asks for {_name(token)}", _spend(asked, "beat"), False)
        if not client.connected:
            yield Step(f"{who} reconnects", _with(state, i, self._reconnect(client)), True)
        else:
            answered = sum(type(message) is Answer for message in client.down)
            if len(client.up) > answered:
                command = client.up[answered]
                after, answer = self._carry_out(state, command)
                told = after.clients[i]
                after = _with(after, i, told._replace(down=(*told.down, answer)))
                yield Step(f"server carries out {_said(command)}: {answer.said}", after, True)
                if budget.refuse and len(client.up) > answered + 1:
                    up = (*client.up[:answered], *client.up[answered + 1 :], command)
                    refused = _with(_spend(state, "refuse"), i, client._replace(up=up))
                    yield Step(f"FAULT server refuses {_said(command)} for now", refused, False)
            if client.down:
                yield Step(f"{who} hears {_heard(client)}", self._hear(state, i, client), True)
            exposed = client.up or client.down or client.phase is SLEEP
            if budget.cut and exposed:
                cut = client._replace(connected=False, down=())
                after = _spend(state, "cut")
                yield Step(f"FAULT {who} is cut off", _with(after, i, cut), False)
                if client.up[answered:] and budget.zombie:
                    ghost = cut._replace(zombies=client.zombies + client.up[answered:])
                    after = _with(_spend(after, "zombie"), i, ghost)
                    yield Step(f"FAULT {who} is cut off, commands live on", after, False)
        if budget.crash and client.phase not in (IDLE, ENDED):
            dead = Client(client.program, CRASHED, zombies=client.zombies)
            after = _with(_spend(state, "crash"), i, dead)
            yield Step(f"FAULT {who} dies", after._replace(faulty=True), False)

    def _asks(self, client: Client, token: Token) -> bool:
        return token != client.sleeper or self.rules.sleepers_ask

    # -- the client -------------------------------------------------------------------------------

    def _sleep(self, i: int, client: Client) -> Client:
        assert client.held
        number = client.made + 1
        sleeper = (i, number, True)
        command = Command("yield", client.held, sleeper, buries=client.buries)
        return client._replace(
            phase=SLEEP, made=number, held=None, buries=False, sleeper=sleeper, current=sleeper,
            asking=client.asking | {sleeper}, up=(*client.up, command),
        )  # fmt: skip

    def _release(self, client: Client) -> Client:
        assert client.held
        notifies = client.program == "N"
        passes_on = client.cancelled and client.notified and self.rules.the_cancelled_pass_on
        command = Command(
            "yield", client.held, None, int(notifies or passes_on), notifies, client.buries
        )
        return client._replace(phase=ENDED, held=None, buries=False, up=(*client.up, command))

    def _reconnect(self, client: Client) -> Client:
        up = tuple(command._replace(resent=True) for command in client.up)
        client = client._replace(connected=True, up=up)
        for token in _requests(client):
            if not self._asks(client, token):
                continue
            if token in client.asking:
                client = client._replace(again=client.again | {token})
            else:
                client = _send(client, token)
        return client

    def _hear(self, state: State, i: int, client: Client) -> State:
        message, client = client.down[0], client._replace(down=client.down[1:])
        if not isinstance(message, Answer):
            token, stale = message
            if token not in _requests(client):
                return _with(state, i, client)
            if not stale:
                return self._granted(state, i, client, token)
            if token in client.asking:
                return _with(state, i, client._replace(again=client.again | {token}))
            return _with(state, i, _send(client, token))
        command, client = client.up[0], client._replace(up=client.up[1:])
        if command.verb == "yield":
            if command.other:
                client = self._slept(client, command, bool(message.said))
            return _with(state, i, client)
        if command.verb == "bury":
            return _with(state, i, client)
        token, heir = command.token, command.other
        client = client._replace(asking=client.asking - {token, heir})
        if command.resent and (message.said is not ASLEEP or self.rules.keeping_counts_as_asking):
            client = client._replace(resent=client.resent | {token, *([heir] if heir else [])})
        if heir is None:
            return self._answered(state, i, client, token, message)
        if client.heir != heir:
            return _with(state, i, client)
        if not message.woken:
            client = client._replace(heir=None)
            if self.rules.notified_has_no_heir:
                client = client._replace(named=None)
            if heir in client.resent:
                client = _bury(client, heir)
            return self._answered(state, i, client, token, message)
        if client.sleeper == token:
            client = client._replace(sleeper=None, current=heir)
            if token in client.resent and self.rules.woken_sleeper_leaves_a_tombstone:
                client = _bury(client, token)
        elif client.phase is not SLEEP or client.current != heir or not self.rules.heir_hears_twice:
            client = client._replace(heir=None)
            if self.rules.heir_leaves_if_not_needed:
                client = _bury(client, heir)
            return _with(state, i, client)
        return self._answered(state, i, client, heir, message)

    def _slept(self, client: Client, command: Command, held: bool) -> Client:
        sleeper = command.other
        assert sleeper
        client = client._replace(asking=client.asking - {sleeper})
        if client.sleeper != sleeper:
            return client
        if held:
            return _once_more(client, sleeper)
        if command.resent:
            return _send(client, sleeper)
        heir = client.heir
        client = client._replace(phase=ENDED, sleeper=None, heir=None)
        return _bury(client, heir) if heir else client

    def _answered(self, state: State, i: int, client: Client, token: Token, said: Answer) -> State:
        if token not in _requests(client):
            return _with(state, i, client)
        if said.said is ASLEEP:
            return _with(state, i, _once_more(client, token))
        if token == client.sleeper:
            client = client._replace(notified=said.said is not REFUSED)
        if said.said is QUEUED:
            return _with(state, i, _once_more(client, token))
        if said.said is GRANTED and not said.stale:
            return self._granted(state, i, client, token)
        # Too late to be believed, or refused: another token.
        client = _forget(client, token)
        if said.said is GRANTED:
            client = _bury(client, token)
        fresh, client = _fresh(i, client)
        return _with(state, i, _send(client._replace(asks=fresh, current=fresh), fresh))

    def _granted(self, state: State, i: int, client: Client, token: Token) -> State:
        if client.phase not in (WANT, SLEEP) and self.rules.who_is_served_takes_no_more:
            return _with(state, i, _bury(_forget(client, token), token))
        if token == client.sleeper:
            client = client._replace(notified=True)
        if token == client.heir and self.rules.heir_ends_the_sleeper and client.sleeper:
            client = _bury(client._replace(sleeper=None), client.sleeper)
        dirty = token in client.resent or token in client.asking
        slept = client.phase is SLEEP
        client = _forget(client, token)._replace(
            phase=HOLD, held=token, current=token if slept else None,
            buries=dirty and self.rules.release_leaves_a_tombstone,
        )  # fmt: skip
        state = _with(state, i, client)
        if slept and not client.cancelled:
            state = state._replace(due=state.due - 1 if state.due or not state.faulty else 0)
        return state

    # -- the server -------------------------------------------------------------------------------

    def _carry_out(self, state: State, command: Command) -> tuple[State, Answer]:
        rules, server = self.rules, state.server
        verb, token, other = command.verb, command.token, command.other
        if verb == "acquire":
            state, said = self._take(state, token)
            return state, Answer(said)
        if self.rules.the_late_pass_on and verb in ("yield", "bury"):
            state = self._bury_ended(state)
            server = state.server
        if verb == "bury":
            return self._hand_over(_out(state, token, True)), Answer("done")
        if verb == "yield":
            held = server.holder == token and not server.ended
            notified = held or token in server.queue or not rules.only_a_holder_notifies
            state = _out(state, token, command.buries)
            if notified and command.number:
                state = self._notify(state, command.own)
            server = state.server
            falls = held or not rules.only_a_holder_falls_asleep
            if other and falls and other not in server.left:
                if other not in server.sleepers:
                    server = server._replace(sleepers=(*server.sleepers, other))
                state = state._replace(server=server)
            return self._hand_over(state), Answer(held)
        if other is None and token in server.sleepers:
            if rules.sleepers_move_the_queue:
                state = self._hand_over(state)
            return state, Answer(ASLEEP)
        woken = other is not None and not (
            (token in server.queue or token == server.holder) and rules.heir_only_if_not_notified
        )
        if woken:
            if token in server.sleepers:
                sleepers = tuple(each for each in server.sleepers if each != token)
                server = server._replace(sleepers=sleepers)
            elif rules.waking_leaves_a_tombstone:
                server = server._replace(left=server.left | {token})
            state = state._replace(server=server)
            assert other
            token = other
        state, said = self._take(state, token)
        return state, Answer(said, woken)

    def _take(self, state: State, token: Token) -> tuple[State, str]:
        server = state.server
        if server.holder == token:
            if not server.ended:
                return state, GRANTED
            state = _out(state, token, False)
            server = state.server
        if token in server.left:
            return state, REFUSED
        if token not in server.queue:
            state = state._replace(server=server._replace(queue=(*server.queue, token)))
        state = self._hand_over(state, token)
        return state, GRANTED if state.server.holder == token else QUEUED

    def _notify(self, state: State, own: bool) -> State:
        server = state.server
        if server.sleepers:
            first, *rest = server.sleepers
            server = server._replace(sleepers=tuple(rest), queue=(*server.queue, first))
            return state._replace(server=server, due=state.due + own)
        return state if own else state._replace(due=max(state.due - 1, 0))

    def _bury_ended(self, state: State) -> State:
        holder = state.server.holder
        if holder and state.server.ended:
            state = _out(state, holder, False)
            if holder[2] and self.rules.the_dead_pass_on:
                state = self._notify(state, False)
        return state

    def _hand_over(self, state: State, asker: Token | None = None) -> State:
        state = self._bury_ended(state)
        server = state.server
        if server.holder is None and server.queue:
            head = server.queue[0]
            state = state._replace(server=server._replace(holder=head, queue=server.queue[1:]))
            owner = state.clients[head[0]]
            if head != asker and owner.connected and owner.phase is not CRASHED:
                state = _with(state, head[0], owner._replace(down=(*owner.down, (head, False))))
        return state

    # -- the promises -----------------------------------------------------------------------------

    def broken_promise(self, state: State) -> Violation | None:
        server = state.server
        if sum(client.phase is HOLD for client in state.clients) > 1:
            return Violation.UNSAFE
        if state.due < 0 and not state.faulty:
            return Violation.SPURIOUS
        places = [*server.queue, *server.sleepers, *([server.holder] if server.holder else [])]
        if len(places) != len(set(places)):
            return Violation.TWICE
        for client in state.clients:
            if client.phase not in (SLEEP, CRASHED) and client.sleeper and not client.up:
                return Violation.GHOST
        for token in places:
            if token == server.holder and server.ended:
                continue
            owner = state.clients[token[0]]
            if owner.phase is not CRASHED and not _cares(owner, token):
                return Violation.ORPHAN
        return None


# -- changes --------------------------------------------------------------------------------------


def _with(state: State, i: int, client: Client) -> State:
    clients = state.clients
    return state._replace(clients=(*clients[:i], client, *clients[i + 1 :]))


def _spend(state: State, what: str) -> State:
    budget = state.budget
    return state._replace(budget=budget._replace(**{what: getattr(budget, what) - 1}))


def _fresh(i: int, client: Client) -> tuple[Token, Client]:
    return (i, client.made + 1, False), client._replace(made=client.made + 1)


def _send(client: Client, token: Token) -> Client:
    asking = client.asking | {token}
    if not token[2]:
        return client._replace(asking=asking, up=(*client.up, Command("acquire", token)))
    if client.cancelled and not client.notified and not client.named:
        heir, client = _fresh(token[0], client)
        client = client._replace(heir=heir, named=heir)
        asking |= {heir}
    return client._replace(asking=asking, up=(*client.up, Command("wake", token, client.named)))


def _bury(client: Client, token: Token) -> Client:
    return client._replace(up=(*client.up, Command("bury", token)))


def _once_more(client: Client, token: Token) -> Client:
    if token not in client.again:
        return client
    return _send(client._replace(again=client.again - {token}), token)


def _forget(client: Client, token: Token) -> Client:
    return client._replace(
        asks=None if client.asks == token else client.asks,
        sleeper=None if client.sleeper == token else client.sleeper,
        heir=None if client.heir == token else client.heir,
        again=client.again - {token},
    )


def _out(state: State, token: Token, buries: bool) -> State:
    """It neither holds, waits nor sleeps any more."""
    server = state.server
    if server.holder == token:
        server = server._replace(holder=None, ended=False)
    return state._replace(
        server=server._replace(
            queue=tuple(each for each in server.queue if each != token),
            sleepers=tuple(each for each in server.sleepers if each != token),
            left=server.left | {token} if buries else server.left,
        )
    )


def _requests(client: Client) -> list[Token]:
    """The tokens that it hears of."""
    return [token for token in (client.asks, client.sleeper, client.heir) if token]


def _placed(server: Server, token: Token, client: Client) -> bool:
    """Whether asking for it would bring nothing new."""
    if token in server.queue:
        return token != client.sleeper or client.notified
    return token in server.sleepers and not client.cancelled


def _cares(client: Client, token: Token) -> bool:
    """It waits for it, holds it, or is about to give it back."""
    if token == client.held or token in _requests(client):
        return True
    return any(
        command.token == token and command.verb in ("yield", "bury") for command in client.up
    )


def _staled(owner: Client, place: int, token: Token) -> tuple[Token, bool] | Answer:
    """The message in this place; a grant of this token is too old from now on."""
    message = owner.down[place]
    if type(message) is Answer:
        answers = sum(type(earlier) is Answer for earlier in owner.down[:place])
        command = owner.up[answers]
        about = command.other if message.woken else command.token
        return message._replace(stale=message.stale or about == token)
    return (token, True) if message[0] == token else message


# -- words ----------------------------------------------------------------------------------------


def _name(token: Token | None) -> str:
    return f"{'ABCD'[token[0]]}{token[1]}{'s' * token[2]}" if token else ""


def _said(command: Command) -> str:
    count = f" notifying {command.number}" if command.number else ""
    other = f", {_name(command.other)}" if command.other else ""
    return f"{command.verb}({_name(command.token)}{other}){count}"


def _heard(client: Client) -> str:
    message = client.down[0]
    if isinstance(message, Answer):
        return f"{message.said} to {_said(client.up[0])}"
    assert not isinstance(message, Answer)
    return f"a grant of {_name(message[0])}"


def describe(state: State) -> str:
    server = state.server
    parts = [f"holder {_name(server.holder) or '-'}{' (ended)' * server.ended}"]
    for what in ("queue", "sleepers"):
        tokens = getattr(server, what)
        if tokens:
            parts.append(f"{what} {' '.join(map(_name, tokens))}")
    parts += [f"{'ABCD'[i]} {client.phase}" for i, client in enumerate(state.clients)]
    return ", ".join(parts) + f", due {state.due}"


# -- the walk -------------------------------------------------------------------------------------


def explore(model: Model, limit: int = 600_000) -> Finding:
    """Visit every state that can be reached; stop at the first that breaks a promise."""
    began = time.perf_counter()
    start = _tidy(model.start())
    number: dict[State, int] = {start: 0}
    order, came_from, labels = [start], [0], [""]
    ways_back: list[list[int]] = [[]]  # only along steps that are certain

    def found(violation: Violation | None, last: int) -> Finding:
        trace: list[str] = []
        while violation and last:
            trace.append(f"{labels[last]:<58} {describe(order[last])}")
            last = came_from[last]
        trace = [f"{n:3}. {line}" for n, line in enumerate(reversed(trace), start=1)]
        return Finding(violation, tuple(trace), len(order), time.perf_counter() - began)

    here = 0
    while here < len(order):
        for step in model.steps(order[here]):
            after = _tidy(step.state)
            there = number.setdefault(after, len(order))
            if there == len(order):
                order.append(after)
                came_from.append(here)
                labels.append(step.label)
                ways_back.append([])
                violation = model.broken_promise(after)
                if violation and violation not in model.tolerates:
                    return found(violation, there)
                if there > limit:
                    raise RuntimeError(f"more than {limit:,} states: give {model} fewer faults")
            if step.certain:
                ways_back[there].append(here)
        here += 1
    for i in range(len(model.programs)):
        stuck = _never(order, ways_back, lambda state: _served(state, i))  # noqa: B023
        if stuck is not None:
            return found(Violation.STUCK, stuck)
    lost = _never(order, ways_back, lambda state: not (state.due > 0 and _somebody_sleeps(state)))
    return found(None, 0) if lost is None else found(Violation.LOST, lost)


def _served(state: State, i: int) -> bool:
    client = state.clients[i]
    if client.phase is SLEEP and not client.cancelled:
        return client.sleeper in state.server.sleepers  # it may well sleep for ever
    return client.phase not in (SLEEP, WANT)


def _somebody_sleeps(state: State) -> bool:
    clients = state.clients
    return any(clients[token[0]].phase is SLEEP for token in state.server.sleepers)


def _never(order: list[State], ways_back: list[list[int]], good: object) -> int | None:
    """The first state from which no certain steps lead to a good one."""
    assert callable(good)
    reached = [bool(good(state)) for state in order]
    todo = [number for number, is_good in enumerate(reached) if is_good]
    while todo:
        for before in ways_back[todo.pop()]:
            if not reached[before]:
                reached[before] = True
                todo.append(before)
    return next((number for number, is_good in enumerate(reached) if not is_good), None)


def _tidy(state: State) -> State:
    """Forget what no command can meet any more: fewer states, the same histories."""
    server, clients = state.server, state.clients
    met = {
        token
        for client in clients
        for command in client.up + client.zombies
        for token in (command.token, command.other)
    }
    clients = tuple(
        client._replace(resent=frozenset(_requests(client)) & client.resent)
        if client.resent else client
        for client in clients
    )  # fmt: skip
    if not server.left <= met:
        server = server._replace(left=server.left & met)
    return state._replace(server=server, clients=clients)


def main(words: list[str]) -> None:
    """Walk without the rules named; `wwN` are programs, name=number a budget."""
    budget = {name: int(n) for name, _, n in (word.partition("=") for word in words) if n}
    programs = next((word for word in words if set(word) <= set("wWN")), "wN")
    names = [word for word in words if "=" not in word and word != programs]
    print(explore(Model(Rules().without(*names), programs, Budget(**budget))))


if __name__ == "__main__":
    main(sys.argv[1:])
