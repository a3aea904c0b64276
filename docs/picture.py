"""The pictures of terminals in the README and on the site: what real runs have left on the screen.

    python -m docs.picture                      all of them (`make picture`)
    python -m docs.picture demo --seconds 30    that of `dsync demo`, which gets these arguments
    python -m docs.picture top --sort held      that of `dsync top`, of the processes of shop.py

Times, counts and process numbers differ from run to run; nothing in a picture is written by hand.
"""

import argparse
import contextlib
import io
import os
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from dsync.server import Server

__all__ = ["draw", "left_on_screen", "watch"]

DOCS = Path(__file__).parent
COLUMNS = 104
PROCESSES = 4  # of the shop
# Rich goes up over its last frame and erases it line by line, `dsync top` goes to the corner: what
# comes after the last of these is the screen, as long as nothing was there before the first frame.
AGAIN = re.compile(r"\x1b\[(?:\d*A|2K|H)")
OTHER_SCREEN_ENDS = "\x1b[?1049l"

# A terminal brings its own background, so the picture can be read on a light page and a dark one.
THEME = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [
        (72, 79, 88), (255, 123, 114), (63, 185, 80), (227, 179, 65),
        (88, 166, 255), (188, 140, 255), (57, 197, 207), (177, 186, 196),
    ],
)  # fmt: skip

# Rich's own form names a font of another host; a picture in a page may not load one, nor need it.
FORM = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{width}} {{height}}" role="img">
<title>{title}</title>
<style>
.{{unique_id}}-matrix {{{{
  font: {{char_height}}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal">
<rect x="0" y="0" width="{{terminal_width}}" height="{{terminal_height}}"/>
</clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})">
{{backgrounds}}
<g class="{{unique_id}}-matrix" xml:space="preserve">
{{matrix}}
</g>
</g>
</svg>
"""


def watch(
    arguments: Sequence[str],
    lines: int,
    keys: Sequence[tuple[bytes, float, bytes]] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run `dsync` with these arguments on a terminal of its own.  -> all that it has written there

    Args:
        keys: for each what has to be written first, how many seconds after that it is pressed, and
            which it is.

    Raises:
        SystemExit: it did not end well; the text is what it wrote.
    """
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (lines, COLUMNS))
    process = subprocess.Popen(
        [sys.executable, "-m", "dsync", *arguments],
        cwd=DOCS.parent,
        env={"PATH": os.environ["PATH"], "TERM": "xterm-256color", **(environment or {})},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    written = bytearray()
    for awaited, pause, key in keys:
        while awaited not in written and (piece := _read(master)):
            written += piece
        ends = time.monotonic() + pause
        while (left := ends - time.monotonic()) > 0:
            if select.select([master], [], [], left)[0]:
                written += _read(master)
        os.write(master, key)
    while piece := _read(master):
        written += piece
    os.close(master)
    text = written.decode()
    if process.wait():
        raise SystemExit(f"dsync {' '.join(arguments)} ended with {process.returncode}:\n{text}")
    return text


def _read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except OSError:  # EIO: nobody has the other end any more
        return b""


def left_on_screen(written: str) -> str:
    """What one sees when it has ended: the last frame, and the lines after it."""
    return AGAIN.split(written.partition(OTHER_SCREEN_ENDS)[0])[-1].replace("\r", "")


def draw(title: str, screen: str) -> str:
    """A picture of that screen, under the command that led to it."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {title}", style="bold"))
    console.print(Text.from_ansi(screen.rstrip()))
    form = FORM.format(title=escape(title))
    return console.export_svg(title="", theme=THEME, code_format=form, unique_id="t")


@contextlib.contextmanager
def shop() -> Iterator[dict[str, str]]:
    """The processes of shop.py, at work on a server of their own.  -> where that is"""
    with Server.start(port=0) as server, contextlib.ExitStack() as stack:
        environment = {"PATH": os.environ["PATH"], "DSYNC_URL": server.url}
        for number in range(1, PROCESSES + 1):
            command = [sys.executable, "-m", "docs.shop", str(number)]
            process = subprocess.Popen(command, cwd=DOCS.parent, env=environment)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield environment


def demo(arguments: Sequence[str], after: float) -> tuple[str, str]:
    """-> the command, and the screen"""
    return " ".join(["dsync demo", *arguments]), left_on_screen(watch(["demo", *arguments], 50))


def top(arguments: Sequence[str], after: float) -> tuple[str, str]:
    """-> the command, and the screen"""
    arguments = ["top", "--namespace", "shop", *arguments]
    keys = [(b"invoice 7", after, b"jjjj"), (b"", 1.0, b"q")]  # select a lock
    with shop() as environment:
        written = watch(arguments, 19, keys, environment)
    return " ".join(["dsync", *arguments]), left_on_screen(written)


PICTURES = {"demo": demo, "top": top}


def main() -> None:
    parser = argparse.ArgumentParser("python -m docs.picture")
    parser.add_argument("which", nargs="?", choices=PICTURES, help="default: all")
    parser.add_argument("--out", type=Path, default=DOCS, help="a directory; default: docs")
    parser.add_argument(
        "--after", type=float, default=8.0, metavar="S", help="seconds of work that top sees"
    )
    ours, arguments = parser.parse_known_args()
    for which in [ours.which] if ours.which else PICTURES:
        path = ours.out / f"{which}.svg"
        path.write_text(draw(*PICTURES[which](arguments, ours.after)) + "\n")
        print(path)


if __name__ == "__main__":
    main()
