"""Every process of a service has the same schedule, and each job is done by one of them.

    python examples/nightly_job.py

The server is that of $DSYNC_URL, else one of our own.  A night takes a second here.

The decorators need no running loop: a client is made where the functions are, at import time.
"""

import asyncio
import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import dsync

PROCESSES, NIGHTS, NIGHT = 3, 3, 1.0  # seconds
CUSTOMERS = ("Ada", "Grace", "Barbara")

client = dsync.connect(os.environ.get("DSYNC_URL", "embedded://"), namespace="example-nightly")


# A little less than a night: the clocks of schedules are not exact, and who comes a moment before
# the night is over is not to be skipped for the whole next one.
@client.exclusive("nightly report", every=0.8 * NIGHT)
async def report(directory: Path) -> None:
    """Once a night, by whichever process comes first; the others are told dsync.SKIPPED."""
    await asyncio.gather(*(mail(customer, directory) for customer in CUSTOMERS))


@client.limited("mail server", 2)
async def mail(customer: str, directory: Path) -> None:
    """To two customers at a time, however many processes send."""
    with (directory / "sent").open("a") as sent:
        sent.write(f"{customer}\n")
    await asyncio.sleep(0.02)


@client.exclusive("account of {customer}", timeout=10)
async def charge(customer: str, amount: int, directory: Path) -> None:
    """One process at a time changes an account; those of other customers are other locks."""
    account = directory / customer
    balance = int(account.read_text()) if account.exists() else 0
    await asyncio.sleep(0.01)  # what another process wrote meanwhile would be lost
    account.write_text(str(balance + amount))


async def serve(directory: Path) -> int:
    """A process of the service.  -> how many reports it made"""
    reports = 0
    async with client:
        await client.barrier("all are here", PROCESSES).wait()
        midnight = time.monotonic()
        for _ in range(NIGHTS):
            if await report(directory) is not dsync.SKIPPED:
                reports += 1
            await asyncio.gather(*(charge(customer, 1, directory) for customer in CUSTOMERS))
            midnight += NIGHT
            await asyncio.sleep(midnight - time.monotonic())
    return reports


def process(directory: Path) -> int:
    return asyncio.run(serve(directory))


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool,
    ):
        directory = Path(name)
        reports = list(pool.map(process, [directory] * PROCESSES))
        sent = Counter((directory / "sent").read_text().split())
        balances = {customer: int((directory / customer).read_text()) for customer in CUSTOMERS}
    print(f"{sum(reports)} reports in {NIGHTS} nights, by process: {reports}")
    print(f"letters: {dict(sent)}")
    print(f"accounts: {balances}")
    assert sum(reports) == NIGHTS
    assert sent == dict.fromkeys(CUSTOMERS, NIGHTS)
    assert balances == dict.fromkeys(CUSTOMERS, NIGHTS * PROCESSES)


if __name__ == "__main__":
    main()
