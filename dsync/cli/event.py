"""`dsync event`: set, clear, wait for and look at an event."""

import argparse
from typing import TYPE_CHECKING

from dsync.cli.options import NO, Parsers, add_parser, emit, name, positive, seconds, server, talk

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
An event is set or not; `wait` returns when it is, or was, since it began to wait.
A set event stays set until somebody clears it, or until its --ttl is over.
"""

EXAMPLES = """\
examples:
  dsync event wait migrated --timeout 60 && ./serve
  dsync event set migrated
  dsync event status migrated     exit code 0 if it is set, 1 if not
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    event = add_parser(commands, "event", "set, clear, wait for an event", ABOUT, EXAMPLES)
    actions = event.add_subparsers(
        title="actions", metavar="set|clear|wait|status", required=True, dest="action"
    )
    for action, about in (
        ("set", "wake everybody who waits, and whoever comes later"),
        ("clear", "let them wait from now on"),
        ("wait", "return once it is set; exit code 1 if it was not in time"),
        ("status", "exit code 0 if it is set, 1 if not"),
    ):
        parser = actions.add_parser(action, help=about, description=about)
        parser.add_argument("name", type=name, metavar="NAME")
        if action == "set":
            parser.add_argument(
                "--ttl", type=positive, metavar="S", help="seconds for which it stays set"
            )
        elif action == "wait":
            parser.add_argument(
                "--timeout", type=seconds, metavar="S", help="seconds to wait; default: for ever"
            )
        server(parser, with_json=action == "status")
        parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what was asked for."""

    async def act(client: "Client") -> int:
        event = client.event(args.name, ttl=getattr(args, "ttl", None))
        match args.action:
            case "set":
                await event.set()
            case "clear":
                await event.clear()
            case "wait":
                await event.wait(args.timeout)
            case _:
                is_set = await event.is_set()
                if args.json:
                    emit({"name": args.name, "set": is_set})
                else:
                    print("set" if is_set else "not set")
                return 0 if is_set else NO
        return 0

    return talk(args, act, patience=10.0 if args.action == "wait" else 5.0)
