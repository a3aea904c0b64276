"""What the commands share: options, exit codes, a client for a while, and lines to print."""

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dsync.names import checked_name

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = [
    "CANNOT",
    "DATA",
    "LOST",
    "NO",
    "NO_COMMAND",
    "UNAVAILABLE",
    "USAGE",
    "Failure",
    "Parsers",
    "add_parser",
    "address",
    "count",
    "emit",
    "name",
    "positive",
    "rate",
    "say",
    "seconds",
    "server",
    "shown",
    "table",
    "talk",
]

# Exit codes, as `dsync --help` tells them; above 64 they are those of sysexits.h.
NO = 1  # not acquired, not set, not in time
USAGE = 2
DATA = 65
UNAVAILABLE = 69
LOST = 75
CANNOT = 126
NO_COMMAND = 127

DEFAULT_URL = "redis://localhost:6379"
Parsers = Any  # argparse's action of subparsers, which has no public name


class Failure(Exception):
    """What a command could not do: its one line, and the exit code."""

    def __init__(self, text: str, code: int = NO) -> None:
        super().__init__(text)
        self.code = code


def add_parser(
    commands: Parsers, command: str, help: str, about: str, examples: str, **more: Any
) -> argparse.ArgumentParser:
    """The parser of a command, with its examples below."""
    parser: argparse.ArgumentParser = commands.add_parser(
        command,
        help=help,
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    return parser


def server(parser: argparse.ArgumentParser, *, with_json: bool = True) -> None:
    """The options that say where, and whether for programs."""
    where = parser.add_argument_group("server")
    where.add_argument("--url", metavar="URL", help=f"default: $DSYNC_URL, else {DEFAULT_URL}")
    where.add_argument(
        "--namespace", type=name, default="dsync", metavar="NS", help="default: dsync"
    )
    where.add_argument(
        "--patience", type=positive, metavar="S",
        help="seconds for which it may be out of reach; default: 5, or 10 for what waits",
    )  # fmt: skip
    if with_json:
        parser.add_argument("--json", action="store_true", help="JSON, for programs")


# -- arguments ------------------------------------------------------------------------------------


def name(text: str) -> str:
    """Any text that can name a primitive."""
    try:
        return checked_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """A time, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more, got {text!r}")
    return number


def positive(text: str) -> float:
    """A time, more than 0."""
    if not (number := seconds(text)):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return number


def count(least: int, most: int = 2**31) -> Callable[[str], int]:
    """A whole number within these bounds."""

    def counted(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} to {most}, got {text!r}"
            )
        return int(text)

    return counted


def rate(text: str) -> tuple[float, float]:
    """Units and seconds, from "600/min"."""
    from dsync.rate_limiter import RateLimiter

    try:
        return RateLimiter.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# -- the server -----------------------------------------------------------------------------------


def address(args: argparse.Namespace) -> str:
    """The URL that is meant."""
    url: str = args.url or os.environ.get("DSYNC_URL") or DEFAULT_URL
    if url.startswith("memory:"):
        raise Failure(f"processes cannot share {url}: name a server, or embedded://", USAGE)
    return url


def talk(
    args: argparse.Namespace, action: "Callable[[Client], Awaitable[int]]", *, patience: float = 5.0
) -> int:
    """Run `action` with a client, and return its exit code.

    `patience`: seconds for which the server may be out of reach, unless --patience says so.
    """
    import dsync

    async def session() -> int:
        try:
            client = dsync.connect(
                address(args),
                namespace=args.namespace,
                label=getattr(args, "label", None) or f"dsync {args.command}",
                outage_timeout=args.patience or patience,
                on_error=lambda error: say(args.command, str(error)),
            )
        except (TypeError, ValueError) as error:
            raise Failure(str(error), USAGE) from None
        try:
            await client.check()
            return await action(client)
        finally:
            await client.aclose()

    return asyncio.run(session())


# -- output ---------------------------------------------------------------------------------------


def say(command: str, text: str) -> None:
    """A line for whoever watches, on stderr."""
    print(f"dsync {command}: {text}", file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """`text` without what would do something to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def emit(value: object) -> None:
    """One JSON document on a line of its own."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as they have to be."""
    lines = [tuple(head), *(tuple(map(shown, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
