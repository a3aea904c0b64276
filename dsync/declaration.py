"""Declaration: what a process was made with, and when: of all that disagree, the newest holds."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Declaration"]


class Declaration:
    """When the newest object of this process was made, as the store compares it.

    That is when its client was born, in server time, and how many declarations it has made since.
    """

    def __init__(self, client: "Client", made: bool = True) -> None:
        self._client = client
        self._revision = client.next_revision() if made else 0
        self.unborn = False  # it was sent before the client knew when it was born

    def renew(self) -> None:
        """Another one is made."""
        self._revision = self._client.next_revision()

    def stamp(self) -> int | str:
        """µs; '' now."""
        born = self._client.store.born
        if isinstance(born, str):
            self.unborn = True
            return born
        return born + self._revision

    def be_born(self) -> None:
        """What was declared as "now" was declared by now: what we declare next is newer."""
        born, asked = self._client.store.born, self._client.store.born_asked
        if not isinstance(born, str):
            self.unborn = False
            age = int((time.monotonic() - asked) * 1_000_000)
            self._revision = self._client.next_revision(age)
