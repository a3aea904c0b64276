"""`dsync lock`: run a command while a lock, or a permit of a semaphore, is held."""

import argparse
import logging
import os
import shutil
from typing import TYPE_CHECKING

from dsync.cli.options import (
    NO,
    NO_COMMAND,
    USAGE,
    Failure,
    Parsers,
    add_parser,
    count,
    name,
    positive,
    seconds,
    server,
    talk,
)

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Wait for the lock of this name, run COMMAND, release the lock, and end with COMMAND's exit code.
It is the lock that programs know as `client.lock(NAME)`; with --slots it is a semaphore.

If the lock is lost (no server for the length of the lease, `dsync release --force`), COMMAND and
all of its process group get SIGTERM, and SIGKILL before another can have the lock because the
lease has ended.  This holds as well if `dsync lock` itself is stopped or killed: a guard process
sees to it.

In COMMAND's environment: DSYNC_NAME, DSYNC_URL, and DSYNC_FENCE, a number greater than that of any
earlier holder: have what COMMAND writes to refuse a smaller one than it has seen.
"""

EXAMPLES = """\
examples:
  dsync lock backup -- pg_dump -f all.sql shop
  dsync lock backup -n -- ./backup.sh        now or not at all
  dsync lock nightly --every 82800 -E 0 -- ./nightly.sh      from cron, on all machines
  dsync lock render --slots 4 --timeout 60 -- ./render.sh    four at a time

exit codes:
  COMMAND's, 128 + N if signal N ended it; 1, or -E, if the lock was not acquired; 75 if it was
  lost; 126 if COMMAND cannot be run, 127 if there is none; 2, 65 and 69 as in `dsync --help`
"""

SHORTEST = 1.0  # seconds; COMMAND has to be ended in a tenth of it
LONGEST = 3 * 24 * 3600.0


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    lock = add_parser(
        commands, "lock", "run a command under a lock", ABOUT, EXAMPLES,
        usage="dsync lock NAME [options] -- COMMAND ...",
    )  # fmt: skip
    lock.add_argument("name", type=name, metavar="NAME")
    lock.add_argument(
        "--timeout", type=seconds, metavar="S", help="seconds to wait; default: for ever"
    )
    lock.add_argument("-n", "--no-wait", action="store_true", help="now or not at all")
    lock.add_argument(
        "--lease", type=_lease, default=30.0, metavar="S",
        help="seconds until another may have the lock if this machine goes silent; default: 30",
    )  # fmt: skip
    lock.add_argument("--slots", type=count(1), metavar="N", help="so many may run at a time")
    lock.add_argument(
        "--every", type=positive, metavar="S",
        help="not if one began less than S seconds ago, anywhere; does not wait without --timeout",
    )  # fmt: skip
    lock.add_argument(
        "-E", dest="otherwise", type=count(0, 255), default=NO, metavar="CODE",
        help="the exit code if the lock was not acquired; default: 1",
    )  # fmt: skip
    lock.add_argument(
        "--kill-after", type=positive, metavar="S",
        help="seconds from SIGTERM to SIGKILL when the lock is lost, at most half of --lease;"
        " default: 6 %% of --lease, at least 0.3",
    )  # fmt: skip
    lock.add_argument("--verbose", action="store_true", help="tell what happens, on stderr")
    server(lock, with_json=False)
    lock.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command under its lock."""
    _check(args)
    # That others were made with another number of slots; a loss we tell ourselves.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("dsync lock: %(message)s"))
    handler.addFilter(lambda record: " was lost: " not in record.getMessage())
    handler.addFilter(lambda record: record.getMessage().startswith("semaphore "))
    logging.getLogger("dsync").addHandler(handler)
    args.label = os.path.basename(args.run_command[0])

    async def errand(client: "Client") -> int:
        from dsync.cli.errand import Errand

        return await Errand(args, client).run()

    return talk(args, errand, patience=10.0)


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anybody waits."""
    if not args.run_command:
        raise Failure(f"what is to run? dsync lock {args.name} -- COMMAND ...", USAGE)
    if args.timeout is not None and args.no_wait:
        raise Failure("--no-wait does not go with --timeout", USAGE)
    if args.slots is not None and args.every is not None:
        raise Failure("--every is for one at a time: it does not go with --slots", USAGE)
    if args.kill_after is not None and args.kill_after > args.lease / 2:
        raise Failure(
            f"--kill-after must be at most half of the lease of {args.lease:g} s, "
            f"got {args.kill_after:g}",
            USAGE,
        )
    if args.every is not None and not 0.001 <= args.every <= 315360000:
        raise Failure(f"--every must be from 0.001 s to ten years, got {args.every:g}", USAGE)
    if shutil.which(args.run_command[0]) is None:
        raise Failure(f"there is no command {args.run_command[0]!r}", NO_COMMAND)


def _lease(text: str) -> float:
    number = positive(text)
    if not SHORTEST <= number <= LONGEST:
        raise argparse.ArgumentTypeError(
            f"must be from {SHORTEST:g} to {LONGEST:.0f} seconds, got {text!r}"
        )
    return number
