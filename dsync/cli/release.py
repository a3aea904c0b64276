"""`dsync release`: take a lock away from its holder."""

import argparse
from typing import TYPE_CHECKING

from dsync.cli.options import USAGE, Failure, Parsers, add_parser, emit, name, server, shown, talk
from dsync.cli.records import HELD, choose, store_of

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Take a lock, a permit or an office away from who holds it.  The next waiter has it at once; the old
holder sees LeaseLost, and may still be at work when that reaches it: have what it writes to refuse
its fence.
"""

EXAMPLES = """\
examples:
  dsync release invoices --force
  dsync release render --kind semaphore --holder worker-3:811 --force
  dsync release render --kind semaphore --all --force

exit codes: 0, 1 if nobody holds it; `dsync --help` tells the others
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    release = add_parser(commands, "release", "take a lock from its holder", ABOUT, EXAMPLES)
    release.add_argument("name", type=name, metavar="NAME")
    release.add_argument("--force", action="store_true", help="has to be said")
    release.add_argument("--kind", choices=HELD, help="if there are several of this name")
    which = release.add_mutually_exclusive_group()
    which.add_argument("--holder", metavar="HOST:PID", help="of several holders, this one")
    which.add_argument("--all", action="store_true", help="of several holders, all")
    server(release)
    release.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Take it away."""

    async def act(client: "Client") -> int:
        from dsync.info import holders_of
        from dsync.redis.scan import look

        found = await choose(client, args.name, args.kind)
        what = f"{found.kind} {found.name!r}"
        *_, holding, _, _ = await look(store_of(client), found.key, "permit_info")
        holders = {each.token: f"{each.host}:{each.pid}" for each in holders_of(holding)}
        if not holders:
            raise Failure(f"{what} is held by nobody")
        chosen = [t for t, where in holders.items() if args.holder in (None, where)]
        there = ", ".join(sorted(set(holders.values())))
        if not chosen:
            raise Failure(f"{what} is not held by {args.holder}; it is by {there}")
        if len(chosen) > 1 and not args.all and args.holder is None:
            raise Failure(f"{what} is held by {there}: choose with --holder, or --all", USAGE)
        if not args.force:
            raise Failure(
                f"{what} is held by {', '.join(holders[t] for t in chosen)}, who may be at work: "
                "say --force to take it away",
                USAGE,
            )
        cohort = client._cohort(found.kind, found.name, 1, fences=found.kind != "semaphore")
        for token in chosen:
            held = await cohort.revoke(token)
            if args.json:
                emit({"kind": found.kind, "name": found.name, "from": holders[token], "held": held})
            else:
                end = "taken from" if held else "had just been given back by"
                print(shown(f"{what} {end} {holders[token]}"))
        return 0

    return talk(args, act)
