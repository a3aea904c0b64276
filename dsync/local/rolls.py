"""The transitions of a roll call in this process: twins of lua/roll_*."""

from collections.abc import Callable
from typing import Final

__all__ = ["TRANSITIONS", "Roll"]

# What a transition sends to a process, or tells on a channel: -> how many hear it.
Send = Callable[[str, list[bytes]], int]
Publish = Callable[[str, bytes], int]


class Roll:
    """Nothing is stored: who calls the roll is asked and answered through here."""

    __slots__ = ("fence", "publish", "send")

    def __init__(self, send: Send, publish: Publish) -> None:
        self.send: Send = send
        self.publish: Publish = publish
        self.fence: int = 0  # it gives out none

    def sweep(self, now: int) -> bool:
        return True

    def empty(self) -> bool:
        return True


def roll_call(roll: Roll, us: int, *, processes: str, question: str, inbox: str) -> list[int]:
    words = [b"?", *question.encode().split(b" ")]
    return [sum(roll.send(process, words) for process in processes.split())]


def roll_answer(roll: Roll, us: int, *, answer: bytes, channel: str) -> list[int]:
    return [roll.publish(channel, answer)]


TRANSITIONS: Final[dict[str, Callable[..., list[int]]]] = {
    transition.__name__: transition for transition in (roll_call, roll_answer)
}
