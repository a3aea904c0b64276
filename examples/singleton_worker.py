"""One worker of a fleet does the work; when it is told to go, or dies, another goes on with it.

    python examples/singleton_worker.py [URL]

The URL defaults to $DSYNC_URL, else to a server of our own.

A leader that gets SIGTERM, as in a deployment, hands over at once; one that is killed costs the
others a lease.  The journal stands for what the work is done on: whoever writes there hands in its
fence, and a smaller one after a greater would be a leader that came too late.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from pathlib import Path

import dsync

NAMESPACE = "example-singleton"
WORKERS, LEASE = 3, 2.0  # seconds


async def work(url: str, journal: Path) -> None:
    """A worker: leads whenever it can."""

    async def poll(fence: int | None) -> None:
        while True:
            with journal.open("a") as lines:
                lines.write(f"{fence}\n")
            await asyncio.sleep(0.02)  # the work

    async with dsync.connect(url, namespace=NAMESPACE) as client:
        election = client.leader("poller", lease=LEASE)
        while True:
            try:
                async with election as term:
                    await poll(term.fence)
            except (dsync.LeaseLost, dsync.StoreUnavailable) as error:
                print(f"{os.getpid()}: {error}", flush=True)  # and is a candidate again


async def supervise(url: str, fleet: dict[int, Process]) -> None:
    """Tell the first leader to go, kill the second, and see who is the third."""
    deeds = [signal.SIGTERM, signal.SIGKILL]
    leaders: list[int] = []
    since = time.monotonic()
    async with dsync.connect(url, namespace=NAMESPACE) as client:
        async for leader in client.leader("poller").observe():
            if leader is None:
                continue
            print(f"{leader.pid} leads after {time.monotonic() - since:.3f} s", flush=True)
            leaders.append(leader.pid)
            if len(leaders) == WORKERS:
                break
            deed = deeds.pop(0)
            print(f"{leader.pid} gets {deed.name}", flush=True)
            fleet[leader.pid].send_signal(deed)
            since = time.monotonic()
            assert await fleet[leader.pid].wait() == -deed
    assert set(leaders) == set(fleet), leaders


async def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DSYNC_URL", "embedded://")
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        command = [sys.executable, __file__, url, str(journal)]
        fleet: dict[int, Process] = {}
        try:
            for _ in range(WORKERS):
                worker = await asyncio.create_subprocess_exec(*command)
                fleet[worker.pid] = worker
            async with asyncio.timeout(30):
                await supervise(url, fleet)
        finally:
            for worker in fleet.values():
                if worker.returncode is None:
                    worker.terminate()
                await worker.wait()
        fences = [int(line) for line in journal.read_text().split()]
    assert fences, "somebody has worked"
    assert fences == sorted(fences), "nobody wrote after its successor"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
    else:
        asyncio.run(main())
