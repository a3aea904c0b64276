"""The Lua transitions of EventBus do what their Python twins do; see test_twins.py for how.

Besides the comparison, what a bus promises is looked at after each step, on the twin: numbers
without a hole, each batch once, in the order of its publisher.
"""

import random
import uuid
from typing import Any
from unittest import mock

import pytest
import redis

from dsync.local.buses import TRANSITIONS, Sequence
from dsync.redis.script import SCRIPTS, Script
from tests.model import test_twins as twins
from tests.model.test_twins import Clock, Difference, shortest

REMEMBER = 1500  # ms
LONG = 1_000_000  # ms; longer than a test
DAY = 86_400_000
CHANNEL = "r:bus:x"
PUBLISHERS = ("a", "b:h%20x:1:ff", "c")
PAYLOADS = (b"", b"x", b"e 1", b"\0\xff\r\n", "é 😀".encode(), b"1 2 3", b"y" * 300)
# In ms: to the very end of a memory, past it, past the time to live of the state, and back.
MOVES = (0, 1, 1, 299, REMEMBER - 1, REMEMBER, REMEMBER + 1, 5000, -1, -200)
LEAPS = (29 * DAY, 30 * DAY + 1000, 31 * DAY)
Args = dict[str, Any]
Step = tuple[str, Args]
News = list[tuple[str, bytes]]


def batch(publisher: str, number: int, *messages: bytes, remember: int = REMEMBER) -> Step:
    return "bus_publish", {
        "publisher": publisher,
        "batch": number,
        "sizes": " ".join(str(len(message)) for message in messages),
        "messages": b"".join(messages),
        "channel": CHANNEL,
        "remember": remember,
    }


def look() -> Step:
    return "bus_look", {}


def clock(ms: int) -> Step:
    return "clock", {"us": ms * 1000}


def program(seed: int, length: int, moving: bool = True) -> list[Step]:
    """Random steps on one record: new batches, repeated ones, and late copies of old ones."""
    rng = random.Random(f"{seed} {moving}")
    kinds = {"new": 6, "again": 3, "late": 1, "look": 2, "clock": 4 if moving else 0}
    sent: dict[str, list[Step]] = {publisher: [] for publisher in PUBLISHERS}
    numbers = dict.fromkeys(PUBLISHERS, 0)
    steps: list[Step] = []
    for kind in rng.choices(list(kinds), list(kinds.values()), k=length):
        publisher = rng.choice(PUBLISHERS)
        before = sent[publisher]
        if kind == "look":
            steps.append(look())
        elif kind == "clock":
            leap = rng.random() < 0.03
            steps.append(clock(rng.choice(LEAPS if leap else MOVES)))
        elif kind == "again" and before:
            steps.append(before[-1])
        elif kind == "late" and before:
            steps.append(rng.choice(before))
        else:
            numbers[publisher] += rng.choice((1, 1, 1, 2, 40))
            count = rng.choice((1, 1, 2, 3, 12))
            messages = [rng.choice(PAYLOADS) for _ in range(count)]
            remember = REMEMBER if moving else LONG
            steps.append(batch(publisher, numbers[publisher], *messages, remember=remember))
            before.append(steps[-1])
    return steps


def at_its_very_end() -> list[Step]:
    """Steps at the millisecond at which a memory or a record ends, and what sizes may be."""
    one, two = batch("a", 1, b"x", b""), batch("a", 2, b"", *(b"%d" % i for i in range(30)))
    return [
        look(), one, look(), one, clock(REMEMBER - 1), one, two, one, two, clock(2), one, two,
        batch("b", 1, *PAYLOADS), batch("b", 1, b"other"), two, look(), clock(REMEMBER + 1), two,
        batch("a", 10, b"ten"), batch("a", 9, b"nine"), clock(29 * DAY), look(),
        batch("a", 11, b"kept"), clock(29 * DAY), look(), batch("c", 1, b"kept"),
        clock(30 * DAY + 1), look(), batch("a", 12, b"anew"), look(),
    ]  # fmt: skip


class Twin:
    """The Python side."""

    def __init__(self) -> None:
        self.news: News = []
        self.state = Sequence(self.publish)

    def publish(self, channel: str, payload: bytes) -> int:
        self.news.append((channel, payload))
        return 1

    def run(self, transition: str, us: int, args: Args) -> tuple[Any, News]:
        self.news.clear()
        return TRANSITIONS[transition](self.state, us, **args), list(self.news)

    def record(self, us: int) -> dict[str, Any]:
        self.state.sweep(us // 1000)
        last = {who: n for who, (n, _) in self.state.last.items()}
        return {"epoch": self.state.epoch, "sequence": self.state.number, "last": last}


class Server:
    """The Lua side: one record on a server, and one subscription to the bus's channel."""

    def __init__(self, client: Any, key: str, scripts: dict[str, Script]) -> None:
        self.client = client
        self.scripts = scripts
        self.prefix = f"{{{key}}}:"
        self.messages = client.pubsub()
        self.end = f"{key}:end"
        self.messages.subscribe(self.end, CHANNEL)

    def close(self) -> None:
        self.messages.unsubscribe()
        self.messages.close()

    def run(self, transition: str, args: Args) -> tuple[Any, News]:
        script = self.scripts[transition]
        keys = [self.prefix + part for part in script.keys]
        reply = self.client.eval(script.text, len(keys), *keys, *script.values(args))
        self.client.publish(self.end, "")
        got: News = []
        while True:
            message = self.messages.get_message(timeout=5)
            if message is None or message["type"] != "message":
                continue
            channel = message["channel"].decode()
            if channel == self.end:
                return reply, got
            got.append((channel, message["data"]))

    def keys(self) -> list[str]:
        return [key.decode() for key in self.client.scan_iter(match=f"{self.prefix}*", count=1000)]

    def record(self) -> dict[str, Any]:
        values = self.client.hmget(self.prefix + "state", "epoch", "sequence")
        last = {
            key.removeprefix(self.prefix + "last:"): int(self.client.get(key))
            for key in self.keys()
            if key.startswith(self.prefix + "last:")
        }
        return {"epoch": int(values[0] or 0), "sequence": int(values[1] or 0), "last": last}

    def lasting(self) -> list[str]:
        return [key for key in self.keys() if self.client.pttl(key) == -1]


class Watch:
    """What has to hold whatever the steps."""

    def __init__(self) -> None:
        self.epoch = self.sequence = 0
        self.done: dict[str, tuple[int, int]] = {}  # publisher -> last batch, when (µs)

    def check(self, us: int, what: str, args: Args, reply: Any, news: News) -> None:
        epoch, sequence = reply
        if what == "bus_look":
            assert not news
            assert (epoch, sequence) == (self.epoch, self.sequence)
            return
        publisher, number = str(args["publisher"]), int(args["batch"])
        last, when = self.done.get(publisher, (0, 0))
        if number <= last and us < when + REMEMBER * 1000 - 1000:
            assert not news, "published twice"
        elif number > last:
            assert news, "a new batch is published"
        if news:
            self.done[publisher] = number, us
        first = self.sequence + 1
        for i, (channel, payload) in enumerate(news):
            assert channel == CHANNEL
            assert payload.startswith(b"%d %d %s " % (epoch, first + i, publisher.encode()))
        assert sequence == self.sequence + len(news), "a hole, or a number given twice"
        assert self.epoch in (0, epoch)
        self.epoch, self.sequence = epoch, sequence
        messages: Any = args["messages"]
        sizes = [int(size) for size in str(args["sizes"]).split()]
        if news:
            bodies = [payload.split(b" ", 3)[3] for _, payload in news]
            assert [len(body) for body in bodies] == sizes
            assert b"".join(bodies) == messages

    def forget(self) -> None:
        self.epoch = self.sequence = 0


def compare(steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run steps through both sides; Difference says where they part."""
    time, fake = Clock(), twins.FAKE
    promises = scripts is SCRIPTS
    with mock.patch("time.time", time):
        fake.flushall()
        server, twin, watch = Server(fake, "r", scripts), Twin(), Watch()
        latest = time.us  # when it was published last
        try:
            for number, (what, args) in enumerate(steps):
                if what == "clock":
                    time.move(int(args["us"]))
                    if twin.state.epoch and not fake.exists(server.prefix + "state"):
                        assert time.us - latest >= 30 * DAY * 1000, "the record expired in use"
                        twin.state.epoch = twin.state.number = 0
                        watch.forget()
                    continue
                wanted, news = twin.run(what, time.us, args)
                latest = time.us if news else latest
                if promises:
                    watch.check(time.us, what, args, wanted, news)
                got, heard = server.run(what, args)
                for aspect, one, other in (
                    ("reply", wanted, got),
                    ("messages", news, heard),
                    ("record", twin.record(time.us), server.record()),
                    ("keys without a time to live", [], server.lasting()),
                ):
                    if one != other:
                        raise Difference(
                            f"step {number}, {what}({args}): the {aspect} of the twin and of the "
                            f"script:\n{one}\n{other}"
                        )
        finally:
            server.close()


def fails(steps: list[Step]) -> bool:
    try:
        compare(steps)
    except AssertionError:
        return True
    return False


def test_scripts_and_twins_do_the_same_at_the_very_end_of_a_time() -> None:
    compare(at_its_very_end())


@pytest.mark.parametrize("seed", range(15))
def test_scripts_and_twins_do_the_same_under_one_clock(seed: int) -> None:
    steps = program(seed, 120)
    if fails(steps):
        few = shortest(steps, fails)
        print("\n".join(map(repr, few)))
        compare(few)


def test_programs_publish_repeat_forget_and_begin_anew() -> None:
    """A random program that never comes to the point would compare nothing."""
    published = repeated = again = 0
    for seed in range(15):
        time, twin = Clock(), Twin()
        done: set[tuple[str, int]] = set()
        for what, args in program(seed, 120):
            if what == "clock":
                time.move(int(args["us"]))
            elif what == "bus_publish":
                which = str(args["publisher"]), int(args["batch"])
                _, news = twin.run(what, time.us, args)
                published += bool(news)
                repeated += not news
                again += bool(news) and which in done
                done.add(which)
    assert published > 300
    assert repeated > 100
    assert again > 30


# -- planted mistakes -----------------------------------------------------------------------------

# Each is (what is there, what is put in its place), in every bus script that has it.
MISTAKES = {
    "a batch is published twice": (">= batch then", ">= batch + 1 then"),
    "a late copy is published": (">= batch then", "== batch then"),
    "the first batch counts as repeated": (") or 0) >= batch", ") or 1) >= batch"),
    "publishers share their memory": ("'last:' .. publisher", "'last:a'"),
    "a batch is not remembered": ("redis.call('SET', last, batch, 'PX', remember)", ""),
    "a batch is remembered too long": ("'PX', remember)", "'PX', remember * 2)"),
    "a batch is remembered for ever": (", 'PX', remember)", ")"),
    "numbers begin at 0": ("local first = sequence + 1", "local first = sequence"),
    "all have one number": ("first = first + 1", "first = first + 0"),
    "a batch counts as one message": (
        "for _ in string.gmatch(sizes, '%d+') do sequence = sequence + 1 end",
        "sequence = sequence + 1",
    ),
    "the number is not kept": (", 'sequence', sequence)", ")"),
    "each batch is an epoch": ("if epoch == 0 then", "if true then"),
    "the epoch is not kept": ("'epoch', epoch, ", ""),
    "an epoch is in ms": ("* 1000000 +", "* 1000 +"),
    "the record lasts for ever": ("redis.call('PEXPIRE', state, 2592000000)", ""),
    "the record lasts a day": ("2592000000", "86400000"),
    "a size is one too large": ("from + size - 1)", "from + size)"),
    "all messages are the first": ("from = from + size", "from = from + 0"),
    "the publisher is not told": (".. publisher .. ' ' ..", ".."),
    "nothing is published": ("redis.pcall('PUBLISH', channel", "redis.pcall('ECHO'"),
    "the answer is refused": ("return refused or {epoch", "return {epoch - 1"),
    "the epoch is rounded": ("string.format('%.0f', epoch)", "string.format('%.14g', epoch)"),
    "a newer schema is taken": ("'schema', 1", "'schema', 2"),
    "sequence comes first": ("\nreturn {epoch, sequence}", "\nreturn {sequence, epoch}"),
}  # fmt: skip


def with_mistake(old: str, new: str) -> dict[str, Script]:
    buses = {name: script for name, script in SCRIPTS.items() if name.startswith("bus_")}
    assert any(old in script.text for script in buses.values()), f"no script has {old!r}"
    return {name: Script(name, script.text.replace(old, new)) for name, script in buses.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    scripts = with_mistake(*MISTAKES[mistake])
    with pytest.raises((AssertionError, redis.ResponseError)):
        compare(at_its_very_end(), scripts)
        for seed in range(5):
            compare(program(seed, 120), scripts)


# -- what is not ours ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"schema": "2", "epoch": "5"}, "SCHEMA 2"), ({"mine": "1"}, "FOREIGN")],
)
@pytest.mark.parametrize("step", [look(), batch("a", 1, b"x")], ids=["look", "publish"])
def test_what_is_not_ours_is_refused_and_left_alone(
    fields: dict[Any, Any], error: str, step: Step
) -> None:
    twins.FAKE.flushall()
    server = Server(twins.FAKE, "r", SCRIPTS)
    try:
        twins.FAKE.hset("{r}:state", mapping=fields)
        with pytest.raises(redis.ResponseError, match=error):
            server.run(*step)
        assert twins.FAKE.hgetall("{r}:state") == {
            k.encode(): v.encode() for k, v in fields.items()
        }
        assert server.keys() == ["{r}:state"]
    finally:
        server.close()


# -- a real server --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_real_server_does_the_same_as_the_twins(server_url: str, seed: int) -> None:
    with redis.Redis.from_url(server_url) as client:
        server, twin = Server(client, f"twins-{uuid.uuid4().hex}", SCRIPTS), Twin()
        before = 0
        try:
            for what, args in program(seed, 200, moving=False):
                seconds, microseconds = client.time()
                before = seconds * 1_000_000 + microseconds
                wanted, news = twin.run(what, before, args)
                got, heard = server.run(what, args)
                if wanted[0] and wanted[0] != got[0]:  # an epoch begins when it begins
                    assert 0 <= got[0] - wanted[0] < 5_000_000
                    assert wanted[1] == len(news)
                    news = [
                        (where, payload.replace(b"%d" % wanted[0], b"%d" % got[0], 1))
                        for where, payload in news
                    ]
                    twin.state.epoch = wanted[0] = got[0]
                assert got == wanted, (what, args)
                assert heard == news, (what, args)
            assert server.record() == twin.record(before)
            assert not server.lasting()
        finally:
            server.close()
            client.delete(*server.keys())
