"""The run as one watches it: a live screen where that is possible, else a line a second."""

import importlib.util
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from dsync.demo.scene import KINDS, Scene

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["View", "view_for"]

TOLD = 6  # of what has happened, the last few


class View(Protocol):
    """Shows a scene each time it is told to."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def show(self) -> None:
        """Called some times a second."""


def view_for(scene: Scene, title: str, seconds: float, plain: bool) -> View:
    """The live screen, if there is a terminal and rich is installed; plain lines if not."""
    live = not plain and sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    return (Live if live else Plain)(scene, title, seconds)


class Plain:
    """Lines: what happens, and every second how far it all is."""

    def __init__(self, scene: Scene, title: str, seconds: float) -> None:
        self._scene = scene
        self._title = title
        self._started = time.monotonic()
        self._told = 0
        self._next = 1.0

    def __enter__(self) -> Self:
        print(self._title, flush=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tell()

    def show(self) -> None:
        self._tell()
        passed = time.monotonic() - self._started
        if passed >= self._next:
            self._next += 1.0
            print(f"{passed:5.1f} s  {self._state()}", flush=True)

    def _tell(self) -> None:
        for at, what in self._scene.story[self._told :]:
            print(f"{at - self._started:5.1f} s  * {what}", flush=True)
        self._told = len(self._scene.story)

    def _state(self) -> str:
        workers = self._scene.workers.values()
        holds = (f"{kind} {sum(sight.holds[kind] for sight in workers)}" for kind in KINDS)
        holder = next(iter(self._scene.holders), None)
        return f"holds: {', '.join(holds)}; news: {self._scene.news}; the lock is with " + (
            f"worker {holder}" if holder else "nobody"
        )


class Live:
    """A table of the workers, redrawn in place, and under it what has happened."""

    def __init__(self, scene: Scene, title: str, seconds: float) -> None:
        from rich.live import Live as RichLive

        self._scene = scene
        self._title = title
        self._seconds = seconds
        self._started = time.monotonic()
        self._live = RichLive(auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.show()
        self._live.__exit__(exc_type, exc, traceback)

    def show(self) -> None:
        self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        passed = min(time.monotonic() - self._started, self._seconds)
        progress = f"{passed:.0f} of {self._seconds:g} s, {self._scene.news} news"
        head = Text(f"{self._title}  {progress}", style="bold")
        story = [
            Text(f"{at - self._started:5.1f} s  {what}") for at, what in self._scene.story[-TOLD:]
        ]
        return Group(head, self._table(), *story)

    def _table(self) -> "RenderableType":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, show_edge=False)
        table.add_column("worker", justify="right")
        table.add_column("pid", justify="right", min_width=7)
        for kind in KINDS:
            table.add_column(f"{'':<2}{kind:>8}", width=10, no_wrap=True)
        table.add_column("state", width=7)
        for number, sight in self._scene.workers.items():
            cells = (f"{'■' * sight.inside[kind]:<2}{sight.holds[kind]:>8}" for kind in KINDS)
            style = {"killed": "red", "failed": "red", "stopped": "yellow"}.get(sight.state, "")
            table.add_row(str(number), str(sight.pid), *cells, sight.state, style=style)
        return table
