"""The command: `python -m benchmarks`, or `make bench ARGS=…`."""

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import Workload, measure
from benchmarks.report import as_json, as_text
from benchmarks.rig import Rig
from dsync.server import Server

# In the order in which they are run and reported.
MODULES = (
    "cycles", "one_lock", "hand_over", "waiting", "renewing", "semaphore", "event", "condition",
    "limiter", "bus", "crash", "local", "imports",
)  # fmt: skip

EPILOG = """\
Each ratio is taken within a round, of slices that ran one after the other; what is shown is the
median of the rounds, and the least and the greatest.  Trust the ratios: absolute numbers change
with the machine, and with whatever else it does.
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
    if args.list:
        width = max(map(len, known))
        for workload in known.values():
            print(f"{workload.name:{width}}  {workload.about}")
        return 0
    wanted = args.workloads or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        parser.error(f"no workload is called {', '.join(unknown)}; there are {', '.join(known)}")
    if args.seconds <= 0 or args.rounds < 1:
        parser.error("--seconds must be > 0 and --rounds at least 1")
    with ExitStack() as stack:
        url = args.url or stack.enter_context(Server.start(port=0)).url
        rig = Rig(url, args.seconds)
        stack.callback(rig.close)
        settings = {
            "seconds": args.seconds,
            "rounds": args.rounds,
            "python": platform.python_version(),
            "server": rig.describe(),
        }
        results = measure([known[name] for name in wanted], rig, args.rounds, _progress)
    _progress("")
    print(", ".join(f"{name} {value}" for name, value in settings.items()), end="\n\n")
    print(as_text(results))
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(results, settings), indent=2) + "\n", "utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=sys.modules["benchmarks"].__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="which (default: all)")
    parser.add_argument("--list", action="store_true", help="say which there are, and end")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each slice (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="of all slices (default: 5)")
    parser.add_argument("--url", help="the server (default: an embedded Valkey on a loopback port)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, too")
    return parser


def _progress(text: str) -> None:
    """One line on a terminal, rewritten; nothing in a log."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
