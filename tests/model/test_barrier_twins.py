"""The Lua transitions of Barrier do what their Python twins do; see test_twins.py for how.

Besides the comparison, what a barrier promises is looked at after each step, on the twin.
"""

import random
import uuid
from typing import Any
from unittest import mock

import pytest
import redis

from dsync.local.barriers import TRANSITIONS, Gathering
from dsync.redis.script import SCRIPTS, Script
from tests.model import test_twins as twins
from tests.model.test_twins import Args, Clock, Difference, Message, Step, shortest

MEMORY = 1500  # ms
LONG = 1_000_000  # ms; longer than a test
DAY = 86_400_000
END_OF_TIME = 4 * twins.START  # µs; with a mistake in a script anything may have expired
INBOX = "inbox:"
PROCESSES = ("a", "b", "c.d")
LEASES = (1, 300, 1000, 7000)  # ms
TOKENS = tuple(
    f"{process}.{i}/{lease}" for process in PROCESSES for i, lease in enumerate((300, 2000, 7000))
)
CALLS = tuple(f"{process}.{i}/0" for process in PROCESSES for i in (8, 9))
PARTS = ("state", "arrivals", "draining", "alive", "index", "left")
FIELDS = ("clock", "parties", "generation", "broken", "ticket")
# In ms: past the ends of leases, claims and memories, to their very end, and back.
MOVES = (1, 1, 299, 300, 300, 700, 1000, 1000, MEMORY, 2000, 5000, 5001, 7000, -1500)
CREEPS = (0, 1, 500, 999_999, -1)  # µs
LEAPS = (2 * 7000, 11_000, 4 * DAY, 8 * DAY)


def program(seed: int, length: int, moving: bool = True) -> list[Step]:
    """Random steps on one record."""
    rng = random.Random(f"{seed} {moving}")
    kinds = {
        "barrier_arrive": rng.choice((6, 12)), "barrier_leave": rng.choice((2, 5)),
        "barrier_reset": rng.choice((0.2, 1)), "barrier_info": 1, "listen": 1, "deaf": 0.4,
        "clock": 5 if moving else 0,
    }  # fmt: skip
    usual = rng.choice((1, 2, 3))  # parties
    steps: list[Step] = []
    for kind in rng.choices(list(kinds), list(kinds.values()), k=length):
        everything: Args = {
            "token": rng.choice(CALLS if kind == "barrier_reset" else TOKENS),
            "parties": rng.choice((usual,) * 8 + (1, 2, 3)),
            "lease": rng.choice(LEASES) if moving else LONG,
            "late": rng.choice((0, 0, 1)),
            "abort": rng.choice((0, 0, 1)),
            "memory": MEMORY if moving else LONG,
            "inbox": INBOX,
        }
        if not moving:
            everything["token"] = str(everything["token"]).partition("/")[0] + f"/{LONG}"
        if kind == "clock":
            leap = rng.random() < 0.05
            us = rng.choice(LEAPS if leap else MOVES) * 1000 + rng.choice((0, 0, 0, *CREEPS))
            args: Args = {"us": us if rng.random() < 0.8 else rng.choice(CREEPS)}
        elif kind in ("listen", "deaf"):
            args = {"process": rng.choice(PROCESSES)}
        else:
            args = {name: everything[name] for name in SCRIPTS[kind].arguments}
        steps.append((kind, args))
    return steps


def step(transition: str, token: str = "", **args: str | int) -> Step:
    everything: Args = {
        "token": token, "parties": 2, "lease": 1000, "late": 0, "abort": 0, "memory": MEMORY,
        "inbox": INBOX, **args,
    }  # fmt: skip
    return transition, {name: everything[name] for name in SCRIPTS[transition].arguments}


def clock(ms: int) -> Step:
    return "clock", {"us": ms * 1000}


def at_its_very_end() -> list[Step]:
    """Steps at the millisecond at which a lease, a claim or a memory ends."""
    a, b, c = TOKENS[1], TOKENS[4], TOKENS[7]
    arrive, leave, reset, info = (
        f"barrier_{verb}" for verb in ("arrive", "leave", "reset", "info")
    )
    return [
        ("listen", {"process": "a"}), ("listen", {"process": "b"}),
        # A lease ends, and is renewed by a call.
        step(arrive, a), clock(1000), step(info), step(arrive, b), clock(999), step(arrive, b),
        clock(999), step(info), step(arrive, c), step(info),
        # A claim of 2 s ends; who waits learns when.
        step(arrive, TOKENS[2], lease=7000), step(arrive, TOKENS[5], lease=7000), clock(1999),
        step(arrive, TOKENS[2], lease=7000), clock(1), step(arrive, TOKENS[2], lease=7000),
        # What was not heard is told until it is forgotten.
        step(arrive, c), clock(5000), step(info), step(arrive, TOKENS[5]), clock(2000),
        step(arrive, TOKENS[5]), step(leave, TOKENS[5]), step(arrive, TOKENS[5], parties=1),
        # Refused to the very end.
        step(leave, TOKENS[5]), step(leave, a, late=1), clock(1999), step(arrive, a), clock(1),
        step(arrive, a), step(reset, CALLS[0], abort=1), clock(MEMORY - 1),
        step(reset, CALLS[0]), clock(1), step(reset, CALLS[0]), step(arrive, a),
    ]  # fmt: skip


# -- the two sides --------------------------------------------------------------------------------


class Twin:
    """The Python side: one record, and what it sends to those who listen."""

    def __init__(self, listening: set[str]) -> None:
        self.state = Gathering(self.send)
        self.listening = listening
        self.sent: list[Message] = []

    def send(self, process: str, message: list[bytes]) -> int:
        if process in self.listening:
            self.sent.append((process, message))
        return int(process in self.listening)

    def run(self, transition: str, us: int, args: Args) -> tuple[Any, list[Message]]:
        self.sent.clear()
        return TRANSITIONS[transition](self.state, us, **args), list(self.sent)

    def record(self) -> dict[str, Any]:
        """All there is, as `Server.record` tells it; in the order of a ZSET: score, then name."""
        zsets = {
            part: sorted((score, member) for member, score in getattr(self.state, part).items())
            for part in ("arrivals", "draining", "alive", "left")
        }
        fields = {field: int(getattr(self.state, field)) for field in FIELDS}
        return zsets | fields | {"index": self.state.index}


class Server(twins.Server):
    """The Lua side: one record on a server."""

    def __init__(self, client: Any, key: str, scripts: dict[str, Script]) -> None:
        super().__init__(client, key, scripts)
        self.keys = {part: f"{{{key}}}:{part}" for part in PARTS}

    def record(self) -> dict[str, Any]:
        zsets = {
            part: [
                (int(score), member.decode())
                for member, score in self.client.zrange(self.keys[part], 0, -1, withscores=True)
            ]
            for part in ("arrivals", "draining", "alive", "left")
        }
        values = self.client.hmget(self.keys["state"], FIELDS)
        fields = {field: int(value or 0) for field, value in zip(FIELDS, values, strict=True)}
        index = self.client.hgetall(self.keys["index"])
        return zsets | fields | {"index": {token.decode(): int(i) for token, i in index.items()}}

    def gone(self) -> list[str]:
        return [part for part, key in self.keys.items() if not self.client.exists(key)]

    def ttls(self) -> list[int]:
        return [self.client.pttl(key) for key in self.keys.values()]


class Watch:
    """What has to hold whatever the steps; looks at the twin before and after each."""

    def __init__(self, state: Gathering) -> None:
        self.state = state

    def remember(self, us: int, token: str) -> None:
        state, now = self.state, self.state.at(us)
        self.generation = state.generation
        self.waiting = list(state.arrivals)
        # Whom a trip has to wait for, and whom it must not take.
        self.undrained = {t for t, until in state.draining.items() if until > now and t != token}
        self.dead = {p for p, until in state.alive.items() if until <= now}

    def check(self, us: int, what: str, args: Args, reply: Any, sent: list[Message]) -> None:
        state, now = self.state, self.state.at(us)
        arrivals, token = list(state.arrivals), str(args.get("token", ""))
        tickets = list(state.arrivals.values())
        assert tickets == sorted(set(tickets)), "not in order of arrival"
        undrained = {t for t, until in state.draining.items() if until > now}
        assert not set(arrivals) & undrained, "it waits and has passed"
        assert undrained <= set(state.index)
        assert not (state.broken and arrivals), "somebody waits at a broken barrier"
        assert state.generation - self.generation in (0, 1)
        if state.generation > self.generation:
            assert not self.undrained, "a trip before the last one has drained"
            passed = [t for t in [*self.waiting, token] if t in state.draining]
            passed = list(dict.fromkeys(passed))
            assert len(passed) == state.parties == len(state.draining)
            assert [state.index[t] for t in passed] == list(range(state.parties))
            late = [t for t in self.waiting if t in arrivals]
            assert all(self.waiting.index(t) >= state.parties - 1 for t in late), "overtaken"
            own = token.rpartition(".")[0] if what == "barrier_arrive" else None
            processes = {t.rpartition(".")[0] for t in passed}
            assert not processes & (self.dead - {own}), "a dead one has passed"
        waits = what == "barrier_leave" or (what == "barrier_arrive" and reply[0] >= 0)
        if waits and state.parties and (what == "barrier_leave" or reply[0] == 0):
            enough = len(arrivals) >= state.parties
            assert not enough or state.undrained(now), "all are there and nobody passes"
        if what == "barrier_arrive" and reply[0] == 0:
            assert token in arrivals
        if what == "barrier_leave":
            assert token not in arrivals
            assert token not in state.draining
        if what == "barrier_reset" and reply[0]:
            assert reply[0] == len(self.waiting)


def compare(steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run steps through both sides; Difference says where they part.

    Other scripts than ours only have to differ: promises are not looked at again.
    """
    time, fake = Clock(), twins.FAKE
    with mock.patch("time.time", time):
        fake.flushall()
        server = Server(fake, "r", scripts)
        try:
            compare_steps(steps, time, server, promises=scripts is SCRIPTS)
        finally:
            server.close()


def compare_steps(steps: list[Step], time: Clock, server: Server, promises: bool) -> None:
    listening: set[str] = set()
    twin = Twin(listening)
    watch = Watch(twin.state)
    for number, (what, args) in enumerate(steps):
        if what == "clock":
            time.move(int(args["us"]))
            us = time.us + time.behind if promises else END_OF_TIME
            forget_what_expired(twin.state, us, server.gone())
            continue
        if what in ("listen", "deaf"):
            process = str(args["process"])
            if what == "listen" and process not in listening:
                server.listen(process)
                listening.add(process)
            elif what == "deaf" and process in listening:
                server.leave(process)
                listening.discard(process)
            continue
        watch.remember(time.us, str(args.get("token", "")))
        wanted, sent = twin.run(what, time.us, args)
        if promises:
            watch.check(time.us, what, args, wanted, sent)
        got, received = server.run(what, args)
        for aspect, one, other in (
            ("reply", wanted, got),
            ("messages", sent, received),
            ("record", twin.record(), server.record()),
        ):
            if one != other:
                raise Difference(
                    f"step {number}, {what}({args}): the {aspect} of the twin and of the script:\n"
                    f"{one}\n{other}"
                )
        if -1 in server.ttls():
            raise Difference(f"step {number}, {what}({args}): a key has no time to live")


def forget_what_expired(state: Gathering, us: int, gone: list[str]) -> None:
    """A time to live that runs out takes along what is dead, and nothing else.

    Keys expire by the clock as it is, leases end by the record's, which never steps back.
    """
    now = us // 1000
    if "arrivals" in gone:
        assert not any(state.good(token, now) for token in state.arrivals), "a live arrival expired"
        state.arrivals.clear()
    if "alive" in gone:
        assert all(until <= now for until in state.alive.values()), "a live process expired"
        assert not state.arrivals, "nobody would see that these are dead"
        state.alive.clear()
    if "draining" in gone:
        assert all(until <= now for until in state.draining.values()), "a party has to drain"
        state.draining.clear()
    if "index" in gone:
        assert all(state.left.get(token, 0) <= now for token in state.index), "an index is missed"
        state.index.clear()
    if "left" in gone:
        assert all(until <= now for until in state.left.values()), "a tombstone expired early"
        state.left.clear()
    if "state" in gone and state.clock:
        assert not state.arrivals
        assert not state.draining
        assert now - state.clock > 3 * DAY, "the record expired while it may be in use"
        fresh = Gathering(state.send)
        for field in FIELDS:
            setattr(state, field, getattr(fresh, field))


def fails(steps: list[Step]) -> bool:
    try:
        compare(steps)
    except AssertionError:
        return True
    return False


def test_scripts_and_twins_do_the_same_at_the_very_end_of_a_time() -> None:
    compare(at_its_very_end())


@pytest.mark.parametrize("seed", range(30))
def test_scripts_and_twins_do_the_same_under_one_clock(seed: int) -> None:
    steps = program(seed, 150)
    if fails(steps):
        few = shortest(steps, fails)
        print("\n".join(map(repr, few)))
        compare(few)


def test_programs_trip_drain_break_disagree_and_refuse() -> None:
    """A random program that never comes to the point would compare nothing."""
    codes: dict[int, int] = {}
    trips = told = late = 0
    for seed in range(30):
        time, twin = Clock(), Twin(set(PROCESSES))
        for what, args in program(seed, 150):
            if what == "clock":
                time.move(int(args["us"]))
            elif what not in ("listen", "deaf"):
                reply, sent = twin.run(what, time.us, args)
                told += len(sent)
                if what == "barrier_arrive":
                    codes[reply[0]] = codes.get(reply[0], 0) + 1
                    late += reply[4] > 0
        trips += twin.state.generation
    assert min(codes.get(code, 0) for code in (1, 0, -1, -2, -3)) >= 20, codes
    assert trips > 100
    assert told > 100
    assert late > 10


# -- planted mistakes -----------------------------------------------------------------------------

# Each is (what is there, what is put in its place), in every barrier script that has it.
MISTAKES = {
    "time steps back": ("us / 1000), tonumber(was[2]) or 0)", "us / 1000), 0)"),
    "the dead stay": ("if redis.call('ZCOUNT', alive, '-inf', now) == 0 then", "if true then"),
    "a life that ends now goes on": (
        "'ZREMRANGEBYSCORE', alive, '-inf', now", "'ZREMRANGEBYSCORE', alive, '-inf', now - 1",
    ),
    "the living leave, too": ("if not known[process] then redis", "if true then redis"),
    "a call is no sign of life": (
        "redis.call('ZADD', alive, now + lease", "redis.call('ZADD', alive, 'NX', now + lease",
    ),
    "nobody waits for the last trip": ("or undrained() > 0 then", "then"),
    "a claim ends late": ("draining, '(' .. now, '+inf'", "draining, now, '+inf'"),
    "a claim is a lease": ("math.min(lease_of(token), 5000)", "lease_of(token)"),
    "a claim is long": ("math.min(lease_of(token), 5000)", "5000"),
    "one party is enough less": ("arrivals) < agreed or", "arrivals) < agreed - 1 or"),
    "one party more is wanted": ("arrivals) < agreed or", "arrivals) <= agreed or"),
    "the last come pass first": (
        "'ZRANGE', arrivals, 0, agreed - 1)", "'ZREVRANGE', arrivals, 0, agreed - 1)",
    ),
    "who has passed waits on": (
        "redis.call('ZREMRANGEBYRANK', arrivals, 0, agreed - 1)", "",
    ),
    "all pass": (
        "redis.call('ZREMRANGEBYRANK', arrivals, 0, agreed - 1)", "redis.call('DEL', arrivals)",
    ),
    "the drained are kept": ("redis.call('ZREMRANGEBYSCORE', draining, '-inf', now)", ""),
    "generations stand still": ("generation = generation + 1", ""),
    "a generation is forgotten": ("write('generation', generation)", "write()"),
    "indices begin at one": ("index, token, i - 1)", "index, token, i)"),
    "indices are forgotten": ("redis.call('HSET', index, token, i - 1)", ""),
    "who has passed may come again": ("refuse(token)\n    if token == asker", "if token == asker"),
    "the asker is told": ("if token ~= asker then", "if true then"),
    "nobody is told": ("redis.pcall('PUBLISH', inbox .. process_of(token),", "ipairs({},"),
    "another index is told": ("token .. ' ' .. i - 1", "token .. ' ' .. i"),
    "those who passed are counted as waiting": ("' ' .. waiting)", "' ' .. waiting + #passing)"),
    "an index is not told again": (
        "if passed then return {1, tonumber", "if false then return {1, t",
    ),
    "nobody is refused": ("if refused(token) then return {-3", "if false then return {-3"),
    "refused too long": ("left, token)) or 0) > now", "left, token)) or 0) >= now"),
    "one may wait at a broken barrier": ("if broken == 1 then", "if false then"),
    "the parties change while it drains": (
        "== 0 and undrained() == 0 then agreed", "== 0 then agreed",
    ),
    "the parties never change": (
        "redis.call('ZCARD', arrivals) == 0 and undrained()", "agreed == 0 and undrained()",
    ),
    "parties may differ": ("if parties ~= agreed then", "if false then"),
    "asking again is coming again": ("'ZADD', arrivals, 'NX', ticket", "'ZADD', arrivals, ticket"),
    "tickets are given twice": ("or 0) + 1, us)", "or 0), us)"),
    "the parties are not written": ("write('parties', agreed, 'ticket'", "write('ticket'"),
    "it trips at the next call only": ("passed = trip(token)", "passed = nil"),
    "nobody learns when it has drained": (
        "local last = waiting >= agreed and", "local last = false and",
    ),
    "the first to drain counts": ("draining, -1, -1, 'WITHSCORES'", "draining, 0, 0, 'WITHSCORES'"),
    "who leaves stays": ("redis.call('ZREM', arrivals, token)\nredis", "redis"),
    "who has run drains on": ("redis.call('ZREM', draining, token)", ""),
    "indices are kept": ("redis.call('HDEL', index, token)\n\n", "\n"),
    "no tombstone": ("forget()\n  refuse(token)\nelse", "forget()\nelse"),
    "a tombstone for everybody": ("if late == '1' then", "if true then"),
    "those who are known to be gone are kept": (
        "else\n  redis.call('ZREM', left, token)\nend", "end",
    ),
    "who runs last lets nobody pass": ("trip('')", ""),
    "the dead are let pass by who leaves": ("drop_dead()\ntrip", "trip"),
    "a reset comes twice": ("if refused(token) then return {0, broken} end", ""),
    "a reset is forgotten": ("refuse(token)\nfor _", "for _"),
    "who was broken waits on": ("redis.call('DEL', arrivals)", ""),
    "who was broken comes again": ("for _, waiter in ipairs(waiting) do refuse(waiter) end", ""),
    "an abort is forgotten": ("write('broken', abort)", "write()"),
    "a reset mends nothing": ("write('broken', abort)", "write('broken', math.max(abort, broken))"),
    "nobody hears of a break": ("'b ' .. waiter .. ' ' .. abort", "'b'"),
    "a reset sounds like an abort": ("' ' .. abort", "' 1'"),
    "what is over is kept": ("redis.call('ZREM', left, token)\n    redis", "redis"),
    "indices that are over are kept": ("    redis.call('HDEL', index, token)\n  end", "  end"),
    "what is over is forgotten early": (
        "'ZRANGEBYSCORE', left, '-inf', now,", "'ZRANGEBYSCORE', left, '-inf', now + 1,",
    ),
    "who disagrees shortens what is kept": ("keep()\ndrop_dead()", "drop_dead()"),
    "memory is short": ("math.max(memory, lease_of(token))", "memory"),
    "memory is as short as a lease": ("math.max(memory, lease_of(token))", "lease_of(token)"),
    "the dead are listed": ("if known[process] then", "if true then"),
    "a wait is not measured": ("us - tonumber(all[i + 1])", "us - us"),
    "arrivals outlive what says who is dead": (
        "arrivals, redis.call('PTTL', alive))", "arrivals, 1000 * lease)",
    ),
    "arrivals have no time to live": (
        "if redis.call('PTTL', arrivals) < lease then", "if false then",
    ),
    "lives have no time to live": ("if redis.call('PTTL', alive) < lease then", "if false then"),
    "what has left has no time to live": (
        "if redis.call('PTTL', left) < kept then", "if false then",
    ),
    "draining has no time to live": ("redis.call('PEXPIRE', draining, 10000)", ""),
    "indices have no time to live": ("redis.call('PEXPIRE', index,", "ipairs({},"),
    "the record has no time to live": ("redis.call('PEXPIRE', state, 604800000)", ""),
}  # fmt: skip


def with_mistake(old: str, new: str) -> dict[str, Script]:
    ours = {name: script for name, script in SCRIPTS.items() if name.startswith("barrier_")}
    assert any(old in script.text for script in ours.values()), f"no script has {old!r}"
    return {name: Script(name, script.text.replace(old, new)) for name, script in ours.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    scripts = with_mistake(*MISTAKES[mistake])
    with pytest.raises((AssertionError, redis.ResponseError)):
        compare(at_its_very_end(), scripts)
        for seed in range(30):
            compare(program(seed, 150), scripts)


# -- bounds ---------------------------------------------------------------------------------------


def last_reply(steps: list[Step]) -> Any:
    """What both sides say to the last of many steps; only the replies are compared."""
    state, reply = Gathering(lambda *_: 0), None
    with mock.patch("time.time", Clock()):
        twins.FAKE.flushall()
        server = Server(twins.FAKE, "r", SCRIPTS)
        try:
            for what, args in steps:
                reply = TRANSITIONS[what](state, twins.START, **args)
                assert server.run(what, args)[0] == reply
        finally:
            server.close()
    return reply


def test_the_list_of_those_who_wait_stops_at_a_thousand() -> None:
    come = [step("barrier_arrive", f"p.{i}/1000", parties=1100) for i in range(1010)]
    reply = last_reply([*come, step("barrier_info")])
    assert reply[3] == 1010
    assert len(reply[5]) == 2000


def test_a_barrier_of_very_many_lets_all_pass_at_once() -> None:
    come = [step("barrier_arrive", f"p{i % 7}.{i}/1000", parties=2000) for i in range(2000)]
    assert last_reply(come) == [1, 1999, 0, 0, -1]


# -- a real server --------------------------------------------------------------------------------


def without_times(transition: str, reply: Any) -> Any:
    """A reply but for milliseconds, of which two clocks never give the same."""
    if transition == "barrier_arrive":
        return [*reply[:4], reply[4] > 0]
    if transition == "barrier_info":
        return [*reply[:5], reply[5][::2]]
    return reply


@pytest.mark.parametrize("seed", range(8))
def test_a_real_server_does_the_same_as_the_twins(server_url: str, seed: int) -> None:
    with redis.Redis.from_url(server_url) as client:
        server = Server(client, f"twins-{uuid.uuid4().hex}", SCRIPTS)
        listening: set[str] = set()
        twin = Twin(listening)
        try:
            for what, args in program(seed, 200, moving=False):
                if what == "listen":
                    server.listen(str(args["process"]))
                    listening.add(str(args["process"]))
                    continue
                if what == "deaf":
                    server.leave(str(args["process"]))
                    listening.discard(str(args["process"]))
                    continue
                seconds, microseconds = client.time()
                wanted, sent = twin.run(what, seconds * 1_000_000 + microseconds, args)
                got, received = server.run(what, args)
                assert without_times(what, got) == without_times(what, wanted), (what, args)
                assert received == sent, (what, args)
            assert -1 not in server.ttls()
        finally:
            server.close()
            client.delete(*server.keys.values())
