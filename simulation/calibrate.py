"""Measures what things cost a server: `python -m simulation --calibrate`.

Of several rounds the least counts: what a neighbour on the machine takes only ever adds.
"""

import asyncio
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import dsync
from dsync.redis.link import packed
from dsync.server import Server
from simulation.calibration import Calibration
from simulation.growth import growth
from simulation.meter import Meter, Sockets
from simulation.steps import ACQUIRE, MEMORY, RELEASE, ROUNDS, Args, Step, Steps, named, queue

__all__ = ["calibrate"]

BATCH = 1000  # commands of a round
CLIENTS = 200
RATE: Args = {
    "amount": 1, "patience": -1, "declared": "1000000.0", "period": 1_000_000,
    "capacity": 1_000_000, "born": 1,
}  # fmt: skip
EVENT: Args = {"ttl": 0, "channel": "calibration:event", "tombstone": MEMORY}
BUS: Args = {
    "publisher": "p", "sizes": "22", "messages": 'order.created {"id":1}',
    "channel": "calibration:bus", "remember": MEMORY,
}  # fmt: skip
RENEW: Args = {"lease": 600_000, "block": 0}


def calibrate(progress: Callable[[str], object]) -> Calibration:
    """Start a server, measure, and end it.  Takes about a minute."""
    with Server.start(port=0) as server, closing(Meter(server.url)) as meter:
        return asyncio.run(_calibrated(server.url, meter, progress))


async def _calibrated(url: str, meter: Meter, progress: Callable[[str], object]) -> Calibration:
    progress("connections")
    connect, dial, connection = await _connections(url, meter)
    alone, batched, message = _wire(url, meter)
    async with dsync.connect(url, namespace="calibration") as client:
        steps = Steps(client, meter)
        progress("scripts")
        script = await _scripts(steps)
        progress("memory")
        memory = {"connection": connection, **await _memory(steps, meter)}
        progress("growth")
        grown = await growth(steps)
    machine = {
        "server": meter.describe(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    return Calibration(machine, script, alone, batched, message, connect, dial, memory, grown)


async def _connections(url: str, meter: Meter) -> tuple[float, float, float]:
    """µs of the server for each, µs of the client's process, bytes."""
    least, dial, memory = float("inf"), float("inf"), 0.0
    for _ in range(3):
        clients = [dsync.connect(url) for _ in range(CLIENTS)]
        before = meter.memory()
        started = time.process_time()
        with meter.measured() as spent:
            for client in clients:
                await client
        dial = min(dial, (time.process_time() - started) * 1e6 / CLIENTS)
        least = min(least, spent.cpu / CLIENTS)
        await asyncio.sleep(3)  # until the server has shrunk their buffers
        memory = (meter.memory() - before) / CLIENTS
        for client in clients:
            await client.aclose()
    return round(least, 1), round(dial, 1), round(memory)


def _wire(url: str, meter: Meter) -> tuple[float, float, float]:
    """µs to read a command alone and to answer it, the same in a batch, and for each receiver."""
    ping = packed("PING")
    alone, batched, message = [], [], []
    with closing(Sockets(url, CLIENTS)) as sockets:
        for _ in range(ROUNDS):
            with meter.measured() as spent:
                for _ in range(20):
                    sockets.say(ping, len(b"+PONG\r\n"))
            alone.append(spent.cpu / 20 / CLIENTS)
            with meter.measured() as spent:
                sockets.say(ping * 100, 100 * len(b"+PONG\r\n"))
            batched.append(spent.cpu / 100 / CLIENTS)
        sockets.say(packed("SUBSCRIBE", "c"), len(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"))
        for _ in range(ROUNDS):
            with meter.measured() as spent:
                for _ in range(100):
                    meter.admin.publish("c", b"x" * 60)
                    sockets.hear(len(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$60\r\n\r\n") + 60)
            message.append(spent.cpu / 100 / CLIENTS)
    return round(min(alone), 2), round(min(batched), 2), round(min(message), 2)


def _each(name: str, transition: str, args: Args) -> Callable[[int], list[Step]]:
    """One step on a lock of its own for each of a batch, in a given round."""
    return lambda r: [
        ("lock", f"{name} {r} {i}", transition, named(args, r * BATCH + i)) for i in range(BATCH)
    ]


async def _scripts(steps: Steps) -> dict[str, float]:
    """µs inside the command, by what is done."""
    acquire, release = "permit_acquire", "permit_release"
    found: dict[str, list[float]] = {}
    for r in range(ROUNDS):
        waiters: list[Step] = [
            ("lock", f"free {r} {i}", acquire, named(ACQUIRE, -1 - i)) for i in range(BATCH)
        ]
        rounds: tuple[tuple[str, Sequence[Step]], ...] = (
            ("acquire, free", _each("free", acquire, ACQUIRE)(r)),
            ("renew", _each("free", "permit_renew", RENEW)(r)),
            ("join a queue", waiters),
            ("heartbeat, lock", waiters),
            ("release, hand over", _each("free", release, RELEASE)(r)),
            ("release, nobody waits", [(*step[:2], release, _released(step)) for step in waiters]),
            ("heartbeat, event", [("event", "e", "event_look", {})] * BATCH),
            ("event set", [("event", f"e {r} {i}", "event_set", named(EVENT, i))
                           for i in range(BATCH)]),
            ("limiter check", [("rate", "r", "rate_take", named(RATE, r * BATCH + i))
                               for i in range(BATCH)]),
            ("bus publish", [("bus", "b", "bus_publish", BUS | {"batch": r * BATCH + i + 1})
                             for i in range(BATCH)]),
            ("heartbeat, bus", [("bus", "b", "bus_look", {})] * BATCH),
        )  # fmt: skip
        for what, some in rounds:
            found.setdefault(what, []).append(await steps.cost(some))
    return {what: round(min(some), 1) for what, some in found.items()}


def _released(step: Step) -> Args:
    return {**RELEASE, "token": step[3]["token"]}


async def _memory(steps: Steps, meter: Meter) -> dict[str, float]:
    """Bytes, by what is kept."""
    before = meter.memory()
    await steps.do(_each("kept", "permit_acquire", ACQUIRE)(0))
    held = meter.memory()
    await steps.do(_each("kept", "permit_release", RELEASE)(0))
    idle = meter.memory()
    await steps.do(queue("crowd", 10 * BATCH))
    waiting = meter.memory()
    return {
        "lock, held": round((held - before) / BATCH),
        "lock, used in the last days": round((idle - before) / BATCH),
        "process that waits": round((waiting - idle) / BATCH / 10),
    }
