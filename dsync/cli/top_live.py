"""`dsync top` at a terminal: what the keys do, and when it is drawn."""

import asyncio
import time
from typing import TYPE_CHECKING

from dsync.cli.keyboard import Keyboard
from dsync.cli.top import LONGEST
from dsync.cli.top_screen import Screen
from dsync.cli.top_words import SORTS, chosen
from dsync.errors import DsyncError
from dsync.overview.rows import Row

if TYPE_CHECKING:
    from dsync.client import Client
    from dsync.overview import Overview, Snapshot

__all__ = ["Top"]

SHOWN = 64  # rows around the selected one that are looked at each time
REPAINT = 0.5  # seconds after which it is drawn again although nothing has happened


class Top:
    """One run at a terminal, from the first look to `q`."""

    def __init__(self, client: "Client", overview: "Overview", sort: str, every: float) -> None:
        self._client = client
        self._overview = overview
        self._every = min(every, LONGEST)
        self._keyboard = Keyboard(self.key, self.draw, self._end)
        self._screen = Screen()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._snapshot: Snapshot | None = None
        self._looked = time.monotonic()  # when it was taken
        self._trouble = ""  # why there is no newer one
        # What the keys have chosen.
        self.sort: str = sort
        self.backwards: bool = False
        self.wanted: str = ""  # in names
        self.typing: bool = False  # ... and being typed
        self.paused: bool = False
        self.help: bool = False
        self.selected: str = ""  # its key; a row stays selected wherever it moves
        self._at = 0  # where it was
        self._again = asyncio.Event()

    async def run(self) -> int:
        """Watch until told to end.  -> the exit code"""
        with self._keyboard.at_work():
            self.draw()
            looking = asyncio.create_task(self._look(), name="dsync top looks")
            painting = asyncio.create_task(self._repaint(), name="dsync top paints")
            tasks: list[asyncio.Future[int]] = [self._ended, looking, painting]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                return next(task.result() for task in tasks if task.done())
            finally:
                looking.cancel()
                painting.cancel()
                await asyncio.gather(looking, painting, return_exceptions=True)

    def _end(self, number: int) -> None:
        if not self._ended.done():
            self._ended.set_result(128 + number if number else 0)

    async def _look(self) -> int:
        while True:
            if not self.paused:
                try:
                    snapshot = await self._overview.look()
                except DsyncError as error:
                    self._trouble = str(error)
                else:
                    self._snapshot, self._trouble = snapshot, ""
                    self._looked = time.monotonic()
                self.draw()
            self._again.clear()
            try:
                async with asyncio.timeout(self._every):
                    await self._again.wait()
            except TimeoutError:
                pass

    async def _repaint(self) -> int:
        while True:
            await asyncio.sleep(REPAINT)
            self.draw()

    # -- the screen -----------------------------------------------------------------------------

    @property
    def rows(self) -> list[Row]:
        """What is to be seen, in order."""
        if self._snapshot is None:
            return []
        return chosen(self._snapshot.rows, self.sort, backwards=self.backwards, wanted=self.wanted)

    def draw(self) -> None:
        """Draw it as things stand."""
        rows = self.rows
        around = max(self._at - SHOWN // 2, 0)
        self._overview.first = [row.key for row in rows[around : around + SHOWN]]
        columns, lines = self._keyboard.size()
        self._keyboard.paint(
            self._screen.drawn(
                columns, lines, self._head(), rows, self._select(rows), self._foot(),
                self._snapshot, help=self.help,
            )
        )  # fmt: skip

    def _select(self, rows: list[Row]) -> int:
        """The place of the row that is selected; of its neighbour if it has gone."""
        place = next((i for i, row in enumerate(rows) if row.key == self.selected), None)
        if place is None:
            place = min(self._at, len(rows) - 1)
        self._at = max(place, 0)
        self.selected = rows[place].key if rows else ""
        return self._at

    def _head(self) -> tuple[str, str]:
        """Where, and what is wrong."""
        where = f"dsync top  {self._overview.where}  {self._client.namespace}"
        age = time.monotonic() - self._looked
        if self._trouble:
            return where, f"no answer for {age:.0f} s: {self._trouble}"
        if not self._client.store.connected:
            return where, f"connection lost, {age:.0f} s ago; trying again"
        if self.paused:
            return where, f"paused, as it was {age:.0f} s ago"
        if age > 2 * self._every + 1:
            return where, f"no answer for {age:.0f} s"
        return where, ""

    def _foot(self) -> str:
        if self.typing:
            return f"names with: {self.wanted}_   (Enter takes it, Escape drops it)"
        order = f"{self.sort}{', backwards' if self.backwards else ''}"
        wanted = f"  names with {self.wanted!r}" if self.wanted else ""
        return f"q quit  s sort: {order}  / filter{wanted}  space pause  ? help"

    # -- keys -----------------------------------------------------------------------------------

    def key(self, key: str) -> None:
        """A key was pressed."""
        if self.typing:
            self._type(key)
        elif self.help:
            self.help = False
        else:
            self._command(key)
        self.draw()

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.typing = False
            if key == "escape":
                self.wanted = ""
        elif key == "erase":
            self.wanted = self.wanted[:-1]
        elif len(key) == 1 and key.isprintable():
            self.wanted += key

    def _command(self, key: str) -> None:
        sorts = list(SORTS)
        match key:
            case "q" | "Q":
                self._end(0)
            case "up" | "k":
                self._move(-1)
            case "down" | "j":
                self._move(1)
            case "page up":
                self._move(-10)
            case "page down":
                self._move(10)
            case "home" | "g":
                self._move(-(10**6))
            case "end" | "G":
                self._move(10**6)
            case "s":
                self.sort = sorts[(sorts.index(self.sort) + 1) % len(sorts)]
            case "r":
                self.backwards = not self.backwards
            case "/":
                self.typing, self.wanted = True, ""
            case "escape":
                self.wanted = ""
            case " ":
                self.paused = not self.paused
                self._again.set()
            case "?" | "h":
                self.help = True

    def _move(self, by: int) -> None:
        rows = self.rows
        if rows:
            place = max(0, min(self._select(rows) + by, len(rows) - 1))
            self.selected, self._at = rows[place].key, place
