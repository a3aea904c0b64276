"""The Lua transitions do what their Python twins do: the same replies, messages and records.

The same random steps go through both under one clock, which fakeredis reads from `time.time()`; on
a real server, whose clock nobody moves, they go with leases too long to end.  That the comparison
finds mistakes is shown by making some.
"""

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import mock

import fakeredis
import pytest
import redis

from dsync.local.permits import TRANSITIONS, Permits, condition_of, process_of
from dsync.names import plain
from dsync.redis.script import SCRIPTS, Script

Args = dict[str, Any]
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
HEIRS = tuple(f"{process}.5/{CLAIM}" for process in PROCESSES)
CONDITIONS = ("not-empty", plain("a.b/12 %c:{é}"))
SLEEPERS = tuple(
    f"{process}.{i}/{CLAIM}/{condition}"
    for process in PROCESSES
    for i in (3, 4)
    for condition in CONDITIONS
)
ZSETS = ("holders", "waiters", "alive", "left")
PARTS = ("state", "holders", "waiters", "since", "alive", "left")


class Difference(AssertionError):
    """The two do not do the same."""


# -- steps ----------------------------------------------------------------------------------------

LEASES = (1, 300, 1000, 60_000)
STAMPS = ("", 0, 1, START - 1, START, START + 5_000_000)
DAY = 86_400_000
# What happens to a clock: it creeps, passes leases and silences, stops, and steps back.
# In ms, and in µs what is not whole.
MOVES = (1, 2, 299, 300, 300, 500, 500, 700, 1000, 1000, TOMBSTONE, SILENCE // 2, SILENCE, -1500)
CREEPS = (0, 1, 500, 999_999, -1)
LEAPS = (SILENCE // 2 + 1, 11 * SILENCE, 4 * DAY, 8 * DAY)


def program(
    seed: int, block: int, length: int, moving: bool = True, sleepy: bool = False
) -> list[Step]:
    """Random steps on one record; `block` says whether it is a lock's, whose limit is fixed.

    Those of a lock are also about its conditions, and with `sleepy` mostly so.
    """
    rng = random.Random(f"{seed} {block} {moving}{' sleepy' if sleepy else ''}")
    eager = rng.choice((1, 4))  # how often tokens are asked for
    kinds = {
        "permit_acquire": 4 * eager, "permit_release": 3, "permit_renew": 1, "permit_revoke": 1,
        "permit_info": 1, "listen": 1, "leave": 0.4,
        "permit_resize": 0 if block else 0.3, "permit_add": 0 if block else 0.5,
        "permit_yield": 0 if not block else 16 if sleepy else 2,
        "permit_wake": 0 if not block else 8 if sleepy else 2,
        "clock": 5 if moving else 0,
    }  # fmt: skip
    if sleepy:
        kinds.update(permit_acquire=8, permit_release=1, leave=1, clock=10 if moving else 0)
    shadow = Shadow(rng)
    steps: list[Step] = []
    leases = LEASES[1:] + LEASES[-1:] if sleepy else LEASES
    for kind in rng.choices(list(kinds), list(kinds.values()), k=length):
        if kind == "permit_yield" and sleepy and not shadow.permits.holders:
            kind = "permit_acquire"
        lease = rng.choice(leases) if moving else LONG
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
        if block:
            shadow.choose(kind, everything)
        if kind == "clock":
            ms, creep = rng.choice(LEAPS if rng.random() < 0.05 else MOVES), rng.choice(CREEPS)
            ms = min(ms, SILENCE // 3) if sleepy and rng.random() < 0.6 else ms
            args: Args = {"us": ms * 1000 if rng.random() < 0.75 else creep}
        elif kind in ("listen", "leave"):
            args = {"process": rng.choice(PROCESSES)}
        else:
            args = {name: everything[name] for name in SCRIPTS[kind].arguments}
        if block:
            shadow.run(kind, args)
        steps.append((kind, args))
    return steps


class Shadow:
    """What has become of a program's steps so far, so that most of the next ones make sense."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.us = START
        self.permits = Permits(lambda process, message: 1)
        self.former: list[Args] = []  # yields and wakes, of which late copies may come
        self.mute = ""  # a process of which nothing is heard for a while

    def run(self, kind: str, args: Args) -> None:
        if kind == "clock":
            self.us += int(args["us"])
        elif kind in SCRIPTS and likely(self.permits, kind, args):
            TRANSITIONS[kind](self.permits, self.us, **args)

    def choose(self, kind: str, args: Args) -> None:
        """Arguments of a step that is about conditions; others may be about sleepers, too."""
        rng, permits = self.rng, self.permits
        if rng.random() < 0.015:
            self.mute = rng.choice(PROCESSES)
        asleep = [token for sleepers in permits.sleepers.values() for token in sleepers]
        tokens, sleepers, asleep, holders, waiters = (
            [token for token in those if process_of(token) != self.mute]
            for those in (TOKENS, SLEEPERS, asleep, permits.holders, permits.waiters)
        )
        if kind == "permit_yield":
            condition = rng.choice(CONDITIONS)
            args["count"] = rng.choice((0, 0, 0, 0, 1, 1, 1, 2, 2**31))
            args["keep"] = int(rng.random() < 0.2)
            args["tombstone"] = 0 if rng.random() < 0.7 else args["tombstone"]
            token = rng.choice(some(rng, (holders, 16), (waiters, 3), (asleep, 1), (tokens, 1)))
            args["token"] = token
            awake = [s for s in sleepers if s.endswith(f"/{condition}") and s not in asleep]
            sleeps = not args["keep"] and rng.random() < 0.8
            if token in asleep or token in waiters:
                args["count"], sleeps = rng.choice((0, 1)), False
                condition = condition_of(token) or condition
            args["condition"] = condition
            args["sleeper"] = rng.choice(awake) if sleeps and awake else ""
        elif kind == "permit_wake":
            notified = [token for token in holders + waiters if condition_of(token)]
            args["token"] = rng.choice(some(rng, (asleep, 12), (notified, 4), (sleepers, 1)))
            heir = f"{process_of(args['token'])}.5/{CLAIM}"
            heir = rng.choice(HEIRS) if rng.random() < 0.1 else heir
            args["heir"] = heir if rng.random() < 0.2 else ""
        elif kind in ("permit_release", "permit_renew", "permit_revoke") and rng.random() < 0.4:
            args["token"] = rng.choice(holders or tokens)
        elif kind == "permit_acquire" and rng.random() < 0.7:
            args["token"] = rng.choice(tokens)
        if kind in ("permit_yield", "permit_wake"):
            if self.former and rng.random() < 0.1:  # a late copy of an earlier step
                former = rng.choice(self.former)
                if former.keys() == args.keys():
                    args.update(former)
            self.former = [*self.former[-20:], dict(args)]


def some(rng: random.Random, *choices: tuple[Sequence[str], int]) -> Sequence[str]:
    """One of the choices that are not empty, by their weights."""
    there = [(tokens, weight) for tokens, weight in choices if tokens]
    return rng.choices([t for t, _ in there], [w for _, w in there])[0]


def likely(permits: Permits, kind: str, args: Args) -> bool:
    """Whether a client would do this as things are: it puts a sleeper to sleep once."""
    sleeper = str(args.get("sleeper") or "")
    return not (
        kind == "permit_yield"
        and sleeper
        and (sleeper in permits.holders or sleeper in permits.waiters or permits.asleep(sleeper))
    )


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
            "sleepers": {
                condition: [(ticket, token) for token, ticket in p.sleepers[condition].items()]
                for condition in CONDITIONS
                if condition in p.sleepers
            },
        }


class Server:
    """The Lua side: one record on a server, and one subscription to the channels of those who
    listen, which keeps messages in order."""

    def __init__(self, client: Any, key: str, scripts: dict[str, Script]) -> None:
        self.client = client
        self.tag = f"{{{key}}}:"
        self.keys = {part: self.tag + part for part in PARTS}
        self.sleepers = {c: f"{self.tag}sleepers:{c}" for c in CONDITIONS}
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
        """The parts that are not there; a condition's sleepers go by its name."""
        keys = {**self.keys, **self.sleepers}
        return [part for part, key in keys.items() if not self.client.exists(key)]

    def lasting(self) -> list[str]:
        """The keys without a time to live."""
        keys = self.client.scan_iter(match=f"{self.tag}*", count=1000)
        return [key.decode() for key in keys if self.client.pttl(key) == -1]

    def delete(self) -> None:
        self.client.delete(*self.keys.values(), *self.sleepers.values())

    def record(self) -> dict[str, Any]:
        """Who holds, waits, sleeps, has left and is alive, as `Twin.record` tells it."""
        sleepers = {condition: self.scores(key) for condition, key in self.sleepers.items()}
        return {part: self.scores(self.keys[part]) for part in ZSETS} | {
            "sleepers": {condition: those for condition, those in sleepers.items() if those}
        }

    def scores(self, key: str) -> list[tuple[int, str]]:
        found = self.client.zrange(key, 0, -1, withscores=True)
        return [(int(score), member.decode()) for member, score in found]


class Watch:
    """What has to hold whatever the steps; looks at the twin before and after each."""

    def __init__(self, permits: Permits, listening: set[str]) -> None:
        self.permits = permits
        self.listening = listening  # the processes that a message reaches
        self.fence = 0
        self.now = 0
        self.seen: Counter[str] = Counter()  # what has happened, and how often
        self.owed: set[str] = set()  # tokens that were notified and have not renewed a lease since
        # Before the step.
        self.holders: dict[str, int] = {}
        self.queue: list[str] = []
        self.sleepers: dict[str, list[str]] = {}
        self.alive: dict[str, int] = {}
        self.left: dict[str, int] = {}

    def live(self, holders: dict[str, int]) -> set[str]:
        return {token for token, end in holders.items() if end > self.now}

    def hears(self, token: str, alive: dict[str, int]) -> bool:
        return self.now - alive.get(process_of(token), 0) < SILENCE

    def absent(self, token: str) -> bool:
        """Whether it may be overtaken: its process does not listen, and was quiet or let a lease
        run out."""
        process = process_of(token)
        ended = {process_of(one) for one, end in self.holders.items() if end <= self.now}
        quiet = self.now - self.alive.get(process, 0) >= SILENCE // 4
        return process not in self.listening and (quiet or process in ended)

    def remember(self, us: int) -> None:
        permits = self.permits
        self.now = max(us // 1000, permits.clock)
        self.holders, self.queue = dict(permits.holders), list(permits.waiters)
        self.alive, self.left = dict(permits.alive), dict(permits.left)
        self.sleepers = {condition: list(those) for condition, those in permits.sleepers.items()}

    def check(self, us: int, transition: str, args: Args, reply: Any, sent: list[Message]) -> None:
        permits = self.permits
        held = self.live(self.holders)
        waited = [token for token in self.queue if self.hears(token, self.alive)]
        assert not set(permits.holders) & set(permits.waiters), "a token holds and waits"
        live = self.live(permits.holders)
        assert len(live) <= permits.capacity() or live <= held, "more holders than the limit"
        arrivals = list(permits.waiters.values())
        assert arrivals == sorted(set(arrivals)), "the queue is out of order"
        moved = self.check_sleepers(transition, args)
        if transition == "permit_wake":
            self.seen["heir"] += reply[5] == 1
            self.check_heir(str(args["token"]), str(args["heir"]), reply)
        if transition == "permit_renew" and reply[0] == 1:
            self.owed.discard(str(args["token"]))
        self.owed = (self.owed | set(moved)) & {*permits.holders, *permits.waiters}
        won = live - held
        reply = in_full(reply)
        asks = transition in ("permit_acquire", "permit_wake") and reply[0] == 1
        asker = str(args["heir"] if asks and reply[5:] == [1] else args.get("token", ""))
        ahead = {token for token in permits.waiters if not self.absent(token)}
        self.seen["overtaken"] += bool(won) and len(permits.waiters) > len(ahead)
        if asks and asker in won:
            assert asker in self.queue or not set(waited) & ahead, "it barged in"
        order = waited + moved
        assert won <= {*self.queue, *moved, asker}, "somebody won who neither waited nor asked"
        if won & set(order):
            last = max(order.index(token) for token in won & set(order))
            assert not set(order[:last]) & ahead, "served out of order"
        if permits.since and won:
            fences = [int(message[2]) for _, message in sent if message[0] == b"g"]
            if asks and asker in won:
                fences.append(reply[1])
            for fence in sorted(fences) if permits.fence else []:
                assert fence > self.fence, "a fence came twice"
                self.fence = fence

    def check_heir(self, token: str, heir: str, reply: Any) -> None:
        """It comes into being only where no notification was spent on the sleeper."""
        notified = token in self.queue or token in self.holders
        slept = token in self.sleepers.get(condition_of(token), [])
        assert (reply[0] == 2) == (slept and not heir), "asleep or not"
        forgotten = 0 if notified or reply[0] == 2 else 2
        assert reply[5] == (int(not notified) if heir else forgotten), "what became of it"
        there = set(self.permits.holders) | set(self.permits.waiters)
        if reply[5] != 1:
            assert heir not in there - set(self.queue) - set(self.holders), "an heir all the same"

    def check_sleepers(self, transition: str, args: Args) -> list[str]:
        """Those who slept and do not any more are the ones who should.  -> the notified, in order

        So many of a condition are notified, the longest sleeping of those alive, as a live holder
        or somebody notified asks for, and one for each of the notified who died.
        """
        permits, token = self.permits, str(args.get("token", ""))
        there = set(permits.holders) | set(permits.waiters)
        asleep = [sleeper for those in permits.sleepers.values() for sleeper in those]
        assert not set(asleep) & there, "a token sleeps, and waits or holds"
        assert len(asleep) == len(set(asleep)), "a token sleeps twice"
        for condition, those in permits.sleepers.items():
            assert {condition_of(sleeper) for sleeper in those} == {condition}
            assert list(those.values()) == sorted(set(those.values())), "sleepers out of order"

        rest = {condition: list(those) for condition, those in self.sleepers.items()}
        moved: list[str] = []
        by_end = sorted(self.holders, key=lambda one: (self.holders[one], one))
        heir = str(args.get("heir", ""))
        held, waited = token in self.live(self.holders), token in self.queue
        leaves = {token, heir} if args.get("keep") != 1 else set()  # of its own accord, not dead
        if transition == "permit_yield" and not args["keep"] and not held and not waited:
            leaves = set()  # its lease had ended, so it was as good as dead
        dead = [one for one in [*by_end, *self.queue] if one not in there | leaves]
        if transition == "permit_yield":
            if not args["keep"]:
                forget(rest, token)
            told = f"{token} {args['condition']}"
            repeated = args["keep"] and self.left.get(told, 0) > self.now
            self.seen["repeated"] += bool(repeated and held)
            if (held and not repeated) or (not args["keep"] and waited):
                moved += self.notified(rest, args["condition"], args["count"], self.alive)
            sleeper = str(args["sleeper"])
            if held and sleeper and self.left.get(sleeper, 0) <= self.now:
                rest.setdefault(condition_of(sleeper), []).append(sleeper)
                self.seen["sleeper"] += 1
            elif held and sleeper:
                self.seen["late sleeper"] += 1
            self.seen["notified"] += len(moved)
        if transition == "permit_wake" and heir and not waited and token not in self.holders:
            forget(rest, token)
        dead += [one for one in moved if one not in there]
        for one in dead:
            if condition_of(one):
                died = "dead holder" if one in self.holders else "dead waiter"
                self.seen[died if one not in moved else "dead at once"] += 1
                more = self.notified(rest, condition_of(one), 1, permits.alive)
                moved += more
                self.seen["passed on"] += len(more)
                dead += [another for another in more if another not in there]
        assert {condition: those for condition, those in rest.items() if those} == {
            condition: list(those) for condition, those in permits.sleepers.items()
        }, "other sleepers were notified than those whose turn it was"
        return moved

    def notified(
        self, rest: dict[str, list[str]], condition: Any, count: Any, alive: dict[str, int]
    ) -> list[str]:
        """Take out of `rest` the first `count` that live; the dead before them go, too."""
        moved: list[str] = []
        those = rest.get(condition, [])
        while those and len(moved) < count:
            first = those.pop(0)
            if self.hears(first, alive):
                moved.append(first)
            else:
                self.seen["dead sleeper"] += 1
        return moved


def forget(rest: dict[str, list[str]], token: str) -> None:
    those = rest.get(condition_of(token), [])
    if token in those:
        those.remove(token)


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


def compare(steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> Watch:
    """Run steps through both sides; Difference says where they part."""
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "r", scripts)
        try:
            return compare_steps(steps, clock, server)
        finally:
            server.close()


def compare_steps(steps: list[Step], clock: Clock, server: Server) -> Watch:
    listening: set[str] = set()
    twin = Twin(listening)
    watch = Watch(twin.permits, twin.listening)
    for number, (what, args) in enumerate(steps):
        if what == "clock":
            clock.move(int(args["us"]))
            assert not server.lasting(), "a key without a time to live"
            forget_what_expired(twin.permits, clock.us + clock.behind, server.gone(), watch.owed)
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
        if not likely(twin.permits, what, args):
            continue
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
    return watch


def forget_what_expired(
    permits: Permits, us: int, gone: list[str], notified: Iterable[str] = ()
) -> None:
    """A time to live that runs out takes along what is dead, and nothing else.

    Keys expire by the clock as it is, leases end by the record's, which never steps back.
    """
    now = us // 1000

    def dead(token: str) -> bool:
        return now - permits.alive.get(process_of(token), 0) >= SILENCE

    for condition in [c for c in permits.sleepers if c in gone]:
        assert all(map(dead, permits.sleepers[condition])), "a live sleeper expired"
        del permits.sleepers[condition]
    for part in ("holders", "waiters"):
        for token in set(notified) & set(getattr(permits, part)) if part in gone else ():
            those = permits.sleepers.get(condition_of(token), {})
            assert all(map(dead, those)), "a notification expired although somebody lives to get it"
    if "holders" in gone:
        assert all(end <= now for end in permits.holders.values()), "a live holder expired"
        permits.holders.clear()
    if "waiters" in gone:
        assert all(map(dead, permits.waiters)), "a live waiter expired"
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
        assert not permits.sleepers
        assert now - permits.clock > 3 * 86_400_000, "the record expired while it may be in use"
        fresh = Permits(permits.send)
        for field in set(Permits.__slots__) - {"alive", "holders", "left", "send", "waiters"}:
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
    "the silent are served": ("silent >= silence", "silent > silence"),
    "the quiet are not overtaken": ("silent >= quiet and", "silent >= silence and"),
    "the quiet are overtaken late": ("silent >= quiet and", "silent > quiet and"),
    "the quiet lose their places": ("silent <= silence / 2 or", ""),
    "the silent keep their places": ("silent <= silence / 2 or", "silent <= silence or"),
    "those who let a lease run out are heard": ("silence_of(token) < quiet", "false"),
    "the dead are remembered": ("'-inf', now - silence", "'-inf', '(' .. (now - silence)"),
    "a beat is not noted": ("redis.call('ZADD', alive, now, process_of(token))", "0"),
    "newcomers barge in": (" or waiting > 0", ""),
    "newcomers are not counted": ("waiting = waiting + redis", "waiting = waiting + 0 * redis"),
    "who was served counts": ("waiting = waiting - redis", "waiting = waiting - 0 * redis"),
    "the only one waits behind others": ("(waiting == 1 or", "(waiting ~= 1 and"),
    "the last one is served first": ("'ZRANGE', waiters, 0, 0)", "'ZREVRANGE', waiters, 0, 0)"),
    "tickets are given twice": ("math.max(last_ticket + 1, us)", "math.max(last_ticket, us)"),
    "time steps back": ("tonumber(was[2]) or 0)", "0)"),
    "a grant reserves one fence": (
        "fence = fence + block\n      write('fence', fence, 'since'",
        "fence = fence + 1\n      write('fence', fence, 'since'",
    ),
    "fences follow the clock": ("if us > last then", "if true then"),
    "fences that were counted are taken for the time": (
        "tonumber(was[8]) == fence and fence + block - 1 or fence", "fence"
    ),
    "a grant has the full lease": (
        "or tonumber(claim)",
        "or 10 * tonumber(claim)",
    ),
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
    with pytest.raises((AssertionError, redis.ResponseError)):
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


def in_full(reply: Any) -> Any:
    """A reply that is no more than a number, as a list: a fence, or whether it was held."""
    return [1, reply] if isinstance(reply, int) else reply


def without_times(transition: str, reply: Any) -> Any:
    """A reply but for fences and milliseconds, of which two clocks never give the same, nor the
    order in which leases of one length end, and so whose ends next."""
    if isinstance(reply, list) and transition != "permit_info":
        reply = [bool(part) if isinstance(part, bytes) else part for part in reply]
    if transition == "permit_acquire" and isinstance(reply, int):
        return None
    if transition == "permit_acquire" and reply[0] == 1:
        return [reply[0], None, *reply[2:]]
    if transition == "permit_acquire":
        return [*reply[:2], None if reply[2] > 0 else reply[2], *reply[3:]]
    if transition == "permit_wake":
        return [*without_times("permit_acquire" if reply[0] != 2 else "", reply[:5]), reply[5]]
    if transition == "":
        return [*reply[:2], reply[2] > 0, *reply[3:]]
    if transition == "permit_renew":
        return [reply[0], reply[1] > 0, *reply[2:]]
    if transition == "permit_info":
        return [*reply[:4], sorted(reply[4][::3]), reply[5][::2]]
    return reply


def without_fences(messages: list[Message]) -> list[Message]:
    grants = [(who, [*m[:2], *m[3:]]) for who, m in messages if m[0] == b"g"]
    return grants + sorted((who, m[:1] + m[2:]) for who, m in messages if m[0] != b"g")


def same_on_a_server(url: str, steps: list[Step], block: int) -> None:
    """Run steps through both sides, each by its own clock."""
    with redis.Redis.from_url(url) as client:
        server = Server(client, f"twins-{uuid.uuid4().hex}", SCRIPTS)
        listening: set[str] = set()
        twin = Twin(listening)
        try:
            fence = 0
            for what, args in steps:
                if what == "listen":
                    server.listen(str(args["process"]))
                    listening.add(str(args["process"]))
                    continue
                if what == "leave":
                    server.leave(str(args["process"]))
                    listening.discard(str(args["process"]))
                    continue
                if not likely(twin.permits, what, args):
                    continue
                seconds, microseconds = client.time()
                held = set(twin.permits.holders)
                wanted, sent = twin.run(what, seconds * 1_000_000 + microseconds, args)
                got, received = server.run(what, args)
                assert without_times(what, got) == without_times(what, wanted), (what, args)
                assert without_fences(received) == without_fences(sent), (what, args)
                assert queues(server.record()) == queues(twin.record()), (what, args)
                if block:
                    granted = [int(message[2]) for _, message in received if message[0] == b"g"]
                    got = in_full(got)
                    asks = what in ("permit_acquire", "permit_wake") and got[0] == 1
                    asker = args["heir"] if asks and got[5:] == [1] else args.get("token")
                    if asks and asker not in held:
                        granted.append(got[1])
                    for number in granted:
                        assert number > fence
                        fence = number
            assert not server.lasting(), "a key without a time to live"
        finally:
            server.close()
            server.delete()


def queues(record: dict[str, Any]) -> dict[str, Any]:
    """Who is in a record, and in which order where that does not hang on the clock."""
    sleepers = {c: [token for _, token in those] for c, those in record["sleepers"].items()}
    return {
        "holders": {token for _, token in record["holders"]},
        "waiters": [token for _, token in record["waiters"]],
        "left": {token for _, token in record["left"]},
        "sleepers": sleepers,
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("block", [64, 0], ids=["lock", "semaphore"])
def test_a_real_server_does_the_same_as_the_twins(server_url: str, block: int, seed: int) -> None:
    same_on_a_server(server_url, program(seed, block, 200, moving=False), block)


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
