"""The file that all workers write to.  It knows no lock: two writers at once lose updates."""

import os
from pathlib import Path

__all__ = ["Ledger"]


class Ledger:
    """A total in a file, written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        return int(self._path.read_text()) if self._path.exists() else 0

    def write(self, total: int) -> None:
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        draft.write_text(f"{total}\n")
        os.replace(draft, self._path)
