"""asyncio's synchronization primitives, across processes and machines."""

from dsync.client import Client, connect
from dsync.condition import Condition
from dsync.errors import (
    AcquireTimeout,
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
from dsync.info import Holder, LockInfo, Queued, SemaphoreInfo
from dsync.lease import Lease
from dsync.lock import Lock
from dsync.reply import Reply
from dsync.semaphore import BoundedSemaphore, Semaphore

__all__ = [
    "AcquireTimeout",
    "BoundedSemaphore",
    "Client",
    "ClientClosed",
    "Condition",
    "DsyncError",
    "Event",
    "ForeignKey",
    "Holder",
    "Lease",
    "LeaseLost",
    "Lock",
    "LockInfo",
    "NotHeld",
    "Queued",
    "Reply",
    "SchemaMismatch",
    "Semaphore",
    "SemaphoreInfo",
    "StoreUnavailable",
    "TooManyWaiters",
    "WaitTimeout",
    "connect",
]
