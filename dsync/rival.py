"""Rival: who holds what tasks of this process wait for, as far as the store has told."""

import time

from dsync.names import party

__all__ = ["Rival", "taken_by"]


class Rival:
    """The holder that the store has named last: of a semaphore, the one whose lease ends next."""

    __slots__ = ("_at", "_ours", "_token")

    def __init__(self, client_id: str) -> None:
        self._ours: str = f"{client_id}."
        self._token: bytes | str = ""
        self._at: float = 0.0  # when it was asked, time.monotonic()

    def note(self, token: bytes | str, at: float) -> None:
        """It was so at this time; "" where nobody held."""
        self._token = token
        self._at = at

    def in_words(self, alone: bool) -> str:
        """Who holds; `alone`: nobody else can beside it."""
        token = self._token
        text = token if isinstance(token, str) else token.decode(errors="replace")
        if not text or text.startswith(self._ours):
            return "info() tells who holds it"
        ago = max(time.monotonic() - self._at, 0)
        held = "held" if alone else "one is held"
        return f"{held} by {party(text)}, as it was {ago:.1f} s ago"


def taken_by(holder: bytes | str, alone: bool) -> str:
    """Why the store does not know a hold of ours any more.

    `holder`: who holds instead; `alone`: nobody else can hold beside it.
    """
    if not alone:
        return "the store gave it to another or has forgotten it"
    if not holder:
        return "the store has forgotten it: it lost its data, or the lease had ended there"
    return f"the store gave it to {party(holder)}"
