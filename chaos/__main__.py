"""The command: `python -m chaos`, or `make chaos ARGS=…`."""

import argparse
import asyncio
import json
import platform
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.scenario import Result

EPILOG = """\
FAULT and PRIMITIVE are names of the list, or `all`.  The exit code is 1 if a promise was broken or
something was left behind; a recovery beyond its goal is shown, and depends on the machine.
"""


def main(argv: Sequence[str] | None = None) -> int:
    # Here, as the process that workers are forked from runs this file, too.
    from chaos.report import as_json, as_markdown, as_text, from_json

    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        for what, things in _known().items():
            width = max(map(len, things))
            lines = [f"  {name:{width}}  {thing.about}" for name, thing in things.items()]
            print("\n".join([f"{what}:", *lines]))
        return 0
    if args.read is None:
        results, settings = _run(parser, args)
    else:
        found = json.loads(args.read.read_text("utf-8"))
        results, settings = from_json(found), found["settings"]
        _introduce(settings)
    print(f"\n{as_markdown(results) if args.markdown else as_text(results)}")
    if args.json is not None:
        text = json.dumps(as_json(results, settings), indent=2, default=str)
        args.json.write_text(text + "\n", "utf-8")
    return 0 if all(result.kept for result in results) else 1


def _known() -> dict[str, dict[str, Any]]:
    from chaos.faults import faults
    from chaos.work import works

    return {"faults": faults(), "primitives": works()}


def _introduce(settings: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in settings.items()), flush=True)


def _run(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> "tuple[list[Result], dict[str, Any]]":
    """Play what was asked for.  -> what was found, and with which settings"""
    from chaos import broken

    chosen: dict[str, list[str]] = {}
    for what, things in _known().items():
        wanted = [name for name in getattr(args, what) if name != "all"] or list(things)
        unknown = [name for name in wanted if name not in things]
        if unknown:
            parser.error(f"no {what} called {', '.join(unknown)}; there are {', '.join(things)}")
        chosen[what] = wanted
    if args.seconds <= 0:
        parser.error("--seconds must be > 0")
    if args.jobs <= 0:
        parser.error("--jobs must be > 0")
    if args.broken is not None and not hasattr(broken, args.broken):
        parser.error(f"nothing broken is called {args.broken}")
    settings = {
        "seed": args.seed or secrets.token_hex(4),
        "seconds": args.seconds,
        "python": platform.python_version(),
    }
    _introduce(settings)
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    connect = f"chaos.broken:{args.broken}" if args.broken else "dsync:connect"
    scenes = chosen["faults"], chosen["primitives"], settings["seed"]
    return asyncio.run(_play_all(*scenes, args.seconds, connect, args.keep, args.jobs)), settings


async def _play_all(
    wanted_faults: list[str],
    wanted_works: list[str],
    seed: str,
    seconds: float,
    connect: str,
    keep: Path | None,
    jobs: int,
) -> "list[Result]":
    from chaos.faults import faults
    from chaos.scenario import play
    from chaos.work import works

    room = asyncio.Semaphore(jobs)

    async def play_one(fault: str, work: str) -> "Result":
        async with room:
            print(f"{fault} x {work} ...", file=sys.stderr, flush=True)
            mine = f"{seed}/{fault}/{work}"  # each can be run again by itself
            return await play(faults()[fault], works()[work], mine, seconds, connect, keep)

    async with asyncio.TaskGroup() as group:
        scenes = [
            group.create_task(play_one(fault, work))
            for fault in wanted_faults
            for work in wanted_works
        ]
    return [scene.result() for scene in scenes]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description=sys.modules["chaos"].__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    for what in ("faults", "primitives"):
        parser.add_argument(
            f"--{what}", nargs="+", default=[], metavar="NAME", help=f"which {what} (default: all)"
        )
    parser.add_argument("--seed", help="what chance begins with (default: another each time)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of harm in each scenario (default: 3)"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="scenarios at a time (default: 2); mostly they wait"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, too")
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="run nothing: show what --json has written"
    )
    parser.add_argument("--markdown", action="store_true", help="as a table for a page of text")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave the history of each scenario there"
    )
    parser.add_argument(
        "--broken", metavar="NAME", help="put this of chaos.broken to the test instead of dsync"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
