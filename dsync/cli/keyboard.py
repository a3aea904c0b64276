"""A terminal as one that is drawn on and read key by key, and given back as it was."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial

__all__ = ["Keyboard"]

# The other screen, without a cursor and without wrapping; and back.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
NAMES = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[1~": "home", "\x1bOH": "home",
    "\x1b[F": "end", "\x1b[4~": "end", "\x1bOF": "end",
    "\r": "enter", "\n": "enter", "\x7f": "erase", "\x08": "erase", "\x1b": "escape",
}  # fmt: skip
# A sequence of a key, known or not, else a character.
KEY = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O.)|.", re.DOTALL)
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Keyboard:
    """Calls `key` with the name of each key, `redraw` where the screen has to be painted anew, and
    `end` with the number of a signal that ends the program.
    """

    def __init__(
        self, key: Callable[[str], None], redraw: Callable[[], None], end: Callable[[int], None]
    ) -> None:
        self._key = key
        self._redraw = redraw
        self._end = end
        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)
        self._ours = False  # the terminal is as we need it

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The terminal is ours within, whatever happens; it is given back when we are stopped."""
        loop = asyncio.get_running_loop()
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTSTP: self._stop,
            signal.SIGCONT: self._resume,
            signal.SIGWINCH: self._redraw,
        }
        handlers |= {number: partial(self._end, number) for number in PASSED_ON}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        self._take()
        loop.add_reader(self._fd, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._fd)
            self._give_back()
            for number in handlers:
                loop.remove_signal_handler(number)

    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except OSError:  # it was hung up
            columns = lines = 0
        return columns or 80, lines or 24

    def paint(self, screen: str) -> None:
        """Show this, from the upper left corner."""
        if self._ours:
            self._write(screen)

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:  # it was hung up
            self._end(signal.SIGHUP)

    def _take(self) -> None:
        if self._ours:
            return
        modes = termios.tcgetattr(self._fd)
        modes[3] &= ~(termios.ICANON | termios.ECHO)  # lflag; Ctrl-C and Ctrl-Z stay signals
        modes[6] = [*modes[6]]
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSADRAIN, modes)
        self._ours = True
        self._write(ENTER)

    def _give_back(self) -> None:
        if not self._ours:
            return
        self._ours = False
        with contextlib.suppress(OSError, ValueError, termios.error):  # it was hung up
            self._write(LEAVE)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _stop(self) -> None:
        """Ctrl-Z: the shell gets its terminal as it was, and we go on behind this when it says."""
        self._give_back()
        # By default: where no shell would ever let us go on, the kernel does not stop us.
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTSTP, self._stop)
        self._resume()

    def _resume(self) -> None:
        """We go on, and the shell may have changed the modes."""
        self._ours = False
        self._take()
        self._redraw()

    def _read(self) -> None:
        try:
            typed = os.read(self._fd, 4096).decode(errors="replace")
        except OSError:
            typed = ""
        if not typed:
            self._end(signal.SIGHUP)
            return
        for match in KEY.finditer(typed):
            key = NAMES.get(match[0], match[0])
            if len(match[0]) == 1 or key in NAMES.values():
                self._key(key)
