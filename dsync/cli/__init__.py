"""The `dsync` command: one file for each of its commands.

What a command needs is imported when it runs, so `--help` is quick.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from dsync import errors
from dsync.cli import options

__all__ = ["main", "parser"]

COMMANDS = (
    *("demo", "serve", "lock", "limit", "event", "bus"),
    *("ls", "info", "top", "release", "resize", "web", "doctor", "bench", "completion"),
)
TAKE_A_COMMAND = ("lock", "limit")

ABOUT = """\
asyncio's locks, semaphores, events, conditions and barriers, across processes and machines.
"""

EPILOG = """\
examples:
  dsync demo                      see it at work on real processes; needs no server
  dsync serve                     a server to try your program on, until Ctrl-C
  export DSYNC_URL=redis://host   the server that programs and commands use when told no other
  dsync lock backup -- ./backup.sh
  dsync ls                        what there is, who holds it and who waits

exit codes:
    0  done; `lock` and `limit` pass on the code of their COMMAND, 128 + N after signal N
    1  no: not acquired, not set, not in time, not there
    2  the arguments cannot be used
   65  what is stored under the name is not dsync's, or a newer dsync's
   69  the server cannot be reached, or does not allow it; a package or a server is not installed
   75  the lock was lost while COMMAND ran, which was ended
  126  COMMAND cannot be run; 127: there is none of this name
  130  Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is written out
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    run: list[str] | None = None
    if words[:1] and words[0] in TAKE_A_COMMAND and "--" in words:
        cut = words.index("--")
        words, run = words[:cut], words[cut + 1 :]
    # Of the others nothing is needed, not even their names.
    args = parser(words[:1] if words and words[0] in COMMANDS else COMMANDS).parse_args(words)
    args.run_command = run
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130  # as a shell reports a death by Ctrl-C
    except BrokenPipeError:
        # Who read our output has gone: `dsync ls | head -1`.  Nothing is left to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except options.Failure as failure:
        options.say(args.command, str(failure))
        return failure.code
    except errors.DsyncError as error:
        options.say(args.command, str(error))
        return _code(error)


def _code(error: errors.DsyncError) -> int:
    match error:
        case errors.LeaseLost():
            return options.LOST
        case errors.ForeignKey() | errors.SchemaMismatch() | errors.BadMessage():
            return options.DATA
        case errors.AcquireTimeout() | errors.WaitTimeout() | errors.TooManyWaiters():
            return options.NO
    return options.UNAVAILABLE


def parser(of: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line, with all commands or some."""
    made = argparse.ArgumentParser(
        prog="dsync",
        description=ABOUT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the version and exit",
    )
    commands = made.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command"
    )
    for command in of:
        import_module(f"dsync.cli.{command}").register(commands)
    return made


class _Version(argparse.Action):
    """Print the version; unlike argparse's own action it looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print("dsync", version("dsync-redis"))
        parser.exit()
