"""`dsync ls`: what there is in a namespace."""

import argparse
import asyncio
from typing import TYPE_CHECKING

from dsync.cli.options import Parsers, add_parser, emit, server, shown, table, talk
from dsync.cli.records import KINDS, add_tasks, facts, state, store_of

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
List the primitives of a namespace, and how they stand.  What nobody uses stays listed for a few
days: the server keeps the floor of a lock's fences, and a semaphore's value.
"""

EXAMPLES = """\
examples:
  dsync ls
  dsync ls 'invoices*' --kind lock
  dsync ls --busy                 what is held, waited for or set
  dsync ls --json | jq -r 'select(.kind == "lock" and .held == 1).name'

In a PATTERN * stands for any text, ? for a character, [ab] for one of these.
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    ls = add_parser(commands, "ls", "list what there is", ABOUT, EXAMPLES)
    ls.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of names")
    ls.add_argument("--kind", choices=list(KINDS), help="only this kind")
    ls.add_argument("--busy", action="store_true", help="only what is held, waited for or set")
    server(ls)
    ls.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List."""

    async def act(client: "Client") -> int:
        from fnmatch import fnmatchcase

        from dsync.redis.scan import find

        found = [
            each
            for each in await find(store_of(client))
            if each.kind in KINDS
            and args.kind in (None, each.kind)
            and fnmatchcase(each.name, args.pattern)
        ]
        known = await asyncio.gather(
            *(facts(client, each) for each in found), return_exceptions=True
        )
        pairs = zip(found, known, strict=True)
        readable = {each: what for each, what in pairs if not isinstance(what, BaseException)}
        await add_tasks(client, readable)
        rows = []
        for each, what in zip(found, known, strict=True):
            if isinstance(what, BaseException):
                text, busy = str(what), True
                what = {"kind": each.kind, "name": each.name, "error": text}
            else:
                text, busy = state(what)
            if not busy and (args.busy or each.kind == "single_flight"):
                continue
            if args.json:
                emit(what)
            rows.append((each.kind, shown(each.name), text))
        if not args.json and rows:
            table(("KIND", "NAME", "STATE"), rows)
        return 0

    return talk(args, act)
