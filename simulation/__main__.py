"""The command: `python -m simulation`."""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from simulation import fleet, queues, restart, stored
from simulation.calibration import STORED, Calibration
from simulation.table import Table

EPILOG = """\
examples:
  python -m simulation                            every table of docs/scaling.md
  python -m simulation restart queues             only these
  python -m simulation --calibrate mine.json      measure this machine, then the tables from that
  python -m simulation --calibration mine.json    the tables from it once more
  python -m simulation --validate                 real clients beside the model, on this machine

The tables come from a model of one core that serves in order of arrival.  Trust their shape, and
where a figure turns from small to large; your server's own figures come from --calibrate, there.
"""
SEED = 20_000

Scenario = Callable[[Calibration, random.Random], Table]
# In the order of docs/scaling.md.
SCENARIOS: dict[str, tuple[str, Scenario]] = {
    "commands": ("what one core carries", lambda costs, rng: fleet.commands(costs)),
    "processes": ("what processes cost that all do one thing",
                  lambda costs, rng: fleet.processes(costs)),
    "leases": ("renewals by the length of the lease", lambda costs, rng: fleet.leases(costs)),
    "fleets": ("workers that do a bit of everything, played for 2 s", fleet.fleets),
    "queues": ("waits near the limit, of the core and of a lock", queues.queues),
    "restart": ("until everybody is back after a restart", restart.restarts),
    "growth": ("what costs more, the more there are", lambda costs, rng: stored.growth(costs)),
    "real": ("the model beside real clients, as measured with the stored calibration",
             lambda costs, rng: stored.comparison(costs)),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    unknown = [name for name in args.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(
            f"no scenario is called {', '.join(unknown)}; there are {', '.join(SCENARIOS)}"
        )
    if args.calibrate is not None:
        from simulation.calibrate import calibrate

        calibrate(_progress).save(args.calibrate)
        _progress("")
    path = args.calibrate or args.calibration
    try:
        costs = Calibration.load(path)
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"{path} holds no calibration: {error}")
    if args.validate:
        from simulation.real import validate

        costs = costs.beside(validate(costs, _progress))
        _progress("")
        costs.save(path)
    wanted = args.scenarios or (["real"] if args.validate else list(SCENARIOS))
    found = tables(costs, wanted, args.seed)
    if args.json:
        report = {"seed": args.seed, "calibration": asdict(costs),
                  "tables": [asdict(table) for table in found]}  # fmt: skip
        print(json.dumps(report, indent=2))
    else:
        print("\n\n".join(f"{table.title} ({table.name})\n\n{table.markdown()}" for table in found))
    return 0


def tables(costs: Calibration, wanted: Sequence[str], seed: int = SEED) -> list[Table]:
    """Each scenario with dice of its own, so that it says the same whichever others are played."""
    return [SCENARIOS[name][1](costs, random.Random(f"{seed} {name}")) for name in wanted]


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, SCENARIOS))
    listed = "\n".join(f"  {name:{width}}  {about}" for name, (about, _) in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m simulation",
        description=f"{sys.modules['simulation'].__doc__}\nscenarios:\n{listed}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help="which (default: all)")
    add("--seed", type=int, default=SEED, help=f"of the dice (default: {SEED})")
    add("--json", action="store_true", help="print JSON instead, with all costs")
    stored = f"the costs to play with (default: simulation/{STORED.name})"
    add("--calibration", type=Path, default=STORED, metavar="FILE", help=stored)
    measure = "measure the costs here first, on a server of its own, and keep them in this file"
    add("--calibrate", type=Path, metavar="FILE", help=measure)
    real = "measure real clients here, and keep that with the costs"
    add("--validate", action="store_true", help=real)
    return parser


def _progress(text: str) -> None:
    """One line on a terminal, rewritten; nothing in a log."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
