"""Values of single_flight: the Lua transitions do what their Python twins do.

See test_twins.py for how.  The clock moves; what a value says and tells, and for how long it is
kept, is the same on both sides after every step.
"""

import random
import uuid
from typing import Any
from unittest import mock

import pytest
import redis

from dsync.local.flights import TRANSITIONS, Value
from dsync.redis.script import SCRIPTS, Script
from tests.model.test_twins import FAKE, Args, Clock, Difference, Step, shortest

# In ms.  No sum of moves is a sum of times: at the very ms at which a key expires, servers differ.
TTLS = (25, 325, 1025, 5025)
MOVES = (50, 300, 350, 1000, 1050, 6000)
VALUES = (b"", b"v", b"\x00\xff\r\n", b"1234", b"12345", b"x" * 5000)
MOST = 4
CHANNEL = "flight:k"


def look() -> Step:
    return "flight_look", {}


def land(fence: int, value: bytes = b"v", ttl: int = 1025) -> Step:
    args: Args = {
        "fence": fence, "value": value, "ttl": ttl, "channel": CHANNEL, "most": MOST
    }  # fmt: skip
    return "flight_land", args


def later(ms: float) -> Step:
    return "clock", {"us": int(ms * 1000)}


def program(seed: int, length: int, moving: bool = True) -> list[Step]:
    """Random steps on one key: few fences, so many are repeated or come late."""
    rng = random.Random(f"{seed} {moving}")
    steps: list[Step] = []
    for kind in rng.choices(("land", "look", "clock"), (4, 3, 3 if moving else 0), k=length):
        if kind == "clock":
            steps.append(later(rng.choice(MOVES)))
        elif kind == "look":
            steps.append(look())
        else:
            # As large as fences are, and past what a float's shortest text can tell.
            fence = 2**52 + rng.choice((1, 2, 3, 64, 65, 1000))
            ttl = rng.choice(TTLS) if moving else 1_000_000
            steps.append(land(fence, rng.choice(VALUES), ttl))
    return steps


class Twin:
    """The Python side: one value, and what is told of it."""

    def __init__(self) -> None:
        self.state = Value(self.publish)
        self.told: list[bytes] = []

    def publish(self, channel: str, payload: bytes) -> int:
        assert channel == CHANNEL
        self.told.append(payload)
        return 1

    def run(self, transition: str, us: int, args: Args) -> tuple[Any, list[bytes]]:
        self.told.clear()
        return TRANSITIONS[transition](self.state, us, **args), list(self.told)

    def record(self, us: int) -> list[Any]:
        state = self.state
        state.sweep(us // 1000)
        if state.empty():
            return [None, None, -2]
        return [state.stored, state.value, state.ends - us // 1000]


class Server:
    """The Lua side: one value on a server, and a subscription to its channel."""

    def __init__(self, client: Any, key: str, scripts: dict[str, Script]) -> None:
        self.client = client
        self.key = f"{{{key}}}:state"
        self.prefix = f"{key}:"
        self.scripts = scripts
        self.messages = client.pubsub()
        self.messages.subscribe(self.prefix + CHANNEL, f"{key}:end")

    def close(self) -> None:
        self.messages.unsubscribe()
        self.messages.close()
        self.client.delete(self.key)

    def run(self, transition: str, args: Args) -> tuple[Any, list[bytes]]:
        script = self.scripts[transition]
        assert script.keys == ("state",)
        if "channel" in args:
            args = {**args, "channel": self.prefix + str(args["channel"])}
        reply = self.client.eval(script.text, 1, self.key, *script.values(args))
        self.client.publish(f"{self.prefix}end", "")
        told: list[bytes] = []
        while True:
            message = self.messages.get_message(timeout=5)
            if message is None or message["type"] != "message":
                continue
            if message["channel"].decode() == f"{self.prefix}end":
                return reply, told
            told.append(message["data"])

    def record(self) -> list[Any]:
        fence, value = self.client.hmget(self.key, "fence", "value")
        return [fence and int(float(fence)), value, self.client.pttl(self.key)]


def compare(steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run steps through both sides; Difference says where they part."""
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "k", scripts)
        twin = Twin()
        try:
            for number, (what, args) in enumerate(steps):
                if what == "clock":
                    clock.move(int(args["us"]))
                    continue
                kept = twin.record(clock.us)
                wanted, told = twin.run(what, clock.us, args)
                got, heard = server.run(what, args)
                record, left = twin.record(clock.us), server.record()
                if record[2] > 0 and abs(record[2] - left[2]) <= 1:
                    left[2] = record[2]  # they round
                for aspect, one, other in (
                    ("reply", wanted, got),
                    ("messages", told, heard),
                    ("record", record, left),
                ):
                    if one != other:
                        raise Difference(
                            f"step {number}, {what}({args}): the {aspect} of the twin and of the "
                            f"script:\n{one}\n{other}"
                        )
                check(what, args, kept, wanted, told, twin.record(clock.us))
        finally:
            server.close()


def check(
    what: str, args: Args, before: list[Any], reply: Any, told: list[bytes], after: list[Any]
) -> None:
    """What has to hold whatever the steps."""
    if what == "flight_look":
        assert reply == [int(before[0] is not None), before[1] or b""]
        assert after == before, "a look changed something"
        return
    fence, value = args["fence"], args["value"]
    assert isinstance(fence, int)
    assert isinstance(value, bytes)
    if before[0] is None or fence > before[0]:
        assert after == [fence, value, args["ttl"]]
        assert told == [b"look" if len(value) > MOST else b"v" + value]
    else:
        assert after == before, "a newer value was overwritten, or a copy changed something"
        assert not told
    assert reply == [int(after[0] == fence)]


def fails(steps: list[Step]) -> bool:
    try:
        compare(steps)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("seed", range(15))
def test_scripts_and_twins_do_the_same_under_one_clock(seed: int) -> None:
    steps = program(seed, 100)
    if fails(steps):
        few = shortest(steps, fails)
        print("\n".join(map(repr, few)))
        compare(few)


@pytest.mark.parametrize("seed", range(3))
def test_a_real_server_does_the_same_as_the_twins(server_url: str, seed: int) -> None:
    with redis.Redis.from_url(server_url) as client:
        server = Server(client, f"twins-{uuid.uuid4().hex}", SCRIPTS)
        twin = Twin()
        try:
            for what, args in program(seed, 100, moving=False):
                wanted = twin.run(what, 0, args)
                assert server.run(what, args) == wanted
                *record, left = server.record()
                assert record == twin.record(0)[:2]
                assert left == -2 or 0 < left <= 1_000_000
        finally:
            server.close()


# -- planted mistakes -----------------------------------------------------------------------------

# Each is (what is there, what is put in its place), in every script that has it.
MISTAKES = {
    "an older flight overwrites": ("if fence > stored then", "if true then"),
    "a copy stores again": ("if fence > stored then", "if fence >= stored then"),
    "nothing overwrites": ("if fence > stored then", "if stored == 0 then"),
    "a copy is refused": ("fence >= stored and 1", "fence > stored and 1"),
    "nobody is refused": ("fence >= stored and 1 or 0", "1"),
    "the fence is not written": ("'fence', string.format('%.0f', fence), ", ""),
    "the fence is rounded": ("string.format('%.0f', fence)", "string.format('%.6g', fence)"),
    "the value is not written": (", 'value', value)", ")"),
    "it never expires": ("redis.call('PEXPIRE', state, ttl)", ""),
    "it expires in seconds": ("'PEXPIRE'", "'EXPIRE'"),
    "nobody is told": ("redis.pcall('PUBLISH'", "math.max(0, #('')"),
    "the refused is told": (
        "\nend\nreturn {fence",
        "\nend\nredis.pcall('PUBLISH', channel, 'look')\nreturn {fence",
    ),
    "a large value is told": ("#value > most and 'look' or", ""),
    "just large enough is too large": ("#value > most", "#value >= most"),
    "a value is told without its mark": ("'v' .. value", "value"),
    "an empty value is none": ("value and 1 or 0", "value and #value > 0 and 1 or 0"),
    "there is always one": ("value and 1 or 0", "1"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    old, new = MISTAKES[mistake]
    assert any(old in s.text for n, s in SCRIPTS.items() if n.startswith("flight_")), f"no {old!r}"
    scripts = {name: Script(name, s.text.replace(old, new)) for name, s in SCRIPTS.items()}
    with pytest.raises((AssertionError, redis.ResponseError)):
        for seed in range(15):
            compare(program(seed, 100), scripts)
