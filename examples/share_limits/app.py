"""Two limits that all workers of a web server share: a rate, and a cap on concurrent calls.

    DSYNC_URL=redis://localhost:6379 python examples/share_limits/app.py [PORT]

    curl -i -H 'X-API-Key: ada' localhost:8000/reports/7

Each API key has RATE requests per PER seconds, whichever workers they reach; what is more gets 429.
The whole fleet has CAP calls at a time to a slow service upstream; who finds no room soon gets 503.

Needs `pip install 'dsync-redis[web]' httpx2`.  Without $DSYNC_URL it brings a server of its own,
which is in the extra [server]; without $UPSTREAM_URL a pause stands for the service.
"""

import asyncio
import contextlib
import math
import os
import sys
from collections.abc import AsyncIterator

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import dsync

KEYS = ("ada", "grace")  # stands for a table in your database
RATE, PER = 20, 1  # requests, seconds; as many may come at once after a pause
CAP = 4
PATIENCE = 0.5  # seconds for which a request waits for room upstream
TIMEOUT = 3.0  # seconds for a call upstream
# Seconds after which the permits of a worker that died are free again.  Longer than TIMEOUT, so
# that what it had begun upstream is over by then.
LEASE = 5.0


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Of each worker: one client, made in its event loop and closed when it is told to stop."""
    url = os.environ.get("DSYNC_URL", "embedded://")
    upstream = os.environ.get("UPSTREAM_URL", "")
    async with (
        # Nobody waits for long before a web server: where Redis is out of reach, say so soon.
        dsync.connect(url, namespace="example-share-limits", outage_timeout=2) as client,
        httpx2.AsyncClient(base_url=upstream, timeout=TIMEOUT) as app.state.upstream,
    ):
        # The same names in all workers: that is what makes them one limit.
        app.state.limiters = {key: client.rate_limiter(key, RATE, PER) for key in KEYS}
        app.state.permits = client.semaphore("upstream", CAP, lease=LEASE)
        yield


async def report(request: Request) -> Response:
    limiter = request.app.state.limiters.get(request.headers.get("X-API-Key"))
    if limiter is None:
        return refusal(401, "this needs an X-API-Key")
    decision = await limiter.try_acquire()
    headers = rate_limit(decision)
    if not decision:
        return refusal(429, "too many requests with this key", decision.retry_after, headers)
    text = await ask_upstream(request.app, request.path_params["name"])
    return JSONResponse({"report": text, "worker": os.getpid()}, headers=headers)


async def ask_upstream(app: Starlette, name: str) -> str:
    """The report of this name; one of CAP calls that are made at a time, by all workers."""
    permits: dsync.Semaphore = app.state.permits
    # Those who wait are served in order; a client that has to wait for long had better know.
    await permits.acquire(timeout=PATIENCE)
    try:
        if not app.state.upstream.base_url.host:
            await asyncio.sleep(0.2)
            return f"all is well with {name}"
        response = await app.state.upstream.get(f"/{name}")
        response.raise_for_status()
        return str(response.text)
    finally:
        await permits.release()


def rate_limit(decision: dsync.Decision) -> dict[str, str]:
    """As in draft-ietf-httpapi-ratelimit-headers-11, whose seconds are whole ones.

    Who sends no more than `r` requests in the next `t` seconds is not refused.
    """
    seconds = math.ceil(decision.reset_after if decision else decision.retry_after)
    return {
        "RateLimit-Policy": f'"key";q={RATE};w={PER}',
        "RateLimit": f'"key";r={decision.remaining};t={seconds}',
    }


def refusal(
    status: int, why: str, retry_after: float = 0.0, headers: dict[str, str] | None = None
) -> Response:
    headers = dict(headers or {})
    if retry_after:
        headers["Retry-After"] = str(math.ceil(retry_after))
    return JSONResponse({"error": why, "worker": os.getpid()}, status, headers)


async def no_room(request: Request, error: Exception) -> Response:
    """Not 429: it is not this client that asks too much, and another would fare no better.

    That goes for a server that cannot be asked, too: without it nobody knows what is free.
    """
    return refusal(503, "too much to do, or out of order", retry_after=1)


async def bad_gateway(request: Request, error: Exception) -> Response:
    return refusal(502, f"upstream: {error!r}")


app = Starlette(
    lifespan=lifespan,
    routes=[Route("/reports/{name}", report)],
    exception_handlers={dsync.DsyncError: no_room, httpx2.HTTPError: bad_gateway},
)


if __name__ == "__main__":
    uvicorn.run("app:app", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000, workers=4)
