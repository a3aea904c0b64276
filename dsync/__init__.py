"""asyncio's synchronization primitives, across processes and machines."""

from dsync.barrier import Barrier, BarrierInfo
from dsync.calls import SKIPPED, Skipped
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
from dsync.leader import Election, Leader
from dsync.lease import Lease
from dsync.lock import Lock
from dsync.rate_limiter import Decision, RateLimiter, RateLimiterInfo
from dsync.reply import Reply
from dsync.semaphore import BoundedSemaphore, Semaphore
from dsync.subscription import Gap, Message, Stream, Subscription

__all__ = [
    "SKIPPED",
    "AcquireTimeout",
    "BadMessage",
    "Barrier",
    "BarrierInfo",
    "BoundedSemaphore",
    "Client",
    "ClientClosed",
    "Condition",
    "Decision",
    "DsyncError",
    "Election",
    "Event",
    "EventBus",
    "ForeignKey",
    "Gap",
    "Holder",
    "Leader",
    "Lease",
    "LeaseLost",
    "Lock",
    "LockInfo",
    "Message",
    "NotHeld",
    "Queued",
    "RateLimiter",
    "RateLimiterInfo",
    "Reply",
    "SchemaMismatch",
    "Semaphore",
    "SemaphoreInfo",
    "Skipped",
    "StoreUnavailable",
    "Stream",
    "Subscription",
    "TooManyWaiters",
    "WaitTimeout",
    "connect",
]
