"""What is done to those at work: one module a family of faults."""

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from chaos.scene import Scene

__all__ = ["Fault", "faults"]

# Each has FAULTS; in the order in which they are run and reported.
MODULES = (
    "nothing",
    "processes",
    "network",
    "server",
    "memory",
)


@dataclass(frozen=True)
class Fault:
    """One way to do harm, and what follows from it at worst.

    Attributes:
        harm: does it, at random moments, until `scene.moments()` ends; writes down when.
        lease: seconds, of what the workers hold meanwhile.
        overlap: seconds for which too many may hold then, because the server has forgotten.
        loses: whether others than stopped processes may lose what they hold.
        deaths: whether processes are killed.
        waiters: whether it is for those that wait for a turn: where nobody does, it is not done.
        concerns: who has to succeed again before it counts as recovered: the "next", or "all".
        goal: seconds within which they do; None: there is no such goal.
        proxied: whether workers reach the server through `scene.proxy`.
        options: of the server.
        binary: the server; None: the embedded Valkey.
    """

    name: str
    about: str
    harm: Callable[["Scene"], Awaitable[None]]
    lease: float = 2.0
    overlap: float = 0.0
    loses: bool = False
    deaths: bool = False
    waiters: bool = False
    concerns: Literal["next", "all"] = "all"
    goal: float | None = None
    proxied: bool = False
    options: tuple[str, ...] = ()
    binary: str | None = None


def faults() -> dict[str, Fault]:
    """All of them, by name."""
    found: list[Fault] = []
    for name in MODULES:
        found += importlib.import_module(f"chaos.faults.{name}").FAULTS
    return {fault.name: fault for fault in found}
