"""asyncio's primitives with asyncio's constructors, for one process: no name, no client, no server.

They are subclasses of those in `dsync`, so code written against either runs on these::

    from dsync import local as asyncio_sync

Each file here reads like its part of asyncio/locks.py in Python 3.13, with what was mended there
through the years, on every Python.  RateLimiter, which asyncio has not, stands in for aiolimiter's
AsyncLimiter.
"""

from dsync.local.barrier import Barrier
from dsync.local.condition import Condition
from dsync.local.event import Event
from dsync.local.event_bus import EventBus
from dsync.local.lock import Lock
from dsync.local.rate_limiter import RateLimiter
from dsync.local.semaphore import BoundedSemaphore, Semaphore

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "EventBus",
    "Lock",
    "RateLimiter",
    "Semaphore",
]
