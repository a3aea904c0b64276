"""`dsync web`: what there is in a namespace, live in a browser."""

import argparse
import errno
import ipaddress
import os
import secrets
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from dsync.cli.options import (
    UNAVAILABLE,
    USAGE,
    Failure,
    Parsers,
    add_parser,
    count,
    positive,
    say,
    server,
    talk,
)

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["register"]

ABOUT = """\
Serve a page that shows what `dsync top` shows.  It looks, and changes nothing.
It needs starlette and uvicorn: pip install 'dsync-redis[web]'

The page is for this machine only, and everybody on it.  With --host for others, or with
--allow-release, its address ends in a token, which is made at each start unless DSYNC_WEB_TOKEN
has one.  What goes over the network is not encrypted: an ssh tunnel, or a proxy with TLS, is.
"""

EXAMPLES = """\
examples:
  dsync web                       then open http://127.0.0.1:8377/
  dsync web --port 0              any free port
  dsync web 'invoices*' --allow-release
  dsync web --host 0.0.0.0        for other machines: the address that is printed has a token
  dsync web --allow-host ops.example.com      behind a proxy that has checked who asks

exit codes: 0 after Ctrl-C or SIGTERM, 1 if it cannot listen there; `dsync --help` tells the others
"""


def register(commands: Parsers) -> None:
    """Its part of the command line."""
    web = add_parser(commands, "web", "what there is, live in a browser", ABOUT, EXAMPLES)
    web.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of names")
    web.add_argument("--host", default="127.0.0.1", help="where to listen; default: 127.0.0.1")
    web.add_argument(
        "--port",
        type=count(0, 65535),
        default=8377,
        metavar="N",
        help="default: 8377; 0: a free one",
    )
    web.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="a name by which browsers may ask for it, besides its own",
    )  # fmt: skip
    web.add_argument(
        "--allow-release", action="store_true", help="locks can be taken from their holders there"
    )
    web.add_argument(
        "--every", type=positive, default=1.0, metavar="S", help="seconds between looks; default: 1"
    )
    server(web, with_json=False)
    web.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise Failure(
            "needs the packages starlette and uvicorn: pip install 'dsync-redis[web]'",
            UNAVAILABLE,
        ) from None

    async def act(client: "Client") -> int:
        with _listening(args.host, args.port) as listening:
            await _serve(client, args, listening)
        return 0

    return talk(args, act)


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return socket.create_server(where[:2], family=family, backlog=128)
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]
        free = "; --port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
        raise Failure(f"cannot listen on {host}:{port}: {why}{free}") from None


async def _serve(client: "Client", args: argparse.Namespace, listening: socket.socket) -> None:
    from dsync.web import make_app
    from dsync.web.guard import LOOPBACK
    from dsync.web.serving import serve

    bound, port = listening.getsockname()[:2]
    at_home = ipaddress.ip_address(bound).is_loopback
    names = {*LOOPBACK, args.host, bound, *args.allow_host}
    if not at_home:
        names.add(socket.gethostname())
    token = os.environ.get("DSYNC_WEB_TOKEN")
    if not token and (args.allow_release or not at_home):
        token = secrets.token_urlsafe(24)
    try:
        app = make_app(
            client, args.pattern, every=args.every, allow_release=args.allow_release, hosts=names,
            token=token or None,
        )  # fmt: skip
    except ValueError as error:
        raise Failure(f"$DSYNC_WEB_TOKEN cannot be used: {error}", USAGE) from None

    def ready() -> None:
        print(_url(args.host, bound, port, token), flush=True)
        if not at_home:
            say("web", "other machines can reach this: its token is all that protects it, and "
                "nothing is encrypted")  # fmt: skip
        can = "take locks from their holders there" if args.allow_release else "change nothing"
        say("web", f"who opens this address can {can}; Ctrl-C ends it")

    await serve(app, listening, ready)


def _url(host: str, bound: str, port: int, token: str | None) -> str:
    if ipaddress.ip_address(bound).is_unspecified:
        host = socket.gethostname()
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")
