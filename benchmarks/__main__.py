"""The command: `python -m benchmarks`, or `make bench ARGS=…`."""

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import peers
from benchmarks.measure import Results, Workload, measure
from benchmarks.report import as_json, as_markdown, as_text
from benchmarks.rig import ASYNCIO, LOOPS, Rig
from dsync.server import Server

# In the order in which they are run and reported.
MODULES = (
    "cycles", "one_lock", "hand_over", "linger", "waiting", "renewing", "semaphore", "event",
    "condition", "limiter", "bus", "crash", "growth", "memory", "local", "imports",
)  # fmt: skip

SECONDS, ROUNDS = 0.4, 5
QUICK_SECONDS, QUICK_ROUNDS = 0.2, 1

EPILOG = """\
Each ratio is taken within a round, of slices that ran one after the other; what is shown is the
median of the rounds, and the least and the greatest.  Trust the ratios: absolute numbers change
with the machine, and with whatever else it does.  All of it takes about eight minutes.
"""


def workloads() -> dict[str, Workload]:
    """All of them, by name."""
    found: list[Workload] = []
    for module in MODULES:
        found += importlib.import_module(f"benchmarks.{module}").WORKLOADS
    return {workload.name: workload for workload in found}


def main(argv: Sequence[str] | None = None) -> int:
    known = workloads()
    parser = _parser()
    args = parser.parse_args(argv)
    wanted_peers = _peers(parser, args)
    if args.list:
        _list(known, wanted_peers)
        return 0
    wanted = args.workloads or [
        name for name, workload in known.items() if not (args.quick and workload.long)
    ]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        parser.error(f"no workload is called {', '.join(unknown)}; there are {', '.join(known)}")
    defaults = (QUICK_SECONDS, QUICK_ROUNDS) if args.quick else (SECONDS, ROUNDS)
    seconds = defaults[0] if args.seconds is None else args.seconds
    rounds = defaults[1] if args.rounds is None else args.rounds
    if not seconds > 0 or rounds < 1:
        parser.error("--seconds must be > 0 and --rounds at least 1")
    began = time.monotonic()
    with ExitStack() as stack:
        url = args.url or stack.enter_context(Server.start(port=0)).url
        rig = Rig(url, seconds, args.loop, args.quick)
        stack.callback(rig.close)
        settings = {
            "seconds": seconds,
            "rounds": rounds,
            "loop": args.loop,
            "python": platform.python_version(),
            "server": rig.describe(),
        }
        chosen = [known[name] for name in wanted]
        progress = Progress(began)
        stack.callback(progress.end)
        results = measure(chosen, rig, rounds, progress, wanted_peers)
    settings["took"] = f"{time.monotonic() - began:.0f} s"
    _print(results, settings, peers.described(wanted_peers), args)
    ours = [who for result in results for who in result.failures if peers.peer_of(who) is None]
    return 1 if ours else 0


def _print(
    results: Sequence[Results],
    settings: dict[str, object],
    described: dict[str, str],
    args: argparse.Namespace,
) -> None:
    print(", ".join(f"{name} {value}" for name, value in settings.items()), end="\n\n")
    print((as_markdown if args.markdown else as_text)(results, described))
    if args.json is not None:
        found = json.dumps(as_json(results, described, settings), indent=2)
        args.json.write_text(found + "\n", "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=sys.modules["benchmarks"].__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help="which (default: all)")
    add("--list", action="store_true", help="say which there are, and which peers, and end")
    add("--quick", action="store_true", help="below a minute: once, smaller, without peers")
    add("--peers", help="which packages, with commas between them; none (default: all there are)")
    add("--seconds", type=float, help=f"for each slice (default: {SECONDS:g})")
    add("--rounds", type=int, help=f"of all slices (default: {ROUNDS})")
    add("--loop", choices=LOOPS, default=ASYNCIO, help=f"whose event loop (default: {ASYNCIO})")
    add("--url", help="the server (default: an embedded Valkey on a loopback port)")
    add("--json", type=Path, metavar="FILE", help="write what was found there, too")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    return parser


def _peers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Collection[str] | None:
    """The packages asked for; None: all."""
    if args.peers is None:
        return () if args.quick else None
    wanted = [] if args.peers == "none" else args.peers.split(",")
    unknown = [name for name in wanted if name not in peers.PEERS]
    if unknown:
        known = ", ".join(peers.PEERS)
        parser.error(f"no peer is called {', '.join(unknown)}; there are {known}")
    return wanted


def _list(known: dict[str, Workload], wanted_peers: Collection[str] | None) -> None:
    width = max(map(len, known))
    for workload in known.values():
        print(f"{workload.name:{width}}  {workload.about}")
    print()
    for package, what in peers.described(wanted_peers).items():
        print(f"{package:{width}}  {what}")


class Progress:
    """On a terminal one line, rewritten; in a log one for each round."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._round = ""

    def __call__(self, text: str) -> None:
        took = f"{time.monotonic() - self._began:.0f} s"
        if sys.stderr.isatty():
            print(f"\r\033[K{took}, {text}", end="", file=sys.stderr, flush=True)
        elif (round_ := text.partition(":")[0]) != self._round:
            self._round = round_
            print(f"{took}, {round_}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
