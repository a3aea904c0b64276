"""What a unit of a rate limit costs that may be had at once: on a server, and in one process."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import redis.asyncio

import dsync
from benchmarks.local import BATCH
from benchmarks.locks import DSYNC
from benchmarks.measure import Goal, Measured, Ratio, Score, Workload, over, value
from benchmarks.peers import load
from benchmarks.raw import ask, raw_link
from benchmarks.rig import Rig, until
from dsync import local
from dsync.redis.script import SCRIPTS

__all__ = ["WORKLOADS"]

FLOOR = "floor: EVALSHA of a script that does nothing"
SCRIPT = "rate_take on the floor's link"
WAITING = "dsync acquire()"
MOVING, FIXED = "limits, moving window", "limits, fixed window"
GCRA = "throttled-py, GCRA"
LOG = "pyrate-limiter, RedisBucket"
BUCKET = "steindamm, AsyncTokenBucket"
MICROSECONDS, EVALS = "µs/unit", "EVALs/unit"
# Nobody is ever refused, and the bucket is never empty: what is written is as long as it gets.
RATE, BURST = 1000, 10**9
PER_MINUTE = 10**6  # for those who keep a window

Take = Callable[[], Awaitable[object]]  # true if a unit was had
Opened = AbstractAsyncContextManager[Take]


@asynccontextmanager
async def bare(rig: Rig) -> AsyncIterator[Take]:
    async with raw_link(rig.url, rig.namespace, "raw") as link:
        sha = (await ask(link, "SCRIPT", "LOAD", "return 1")).decode()
        yield lambda: ask(link, "EVALSHA", sha, 1, f"{rig.namespace}:bare", 1)


@asynccontextmanager
async def script(rig: Rig) -> AsyncIterator[Take]:
    """What the server has to do, without what dsync does on this side."""
    async with raw_link(rig.url, rig.namespace, "raw") as link:
        take = SCRIPTS["rate_take"]
        await ask(link, "SCRIPT", "LOAD", take.text)
        head = ("EVALSHA", take.sha, 1, f"{rig.namespace}:script")
        args: dict[str, str | int | bytes] = {
            "amount": 1, "patience": 0, "declared": repr(float(RATE)), "period": 1_000_000,
            "capacity": BURST, "born": 1,
        }  # fmt: skip
        taken = 0

        def run() -> Awaitable[object]:
            nonlocal taken
            taken += 1
            return ask(link, *head, *take.values({"token": f"raw.{taken}", **args}))

        yield run


@asynccontextmanager
async def ours(wait: bool, rig: Rig) -> AsyncIterator[Take]:
    async with dsync.connect(rig.url, namespace=rig.namespace) as client:
        limiter = client.rate_limiter("api", RATE, burst=BURST)
        yield limiter.acquire if wait else limiter.try_acquire


@asynccontextmanager
async def limits_window(moving: bool, rig: Rig) -> AsyncIterator[Take]:
    strategies = load("limits.aio.strategies")
    kind = strategies.MovingWindowRateLimiter if moving else strategies.FixedWindowRateLimiter
    storage = load("limits.aio.storage").RedisStorage(f"async+{rig.url}", implementation="redispy")
    item = load("limits").RateLimitItemPerMinute(PER_MINUTE)
    yield partial(kind(storage).hit, item, rig.namespace)


@asynccontextmanager
async def throttled_gcra(rig: Rig) -> AsyncIterator[Take]:
    theirs = load("throttled.asyncio")
    throttle = theirs.Throttled(
        key=f"{rig.namespace}:api", using="gcra", store=theirs.RedisStore(server=rig.url),
        quota=theirs.rate_limiter.per_min(PER_MINUTE, burst=PER_MINUTE),
    )  # fmt: skip

    async def take() -> bool:
        return not (await throttle.limit()).limited

    yield take


@asynccontextmanager
async def pyrate(rig: Rig) -> AsyncIterator[Take]:
    theirs = load("pyrate_limiter")
    async with redis.asyncio.Redis.from_url(rig.url) as client:
        rates = [theirs.Rate(PER_MINUTE, theirs.Duration.MINUTE)]
        bucket = await theirs.RedisBucket.init(rates, client, f"{rig.namespace}:api")
        limiter = theirs.Limiter(bucket)
        yield partial(limiter.try_acquire_async, "api", blocking=False)


@asynccontextmanager
async def token_bucket(rig: Rig) -> AsyncIterator[Take]:
    create = load("steindamm").AsyncTokenBucket.create
    async with redis.asyncio.Redis.from_url(rig.url, decode_responses=True) as client:
        bucket = create(
            f"{rig.namespace}:api", capacity=BURST, refill_amount=RATE, connection=client
        )

        async def take() -> bool:
            async with bucket:
                return True

        yield take


async def slice_of(opened: Callable[[Rig], Opened], rig: Rig) -> Measured:
    """One task takes unit after unit."""
    async with opened(rig) as take:
        for _ in range(10):  # connects, loads scripts
            if not await take():
                raise RuntimeError("a unit was refused that was there")
        sent, _ = rig.scripts()
        units = 0
        began, cpu = time.monotonic(), time.process_time()
        while not units or until(began + rig.seconds):
            await take()
            units += 1
        took, cpu = time.monotonic() - began, time.process_time() - cpu
        sent = rig.scripts()[0] - sent
    return {MICROSECONDS: 1e6 * took / units, "CPU µs/unit": 1e6 * cpu / units, EVALS: sent / units}


# -- in one process --------------------------------------------------------------------------------

OURS, THEIRS = "dsync.local", "aiolimiter"


def local_limiter() -> Take:
    return local.RateLimiter(RATE, burst=BURST).acquire


def their_limiter() -> Take:
    acquire: Take = load("aiolimiter").AsyncLimiter(BURST, BURST / RATE).acquire
    return acquire


async def local_slice(make: Callable[[], Take], rig: Rig) -> Measured:
    units = 0
    acquire = make()
    began = time.monotonic()
    while until(began + rig.seconds):
        for _ in range(BATCH):
            await acquire()
        units += BATCH
    return {"ns/unit": 1e9 * (time.monotonic() - began) / units}


WORKLOADS = (
    Workload(
        "limiter",
        "one task takes units of a rate limit that it may have at once",
        {
            FLOOR: partial(slice_of, bare),
            SCRIPT: partial(slice_of, script),
            DSYNC: partial(slice_of, partial(ours, False)),
            WAITING: partial(slice_of, partial(ours, True)),
            MOVING: partial(slice_of, partial(limits_window, True)),
            FIXED: partial(slice_of, partial(limits_window, False)),
            GCRA: partial(slice_of, throttled_gcra),
            LOG: partial(slice_of, pyrate),
            BUCKET: partial(slice_of, token_bucket),
        },
        (
            Ratio("try_acquire() ÷ floor", over(MICROSECONDS, DSYNC, FLOOR), Goal("≤", 1.3)),
            Ratio("acquire() ÷ floor", over(MICROSECONDS, WAITING, FLOOR), Goal("≤", 1.3)),
            Ratio("the script alone ÷ floor", over(MICROSECONDS, SCRIPT, FLOOR)),
            Ratio("EVALs per try_acquire()", value(DSYNC, EVALS), Goal("≤", 1)),
            Ratio("EVALs per acquire()", value(WAITING, EVALS), Goal("≤", 1)),
        ),
        Score(MICROSECONDS, False),
    ),
    Workload(
        "local-limiter",
        "one task takes units that it may have at once, in one process",
        {
            THEIRS: partial(local_slice, their_limiter),
            OURS: partial(local_slice, local_limiter),
        },
        (
            Ratio(
                "acquire(), dsync.local ÷ aiolimiter",
                over("ns/unit", OURS, THEIRS),
                Goal("≤", 2),
            ),
        ),
        Score("ns/unit", False, OURS),
    ),
)
