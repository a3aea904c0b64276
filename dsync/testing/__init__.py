"""For tests of programs that use dsync: a clock, faults, bad networks, and who held what, and when.

    async with Proxy.to("redis://127.0.0.1:6379/0") as proxy:
        history = History(tmp_path / "history")
        async with dsync.connect(proxy.url) as client, client.lock("x") as lease:
            history.write("held", fence=lease.fence)      # so do other processes, on one file
            proxy.cut()
            history.write("leaving")
        assert overlaps(history.events()) == []
        assert fences(history.events()) == []

Nothing of dsync imports it.
"""

from dsync.testing.asserting import assert_free, assert_held
from dsync.testing.checkers import (
    Violation,
    admissions,
    deliveries,
    failures,
    fences,
    generations,
    losses,
    overlaps,
    pulses,
    stale_writes,
    stranded,
    wake_ups,
)
from dsync.testing.clock import VirtualClock
from dsync.testing.harm import cut, heal, kill_process, lose
from dsync.testing.history import Event, History, Span, harms, holds, waits
from dsync.testing.observing import sightings
from dsync.testing.proxy import Proxy

__all__ = [
    "Event",
    "History",
    "Proxy",
    "Span",
    "Violation",
    "VirtualClock",
    "admissions",
    "assert_free",
    "assert_held",
    "cut",
    "deliveries",
    "failures",
    "fences",
    "generations",
    "harms",
    "heal",
    "holds",
    "kill_process",
    "lose",
    "losses",
    "overlaps",
    "pulses",
    "sightings",
    "stale_writes",
    "stranded",
    "waits",
    "wake_ups",
]
