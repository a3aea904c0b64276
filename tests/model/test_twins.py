"""The Lua transitions do what their Python twins do: the same replies, messages and records.

The same random steps go through both under one clock, which fakeredis reads from `time.time()`; on
a real server, whose clock nobody moves, they go with leases too long to end.  That the comparison
finds mistakes is shown by making some.
"""

import random
import uuid
from collections.abc import Callable
from typing import Any
from unittest import mock

import fakeredis
import pytest
import redis

from dsync.local.permits import TRANSITIONS, Permits
from dsync.redis.script import SCRIPTS, Script

Args = dict[str, str | int]
Step = tuple[str, Args]
Message = tuple[str, list[bytes]]

START = 1_800_000_000_000_000  # µs
SILENCE = 6000  # ms
CLAIM = 500  # ms
INBOX = "inbox:"
PROCESSES = ("a", "b", "c.d")
TOMBSTONE = 1500  # ms
LONG = 1_000_000  # ms; longer than a test
TOKENS = tuple(f"{process}.{i}/{CLAIM}" for process in PROCESSES for i in (1, 2))
ZSETS = ("holders", "waiters", "alive", "left")
PARTS = ("state", "holders", "waiters", "since", "alive", "left")


class Difference(AssertionError):
    """The two do not do the same."""


# -- steps ----------------------------------------------------------------------------------------

LEASES = (1, 300, 1000, 60_000)
STAMPS = ("", 0, 1, START - 1, START, START + 5_000_000)
DAY = 86_400_000
END_OF_TIME = 4 * START
# What happens to a clock: it creeps, passes leases and silences, stops, and steps back.
# In ms, and in µs what is not whole.
MOVES = (1, 2, 299, 300, 300, 500, 500, 700, 1000, 1000, TOMBSTONE, SILENCE // 2, SILENCE, -1500)
CREEPS = (0, 1, 500, 999_999, -1)
LEAPS = (SILENCE // 2 + 1, 11 * SILENCE, 4 * DAY, 8 * DAY)


def program(seed: int, block: int, length: int, moving: bool = True) -> list[Step]:
    """Random steps on one record; `block` says whether it is a lock's, whose limit is fixed."""
    rng = random.Random(f"{seed} {block} {moving}")
    eager = rng.choice((1, 4))  # how often tokens are asked for
    kinds = {
        "permit_acquire": 4 * eager, "permit_release": 3, "permit_renew": 1, "permit_revoke": 1,
        "permit_info": 1, "listen": 1, "leave": 0.4,
        "permit_resize": 0 if block else 0.3, "permit_add": 0 if block else 0.5,
        "clock": 5 if moving else 0,
    }  # fmt: skip
    steps: list[Step] = []
    for kind in rng.choices(list(kinds), list(kinds.values()), k=length):
        lease = rng.choice(LEASES) if moving else LONG
        everything: Args = {
            "token": rng.choice(TOKENS),
            "declared": 1 if block else rng.choice((0, 1, 1, 2, 2, 3)),
            "stamp": 0 if block else rng.choice(STAMPS),
            "lease": lease,
            "wait": rng.choice((1, 1, 1, 0)),
            "tombstone": TOMBSTONE if moving else LONG,
            "wanted": rng.choice((0, 1, 2, 3)),
            "block": rng.choice((0, block)) if kind == "permit_renew" else block,
            "claim": CLAIM if moving else LONG,
            "silence": SILENCE if moving else LONG,
            "inbox": INBOX,
        }
        if kind == "permit_release" and rng.random() < 0.7:
            everything["tombstone"] = 0
        if kind == "clock":
            ms, creep = rng.choice(LEAPS if rng.random() < 0.05 else MOVES), rng.choice(CREEPS)
            args: Args = {"us": ms * 1000 if rng.random() < 0.75 else creep}
        elif kind in ("listen", "leave"):
            args = {"process": rng.choice(PROCESSES)}
        else:
            args = {name: everything[name] for name in SCRIPTS[kind].arguments}
        steps.append((kind, args))
    return steps


def at_its_very_end() -> list[Step]:
    """Steps at the millisecond at which a lease, a tombstone or a silence ends."""
    a, b, c = TOKENS[0], TOKENS[2], TOKENS[4]
    common: Args = {
        "declared": 1, "stamp": 0, "lease": 1000, "wait": 1, "claim": CLAIM, "silence": SILENCE,
        "inbox": INBOX, "block": 64, "tombstone": TOMBSTONE,
    }  # fmt: skip
    steps: list[tuple[str, str | int]] = [
        ("permit_release", a), ("clock", TOMBSTONE * 1000), ("permit_acquire", a),
        ("clock", 1_000_000), ("permit_renew", a), ("permit_info", a), ("permit_acquire", a),
        ("permit_acquire", b), ("permit_acquire", c), ("clock", 1_000_000),
        ("permit_acquire", c), ("clock", SILENCE * 1000), ("permit_acquire", a),
        ("clock", SILENCE // 2 * 1000), ("permit_acquire", a), ("permit_info", a),
    ]  # fmt: skip
    return [
        ("clock", {"us": what})
        if kind == "clock"
        else (kind, {n: {**common, "token": what}[n] for n in SCRIPTS[kind].arguments})
        for kind, what in steps
    ]


# -- the two sides --------------------------------------------------------------------------------


class Twin:
    """The Python side: one record, and what it sends to those who listen."""

    def __init__(self, listening: set[str]) -> None:
        self.permits = Permits(self.send)
        self.listening = listening
        self.sent: list[Message] = []

    def send(self, process: str, message: list[bytes]) -> int:
        if process in self.listening:
            self.sent.append((process, message))
        return int(process in self.listening)

    def run(self, transition: str, us: int, args: Args) -> tuple[Any, list[Message]]:
        self.sent.clear()
        return TRANSITIONS[transition](self.permits, us, **args), list(self.sent)

    def record(self) -> dict[str, Any]:
        """Who holds, waits, has left and is alive, as `Server.record` tells it."""
        p = self.permits
        # In the order of a ZSET: by score, then by name.
        return {
            "holders": sorted((end, token) for token, end in p.holders.items()),
            "waiters": [(ticket, token) for token, ticket in p.waiters.items()],
            "alive": sorted((heard, process) for process, heard in p.alive.items()),
            "left": sorted((until, token) for token, until in p.left.items()),
        }


class Server:
    """The Lua side: one record on a server, and one subscription to the channels of those who
    listen, which keeps messages in order."""

    def __init__(self, client: Any, key: str, scripts: dict[str, Script]) -> None:
        self.client = client
        self.keys = {part: f"{{{key}}}:{part}" for part in PARTS}
        self.scripts = scripts
        self.inbox = f"{key}:{INBOX}"
        self.messages = client.pubsub()
        self.messages.subscribe(f"{key}:end")
        self.end = f"{key}:end"

    def close(self) -> None:
        # In this order: else fakeredis keeps on counting it as a receiver.
        self.messages.unsubscribe()
        self.messages.close()

    def listen(self, process: str) -> None:
        self.messages.subscribe(self.inbox + process)

    def leave(self, process: str) -> None:
        self.messages.unsubscribe(self.inbox + process)

    def run(self, transition: str, args: Args) -> tuple[Any, list[Message]]:
        script = self.scripts[transition]
        if "inbox" in args:
            args = {**args, "inbox": self.inbox}
        keys = [self.keys[part] for part in script.keys]
        reply = self.client.eval(script.text, len(keys), *keys, *script.values(args))
        return reply, self.delivered()

    def delivered(self) -> list[Message]:
        """What has been published up to now."""
        self.client.publish(self.end, "")
        got: list[Message] = []
        while True:
            message = self.messages.get_message(timeout=5)
            if message is None or message["type"] != "message":
                continue
            channel = message["channel"].decode()
            if channel == self.end:
                return got
            got.append((channel.removeprefix(self.inbox), message["data"].split(b" ")))

    def gone(self) -> list[str]:
        """The keys that are not there."""
        return [part for part, key in self.keys.items() if not self.client.exists(key)]

    def record(self) -> dict[str, Any]:
        """Who holds, waits, has left and is alive, as `Twin.record` tells it."""
        return {
            part: [
                (int(score), member.decode())
                for member, score in self.client.zrange(self.keys[part], 0, -1, withscores=True)
            ]
            for part in ZSETS
        }


class Watch:
    """What has to hold whatever the steps; looks at the twin before and after each."""

    def __init__(self, permits: Permits) -> None:
        self.permits = permits
        self.fence = 0
        self.queue: list[str] = []
        self.before: tuple[set[str], list[str]] = (set(), [])

    def live(self, now: int) -> set[str]:
        return {token for token, end in self.permits.holders.items() if end > now}

    def remember(self, us: int) -> None:
        now = max(us // 1000, self.permits.clock)
        waiting = [
            token
            for token in self.permits.waiters
            if now - self.permits.alive.get(token.rpartition(".")[0], 0) < SILENCE
        ]
        self.before = self.live(now), waiting
        self.queue = list(self.permits.waiters)

    def check(self, us: int, transition: str, args: Args, reply: Any, sent: list[Message]) -> None:
        permits = self.permits
        now = max(us // 1000, permits.clock)
        held, waited = self.before
        assert not set(permits.holders) & set(permits.waiters), "a token holds and waits"
        live = self.live(now)
        assert len(live) <= permits.capacity() or live <= held, "more holders than the limit"
        arrivals = list(permits.waiters.values())
        assert arrivals == sorted(set(arrivals)), "the queue is out of order"
        won = live - held
        token = str(args.get("token", ""))
        if transition == "permit_acquire" and reply[0] == 1 and token in won:
            assert token in self.queue or not set(waited) & set(permits.waiters), "it barged in"
        if won & set(waited):
            last = max(waited.index(token) for token in won & set(waited))
            assert not set(waited[:last]) & set(permits.waiters), "served out of order"
        if permits.since and won:
            fences = [int(message[2]) for _, message in sent if message[0] == b"g"]
            if transition == "permit_acquire" and reply[0] == 1 and token in won:
                fences.append(reply[1])
            for fence in sorted(fences) if permits.fence else []:
                assert fence > self.fence, "a fence came twice"
                self.fence = fence


# -- both under one clock -------------------------------------------------------------------------

FAKE = fakeredis.FakeRedis()  # one for all: starting its Lua takes longer than many steps


class Clock:
    """What `time.time()` says while a program runs."""

    def __init__(self) -> None:
        self.us = self.latest = START
        self.behind = 0  # µs, the most that it has been behind itself

    def move(self, us: int) -> None:
        self.us += us
        self.latest = max(self.latest, self.us)
        self.behind = max(self.behind, self.latest - self.us)

    def __call__(self) -> float:
        return self.us / 1_000_000


def compare(steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run steps through both sides; Difference says where they part.

    Other scripts than ours only have to differ: the twin's promises are not looked at again.
    """
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "r", scripts)
        try:
            compare_steps(steps, clock, server, promises=scripts is SCRIPTS)
        finally:
            server.close()


def compare_steps(steps: list[Step], clock: Clock, server: Server, promises: bool) -> None:
    listening: set[str] = set()
    twin = Twin(listening)
    watch = Watch(twin.permits)
    for number, (what, args) in enumerate(steps):
        if what == "clock":
            clock.move(int(args["us"]))
            us = clock.us + clock.behind if promises else END_OF_TIME
            forget_what_expired(twin.permits, us, server.gone())
            continue
        if what == "listen":
            if args["process"] not in listening:
                server.listen(str(args["process"]))
                listening.add(str(args["process"]))
            continue
        if what == "leave":
            if args["process"] in listening:
                server.leave(str(args["process"]))
                listening.discard(str(args["process"]))
            continue
        watch.remember(clock.us)
        wanted, sent = twin.run(what, clock.us, args)
        if promises:
            watch.check(clock.us, what, args, wanted, sent)
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


def forget_what_expired(permits: Permits, us: int, gone: list[str]) -> None:
    """A time to live that runs out takes along what is dead, and nothing else.

    Keys expire by the clock as it is, leases end by the record's, which never steps back.
    """
    now = us // 1000
    if "holders" in gone:
        assert all(end <= now for end in permits.holders.values()), "a live holder expired"
        permits.holders.clear()
    if "waiters" in gone:
        heard = (permits.alive.get(token.rpartition(".")[0], 0) for token in permits.waiters)
        assert all(now - last >= SILENCE for last in heard), "a live waiter expired"
        permits.waiters.clear()
    if "alive" in gone:
        assert all(now - last >= SILENCE for last in permits.alive.values())
        permits.alive.clear()
    if "left" in gone:
        assert all(until <= now for until in permits.left.values()), "a tombstone expired early"
        permits.left.clear()
    if "state" in gone and permits.clock:
        assert not permits.holders
        assert not permits.waiters
        assert now - permits.clock > 3 * 86_400_000, "the record expired while it may be in use"
        fresh = Permits(permits.send)
        for field in ("clock", "fence", "limit", "extra", "stamp", "pinned", "ticket", "since"):
            setattr(permits, field, getattr(fresh, field))


def shortest(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    """Steps that still fail, of which few can be left out."""
    for some in (50, 25, 10, 5, 2, 1):
        for i in range(len(steps) - some, -1, -some):
            fewer = steps[:i] + steps[i + some :]
            if fails(fewer):
                steps = fewer
    return steps


def fails(steps: list[Step]) -> bool:
    try:
        compare(steps)
    except AssertionError:
        return True
    return False


def test_scripts_and_twins_do_the_same_at_the_very_end_of_a_time() -> None:
    compare(at_its_very_end())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("block", [64, 0], ids=["lock", "semaphore"])
def test_scripts_and_twins_do_the_same_under_one_clock(block: int, seed: int) -> None:
    steps = program(seed, block, 150)
    if fails(steps):
        few = shortest(steps, fails)
        print("\n".join(map(repr, few)))
        compare(few)


# -- planted mistakes -----------------------------------------------------------------------------

# Each is (what is there, what is put in its place), in every script that has it.
MISTAKES = {
    "a lease that ends now is alive": ("ends and ends > now", "ends and ends >= now"),
    "a lease that ended is renewed": ("not ends or ends <= now", "not ends or ends < now"),
    "a repeated acquire shortens the lease": ("if now + lease > ends then", "if true then"),
    "an ended holder keeps its permit": ("'-inf', now, 'LIMIT'", "'-inf', '(' .. now, 'LIMIT'"),
    "one permit too many": (
        "local taken = redis.call('ZCARD', holders)",
        "local taken = redis.call('ZCARD', holders) - 1",
    ),
    "one permit too few": ("taken < limit", "taken < limit - 1"),
    "grants are not counted": ("taken = taken + 1", "taken = taken + 0"),
    "drops are not counted": ("taken = taken - redis", "taken = taken - 0 * redis"),
    "a served waiter stays": ("redis.call('ZREM', waiters, head)", "redis.call('ZCARD', waiters)"),
    "a waiter that leaves stays": (
        "redis.call('ZREM', waiters, token)",
        "redis.call('ZCARD', waiters)",
    ),
    "no tombstone": ("redis.call('ZADD', left, now + tombstone, token)", ""),
    "nobody looks at tombstones": ("left, token)) or 0) > now", "left, token)) or 0) > us"),
    "a tombstone ends late": ("left, token)) or 0) > now", "left, token)) or 0) >= now"),
    "the silent are served": ("silent < silence", "silent <= silence"),
    "the silent are not skipped": ("silent > silence / 2", "silent >= silence"),
    "the dead are remembered": ("'-inf', now - silence", "'-inf', '(' .. (now - silence)"),
    "a beat is not noted": ("redis.call('ZADD', alive, now, process)", ""),
    "newcomers barge in": (" or ahead > 0", ""),
    "the last one is served first": ("'ZRANGE', waiters, 0, 0)", "'ZREVRANGE', waiters, 0, 0)"),
    "tickets are given twice": ("or 0) + 1, us)", "or 0), us)"),
    "time steps back": ("tonumber(was[2]) or 0)", "0)"),
    "a grant reserves one fence": ("math.max(fence + block, us)", "math.max(fence + 1, us)"),
    "fences follow the clock": ("math.max(fence + block, us)", "us"),
    "a grant has the full lease": ("grant(head, claim", "grant(head, 10 * claim"),
    "an old declaration wins": ("mine > (tonumber", "mine ~= (tonumber"),
    "a pin does not hold": ("not others[2] and mine", "mine"),
    "the extra outlives a resize": ("'extra', 0, 'pinned'", "'pinned'"),
    "resizing does not pin": (", 'pinned', 1)", ")"),
    "adding twice counts twice": ("left, token)) or 0) <= now", "left, token)) or 0) >= 0"),
    "the asker is told": ("local told = {[asker] = true}", "local told = {}"),
    "a process is told twice": ("told[process] = true", ""),
    "no hand-over": ("hand_over('', 0)", ""),
    "a revoked holder is not told": ("'l ' .. token)", "'l')"),
}  # fmt: skip


def with_mistake(old: str, new: str) -> dict[str, Script]:
    assert any(old in script.text for script in SCRIPTS.values()), f"no script has {old!r}"
    return {name: Script(name, script.text.replace(old, new)) for name, script in SCRIPTS.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    scripts = with_mistake(*MISTAKES[mistake])
    with pytest.raises((Difference, redis.ResponseError)):
        compare(at_its_very_end(), scripts)
        for seed in range(20):
            for block in (64, 0):
                compare(program(seed, block, 150), scripts)


# -- bounds ---------------------------------------------------------------------------------------


def both(steps: list[Step]) -> Twin:
    """Run steps without comparing each: the twin and the script have to agree in the end."""
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "r", SCRIPTS)
        twin = Twin({"p"})
        server.listen("p")
        try:
            for what, args in steps:
                if what == "clock":
                    clock.move(int(args["us"]))
                else:
                    twin_says = twin.run(what, clock.us, args)
                    assert server.run(what, args) == twin_says
            assert server.record() == twin.record()
        finally:
            server.close()
    return twin


def acquire(token: str, limit: int, silence: int = SILENCE) -> Step:
    everything: Args = {
        "token": token, "declared": limit, "stamp": 1, "lease": 500, "claim": 500, "wait": 1,
        "block": 0, "inbox": INBOX, "silence": silence,
    }  # fmt: skip
    return "permit_acquire", {n: everything[n] for n in SCRIPTS["permit_acquire"].arguments}


def test_a_step_drops_at_most_a_hundred_ended_holders() -> None:
    hold = [acquire(f"h.{i}/500", 150) for i in range(150)]
    # As many names as there are: ties go by name on both sides.
    twin = both([*hold, ("clock", {"us": 500_000}), acquire("p.1/500", 150), ("permit_info", {})])
    assert len(twin.permits.holders) == 51


def test_a_step_passes_at_most_a_thousand_dead_waiters() -> None:
    queue = [acquire(f"w{i}.1/500", 1) for i in range(1100)]
    ends: list[Step] = [("clock", {"us": SILENCE * 1000})]
    twin = both([*queue, *ends, acquire("p.1/500", 1), ("permit_info", {})])
    assert len(twin.permits.waiters) == 100
    assert "p.1/500" in twin.permits.waiters


def test_at_most_the_first_32_holders_are_told() -> None:
    hold = [acquire(f"{'p' if i == 39 else f'h{i:02}'}.1/500", 40) for i in range(40)]
    twin = both([*hold, acquire("w.1/500", 40)])
    assert not twin.sent, "p is the last of 40, so it is not told"


# -- a real server --------------------------------------------------------------------------------


def without_times(transition: str, reply: Any) -> Any:
    """A reply but for fences and milliseconds, of which two clocks never give the same, nor the
    order in which leases of one length end."""
    if transition == "permit_acquire" and reply[0] == 1:
        return [reply[0], None, *reply[2:]]
    if transition == "permit_acquire":
        return [*reply[:2], None if reply[2] > 0 else reply[2], *reply[3:]]
    if transition == "permit_renew":
        return [reply[0], reply[1] > 0, *reply[2:]]
    if transition == "permit_info":
        return [*reply[:4], sorted(reply[4][::3]), reply[5][::2]]
    return reply


def without_fences(messages: list[Message]) -> list[Message]:
    grants = [(who, [*m[:2], *m[3:]]) for who, m in messages if m[0] == b"g"]
    return grants + sorted((who, m[:1] + m[2:]) for who, m in messages if m[0] != b"g")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("block", [64, 0], ids=["lock", "semaphore"])
def test_a_real_server_does_the_same_as_the_twins(server_url: str, block: int, seed: int) -> None:
    with redis.Redis.from_url(server_url) as client:
        key = f"twins-{uuid.uuid4().hex}"
        server = Server(client, key, SCRIPTS)
        listening: set[str] = set()
        twin = Twin(listening)
        try:
            fence = 0
            for what, args in program(seed, block, 200, moving=False):
                if what == "listen":
                    server.listen(str(args["process"]))
                    listening.add(str(args["process"]))
                    continue
                if what == "leave":
                    server.leave(str(args["process"]))
                    listening.discard(str(args["process"]))
                    continue
                seconds, microseconds = client.time()
                held = set(twin.permits.holders)
                wanted, sent = twin.run(what, seconds * 1_000_000 + microseconds, args)
                got, received = server.run(what, args)
                assert without_times(what, got) == without_times(what, wanted), (what, args)
                assert without_fences(received) == without_fences(sent), (what, args)
                if block:
                    granted = [int(message[2]) for _, message in received if message[0] == b"g"]
                    if what == "permit_acquire" and got[0] == 1 and args["token"] not in held:
                        granted.append(got[1])
                    for number in granted:
                        assert number > fence
                        fence = number
            assert server.record()["holders"] != [] or not twin.permits.holders
            ttls = {part: client.pttl(name) for part, name in server.keys.items()}
            assert -1 not in ttls.values(), f"a key without a time to live: {ttls}"
        finally:
            server.close()
            client.delete(*server.keys.values())


def test_who_asks_again_after_its_lease_waits_and_holds_nothing() -> None:
    """Its entry among the holders has ended, but nobody has had a reason to drop it."""

    def asks(token: str, limit: int, stamp: int, lease: int) -> Step:
        what, args = acquire(token, limit)
        return what, {**args, "stamp": stamp, "lease": lease}

    a, b, c = TOKENS[0], TOKENS[2], TOKENS[4]
    leaves: Args = {"token": b, "claim": CLAIM, "block": 0, "inbox": INBOX, "silence": SILENCE}
    release = {n: {**leaves, "tombstone": 0}[n] for n in SCRIPTS["permit_release"].arguments}
    again: list[Step] = [
        asks(a, 2, 1, 60_000), asks(b, 2, 1, 1000), asks(c, 2, 1, 60_000),
        ("clock", {"us": 1_000_000}), asks(b, 3, 2, 60_000),
    ]  # fmt: skip
    twin = both(again)
    assert not set(twin.permits.holders) & set(twin.permits.waiters)
    twin = both([*again, ("permit_release", release)])
    assert b not in twin.permits.waiters, "it has left"


def test_a_holder_that_died_leaves_nothing_in_the_record() -> None:
    """Its key may expire before anybody asks, and the record of a busy name never does."""
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "r", SCRIPTS)
        try:
            server.run(*acquire("h.1/500", 2))
            fields = FAKE.hlen(server.keys["state"]) + FAKE.hlen(server.keys["since"])
            for i in range(2, 7):
                clock.move(20_000_000)
                server.run(*acquire(f"h.{i}/500", 2))
            assert FAKE.hlen(server.keys["state"]) + FAKE.hlen(server.keys["since"]) == fields
        finally:
            server.close()
