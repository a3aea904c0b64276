"""`dsync limit`: a rate limit, for commands."""

import argparse
import os
import shutil
import signal
from typing import TYPE_CHECKING

from dsync.cli.options import (
    CANNOT,
    NO_COMMAND,
    USAGE,
    Failure,
    Parsers,
    add_parser,
    address,
    count,
    name,
    rate,
    seconds,
    server,
    talk,
)

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Wait until the limit of this name allows it, then run COMMAND, or end with exit code 0.
All who use the name share the limit: `client.rate_limiter(NAME, …)` is the same one.  Where they
disagree on the numbers, the newest counts.
"""

EXAMPLES = """\
examples:
  dsync limit openai --rate 600/min -- curl https://…
  dsync limit mail --rate 10/s --burst 1 -- ./send one.eml
  dsync limit sms --rate 100/day -n || echo "no more today"

exit codes: COMMAND's; 1 if it was not allowed in time; `dsync --help` tells the others
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    limit = add_parser(
        commands, "limit", "run a command when a rate limit allows it", ABOUT, EXAMPLES,
        usage="dsync limit NAME --rate N/TIME [options] [-- COMMAND ...]",
    )  # fmt: skip
    limit.add_argument("name", type=name, metavar="NAME")
    limit.add_argument(
        "--rate", type=rate, required=True, metavar="N/TIME", help="such as 600/min, 10/s, 5/30s"
    )
    limit.add_argument(
        "--burst", type=count(1), metavar="N", help="at once, after a pause; default: one period's"
    )
    limit.add_argument(
        "--amount", type=count(1), default=1, metavar="N", help="units to take; default: 1"
    )
    patience = limit.add_mutually_exclusive_group()
    patience.add_argument("--timeout", type=seconds, metavar="S", help="seconds to wait at most")
    patience.add_argument("-n", "--no-wait", action="store_true", help="now or not at all")
    server(limit, with_json=False)
    limit.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Wait, then become the command."""
    command = args.run_command
    if command and shutil.which(command[0]) is None:
        raise Failure(f"there is no command {command[0]!r}", NO_COMMAND)

    async def act(client: "Client") -> int:
        units, per = args.rate
        try:
            limiter = client.rate_limiter(args.name, units, per, args.burst)
            await limiter.acquire(args.amount, 0 if args.no_wait else args.timeout)
        except (TypeError, ValueError) as error:
            raise Failure(str(error), USAGE) from None
        return 0

    code = talk(args, act, patience=10.0)
    if command:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, COMMAND may not
            signal.signal(number, signal.SIG_DFL)
        environ = os.environ | {"DSYNC_NAME": args.name, "DSYNC_URL": address(args)}
        try:
            os.execvpe(command[0], command, environ)
        except OSError as error:
            raise Failure(f"cannot run {command[0]!r}: {error.strerror}", CANNOT) from None
    return code
