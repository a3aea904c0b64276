"""The Lua transitions do what their Python twins do: the same replies, messages and records.

The same random steps go through both under one clock, which fakeredis reads from `time.time()`; on
a real server, whose clock nobody moves, they go with leases too long to end.  That the comparison
finds mistakes is shown by making some.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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
TOKENS = tuple(f"{process}.{i}" for process in PROCESSES for i in (1, 2))
PARTS = ("state", "holders", "waiters", "alive", "left")


class Difference(AssertionError):
    """The two do not do the same."""


# -- steps ----------------------------------------------------------------------------------------

TOKEN = st.sampled_from(TOKENS)
LEASE = st.sampled_from((1, 300, 1000, 60_000))
DECLARED = st.integers(0, 3)
STAMP = st.sampled_from(("", 0, 1, START - 1, START, START + 5_000_000))
TOMBSTONE = 1500  # ms, the same for all: the longest of a key decides when it expires
# What happens to a clock: it creeps, passes leases and silences, stops, and steps back.
MICROSECONDS = st.one_of(
    st.sampled_from((0, 1, 500, 1000, 999_999)),
    st.sampled_from((1, 2, 300, 500, 1000, SILENCE // 2, SILENCE // 2 + 1, SILENCE)).map(
        lambda ms: ms * 1000
    ),
    st.integers(0, 2_000_000),
    st.integers(-3_000_000, -1),
    st.sampled_from((11 * SILENCE * 1000, 4 * 86_400_000_000, 8 * 86_400_000_000)),
)


def call(transition: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(transition), st.fixed_dictionaries(fields))


def steps(block: int, moving: bool) -> st.SearchStrategy[list[Step]]:
    """Programs over one record; `block`: whether it is a lock's, whose limit nobody declares."""
    stamp = st.just(0) if block else STAMP
    declared = st.just(1) if block else DECLARED
    lease = LEASE if moving else st.just(1_000_000)
    tombstone = TOMBSTONE if moving else 1_000_000
    acquire = call(
        "permit_acquire", token=TOKEN, declared=declared, stamp=stamp, lease=lease,
        wait=st.sampled_from((1, 1, 1, 0)),
    )  # fmt: skip
    choices = [
        *[acquire] * 5,
        *[call("permit_release", token=TOKEN, tombstone=st.sampled_from((0, 0, tombstone)))] * 3,
        call("permit_renew", token=TOKEN, lease=lease, block=st.sampled_from((0, block))),
        call("permit_revoke", token=TOKEN),
        call("permit_info"),
        call("listen", process=st.sampled_from(PROCESSES)),
        call("leave", process=st.sampled_from(PROCESSES)),
    ]
    if not block:
        choices += [
            call("permit_resize", wanted=DECLARED),
            call(
                "permit_add", token=TOKEN, declared=declared, stamp=stamp,
                tombstone=st.just(tombstone),
            ),
        ]  # fmt: skip
    if moving:
        choices += [call("clock", us=MICROSECONDS)] * 4
    # Short programs find little, and Hypothesis makes few long ones by itself.
    return st.lists(st.one_of(choices), min_size=10, max_size=40)


def completed(transition: str, args: Args, block: int, **common: str | int) -> Args:
    """The arguments of a step with those that are the same in all of a program."""
    known: Args = {"claim": CLAIM, "block": block, "inbox": INBOX, "silence": SILENCE, **common}
    return {name: args.get(name, known.get(name, "")) for name in SCRIPTS[transition].arguments}


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
            for part in PARTS[1:]
        }


class Watch:
    """What has to hold whatever the steps; looks at the twin before and after each."""

    def __init__(self, permits: Permits) -> None:
        self.permits = permits
        self.fence = 0
        self.limit = 1
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
        self.limit = self.permits.capacity()

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
            assert token in waited or not set(waited) & set(permits.waiters), "it barged in"
        served = [position for position, token in enumerate(waited) if token in won]
        assert served == list(range(len(served))) or not sent, "served out of order"
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
        self.us = START

    def __call__(self) -> float:
        return self.us / 1_000_000


def compare(program: list[Step], block: int, scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run a program through both sides; Difference says where they part."""
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "r", scripts)
        try:
            compare_steps(program, block, clock, server)
        finally:
            server.close()


def compare_steps(program: list[Step], block: int, clock: Clock, server: Server) -> None:
    listening: set[str] = set()
    twin = Twin(listening)
    watch = Watch(twin.permits)
    for number, (what, args) in enumerate(program):
        if what == "clock":
            clock.us += int(args["us"])
            forget_what_expired(twin.permits, clock.us, server.gone())
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
        args = completed(what, args, block)
        watch.remember(clock.us)
        wanted, sent = twin.run(what, clock.us, args)
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
    """A time to live that runs out takes along what is dead, and nothing else."""
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


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.mark.parametrize("block", [64, 0], ids=["lock", "semaphore"])
def test_scripts_and_twins_do_the_same_under_one_clock(block: int) -> None:
    @settings(
        max_examples=100, deadline=None, suppress_health_check=QUIET, report_multiple_bugs=False,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(steps(block, moving=True))
    def run(program: list[Step]) -> None:
        compare(program, block)

    run()


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
    "drops are not counted": ("taken = taken - 1", "taken = taken - 0"),
    "a served waiter stays": ("redis.call('ZREM', waiters, head)", "redis.call('ZCARD', waiters)"),
    "a waiter that leaves stays": (
        "redis.call('ZREM', waiters, token)",
        "redis.call('ZCARD', waiters)",
    ),
    "no tombstone": ("redis.call('ZADD', left, now + tombstone, token)", ""),
    "nobody looks at tombstones": ("'ZSCORE', left, token)) or 0) > now", "'ZSCORE', left, token)) or 0) > us"),
    "a tombstone ends late": ("'ZSCORE', left, token)) or 0) > now", "'ZSCORE', left, token)) or 0) >= now"),
    "the silent are served": ("silent < silence", "silent <= silence"),
    "the silent are not skipped": ("silent > silence / 2", "silent >= silence"),
    "the dead are remembered": ("'-inf', now - silence", "'-inf', '(' .. (now - silence)"),
    "a beat is not noted": ("redis.call('ZADD', alive, now, process)", ""),
    "newcomers barge in": (" or redis.call('EXISTS', waiters) == 1", ""),
    "the last one is served first": ("'ZRANGE', waiters, 0, 0)", "'ZREVRANGE', waiters, 0, 0)"),
    "tickets are given twice": ("redis.call('HGET', state, 'ticket')) or 0) + 1", "0) or 0)"),
    "time steps back": ("math.max(math.floor(us / 1000), tonumber(was[2]) or 0)", "math.floor(us / 1000)"),
    "a grant reserves one fence": ("math.max(fence + block, us)", "math.max(fence + 1, us)"),
    "fences follow the clock": ("math.max(fence + block, us)", "us"),
    "a grant has the full lease": ("grant(head, claim", "grant(head, 10 * claim"),
    "an old declaration wins": ("mine > (tonumber", "mine ~= (tonumber"),
    "a pin does not hold": ("not others[2] and mine", "mine"),
    "the extra outlives a resize": ("'extra', 0, 'pinned'", "'pinned'"),
    "resizing does not pin": (", 'pinned', 1)", ")"),
    "adding twice counts twice": ("'ZSCORE', left, token)) or 0) <= now", "'ZSCORE', left, token)) or 0) >= 0"),
    "the asker is told": ("local told = {[asker] = true}", "local told = {}"),
    "a process is told twice": ("told[process] = true", ""),
    "no hand-over": ("hand_over('', 0)", ""),
    "a revoked holder is not told": ("'l ' .. token)", "'l')"),
}  # fmt: skip


def with_mistake(old: str, new: str) -> dict[str, Script]:
    assert any(old in script.text for script in SCRIPTS.values()), f"no script has {old!r}"
    return {
        name: Script(name, script.text.replace(old, new)) for name, script in SCRIPTS.items()
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    scripts = with_mistake(*MISTAKES[mistake])

    @settings(
        max_examples=400, deadline=None, suppress_health_check=QUIET, report_multiple_bugs=False,
        phases=(Phase.generate,), derandomize=True, database=None,
    )  # fmt: skip
    @given(st.sampled_from((64, 0)).flatmap(lambda b: st.tuples(steps(b, moving=True), st.just(b))))
    def run(drawn: tuple[list[Step], int]) -> None:
        compare(*drawn, scripts)

    with pytest.raises((Difference, AssertionError, redis.ResponseError)):
        run()
