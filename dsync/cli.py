"""The `dsync` command.  What a subcommand needs is imported when it runs, so `--help` is quick."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]

ABOUT = """\
asyncio's locks, semaphores, events, conditions and barriers, across processes and machines.
"""

EXAMPLES = """\
examples:
  dsync demo                      see it at work on real processes; needs no server
  dsync serve                     a server to try your program on, until Ctrl-C
  export DSYNC_URL=redis://host   the server that programs and commands use when told no other
"""

SERVE_ABOUT = """\
Run an embedded Valkey in the foreground, on a private unix socket unless --port says otherwise.
The first line on stdout is its URL; everything else goes to stderr.
It ends with this command, however this command ends, and its data are gone then.
"""

SERVE_EXAMPLES = """\
examples:
  dsync serve                     a socket of its own: nobody else can reach it
  dsync serve --port 6379         where dsync.connect() looks without a URL
  dsync serve --port 0            any free port
  dsync serve --socket ./valkey.sock
"""

DEMO_ABOUT = """\
Start worker processes that share a lock, semaphores, an event, conditions and a bus, and watch.

  ledger    a lock around read, compute, write on one file
  slots     a semaphore: three may be in
  upstream  a bounded semaphore before a service that counts the calls it has at once
  news      what is written in the ledger is told on a bus, and nothing of it is lost unnoticed
  queue     two conditions over one lock around a queue with room for three; an event starts all

One worker is killed while it holds the lock, and another is stopped until its lease is over.
Everybody writes down what happens; the summary is computed from that.  The exit code is
0 if every promise was put to the test and kept, 1 if one was broken or nothing came to pass,
2 if there was no server to run on, 130 after Ctrl-C.  The code to learn from is
dsync/demo/worker.py.
"""

DEMO_EXAMPLES = """\
examples:
  dsync demo                      15 seconds, on an embedded server
  dsync demo --workers 8 --seconds 60
  dsync demo --url redis://localhost:6379/0      a server of your own; uses fresh names there
  dsync demo --plain              lines instead of a live screen: for logs and CI
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130  # as a shell reports a death by Ctrl-C


def _parser() -> argparse.ArgumentParser:
    parser = _with_examples(argparse.ArgumentParser(prog="dsync"), ABOUT, EXAMPLES)
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the version and exit",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="run an embedded server until Ctrl-C")
    _with_examples(serve, SERVE_ABOUT, SERVE_EXAMPLES)
    address = serve.add_mutually_exclusive_group()
    address.add_argument(
        "--port", type=_port, metavar="N", help="listen on 127.0.0.1:N; 0 takes a free port"
    )
    address.add_argument("--socket", metavar="PATH", help="where to put the unix socket")
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="the primitives at work, on real processes")
    _with_examples(demo, DEMO_ABOUT, DEMO_EXAMPLES)
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=15.0,
        metavar="S",
        help="how long (5 to 3600; default: 15)",
    )
    demo.add_argument(
        "--workers", type=_count, default=4, metavar="N", help="processes (1 to 64; default: 4)"
    )
    demo.add_argument("--url", help="the server to use (default: an embedded one)")
    demo.add_argument("--plain", action="store_true", help="plain lines, no live screen")
    demo.set_defaults(run=_demo)
    return parser


def _serve(args: argparse.Namespace) -> int:
    import signal
    import threading

    from dsync.server import Server, ServerError

    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        with Server.start(port=args.port, socket_path=args.socket) as server:
            print(server.url, flush=True)
            _say(
                f"Valkey is ready, with pid {server.pid}.  In another terminal:",
                f"  export DSYNC_URL='{server.url}'",
                "and dsync.connect() finds it.  Ctrl-C ends it, and its data with it.",
            )
            while not over.wait(0.5):
                if not server.alive:
                    raise ServerError(f"the server at {server.url} ended by itself")
    except ServerError as error:
        _say(f"dsync serve: {error}")
        return 1
    return 0


def _demo(args: argparse.Namespace) -> int:
    from dsync import demo

    return demo.main(args)


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def _with_examples(
    parser: argparse.ArgumentParser, about: str, examples: str
) -> argparse.ArgumentParser:
    parser.description, parser.epilog = about, examples
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


class _Version(argparse.Action):
    """Print the version; unlike argparse's own action it looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print("dsync", version("dsync-redis"))
        parser.exit()


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 64, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 5 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number from 5 to 3600, got {text!r}")
    return seconds
