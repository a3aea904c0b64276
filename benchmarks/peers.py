"""The packages that do some of this as well: which are installed, and why others are not here.

A contender whose name is that of one of them, up to a comma, is that peer's: it gets a dash where
the package is not installed.  None is needed; `pip install 'dsync-redis[bench]'` brings them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

__all__ = ["LEFT_OUT", "PEERS", "Peer", "described", "load", "peer_of"]


@dataclass(frozen=True)
class Peer:
    """A package that may be installed."""

    package: str
    module: str

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None


PEERS = {
    package: Peer(package, module)
    for package, module in (
        ("coredis", "coredis"),
        ("redis-fifo-lock", "redis_fifo_lock"),
        ("python-redis-lock", "redis_lock"),
        ("pottery", "pottery"),
        ("py-redis-semaphore", "redis_semaphore"),
        ("steindamm", "steindamm"),
        ("limits", "limits"),
        ("throttled-py", "throttled"),
        ("pyrate-limiter", "pyrate_limiter"),
        ("aiolimiter", "aiolimiter"),
        ("broadcaster", "broadcaster"),
        ("uvloop", "uvloop"),
    )
}

# What was looked at and cannot be measured beside dsync.
LEFT_OUT = {"redis-semaphore-async": "0.0.4 requires redis==5.2.1; dsync needs redis>=6.2"}


def peer_of(contender: str) -> Peer | None:
    """Whose it is; None if it is ours, redis-py's or asyncio's."""
    return PEERS.get(contender.partition(",")[0])


def load(module: str) -> Any:
    """A peer's module, imported when it is used; as if untyped, for it may not be there."""
    return import_module(module)


def described(wanted: Collection[str] | None = None) -> dict[str, str]:
    """The version of each, or why it is not measured; None wants all."""
    found = dict(LEFT_OUT)
    for package, peer in PEERS.items():
        if not peer.installed:
            found[package] = "not installed"
        elif wanted is not None and package not in wanted:
            found[package] = "not asked for"
        else:
            found[package] = version(package)
    return dict(sorted(found.items()))
