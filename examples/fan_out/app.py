"""News for every browser, whichever worker it is connected to: server-sent events over a bus.

    DSYNC_URL=redis://localhost:6379 python examples/fan_out/app.py [PORT]

    curl -N localhost:8000/events
    curl -d '{"hello": "world"}' localhost:8000/publish

Needs `pip install 'dsync-redis[web]'`.  Without $DSYNC_URL it brings a server of its own, which
is in the extra [server].
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import dsync

QUEUE = 100  # messages that wait for a browser which is slow; then the oldest are dropped
QUIET = 15.0  # seconds after which something is said, so that a browser which is gone is noticed

PAGE = """\
<!doctype html><title>News</title><p id=news></p>
<script>
  const source = new EventSource("/events")
  const tell = text => news.append(text, document.createElement("br"))
  source.onmessage = event => tell(event.data)
  source.addEventListener("gap", event => tell("(some news were lost: load the page again)"))
</script>
"""


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One client, and so one connection to Redis, for each worker process."""
    url = os.environ.get("DSYNC_URL", "embedded://")
    async with dsync.connect(url, namespace="example-fan-out") as client:
        app.state.bus = client.event_bus("news")
        streams: set[dsync.Subscription] = set()
        app.state.streams = streams
        # They never end by themselves, and uvicorn waits for them: end them when told to stop.
        with at_a_signal(lambda: end_all(streams)):
            yield


def end_all(streams: set[dsync.Subscription]) -> None:
    for stream in list(streams):
        stream.cancel()


@contextlib.contextmanager
def at_a_signal(do: Callable[[], None]) -> Iterator[None]:
    """Do this first when somebody stops us, and then what uvicorn does."""
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(do)
        if callable(before := handlers[signal.Signals(number)]):
            before(number, frame)

    handlers = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


async def publish(request: Request) -> Response:
    """Tell it to everybody; answered when the server has taken it."""
    try:
        news = await request.json()
    except ValueError:
        return JSONResponse({"error": "that was no JSON"}, status_code=400)
    await request.app.state.bus.trigger("news", news)
    return JSONResponse({"worker": os.getpid()}, status_code=202)


async def events(request: Request) -> Response:
    """All that is told from now on."""
    return StreamingResponse(
        stream(request.app), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def stream(app: Starlette) -> AsyncIterator[str]:
    """What one browser is sent.

    While it does not read, uvicorn does not ask us for more, and its own queue fills up, nobody
    else's.  When it is gone, this generator is closed, and with it the subscription.
    """
    bus: dsync.EventBus = app.state.bus
    streams: set[dsync.Subscription] = app.state.streams
    async with bus.subscribe("news", maxsize=QUEUE) as news:
        streams.add(news)
        try:
            yield sse(json.dumps({"worker": os.getpid()}), event="listening")
            while True:
                try:
                    async with asyncio.timeout(QUIET):
                        message = await anext(news)
                except TimeoutError:
                    yield ": nothing new\n\n"
                    continue
                except StopAsyncIteration:  # it was cancelled
                    return
                if isinstance(message, dsync.Gap):
                    yield sse(json.dumps(message.missed), event="gap")
                else:
                    yield sse(json.dumps(message.data), id=message.sequence)
        finally:
            streams.remove(news)


def sse(data: str, **fields: str | int) -> str:
    return "".join(f"{name}: {value}\n" for name, value in {**fields, "data": data}.items()) + "\n"


async def status(request: Request) -> Response:
    return JSONResponse({"worker": os.getpid(), "streams": len(request.app.state.streams)})


async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/events", events),
        Route("/publish", publish, methods=["POST"]),
        Route("/status", status),
    ],
)


if __name__ == "__main__":
    uvicorn.run(
        "app:app",
        port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000,
        workers=2,
        timeout_graceful_shutdown=5,  # for a browser that does not even take what it was sent
    )
