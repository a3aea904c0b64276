"""`dsync info`: all that is known of a name."""

import argparse
from typing import TYPE_CHECKING, Any

from dsync.cli.options import Parsers, add_parser, emit, name, server, shown, talk
from dsync.cli.records import KINDS, add_tasks, facts, lasting, state, there, who

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Tell who holds the primitive of this name, which task of it, and who waits for it, in order.  If
there are several of this name, each is told; --kind picks one.
"""

EXAMPLES = """\
examples:
  dsync info invoices
  dsync info openai --kind rate --json

exit codes: 0, 1 if there is nothing of this name; `dsync --help` tells the others
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    info = add_parser(commands, "info", "tell who holds a name and who waits", ABOUT, EXAMPLES)
    info.add_argument("name", type=name, metavar="NAME")
    info.add_argument("--kind", choices=list(KINDS), help="only this kind")
    server(info)
    info.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell."""

    async def act(client: "Client") -> int:
        found = await there(client, args.name, args.kind)
        known = {each: await facts(client, each) for each in found}
        await add_tasks(client, known)
        for what in known.values():
            if args.json:
                emit(what)
            else:
                _tell(what)
        return 0

    return talk(args, act)


def _tell(known: dict[str, Any]) -> None:
    print(f"{known['kind']} {shown(repr(known['name']))}: {shown(state(known)[0])}")
    for holder in known.get("holders", ()):
        print(
            f"  holds   {shown(who(holder))} for {lasting(holder['held'])}, "
            f"lease left {lasting(holder['lease_left'])}"
        )
    for place, waiter in enumerate(known.get("waiters", ()), 1):
        print(f"  waits   {place}. {shown(who(waiter))} for {lasting(waiter['waited'])}")
    for what in ("fence", "pinned", "generation", "reserved"):
        if known.get(what):
            print(f"  {what:<7} {known[what]}")
    if known.get("reset_after"):
        print(f"  full again in {lasting(known['reset_after'])}")
