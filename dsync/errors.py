"""What can go wrong.  Each error is also the builtin an asyncio program would already catch.

DsyncError
├── AcquireTimeout(TimeoutError)        not ours in time; nothing is held
├── WaitTimeout(TimeoutError)           what was waited for did not come in time
├── LeaseLost(RuntimeError)             it was ours and is not any more
├── NotHeld(RuntimeError)               asyncio's RuntimeError cases: this object does not hold it
├── TooManyWaiters                      max_waiters already wait; nothing is held, nothing is queued
├── StoreUnavailable(ConnectionError)   Redis could not be asked; nothing is held past its lease
├── BadMessage(ValueError)              a message or kept value that cannot be read; skipped
├── SchemaMismatch                      the state under our key was written by a newer dsync
├── ForeignKey                          the value under our key is not ours
└── ClientClosed(RuntimeError)          the client was closed
"""

__all__ = [
    "AcquireTimeout",
    "BadMessage",
    "ClientClosed",
    "DsyncError",
    "ForeignKey",
    "LeaseLost",
    "NotHeld",
    "SchemaMismatch",
    "StoreUnavailable",
    "TooManyWaiters",
    "WaitTimeout",
]


class DsyncError(Exception):
    """The base of everything dsync raises of its own."""


class AcquireTimeout(DsyncError, TimeoutError):
    """It did not become ours in time.  Nothing is held and nothing is queued."""


class WaitTimeout(DsyncError, TimeoutError):
    """An event, a notification or the other parties did not come in time."""


class LeaseLost(DsyncError, RuntimeError):
    """It was ours and is not any more: the lease ran out, was revoked, or the server forgot it."""


class NotHeld(DsyncError, RuntimeError):
    """This object does not hold what the call needs held."""


class TooManyWaiters(DsyncError):
    """As many as `max_waiters` tasks of this process wait already."""


class StoreUnavailable(DsyncError, ConnectionError):
    """Redis could not be asked, or refused.  What was held ends with its lease at the latest."""


class BadMessage(DsyncError, ValueError):
    """A message or kept value that cannot be read, of another program or codec.  Skipped."""


class SchemaMismatch(DsyncError):
    """The state was written by a newer dsync than this one.  Nothing was changed."""


class ForeignKey(DsyncError):
    """Something else lives under our key.  Nothing was changed."""


class ClientClosed(DsyncError, RuntimeError):
    """The client was closed; make a new one."""
