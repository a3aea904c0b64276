"""The roll call: the Lua transitions do what their Python twins do.

See test_twins.py for how.  There is no state: replies and messages are all there is to compare.
"""

import random
import uuid
from typing import Any

import pytest
import redis

from dsync.local.rolls import TRANSITIONS, Roll
from dsync.redis.script import SCRIPTS, Script
from tests.model.test_twins import FAKE, Args, Step

PROCESSES = ("a:host:1:00", "b%20c:host:2:01", "gone:host:3:02")
LISTENING = PROCESSES[:2]
CHANNEL = "roll:0123"
Told = list[tuple[str, bytes]]


def program(seed: int, length: int = 40) -> list[Step]:
    rng = random.Random(seed)
    steps: list[Step] = []
    for _ in range(length):
        if rng.random() < 0.5:
            some = rng.sample(PROCESSES, rng.randint(0, 3))
            wanted = [str(rng.getrandbits(32)) for _ in range(rng.randint(0, 3))]
            question = " ".join(["0123", str(rng.randint(1, 9)), *wanted])
            args: Args = {"processes": " ".join(some), "question": question, "inbox": "inbox::"}
            steps.append(("roll_call", args))
        else:
            text = rng.choice((b"{}", b"", b'{"w": ["\xc3\xbc ? g"]}', b"x" * 40_000, b"a\r\nb"))
            steps.append(("roll_answer", {"answer": text, "channel": CHANNEL}))
    return steps


class Twin:
    """The Python side."""

    def __init__(self) -> None:
        self.state = Roll(self.send, self.publish)
        self.told: Told = []

    def send(self, process: str, message: list[bytes]) -> int:
        if process in LISTENING:
            self.told.append((f"inbox::{process}", b" ".join(message)))
        return int(process in LISTENING)

    def publish(self, channel: str, payload: bytes) -> int:
        self.told.append((channel, payload))
        return 1

    def run(self, transition: str, args: Args) -> tuple[Any, Told]:
        self.told = []
        reply = TRANSITIONS[transition](self.state, 0, **args)
        assert self.state.empty()
        return reply, self.told


class Server:
    """The Lua side: subscribed to all channels but that of the process that is gone."""

    def __init__(self, client: Any, scripts: dict[str, Script]) -> None:
        self.client = client
        self.prefix = f"{uuid.uuid4().hex}:"
        self.scripts = scripts
        self.messages = client.pubsub()
        channels = [f"{self.prefix}inbox::{process}" for process in LISTENING]
        self.messages.subscribe(*channels, self.prefix + CHANNEL, self.prefix + "end")

    def close(self) -> None:
        self.messages.unsubscribe()
        self.messages.close()

    def run(self, transition: str, args: Args) -> tuple[Any, Told]:
        script = self.scripts[transition]
        assert script.keys == ("state",)
        channels = {what: f"{self.prefix}{args[what]}" for what in args if what in _CHANNELS}
        key = f"{{{self.prefix}}}:state"
        reply = self.client.eval(script.text, 1, key, *script.values({**args, **channels}))
        assert not self.client.exists(key)
        self.client.publish(self.prefix + "end", "")
        told: Told = []
        while True:
            message = self.messages.get_message(timeout=5)
            if message is None or message["type"] != "message":
                continue
            channel = message["channel"].decode().removeprefix(self.prefix)
            if channel == "end":
                return reply, told
            told.append((channel, message["data"]))


_CHANNELS = ("inbox", "channel")


def compare(client: Any, steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> None:
    server, twin = Server(client, scripts), Twin()
    try:
        for what, args in steps:
            assert server.run(what, args) == twin.run(what, args), (what, args)
    finally:
        server.close()


@pytest.mark.parametrize("seed", range(5))
def test_scripts_and_twins_say_the_same(seed: int) -> None:
    FAKE.flushall()
    compare(FAKE, program(seed))


@pytest.mark.parametrize("seed", range(3))
def test_a_real_server_says_the_same_as_the_twins(server_url: str, seed: int) -> None:
    with redis.Redis.from_url(server_url) as client:
        compare(client, program(seed))


# Each is (what is there, what is put in its place), in every script that has it.
MISTAKES = {
    "only the first is asked": ("'%S+'", "'^%S+'"),
    "the question is cut": ("'? ' .. question", "'? ' .. string.sub(question, 1, 5)"),
    "it is no question": ("'? '", "'g '"),
    "nobody is counted": ("heard = heard + (", "heard = (0) * ("),
    "somewhere else": ("inbox .. process", "inbox .. process .. ' '"),
    "it is not answered": ("{redis.call('PUBLISH', channel, answer)}", "{0}"),
    "the answer is cut": ("channel, answer", "channel, string.sub(answer, 1, 30000)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    old, new = MISTAKES[mistake]
    assert any(old in s.text for n, s in SCRIPTS.items() if n.startswith("roll_")), f"no {old!r}"
    scripts = {name: Script(name, s.text.replace(old, new)) for name, s in SCRIPTS.items()}
    with pytest.raises((AssertionError, redis.ResponseError)):
        for seed in range(5):
            compare(FAKE, program(seed), scripts)
