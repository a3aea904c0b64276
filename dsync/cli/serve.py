"""`dsync serve`: an embedded server in the foreground."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from dsync.cli.options import NO, UNAVAILABLE, Parsers, add_parser, count

__all__ = ["register"]

ABOUT = """\
Run an embedded Valkey in the foreground, on a private unix socket unless --port says otherwise.
The first line on stdout is its URL; everything else goes to stderr.
It ends with this command, however this command ends, and its data are gone then, unless
--persist names a directory for them: what was confirmed less than a second before a crash of the
machine may be missing there.
"""

EXAMPLES = """\
examples:
  dsync serve                     a socket of its own: nobody else can reach it
  dsync serve --port 6379         where dsync.connect() looks without a URL
  dsync serve --port 0            any free port
  dsync serve --socket ./valkey.sock
  dsync serve --port 6379 --persist ./data

exit codes: 0 after Ctrl-C or SIGTERM, 1 if it cannot run or ended by itself, 69 if there is none
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    serve = add_parser(commands, "serve", "run an embedded server until Ctrl-C", ABOUT, EXAMPLES)
    address = serve.add_mutually_exclusive_group()
    address.add_argument(
        "--port", type=count(0, 65535), metavar="N", help="listen on 127.0.0.1:N; 0: a free one"
    )
    address.add_argument("--socket", metavar="PATH", help="where to put the unix socket")
    serve.add_argument("--persist", metavar="DIR", help="keep the data in this directory")
    serve.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    import signal
    import threading

    from dsync.server import Server, ServerError, ServerMissing

    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    end = "Ctrl-C ends it, and its data with it."
    options: tuple[str, ...] = ()
    if args.persist:
        end = f"Ctrl-C ends it; its data stay in {args.persist}."
        options = ("--appendonly", "yes", "--appendfsync", "everysec")
    try:
        with (
            _alone_in(args.persist),
            Server.start(args.persist, args.port, options, socket_path=args.socket) as server,
        ):
            print(server.url, flush=True)
            _say(
                f"Valkey is ready, with pid {server.pid}.  In another terminal:",
                f"  export DSYNC_URL='{server.url}'",
                f"and dsync.connect() finds it.  {end}",
            )
            while not over.wait(0.5):
                if not server.alive:
                    raise ServerError(f"the server at {server.url} ended by itself")
    except (ServerError, OSError) as error:
        _say(f"dsync serve: {error}")
        return UNAVAILABLE if isinstance(error, ServerMissing) else NO
    return 0


@contextlib.contextmanager
def _alone_in(directory: str | None) -> Iterator[None]:
    """Be the only one who serves from this directory: two servers would ruin each other's data."""
    if directory is None:
        yield
        return
    import fcntl
    import os

    from dsync.server import ServerError

    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(os.path.join(directory, "dsync.lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(f"another dsync serve keeps its data in {directory}") from None
        yield


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)
