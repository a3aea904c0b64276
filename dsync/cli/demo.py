"""`dsync demo`: the primitives at work."""

import argparse
import math

from dsync.cli.options import Parsers, add_parser, count

__all__ = ["register"]

ABOUT = """\
Start worker processes that share a lock, semaphores, an event, conditions and a bus, and watch.

  ledger    a lock around read, compute, write on one file
  slots     a semaphore: three may be in
  upstream  a bounded semaphore before a service that counts the calls it has at once
  news      what is written in the ledger is told on a bus, and nothing of it is lost unnoticed
  queue     two conditions over one lock around a queue with room for three; an event starts all

One worker is killed while it holds the lock, and another is stopped until its lease is over.
Everybody writes down what happens; the summary is computed from that.  The exit code is
0 if every promise was put to the test and kept, 1 if one was broken or nothing came to pass,
69 if there was no server to run on, 130 after Ctrl-C.  The code to learn from is
dsync/demo/worker.py.
"""

EXAMPLES = """\
examples:
  dsync demo                      15 seconds, on an embedded server
  dsync demo --workers 8 --seconds 60
  dsync demo --url redis://localhost:6379/0      a server of your own; uses fresh names there
  dsync demo --plain              lines instead of a live screen: for logs and CI
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    demo = add_parser(
        commands, "demo", "the primitives at work, on real processes", ABOUT, EXAMPLES
    )
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=15.0,
        metavar="S",
        help="how long (5 to 3600; default: 15)",
    )
    demo.add_argument(
        "--workers", type=count(1, 64), default=4, metavar="N", help="1 to 64; default: 4"
    )
    demo.add_argument("--url", help="the server to use (default: an embedded one)")
    demo.add_argument("--plain", action="store_true", help="plain lines, no live screen")
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Play it."""
    from dsync import demo

    return demo.main(args)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 5 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be a number from 5 to 3600, got {text!r}")
    return seconds
