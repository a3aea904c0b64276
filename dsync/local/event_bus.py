"""EventBus for one process."""

from itertools import count
from typing import Any

from dsync.client import Client, ErrorHook
from dsync.event_bus import EventBus as _EventBus
from dsync.hub import Hub

__all__ = ["EventBus"]

_number = count(1)


class EventBus(_EventBus):
    """The bus of `dsync`, in a memory of its own: no name, no client, no server.

    Args:
        codec, max_size: as for `client.event_bus()`.
        on_error: called with what a callback raised; by default the loop's exception handler is.
    """

    def __init__(
        self, *, codec: Any = None, max_size: int = 2**20, on_error: ErrorHook | None = None
    ) -> None:
        # One memory for each: two buses without names are two buses.
        client = Client(f"memory://dsync.local.EventBus/{next(_number)}", on_error=on_error)
        super().__init__(Hub(client, "default"), "", codec, max_size)
