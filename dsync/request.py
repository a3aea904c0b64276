"""Request: a place of this process in the store's queue, or on the way there."""

from dsync.lease import Terms
from dsync.line import Waiter

__all__ = ["Request"]


class Request:
    """One question for a permit, known to the store by its token until it is answered."""

    __slots__ = (
        "again", "asking", "heir", "queued", "resent", "sleeps", "terms", "token", "wait", "waiter",
    )  # fmt: skip

    def __init__(self, token: str, terms: Terms, waiter: Waiter | None, wait: int = 1) -> None:
        self.token: str = token
        self.terms: Terms = terms
        self.waiter: Waiter | None = waiter  # None: whoever is next here
        self.wait: int = wait  # 0: now or not at all
        self.sleeps: bool = False  # it is a sleeper's: notified, it waits for the lock
        self.heir: Request | None = None  # what a sleeper waits for the lock with unnotified
        self.asking: bool = False  # a question is on its way
        self.again: bool = False  # and another has to follow it
        self.queued: bool = False  # the store has said that it waits
        self.resent: bool = False  # a copy of the question may still arrive, much later
