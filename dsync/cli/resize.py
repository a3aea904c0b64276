"""`dsync resize`: another number of permits, for everyone."""

import argparse
from typing import TYPE_CHECKING

from dsync.cli.options import Parsers, add_parser, count, emit, name, server, shown, talk
from dsync.cli.records import store_of

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Set the value of a semaphore for everyone, and pin it: what processes were made with no longer
counts.  Growing serves those who wait; shrinking takes nobody's permit away.
"""

EXAMPLES = """\
examples:
  dsync resize render 8
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    resize = add_parser(commands, "resize", "set a semaphore's value", ABOUT, EXAMPLES)
    resize.add_argument("name", type=name, metavar="NAME")
    resize.add_argument("value", type=count(0), metavar="N", help="permits")
    server(resize)
    resize.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Set it."""

    async def act(client: "Client") -> int:
        from dsync.redis.scan import kinds_of, look

        before = None
        found = await kinds_of(store_of(client), args.name, ("semaphore",))
        if found:
            limit, *_ = await look(store_of(client), found[0].key, "permit_info")
            before = limit if limit >= 0 else 1
        await client.semaphore(args.name).resize(args.value)
        if args.json:
            emit({"name": args.name, "value": args.value, "before": before, "pinned": True})
        else:
            was = "nobody has used it yet" if before is None else f"it had {before}"
            print(shown(f"semaphore {args.name!r} has {args.value} permits, pinned ({was})"))
        return 0

    return talk(args, act)
