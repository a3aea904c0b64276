"""A cache in each of several processes, and one event that makes all of them forget a user.

    python examples/cache_invalidation.py [URL]

The URL defaults to $DSYNC_URL, else to a server of our own.
"""

import asyncio
import os
import sqlite3
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

import dsync

PROCESSES = 3
USER = 7


class Users:
    """Names of users: in a database, and those that were asked for in a cache."""

    def __init__(self, database: Path, bus: dsync.EventBus) -> None:
        self.cache: dict[int, str] = {}
        self.forgot = asyncio.Condition()  # notified of each change to the cache from outside
        self._database = database
        self._bus = bus
        self._forgotten = 0  # how often

    async def name(self, user: int) -> str:
        if user in self.cache:
            return self.cache[user]
        forgotten = self._forgotten
        name = await asyncio.to_thread(self._read, user)
        if forgotten == self._forgotten:  # else it may have changed while we read it
            self.cache[user] = name
        return name

    async def rename(self, user: int, name: str) -> None:
        await asyncio.to_thread(self._write, user, name)
        await self._bus.trigger("cache.user", user)  # after the write: who reads now reads it

    async def _forget(self) -> None:
        """Listen to what the others change."""
        async for message in self._events:
            self._forgotten += 1
            if isinstance(message, dsync.Gap):
                self.cache.clear()  # something was lost on the way: it may have been any of them
            else:
                self.cache.pop(message.data, None)
            async with self.forgot:
                self.forgot.notify_all()

    async def __aenter__(self) -> Self:
        # Listen first: what is cached from now on is forgotten when it changes.
        self._events = await self._bus.subscribe("cache.user")
        self._task = asyncio.create_task(self._forget())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._events.cancel()  # which ends the `async for`
        await self._task

    def _read(self, user: int) -> str:
        with sqlite3.connect(self._database) as connection:
            [name] = connection.execute("SELECT name FROM users WHERE id = ?", [user]).fetchone()
        connection.close()
        return str(name)

    def _write(self, user: int, name: str) -> None:
        with sqlite3.connect(self._database) as connection:
            connection.execute("INSERT OR REPLACE INTO users VALUES (?, ?)", [user, name])
        connection.close()


async def serve(url: str, database: Path, number: int) -> str:
    """One process: it has the user in its cache when another renames her.  -> her name then"""
    async with dsync.connect(url, namespace="example-cache") as client:
        everybody = client.barrier("everybody", PROCESSES, lease=5)
        async with Users(database, client.event_bus()) as users:
            print(os.getpid(), "caches", await users.name(USER), flush=True)
            await everybody.wait()
            if number == 0:
                await users.rename(USER, "Grace")
            async with asyncio.timeout(10), users.forgot:
                await users.forgot.wait_for(lambda: USER not in users.cache)
            name = await users.name(USER)
            print(os.getpid(), "reads", name, flush=True)
            await everybody.wait()
            return name


def process(url: str, database: Path, number: int) -> str:
    return asyncio.run(serve(url, database, number))


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DSYNC_URL", "embedded://")
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool,
    ):
        database = Path(directory) / "users.db"
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
            connection.execute("INSERT INTO users VALUES (?, 'Ada')", [USER])
        connection.close()
        running = [pool.submit(process, url, database, number) for number in range(PROCESSES)]
        names = [future.result() for future in running]
    assert names == ["Grace"] * PROCESSES, names


if __name__ == "__main__":
    main()
