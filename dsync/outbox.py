"""Outbox: what this process has to publish on one bus.

Messages leave in batches, one at a time: each is published once and in order, whatever has to be
sent again.
"""

from collections import deque
from functools import partial
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import quote

from dsync.errors import ClientClosed, StoreUnavailable
from dsync.reply import Reply
from dsync.store import Call, Record
from dsync.telemetry import Published

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Outbox"]

# Messages, bytes that are published in one step: it holds up the server for everybody.
BATCH, BATCH_BYTES = 128, 256 * 1024
REMEMBER_MS = 60_000  # for as long a repeated batch is known as one
# Of batches: never the same twice for a client, though a bus may get a new Outbox.
_numbers = count(1)


class Letter:
    """A message to be published, and who awaits that."""

    __slots__ = ("event", "reply", "text")

    def __init__(self, event: str, payload: bytes, reply: Reply[None]) -> None:
        self.event: str = event
        self.text: bytes = quote(event, safe="").encode() + b" " + payload
        self.reply: Reply[None] = reply


class Outbox:
    """Publishes what it is given, behind all that it was given before."""

    def __init__(self, client: "Client", name: str, record: Record, channel: str) -> None:
        self._client = client
        self._name = name
        self._record = record
        self._channel = channel
        self._waiting: deque[Letter] = deque()
        self._sending = False  # a batch is on its way

    def put(self, event: str, payload: bytes) -> Reply[None]:
        """Publish a message."""
        self._client.enter()
        letter = Letter(event, payload, Reply(report=self._client.report))
        self._waiting.append(letter)
        if not self._sending:
            self._send()
        return letter.reply

    def _send(self) -> None:
        batch: list[Letter] = []
        size = 0
        while self._waiting and len(batch) < BATCH and size < BATCH_BYTES:
            letter = self._waiting.popleft()
            batch.append(letter)
            size += len(letter.text)
        self._sending = True
        self._record.run(
            "bus_publish",
            partial(self._sent, batch),
            publisher=self._client.client_id,
            batch=next(_numbers),
            sizes=" ".join(str(len(letter.text)) for letter in batch),
            messages=b"".join(letter.text for letter in batch),
            channel=self._channel,
            remember=max(REMEMBER_MS, int(4000 * self._client.outage_timeout)),
        )

    def _sent(self, batch: list[Letter], call: Call) -> None:
        self._sending = False
        failed = call.reply if isinstance(call.reply, BaseException) else None
        watch = self._client.watch
        if failed is None and watch.hooks:
            for letter in batch:
                watch.tell(Published("bus", self._name, letter.event))
        if isinstance(failed, StoreUnavailable | ClientClosed):
            # Those behind it fail with it: each batch would wait for as long again.
            batch.extend(self._waiting)
            self._waiting.clear()
        for letter in batch:
            letter.reply.settle(failed)
        if self._waiting and not self._sending:
            self._send()
