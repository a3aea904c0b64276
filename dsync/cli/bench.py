"""`dsync bench`: how fast this server is from here."""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from dsync.cli.options import Parsers, add_parser, address, emit, server, talk

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.lock import Lock

__all__ = ["register"]

ABOUT = """\
Measure this server from this machine, for a few seconds, under names of its own.

  ping        a command that does nothing: what the way there and back takes
  cycle       a lock that nobody else wants: acquire and release
  hand-over   from the release of one client to the start of another that waits
  32 tasks    each with a lock of its own, over one connection: cycles per second
"""

EXAMPLES = """\
examples:
  dsync bench --url redis://localhost:6379
  dsync bench --seconds 0.5 --json
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    bench = add_parser(commands, "bench", "measure this server", ABOUT, EXAMPLES)
    bench.add_argument(
        "--seconds", type=_seconds, default=1.0, metavar="S",
        help="for each of the four (0.05 to 60; default: 1)",
    )  # fmt: skip
    server(bench)
    bench.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, and print it."""

    async def act(client: "Client") -> int:
        import dsync

        name = f"bench {client.client_id}"
        async with dsync.connect(address(args), namespace=args.namespace) as other:
            ping = await _times(client.check, args.seconds)
            lock = client.lock(name)
            cycle = await _times(lambda: _cycle(lock), args.seconds)
            handover = await _handovers(client, other, name, args.seconds)
            throughput = await _together(client, name, args.seconds)
        results = {
            "ping_p50": _quantile(ping, 0.5),
            "ping_p99": _quantile(ping, 0.99),
            "cycle_p50": _quantile(cycle, 0.5),
            "cycle_p99": _quantile(cycle, 0.99),
            "hand_over_p50": _quantile(handover, 0.5),
            "hand_over_p99": _quantile(handover, 0.99),
            "cycles_per_second_32_tasks": throughput,
        }
        if args.json:
            emit(results)
            return 0
        print(f"{'':<12}{'p50':>12}{'p99':>12}")
        for what, key in (("ping", "ping"), ("cycle", "cycle"), ("hand-over", "hand_over")):
            half, most = (results[f"{key}_{p}"] * 1e6 for p in ("p50", "p99"))
            print(f"{what:<12}{half:>9.0f} µs{most:>9.0f} µs")
        print(f"{'32 tasks':<12}{throughput:>9.0f} cycles/s")
        return 0

    return talk(args, act)


async def _times(action: Callable[[], Awaitable[object]], seconds: float) -> list[float]:
    await action()  # the first one dials, and loads scripts
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends or not taken:
        await action()
        taken.append(time.perf_counter() - began)
    return taken


async def _cycle(lock: "Lock") -> None:
    await lock.acquire()
    await lock.release()


async def _handovers(one: "Client", two: "Client", name: str, seconds: float) -> list[float]:
    """Two clients hand a lock to and fro: from before a release to the other's start."""
    locks = [one.lock(name), two.lock(name)]
    taken: list[float] = []
    await locks[0].acquire()
    ends = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < ends or not taken:
        holder, waiter = locks[turn % 2], locks[(turn + 1) % 2]
        waiting = asyncio.ensure_future(waiter.acquire(timeout=10.0))
        while not (await holder.info()).waiters:
            pass  # a question takes its time
        released = time.perf_counter()
        holder.release()
        await waiting
        taken.append(time.perf_counter() - released)
        turn += 1
    await locks[turn % 2].release()
    return taken


async def _together(client: "Client", name: str, seconds: float) -> float:
    async def one(number: int) -> int:
        return len(await _times(lambda: _cycle(locks[number]), seconds))

    locks = [client.lock(f"{name} {number}") for number in range(32)]
    began = time.perf_counter()
    cycles = await asyncio.gather(*map(one, range(32)))
    return sum(cycles) / (time.perf_counter() - began)


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"must be from 0.05 to 60 seconds, got {text!r}")
    return seconds
