"""`dsync top`: who holds what and who waits, as it changes."""

import argparse
import asyncio
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from dsync.cli.options import Parsers, add_parser, emit, positive, say, server, shown, table, talk
from dsync.errors import StoreUnavailable

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.overview import Overview, Snapshot

__all__ = ["register"]

LONGEST = 5.0  # seconds between two looks: who is not asked for longer stops counting
SORTS = ("name", "waiting", "held", "rate", "wait")

ABOUT = """\
Watch the primitives of a namespace: who holds them, which task and for how long, who waits, how
many grants there are per second, and how long tasks wait (half of them, and 99 of 100).  At a
terminal it is live, with keys that ? tells; else it prints a table each time.

Processes are asked what their tasks do, and count as long as they are asked: who is not watched
pays nothing.  A ? is what nobody has told.
"""

EXAMPLES = """\
examples:
  dsync top
  dsync top 'invoices*' --sort wait
  dsync top --once                one table, and out
  dsync top --every 5 --json | jq -c '.rows[] | select(.waiting > 10) | [.name, .waiting]'

In a PATTERN * stands for any text, ? for a character, [ab] for one of these.
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    top = add_parser(commands, "top", "watch who holds and who waits", ABOUT, EXAMPLES)
    top.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of names")
    top.add_argument(
        "--sort", choices=SORTS, default="waiting",
        help="by name, or the most first: tasks waiting, time held, grants per second, time "
        "waited; default: waiting",
    )  # fmt: skip
    top.add_argument(
        "--every", type=positive, default=1.0, metavar="S",
        help="seconds between two tables; it looks at least once in 5",
    )  # fmt: skip
    top.add_argument("--once", action="store_true", help="look once, print, and end")
    server(top)
    top.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Watch."""
    live = not (args.json or args.once) and sys.stdout.isatty() and sys.stdin.isatty()
    live = live and os.environ.get("TERM", "dumb") != "dumb"
    if live and importlib.util.find_spec("rich") is None:
        say("top", "the live view needs rich: pip install 'dsync-redis[cli]'; plain lines instead")
        live = False

    async def act(client: "Client") -> int:
        from dsync.overview import Overview

        async with Overview(client, args.pattern) as overview:
            if not live:
                return await _print(args, overview)
            from dsync.cli.top_live import Top

            return await Top(client, overview, args.sort, args.every).run()

    return talk(args, act)


async def _print(args: argparse.Namespace, overview: "Overview") -> int:
    """A block for each look; the first waits a moment for what processes count."""
    await overview.look()
    pause = 1.0 if args.once else min(args.every, 1.0)
    while True:
        try:
            _block(args, await _look_in(pause, overview))
        except StoreUnavailable as error:
            if args.once:
                raise
            say("top", str(error))
        if args.once:
            return 0
        pause = args.every


async def _look_in(pause: float, overview: "Overview") -> "Snapshot":
    """Look, so many seconds from now, and also in between if that is long."""
    while pause > LONGEST:
        await asyncio.sleep(LONGEST)
        await overview.look()
        pause -= LONGEST
    await asyncio.sleep(pause)
    return await overview.look()


def _block(args: argparse.Namespace, snapshot: "Snapshot") -> None:
    from dsync.cli.top_words import HEAD, cells, chosen, summary

    rows = chosen(snapshot.rows, args.sort)
    if args.json:
        known = snapshot.as_dict()
        order = {id(row): place for place, row in enumerate(rows)}
        pairs = zip(snapshot.rows, known["rows"], strict=True)
        known["rows"] = [each for _, each in sorted(pairs, key=lambda pair: order[id(pair[0])])]
        emit(known)
        return
    print(shown(summary(snapshot)))
    if rows:
        table(HEAD, [cells(row) for row in rows])
    if not args.once:
        print()
    sys.stdout.flush()
