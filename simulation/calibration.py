"""Calibration: what things cost one server core, as measured, in a file."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["STORED", "Calibration"]

STORED = Path(__file__).parent / "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """Costs in µs of the server's main thread, memory in bytes."""

    machine: dict[str, Any]  # where it was measured
    script: dict[str, float]  # by what is done: µs inside the command, from INFO commandstats
    # µs to read a command and to write its reply: each with system calls of its own, or 100 in one.
    io_alone: float
    io_batched: float
    message: float  # to hand one published message to one receiver
    connect: float  # a client of ours until it has subscribed, asked the time, and is answered
    dial: float  # the same, CPU of the client's process
    memory: dict[str, float]  # by what is kept: bytes
    growth: dict[str, dict[str, float]]  # by what is done: µs by how many there are
    # What real clients did, beside what the model said: what, unit, model, measured.
    real: list[tuple[str, str, float, float]] = field(default_factory=list)

    def command(self, what: str) -> float:
        """Seconds of the core for one command on a connection of its own."""
        return (self.script[what] + self.io_alone) / 1e6

    def beside(self, real: list[tuple[str, str, float, float]]) -> "Calibration":
        """The same, with what real clients did."""
        return replace(self, real=real)

    @classmethod
    def load(cls, path: Path = STORED) -> "Calibration":
        return cls(**json.loads(path.read_text("utf-8")))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")
