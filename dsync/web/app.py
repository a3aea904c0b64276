"""The application: one page, what it shows as JSON and as a stream, and taking a hold away.

What is stored under a name is shown as text and nothing else, and nothing is changed by looking.
"""

import asyncio
import hmac
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from dsync.arguments import checked_seconds
from dsync.errors import DsyncError
from dsync.facts import HELD
from dsync.names import checked_name, who
from dsync.overview import Overview
from dsync.web.feed import Feed
from dsync.web.guard import HEADERS, LOOPBACK, Guard, cookie_of, error, from_our_page, same

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["make_app"]

STATIC = Path(__file__).parent / "static"
VIEWERS = 100  # streams at a time
ROWS = 2000  # primitives that are sent
RETRY = 2000  # ms after which a browser that has lost the stream asks for it again
STUCK = 10.0  # seconds for which a viewer may read nothing
BODY = 65536  # bytes
CUT = re.compile("%#[0-9a-f]{40}$")  # how what is left of a long name ends

log: logging.Logger = logging.getLogger("dsync")


def make_app(
    client: "Client",
    pattern: str = "*",
    *,
    every: float = 1.0,
    allow_release: bool = False,
    hosts: Collection[str] = LOOPBACK,
    token: str | None = None,
    secret: str | None = None,
) -> Starlette:
    """The page as an application, to be served alone or mounted: it needs no lifespan.

    It asks the server every `every` seconds while somebody watches, once for all of them, and
    nothing while nobody does; it shows 2,000 primitives at most, busy ones first.
    `app.state.feed.close()` ends all streams: a server that waits for answers to end before it
    stops needs that when it is told to.  Turn its access log off: `?token=…` would be in it.

    Args:
        client: whose namespace is shown; it stays yours to close.
        pattern: of the names that are shown.
        every: seconds between two looks.
        allow_release: whether a lock can be taken from its holder here.  Without, nothing can be
            changed.
        hosts: names by which browsers may ask for the page; "0.0.0.0" stands for any address, and
            "*" for any name, where something in front has checked it.
        token: what whoever asks has to show, once, as `?token=`; None: nothing.
        secret: of which the key is made that the page shows to release something; worker processes
            that answer for one page need the same.  By default the token, else a random one.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message names it.
    """
    every = checked_seconds("every", every, zero=False)
    if token is not None:
        checked_name(token, "token")
    key = (secret or token or secrets.token_hex()).encode()
    app = Starlette(
        routes=[
            Route("/", _page, methods=["GET"]),
            Route("/page.js", _script, methods=["GET"]),
            Route("/page.css", _style, methods=["GET"]),
            Route("/api/overview", _overview, methods=["GET"]),
            Route("/events", _events, methods=["GET"]),
            *([Route("/api/release", _release, methods=["POST"])] if allow_release else []),
        ],
        middleware=[Middleware(Guard, hosts=hosts, token=token)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
        max_body_size=BODY,
    )
    app.state.client = client
    app.state.token = token
    overview = Overview(client, pattern)
    app.state.feed = Feed(partial(_look, overview, allow_release), overview.aclose, every)
    # Who can read this is a page of ours: others may send requests, but cannot read answers.
    csrf = hmac.new(key, b"dsync web: csrf", "sha256").hexdigest()
    app.state.csrf = csrf if allow_release else None
    return app


def _file(name: str, media_type: str) -> Response:
    return Response((STATIC / name).read_bytes(), media_type=media_type)


async def _page(request: Request) -> Response:
    token: str | None = request.app.state.token
    if token is None or "token" not in request.query_params:
        return _file("page.html", "text/html")
    # Out of the address line, where it could be seen, and out of the history.
    response = RedirectResponse("./", 303)
    response.set_cookie(
        *cookie_of(token), httponly=True, samesite="lax",
        secure=request.url.scheme == "https", path=quote(request.scope.get("root_path", "")) + "/",
    )  # fmt: skip
    return response


async def _script(request: Request) -> Response:
    return _file("page.js", "text/javascript")


async def _style(request: Request) -> Response:
    return _file("page.css", "text/css")


async def _look(overview: Overview, with_tokens: bool) -> dict[str, Any]:
    snapshot = await overview.look()
    # What is encoded holds up the loop, and a page with more could not be read: busy ones first.
    rows = sorted(snapshot.rows, key=lambda row: not row.busy)[:ROWS]
    seen = replace(
        snapshot, rows=tuple(sorted(rows, key=lambda row: (row.kind, row.name)))
    ).as_dict()
    seen["unsent"] = len(snapshot.rows) - len(rows)
    if not with_tokens:
        for row in seen["rows"]:
            for holder in row["holders"]:
                del holder["token"]
    return seen


async def _overview(request: Request) -> Response:
    feed: Feed = request.app.state.feed
    seen = await feed.now()
    return Response(seen.text, 200 if seen.ok else 503, media_type="application/json")


# -- the stream ------------------------------------------------------------------------------------


class _Stream(StreamingResponse):
    """Server-sent events; closes their generator when it ends, however that is."""

    def __init__(self, feed: Feed, events: AsyncGenerator[str, None]) -> None:
        # What nginx holds back comes late.
        headers = {"X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._feed = feed
        self._generator = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(STUCK):
                await send(message)

        self._feed.streams += 1  # before anything is awaited: as many may come at once
        try:
            async with aclosing(self._generator):
                await super().__call__(scope, receive, send_soon)
        except* TimeoutError:
            pass  # who does not read makes room for others
        finally:
            self._feed.streams -= 1


async def _events(request: Request) -> Response:
    state = request.app.state
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    if state.feed.streams >= VIEWERS:
        return error(503, f"{VIEWERS} are watching already")
    about = {
        "namespace": state.client.namespace,
        "every": state.feed.every,
        "retry": RETRY,
        "csrf": state.csrf,
    }
    return _Stream(state.feed, _stream(state.feed, about))


async def _stream(feed: Feed, about: dict[str, Any]) -> AsyncGenerator[str, None]:
    yield f"retry: {about['retry']}\nevent: about\ndata: {json.dumps(about)}\n\n"
    async with aclosing(feed.watch()) as watched:
        async for seen in watched:
            yield ": nothing new\n\n" if seen is None else f"data: {seen.text}\n\n"


# -- taking away -----------------------------------------------------------------------------------


async def _release(request: Request) -> Response:
    if (refusal := _may_release(request)) is not None:
        return refusal
    try:
        asked = await request.json()
        kind, name = asked["kind"], checked_name(asked["name"])
        token = checked_name(asked["token"], "token")
        if kind not in HELD:
            raise ValueError(f"a {kind!r:.50} is nothing that is held")
        if CUT.search(name):
            raise ValueError("its key has not the whole of its name: use `dsync release` with it")
        _, label, host, pid = who(token)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as trouble:
        return error(400, f"this cannot be released: {trouble}")
    client = request.app.state.client
    # One that this process uses itself keeps what it was declared with.
    cohort = client._cohorts.get((kind, name))
    cohort = cohort or client._cohort(kind, name, 1, fences=kind != "semaphore")
    try:
        held = await cohort.revoke(token)
    except DsyncError as trouble:
        return error(503, str(trouble))
    whose = f"{label} ({host}:{pid})"
    if held:
        log.warning("dsync web: %s %r was taken from %r", kind, name, whose)
    return JSONResponse({"held": held, "from": whose})


def _may_release(request: Request) -> Response | None:
    headers = request.headers
    if not from_our_page(headers):
        return error(403, "only the page itself may ask for this, and its browser does not say so")
    if not same(headers.get("x-dsync-csrf", ""), request.app.state.csrf):
        return error(403, "X-Dsync-Csrf is missing, or is of another start: load the page again")
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return error(415, "expected application/json")
    return None


# -- errors ----------------------------------------------------------------------------------------


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, HTTPException)
    return error(refusal.status_code, refusal.detail, **(refusal.headers or {}))


async def _failed(request: Request, failure: Exception) -> Response:
    """What is known of it is in the log, to which the server writes it."""
    return error(500, "this went wrong here: see the log", **HEADERS)
