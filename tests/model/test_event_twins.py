"""Events: the Lua transitions do what their Python twins do; see test_twins.py for how.

The clock moves back and forth.  What an event says and tells, and what is kept of it and for how
long, is the same on both sides after every step.
"""

import random
import uuid
from typing import Any
from unittest import mock

import pytest
import redis

from dsync.local.events import TRANSITIONS, Signal
from dsync.redis.script import SCRIPTS, Script
from tests.model.test_twins import FAKE, START, Args, Clock, Difference, Step, shortest

TOMBSTONE = 1500  # ms
LONG = 1_000_000  # ms; longer than a test
DAY = 86_400_000
TTLS = (0, 0, 1, 300, 1000, 5000)
TOKENS = tuple(f"{process}.{i}/0" for process in ("a", "b") for i in range(4))
# In ms, and in µs what is not whole.
MOVES = (1, 2, 299, 300, 300, 700, 1000, 1000, TOMBSTONE, 5000, -1, -300, -1500, -5000)
CREEPS = (0, 1, 500, 999, -1)
LEAPS = (DAY, 8 * DAY)
CHANNEL = "event:e"
ONE = "a.0/0"


def step(kind: str, token: str = ONE, ttl: int = 0, tombstone: int = TOMBSTONE) -> Step:
    everything: Args = {"token": token, "ttl": ttl, "channel": CHANNEL, "tombstone": tombstone}
    return f"event_{kind}", {name: everything[name] for name in SCRIPTS[f"event_{kind}"].arguments}


def later(ms: float) -> Step:
    return "clock", {"us": int(ms * 1000)}


def program(seed: int, length: int, moving: bool = True) -> list[Step]:
    """Random steps on one event: few tokens, so many are repeated, before and after it is known."""
    rng = random.Random(f"{seed} {moving}")
    kinds = {"set": 4, "clear": 3, "look": 2, "clock": 5 if moving else 0}
    steps: list[Step] = []
    for i, kind in enumerate(rng.choices(list(kinds), list(kinds.values()), k=length)):
        if kind == "clock":
            ms = rng.choice(LEAPS if rng.random() < 0.05 else MOVES)
            us = ms * 1000 if rng.random() < 0.75 else rng.choice(CREEPS)
            steps.append(("clock", {"us": us}))
            continue
        token = rng.choice(TOKENS) if rng.random() < 0.5 else f"c.{i}/0"
        ttl = rng.choice(TTLS) if moving else rng.choice((0, LONG))
        steps.append(step(kind, token, ttl, TOMBSTONE if moving else LONG))
    return steps


# At the millisecond at which a time or a tombstone ends, and with a clock that steps back.
SCENES: dict[str, list[Step]] = {
    "its time runs out": [
        step("set", ttl=1000), later(999), step("look"), later(1), step("look"),
        step("set", "a.1/0", ttl=1000), later(1000), step("clear", "a.2/0"), step("look"),
    ],
    "its time runs out, and the clock steps back": [
        step("set", ttl=1000), later(1000), step("look"), later(-500), step("look"),
        step("clear", "a.1/0"), later(-1000), step("set", "a.2/0"), step("look"),
    ],
    "its time runs out, and a repeated call looks before the clock steps back": [
        step("set", ttl=1000), later(1000), step("set"), later(-500), step("set", "a.1/0"),
        step("look"),
    ],
    "a repeated call is known for as long": [
        step("set"), step("clear", "a.1/0"), later(TOMBSTONE - 1), step("set"), later(1),
        step("set"), step("look"),
    ],
    "a time is given to one that is set for good": [
        step("set"), step("set", "a.1/0", ttl=300), step("set", "a.2/0"),
        step("set", "a.3/0", ttl=300), later(300), step("look"), step("set", "b.0/0"),
    ],
    "a pulse": [step("set"), step("clear", "a.1/0"), step("set", "a.2/0"), step("clear", "a.3/0")],
    "nobody asks for a week": [
        step("set", ttl=300), later(8 * DAY), step("look"), step("set", "a.1/0"),
        later(100 * DAY), step("look"), step("clear", "a.2/0"), later(8 * DAY), step("look"),
    ],
}  # fmt: skip


# -- the two sides --------------------------------------------------------------------------------


class Twin:
    """The Python side: one event, and what it tells."""

    def __init__(self) -> None:
        self.signal = Signal(self.publish)
        self.told: list[tuple[str, bytes]] = []

    def publish(self, channel: str, payload: bytes) -> int:
        self.told.append((channel, payload))
        return 1

    def run(self, transition: str, us: int, args: Args) -> tuple[Any, list[tuple[str, bytes]]]:
        self.told.clear()
        return TRANSITIONS[transition](self.signal, us, **args), list(self.told)

    def record(self) -> dict[str, Any]:
        signal = self.signal
        return {
            "state": [signal.clock, signal.generation, signal.ends],
            "left": sorted((until, token) for token, until in signal.left.items()),
        }


class Server:
    """The Lua side: one event on a server, and a subscription to its channel."""

    def __init__(self, client: Any, key: str, scripts: dict[str, Script]) -> None:
        self.client = client
        self.keys = {part: f"{{{key}}}:{part}" for part in ("state", "left")}
        self.scripts = scripts
        self.messages = client.pubsub()
        self.prefix = f"{key}:"
        self.messages.subscribe(self.prefix + CHANNEL, f"{key}:end")

    def close(self) -> None:
        self.messages.unsubscribe()
        self.messages.close()
        self.client.delete(*self.keys.values())

    def run(self, transition: str, args: Args) -> tuple[Any, list[tuple[str, bytes]]]:
        script = self.scripts[transition]
        if "channel" in args:
            args = {**args, "channel": self.prefix + str(args["channel"])}
        keys = [self.keys[part] for part in script.keys]
        reply = self.client.eval(script.text, len(keys), *keys, *script.values(args))
        self.client.publish(f"{self.prefix}end", "")
        told: list[tuple[str, bytes]] = []
        while True:
            message = self.messages.get_message(timeout=5)
            if message is None or message["type"] != "message":
                continue
            channel = message["channel"].decode().removeprefix(self.prefix)
            if channel == "end":
                return reply, told
            told.append((channel, message["data"]))

    def record(self) -> dict[str, Any]:
        state = self.client.hmget(self.keys["state"], "clock", "generation", "ends")
        left = self.client.zrange(self.keys["left"], 0, -1, withscores=True)
        return {
            "state": [int(float(value or 0)) for value in state],
            "left": [(int(until), token.decode()) for token, until in left],
        }

    def kept(self) -> list[Any]:
        """All that there is: what each key holds, and for how long."""
        state, left = self.keys.values()
        return [
            self.client.hgetall(state), self.client.pttl(state),
            self.client.zrange(left, 0, -1, withscores=True), self.client.pttl(left),
        ]  # fmt: skip


class Watch:
    """What has to hold whatever the steps; looks at the twin before and after each."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.unset_at: int | None = None  # the generation of the last look that found it unset
        self.was = False
        self.generation = 0
        self.changes = 0
        self.known = False
        self.lasts = 0

    def state(self, us: int) -> bool:
        """Whether it is set, said by its fields."""
        signal = self.signal
        now = max(us // 1000, signal.clock)
        return signal.flag and (signal.ends == 0 or signal.ends > now)

    def remember(self, us: int, args: Args) -> None:
        self.was, self.generation = self.state(us), self.signal.generation
        now = max(us // 1000, self.signal.clock)
        self.known = self.signal.left.get(str(args.get("token")), 0) > now
        # For how long it is set already: ms, -1 for good, 0 not at all.
        self.lasts = (self.signal.ends - now if self.signal.ends else -1) if self.was else 0

    def check(self, us: int, transition: str, args: Args, reply: Any, told: Any) -> None:
        signal = self.signal
        flag, generation, ms = reply
        assert generation == signal.generation
        assert generation >= self.generation, "the generation went back"
        wanted = {"event_set": True, "event_clear": False}.get(transition, self.was)
        if self.known:
            wanted = self.was
            assert not told, "a copy was told"
        assert (flag, self.state(us)) == (int(wanted), wanted), "it is not as it was asked to be"
        moved = generation != self.generation
        assert moved == (wanted != self.was), "the generation moves with the changes, and with them"
        assert len(told) <= 1
        assert told or not moved, "a change was not told"
        for channel, payload in told:
            assert (channel, payload) == (CHANNEL, b"%d %d %d" % (flag, generation, ms))
        assert ms == -1 or (flag and ms > 0)
        if transition == "event_set" and not self.known:
            for_good = self.lasts < 0 or not args["ttl"]
            assert ms == (-1 if for_good else max(args["ttl"], self.lasts)), "it is cut short"
        if transition == "event_look" and self.unset_at is not None and self.changes:
            assert generation > self.unset_at, "a change that nobody can see"
        self.changes += moved
        if transition == "event_look":
            self.unset_at, self.changes = (generation, 0) if not flag else (None, 0)


def compare(steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run steps through both sides; Difference says where they part."""
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "e", scripts)
        twin = Twin()
        try:
            for number, (what, args) in enumerate(steps):
                if what == "clock":
                    clock.move(int(args["us"]))
                    forget_what_expired(twin.signal, clock, server)
                else:
                    compare_step(f"step {number}, {what}({args})", what, args, clock, twin, server)
        finally:
            server.close()


def compare_step(
    where: str, what: str, args: Args, clock: Clock, twin: Twin, server: Server
) -> None:
    watch = Watch(twin.signal)
    watch.remember(clock.us, args)
    before = server.kept()
    wanted, told = twin.run(what, clock.us, args)
    watch.check(clock.us, what, args, wanted, told)
    got, heard = server.run(what, args)
    for aspect, one, other in (
        ("reply", wanted, got),
        ("messages", told, heard),
        ("record", twin.record(), server.record()),
        ("look", twin.run("event_look", clock.us, {})[0], server.run("event_look", {})[0]),
    ):
        if one != other:
            raise Difference(
                f"{where}: the {aspect} of the twin and of the script:\n{one}\n{other}"
            )
    after = server.kept()
    if what == "event_look" and before != after:
        raise Difference(f"{where}: a look changed something:\n{before}\n{after}")
    _, ttl, _, remembered = after
    signal = twin.signal
    if signal.flag and signal.ends == 0:
        assert ttl == -1, "an event that is set for good expires"
    else:
        assert ttl != -1, "an event that is not set for good never expires"
        assert ttl == -2 or ttl > max(0, signal.ends - clock.us // 1000), (
            "it expires while it is set"
        )
    assert remembered != -1, "tombstones without a time to live"


def forget_what_expired(signal: Signal, clock: Clock, server: Server) -> None:
    """A time to live that runs out takes along what nobody needs."""
    now = (clock.us + clock.behind) // 1000
    if not server.client.exists(server.keys["left"]):
        assert all(until <= now for until in signal.left.values()), "a tombstone expired early"
        signal.left.clear()
    if signal.clock and not server.client.exists(server.keys["state"]):
        assert not signal.flag or 0 < signal.ends <= now, "a set event expired"
        assert now - signal.clock > 6 * DAY, "a generation was forgotten while somebody may wait"
        signal.clock = signal.generation = signal.ends = 0
        signal.flag = False


def fails(steps: list[Step]) -> bool:
    try:
        compare(steps)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("scene", SCENES)
def test_scripts_and_twins_do_the_same_at_the_very_end_of_a_time(scene: str) -> None:
    compare(SCENES[scene])


@pytest.mark.parametrize("seed", range(20))
def test_scripts_and_twins_do_the_same_under_one_clock(seed: int) -> None:
    steps = program(seed, 120)
    if fails(steps):
        few = shortest(steps, fails)
        print("\n".join(map(repr, few)))
        compare(few)


def test_who_saw_it_unset_sees_whether_it_was_set_since() -> None:
    """Whatever comes between two looks, and how far the clock steps back."""
    for seed in range(50):
        twin, us, rng = Twin(), START, random.Random(seed)
        noted, seen = twin.run("event_look", us, {})[0], False
        for what, args in program(seed, 300):
            if what == "clock":
                us += int(args["us"])
                continue
            _, told = twin.run(what, us, args)
            seen = seen or any(payload.startswith(b"1") for _, payload in told)
            if rng.random() < 0.2:
                flag, generation, _ = twin.run("event_look", us, {})[0]
                if not noted[0] and seen:
                    assert flag or generation > noted[1], "it was missed"
                if not noted[0] and generation == noted[1]:
                    assert not seen or flag, "it was missed"
                noted, seen = [flag, generation], False


# -- planted mistakes -----------------------------------------------------------------------------

# Each is (what is there, what is put in its place), in every script that has it.
MISTAKES = {
    "a time that ends now has not ended": ("ends == 0 or ends > now", "ends == 0 or ends >= now"),
    "no time ends": ("ends == 0 or ends > now", "true"),
    "an event that is set for good is not set": ("(ends == 0 or ends > now)", "ends > now"),
    "time steps back": ("tonumber(was[2]) or 0)", "0)"),
    "a look says no time": ("flag and ends > 0 and ends - now or -1}", "-1}"),
    "a look says when it ended": (
        "flag and ends > 0 and ends - now or -1}",
        "ends > 0 and ends - now or -1}",
    ),
    "the end is told, not the time": ("ends - now or -1}", "ends or -1}"),
    "nobody knows copies": ("then return true end", "then return false end"),
    "a copy is known for too long": ("left, token)) or 0) > now", "left, token)) or 0) >= now"),
    "a change is known for ever": ("left, token)) or 0) > now", "left, token)) or 0) > 0"),
    "changes are not remembered": ("redis.call('ZADD', left, now + tombstone, token)", ""),
    "changes are remembered by the time": ("now + tombstone, token)", "tombstone, token)"),
    "old changes are not forgotten": ("redis.call('ZREMRANGEBYSCORE', left, '-inf', now)", ""),
    "changes are forgotten late": ("left, '-inf', now)", "left, '-inf', '(' .. now)"),
    "tombstones have no time to live": ("redis.call('PEXPIRE', left,", "math.max(0,"),
    "tombstones do not live long": ("redis.call('PTTL', left), 2 * tombstone", "1, tombstone / 2"),
    "the generation stays": ("if wanted ~= flag then", "if false then"),
    "the generation moves with every call": ("if wanted ~= flag then", "if true then"),
    "the generation follows the clock": ("math.max(generation + 1, us)", "us"),
    "the generation counts": ("math.max(generation + 1, us)", "generation + 1"),
    "the generation is not written": ("'generation', generation, 'ends'", "'ends'"),
    "the flag is not written": ("'flag', flag and 1 or 0,", ""),
    "the end is not written": (
        ",\n    'generation', generation, 'ends', ends)",
        ",\n    'generation', generation)",
    ),
    "the clock is not written": ("'schema', 1, 'clock', now,", "'schema', 1,"),
    "set for good, it expires": ("redis.call('PERSIST', state)", ""),
    "set or not, it stays": ("if flag and ends == 0 then", "if ends == 0 then"),
    "set for a time, it stays": ("if flag and ends == 0 then", "if flag then"),
    "it does not outlive its time": (
        "604800000 + math.max(0, ends - now)",
        "math.max(1, ends - now)",
    ),
    "it never expires": ("redis.call('PEXPIRE', state,", "math.max(0,"),
    "nobody is told": ("redis.pcall('PUBLISH', channel,", "math.max(0, 1, #("),
    "the wrong thing is told": ("(flag and '1 ' or '0 ')", "(flag and '0 ' or '1 ')"),
    "the generation is told in short": ("string.format('%.0f', generation)", "generation"),
    "no time is told": ("(flag and ends > 0 and ends - now or -1))", "'-1')"),
    "setting it again is told": ("not (flag and ends == 0)", "true"),
    "a time is not put off": ("not (flag and ends == 0)", "not flag"),
    "a time ends what is set for good": ("not (flag and ends == 0)", "ttl > 0"),
    "set for good, it ends all the same": ("not (flag and ends == 0)", "not (flag and ttl == 0)"),
    "a time is for good": ("ttl > 0 and math.max(now + ttl, ends) or 0", "0"),
    "a time is for all time": ("ttl > 0 and math.max(now + ttl", "math.max(now + ttl"),
    "a time is cut short": ("math.max(now + ttl, ends)", "now + ttl"),
    "a time begins with the clock": ("math.max(now + ttl", "math.max(math.floor(us / 1000) + ttl"),
    "clearing is not known as a copy": ("if not repeated() and flag then", "if flag then"),
    "an unset event is cleared": ("if not repeated() and flag then", "if not repeated() then"),
    "clearing sets": ("change(false, 0)", "change(true, 0)"),
    "clearing leaves the end": ("change(false, 0)", "change(false, ends)"),
}  # fmt: skip


def with_mistake(old: str, new: str) -> dict[str, Script]:
    assert any(old in s.text for n, s in SCRIPTS.items() if n.startswith("event_")), f"no {old!r}"
    return {name: Script(name, script.text.replace(old, new)) for name, script in SCRIPTS.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    scripts = with_mistake(*MISTAKES[mistake])
    with pytest.raises((AssertionError, redis.ResponseError)):
        for steps in SCENES.values():
            compare(steps, scripts)
        for seed in range(20):
            compare(program(seed, 120), scripts)


# -- a real server --------------------------------------------------------------------------------


def without_times(words: list[Any]) -> list[Any]:
    """{set, generation, ms} but for what two clocks never give the same."""
    flag, generation, ms = map(int, words)
    return [flag, generation > 0, ms > 0]


@pytest.mark.parametrize("seed", range(4))
def test_a_real_server_does_the_same_as_the_twins(server_url: str, seed: int) -> None:
    with redis.Redis.from_url(server_url) as client:
        server = Server(client, f"twins-{uuid.uuid4().hex}", SCRIPTS)
        twin = Twin()
        last = [0, 0]
        try:
            for what, args in program(seed, 150, moving=False):
                seconds, microseconds = client.time()
                wanted, told = twin.run(what, seconds * 1_000_000 + microseconds, args)
                before = server.kept()
                got, heard = server.run(what, args)
                assert without_times(got) == without_times(wanted), (what, args)
                assert [without_times(payload.split()) for _, payload in heard] == [
                    without_times(payload.split()) for _, payload in told
                ]
                now = [wanted[1], got[1]]
                assert [a > b for a, b in zip(now, last, strict=True)] in ([True] * 2, [False] * 2)
                last = now
                _, ttl, _, remembered = server.kept()
                assert (ttl == -1) == (twin.signal.flag and not twin.signal.ends)
                assert remembered != -1
                if what == "event_look":
                    assert server.kept()[::2] == before[::2], "a look changed something"
        finally:
            server.close()
