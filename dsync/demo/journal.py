"""What happened, as each process wrote it down at once: the evidence that the verdict rests on.

A journal is a file of JSON lines that one process appends to.  A line is in the file when `note()`
returns, so a SIGKILL takes nothing away.  Times are `time.monotonic()`: one clock for all processes
of a machine.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DIRECTOR", "Event", "HoldNotes", "Journal", "Journals"]

COMMON = ("at", "worker", "what", "of", "hold")  # what every line has
DIRECTOR = 0  # who the demo itself is among the workers


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    `what` is one of
        ready, through, failed              a worker waits at the gate; is through; has given up
        entered, left, lost                 a hold: it is ours; is about to be released; was lost
        lingers                             a hold that takes long, as ordered
        writing, written                    within a hold of the ledger
        told                                the server has taken the news of what was written
        done                                the work on an item that was taken from the queue
        set up, opened                      by the director: its terms; it opens the gate
        killed, stopped, continued          by the director: what it did to a worker
        heard, missed                       by the director: such news; that some were lost
        ended, summed up                    by the director: a worker is gone; the last figures
    """

    at: float
    worker: int
    what: str
    of: str = ""  # which primitive
    hold: int = 0  # counted by each worker
    more: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.more[key]


class Journal:
    """Where one process writes; the file is called after its worker's number."""

    def __init__(self, directory: Path, worker: int) -> None:
        self.worker = worker
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(directory / f"{worker}.jsonl", flags, 0o600)
        self._holds = 0

    def hold(self, of: str) -> "HoldNotes":
        """A function that notes what happens to one hold."""
        self._holds += 1
        return HoldNotes(self, of, self._holds)

    def note(self, what: str, of: str = "", hold: int = 0, **more: Any) -> float:
        """Write it down, and return the time that stands there."""
        at = time.monotonic()
        record = {"at": at, "worker": self.worker, "what": what, "of": of, "hold": hold} | more
        os.write(self._file, json.dumps(record).encode() + b"\n")
        return at

    def close(self) -> None:
        os.close(self._file)


class HoldNotes:
    """Notes on one hold."""

    def __init__(self, journal: Journal, of: str, hold: int) -> None:
        self._journal, self._of, self._hold = journal, of, hold

    def __call__(self, what: str, **more: Any) -> None:
        self._journal.note(what, self._of, self._hold, **more)


class Journals:
    """All journals of a directory, read as they grow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}  # how far, in bytes

    def news(self) -> list[Event]:
        """What was written since the last call, over all processes, in order of time.

        A line without its end was never written: its process was killed over it.
        """
        return sorted(self._unread(), key=lambda event: event.at)

    def _unread(self) -> Iterator[Event]:
        for path in sorted(self._directory.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                record = json.loads(line)
                at, worker, what, of, hold = (record.pop(key) for key in COMMON)
                yield Event(at, worker, what, of, hold, record)
