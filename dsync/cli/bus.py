"""`dsync bus`: trigger events, and listen to them."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from dsync.cli.options import (
    NO,
    USAGE,
    Failure,
    Parsers,
    add_parser,
    count,
    emit,
    name,
    positive,
    say,
    server,
    shown,
    talk,
)

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Events with data, for everybody who listens at the time.
"""

EXAMPLES = """\
examples:
  dsync bus listen                everything, until Ctrl-C
  dsync bus listen 'order.*' --json
  dsync bus trigger order.created '{"id": 7}'
  ./report | dsync bus trigger report.ready -
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    bus = add_parser(commands, "bus", "trigger events and listen to them", ABOUT, EXAMPLES)
    actions = bus.add_subparsers(
        title="actions", metavar="trigger|listen", required=True, dest="action"
    )
    trigger = actions.add_parser("trigger", help="tell everybody", description="Tell everybody.")
    trigger.add_argument("event", type=name, metavar="EVENT")
    trigger.add_argument(
        "data", nargs="?", default="null", metavar="JSON", help="default: null; -: from stdin"
    )
    listen = actions.add_parser(
        "listen",
        help="print what is told",
        description="Print a line for each event that matches; for lost ones, how many they were.",
    )
    listen.add_argument(
        "pattern", nargs="?", default="*", type=name, metavar="PATTERN", help="default: *"
    )
    listen.add_argument("--count", type=count(1), metavar="N", help="end after N events")
    listen.add_argument(
        "--timeout", type=positive, metavar="S",
        help="end after S seconds, with exit code 1 if --count was not reached",
    )  # fmt: skip
    for parser, act in ((trigger, _trigger), (listen, _listen)):
        parser.add_argument("--bus", type=name, default="default", help="default: default")
        server(parser, with_json=parser is listen)
        parser.set_defaults(run=act)


def _trigger(args: argparse.Namespace) -> int:
    text = sys.stdin.read() if args.data == "-" else args.data
    try:
        data = json.loads(text)
    except ValueError as error:
        raise Failure(
            f"the data of {args.event!r} must be JSON ({error}), got {text[:60]!r}; "
            "text is written as '\"text\"'",
            USAGE,
        ) from None

    async def act(client: "Client") -> int:
        try:
            await client.event_bus(args.bus).trigger(args.event, data)
        except (TypeError, ValueError) as error:
            raise Failure(str(error), USAGE) from None
        return 0

    return talk(args, act)


def _listen(args: argparse.Namespace) -> int:
    async def act(client: "Client") -> int:
        import asyncio

        left = args.count
        try:
            async with (
                asyncio.timeout(args.timeout),
                client.event_bus(args.bus).subscribe(args.pattern) as events,
            ):
                say("bus", f"listening to {args.pattern!r} on bus {args.bus!r}")
                async for message in events:
                    _print(message, args.json)
                    if left is not None and hasattr(message, "event"):
                        left -= 1
                        if not left:
                            break
        except TimeoutError:
            return NO if left else 0
        return 0

    return talk(args, act, patience=10.0)


def _print(message: Any, as_json: bool) -> None:
    if not hasattr(message, "event"):
        missed = message.missed
        if as_json:
            emit({"gap": missed})
        else:
            say("bus", f"missed {'an unknown number of' if missed is None else missed} messages")
    elif as_json:
        fields = ("event", "data", "origin", "sequence")
        emit({field: getattr(message, field) for field in fields})
    else:
        data = json.dumps(message.data, ensure_ascii=False)
        print(shown(message.event), shown(data), flush=True)
