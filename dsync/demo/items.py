"""The queue that all workers share: a file that is only added to, and that knows no waiting.

Every line carries the fence of the hold under which it was written.  One with an older fence than a
line before it does not count: it comes from a holder that overslept, and whose turn was over.
"""

import json
import os
from collections import deque
from pathlib import Path

__all__ = ["Queue", "Stale"]


class Stale(Exception):
    """Another has had the lock since: nothing was done."""


class Queue:
    """Items in order, as the file tells it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._read = 0  # how far, in bytes
        self._fence = 0  # of the last line that counts
        self.items: deque[str] = deque()
        self.most: int = 0  # items at once, so far
        self.put_by: dict[str, int] = {}  # item -> worker
        self.taken_by: dict[str, int] = {}

    def __len__(self) -> int:
        self._catch_up(os.fstat(self._file).st_size)
        return len(self.items)

    def put(self, item: str, worker: int, fence: int) -> None:
        """Put it at the end.  Raises Stale."""
        self._add(item, worker, fence, self.put_by)

    def take(self, worker: int, fence: int) -> str:
        """Take the first; there has to be one.  Raises Stale."""
        item = self.items[0]
        self._add(item, worker, fence, self.taken_by)
        return item

    def close(self) -> None:
        os.close(self._file)

    def _add(self, item: str, worker: int, fence: int, where: dict[str, int]) -> None:
        verb = "put" if where is self.put_by else "take"
        os.write(self._file, json.dumps([fence, worker, verb, item]).encode() + b"\n")
        # Where our line ends: what was added before it decides whether it counts.
        self._catch_up(os.lseek(self._file, 0, os.SEEK_CUR))
        if where.get(item) != worker:
            raise Stale(f"{verb} {item}: the fence {fence} is older than {self._fence}")

    def _catch_up(self, end: int) -> None:
        lines = os.pread(self._file, end - self._read, self._read)
        self._read = end
        for line in lines.splitlines():
            fence, worker, verb, item = json.loads(line)
            if fence < self._fence:
                continue
            self._fence = fence
            if verb == "put":
                self.put_by[item] = worker
                self.items.append(item)
                self.most = max(self.most, len(self.items))
            else:
                self.taken_by[item] = worker
                if item in self.items:
                    self.items.remove(item)
