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
TOMBSTONE = st.sampled_from((0, 0, 2, 60_000))
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
    acquire = call(
        "permit_acquire", token=TOKEN, declared=declared, stamp=stamp, lease=lease,
        wait=st.sampled_from((1, 1, 1, 0)),
    )  # fmt: skip
    choices = [
        *[acquire] * 5,
        *[call("permit_release", token=TOKEN, tombstone=TOMBSTONE if moving else st.just(0))] * 2,
        call("permit_release", token=TOKEN, tombstone=st.just(60_000)),
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
                tombstone=TOMBSTONE.filter(bool) if moving else st.just(60_000),
            ),
        ]  # fmt: skip
    if moving:
        choices += [call("clock", us=MICROSECONDS)] * 4
    # Short programs find little, and Hypothesis makes few long ones by itself.
    return st.lists(st.one_of(choices), min_size=25, max_size=50)


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
        """All it knows, as `recorded` reads it from a server."""
        p = self.permits
        numbers = {
            "clock": p.clock, "fence": p.fence, "limit": p.limit or 0, "extra": p.extra,
            "stamp": p.stamp, "ticket": p.ticket, "pinned": int(p.pinned),
        }  # fmt: skip
        return {
            **numbers, "since": p.since, "holders": p.holders, "waiters": list(p.waiters.items()),
            "alive": p.alive, "left": p.left,
        }  # fmt: skip


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
        """All it knows, as `Twin.record` tells it."""
        state = {k.decode(): v for k, v in self.client.hgetall(self.keys["state"]).items()}
        numbers = ("clock", "fence", "limit", "extra", "stamp", "ticket", "pinned")
        sets = {
            part: [
                (token.decode(), int(score))
                for token, score in self.client.zrange(self.keys[part], 0, -1, withscores=True)
            ]
            for part in ("holders", "waiters", "alive", "left")
        }
        return {
            **{name: int(state.get(name, 0)) for name in numbers},
            "since": {name[1:]: int(v) for name, v in state.items() if name[0] == "@"},
            "holders": dict(sets["holders"]), "waiters": sets["waiters"],
            "alive": dict(sets["alive"]), "left": dict(sets["left"]),
        }  # fmt: skip


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

SHARED = fakeredis.FakeServer()  # starting Lua takes most of an example's time


class Clock:
    """What `time.time()` says while a program runs."""

    def __init__(self) -> None:
        self.us = START

    def __call__(self) -> float:
        return self.us / 1_000_000


def compare(program: list[Step], block: int, scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run a program through both sides; Difference says where they part."""
    clock = Clock()
    with mock.patch("time.time", clock), fakeredis.FakeRedis(server=SHARED) as client:
        client.flushall()
        server = Server(client, "r", scripts)
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
    @settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
    @given(steps(block, moving=True))
    def run(program: list[Step]) -> None:
        compare(program, block)

    run()
