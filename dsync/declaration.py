"""Declaration: what a process was made with, and when: of all that disagree, the newest holds."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsync.client import Client

__all__ = ["Declaration", "Declarations"]

REMEMBERED = 4096  # names


class Declarations:
    """What a client has declared of each name last, and as which of its declarations."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[object, int]] = {}
        self._revision = 0

    def revision(self, kind: str, name: str, value: object) -> int:
        """A greater number than all before, if it is another value than last.

        So who makes an object for each request declares what it has declared already.
        """
        known = self._last.pop((kind, name), None)
        if known is None or known[0] != value:
            known = value, self.next()
        self._last[kind, name] = known
        if len(self._last) > REMEMBERED:
            del self._last[next(iter(self._last))]
        return known[1]

    def next(self, at_least: int = 0) -> int:
        self._revision = max(self._revision + 1, at_least)
        return self._revision


class Declaration:
    """When the newest object of a name was made in this process, as the store compares it.

    That is when its client was born, in server time, and how many declarations it has made since.
    """

    def __init__(self, client: "Client", kind: str, name: str) -> None:
        self._client = client
        self._kind = kind
        self._name = name
        self._revision = 0
        self.unborn: bool = False  # it was sent before the client knew when it was born

    def make(self, value: object) -> None:
        """This is what the newest object was made with."""
        self._revision = self._client.declarations.revision(self._kind, self._name, value)

    def stamp(self) -> int | str:
        """µs; '' now."""
        born = self._client.store.born
        if isinstance(born, str):
            self.unborn = True
            return born
        return born + self._revision

    def be_born(self, us: int | None = None) -> None:
        """What was declared as "now" was declared by now: what we declare next is newer.

        `us`: when it was, in server time, if that is known.
        """
        born, asked = self._client.store.born, self._client.store.born_asked
        if not isinstance(born, str):
            self.unborn = False
            age = us - born if us is not None else int((time.monotonic() - asked) * 1_000_000)
            self._revision = self._client.declarations.next(age)
