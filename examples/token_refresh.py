"""Processes that share one access token: when it has expired, one of them fetches the next.

    python examples/token_refresh.py [URL]

The URL defaults to $DSYNC_URL, else to memory://: here all processes live in one.
"""

import asyncio
import os
import sys
import time
from typing import TypedDict

import dsync


class Token(TypedDict):
    access_token: str
    expires_in: float  # seconds


class Issuer:
    """Stands for the service that gives out tokens, slowly, and dislikes to be asked twice."""

    def __init__(self, lifetime: float) -> None:
        self.lifetime = lifetime
        self.issued = 0
        self._valid = ("", 0.0)  # the newest token, and when it expires

    async def issue(self) -> Token:
        await asyncio.sleep(0.05)
        self.issued += 1
        token = f"token-{self.issued}"
        self._valid = token, time.monotonic() + self.lifetime
        return {"access_token": token, "expires_in": self.lifetime}

    def accepts(self, token: str) -> bool:
        newest, expires = self._valid
        return token == newest and time.monotonic() < expires


class Service:
    """A process that needs the token for each of its requests."""

    def __init__(self, client: dsync.Client, issuer: Issuer) -> None:
        self._client = client
        self._issuer = issuer

    async def token(self) -> str:
        token = await self._client.single_flight(
            "token:billing-api",
            self._issuer.issue,
            # Fetched anew before it expires: who has just got it should have time to use it.
            ttl=lambda token: token["expires_in"] * 0.5,
        )
        return token["access_token"]

    async def request(self) -> bool:
        return self._issuer.accepts(await self.token())


async def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DSYNC_URL", "memory://")
    namespace = f"example-token-{os.getpid()}"
    issuer = Issuer(lifetime=1.0)
    async with (
        dsync.connect(url, namespace=namespace) as one,
        dsync.connect(url, namespace=namespace) as two,
        dsync.connect(url, namespace=namespace) as three,
    ):
        services = [Service(client, issuer) for client in (one, two, three)]
        for wave in range(1, 4):
            accepted = await asyncio.gather(
                *(service.request() for service in services for _ in range(100))
            )
            print(f"wave {wave}: {sum(accepted)} requests accepted, {issuer.issued} tokens fetched")
            assert all(accepted)
            assert issuer.issued == wave
            await asyncio.sleep(0.6)  # until the time is over for which the token is kept


if __name__ == "__main__":
    asyncio.run(main())
