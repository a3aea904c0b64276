"""asyncio's synchronization primitives, across processes and machines."""

from dsync.barrier import Barrier, BarrierInfo
from dsync.client import Client, connect
from dsync.condition import Condition
from dsync.errors import (
    AcquireTimeout,
    BadMessage,
    ClientClosed,
    DsyncError,
    ForeignKey,
    LeaseLost,
    NotHeld,
    SchemaMismatch,
    StoreUnavailable,
    TooManyWaiters,
    WaitTimeout,
)
from dsync.event import Event
from dsync.event_bus import EventBus
from dsync.info import Holder, LockInfo, Queued, SemaphoreInfo
from dsync.lease import Lease
from dsync.lock import Lock
from dsync.reply import Reply
from dsync.semaphore import BoundedSemaphore, Semaphore
from dsync.subscription import Gap, Message, Stream, Subscription

__all__ = [
    "AcquireTimeout",
    "BadMessage",
    "Barrier",
    "BarrierInfo",
    "BoundedSemaphore",
    "Client",
    "ClientClosed",
    "Condition",
    "DsyncError",
    "Event",
    "EventBus",
    "ForeignKey",
    "Gap",
    "Holder",
    "Lease",
    "LeaseLost",
    "Lock",
    "LockInfo",
    "Message",
    "NotHeld",
    "Queued",
    "Reply",
    "SchemaMismatch",
    "Semaphore",
    "SemaphoreInfo",
    "StoreUnavailable",
    "Stream",
    "Subscription",
    "TooManyWaiters",
    "WaitTimeout",
    "connect",
]
