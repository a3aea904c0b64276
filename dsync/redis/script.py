"""A .lua file as something called by name.

The lines `local name = KEYS[i]` and `local name = ARGV[i]` at a script's top are its signature:
arguments go by these names, so a stale header or a swapped argument cannot exist.  A line
`-- include: name` stands for the text of `_name.lua`; includes do not nest.

`python -m dsync.redis.script permit_acquire` prints the text that the server runs.
"""

import hashlib
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import resources
from operator import itemgetter

from dsync.store import Arg

__all__ = ["SCRIPTS", "TEXTS", "Script", "sharded"]

_BINDING = re.compile(r"^local +(\w+) *= *(?:tonumber\()?(KEYS|ARGV)\[(\d+)\]", re.MULTILINE)
_INCLUDE = re.compile(r"^-- include: (\w+)\n", re.MULTILINE)
_FOLDER = resources.files("dsync.redis") / "lua"


class Script:
    """One transition in Lua: its text, its digest, and the names of its keys and arguments."""

    __slots__ = ("_values", "arguments", "keys", "name", "sha", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name: str = name
        self.text: str = text
        # A name for the server, as Redis itself forms it; nothing here needs it to be secret.
        self.sha: str = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.keys: tuple[str, ...] = self._bound("KEYS")
        self.arguments: tuple[str, ...] = self._bound("ARGV")
        self._values: Callable[[dict[str, Arg]], tuple[Arg, ...]] | None = (
            itemgetter(*self.arguments) if len(self.arguments) > 1 else None
        )

    def _bound(self, table: str) -> tuple[str, ...]:
        bound = {int(i): name for name, kind, i in _BINDING.findall(self.text) if kind == table}
        if sorted(bound) != list(range(1, len(bound) + 1)):
            raise ValueError(f"{self.name}.lua does not bind {table}[1]..[n]: {bound}")
        return tuple(bound[i] for i in sorted(bound))

    def values(self, args: dict[str, Arg]) -> tuple[Arg, ...]:
        """The arguments in the order the script wants them."""
        if len(args) == len(self.arguments):
            try:
                if self._values is not None:
                    return self._values(args)
                return tuple(args[name] for name in self.arguments)
            except KeyError:
                pass
        raise TypeError(f"{self.name} takes {self.arguments}, got {tuple(args)}")


def load(name: str) -> Script:
    """The script `name.lua` with its includes put in."""

    def included(match: "re.Match[str]") -> str:
        return (_FOLDER / f"_{match[1]}.lua").read_text(encoding="utf-8")

    return Script(name, _INCLUDE.sub(included, (_FOLDER / f"{name}.lua").read_text("utf-8")))


SCRIPTS: dict[str, Script] = {
    file.name[:-4]: load(file.name[:-4])
    for file in sorted(_FOLDER.iterdir(), key=lambda file: file.name)
    if file.name.endswith(".lua") and not file.name.startswith("_")
}
# By digest: what to send to a server that does not know it.
TEXTS: dict[str, str] = {script.sha: script.text for script in SCRIPTS.values()}


@cache
def sharded(name: str) -> Script:
    """The script for a cluster: what it publishes stays on the node that carries it out."""
    script = Script(name, SCRIPTS[name].text.replace("'PUBLISH'", "'SPUBLISH'"))
    TEXTS[script.sha] = script.text
    return script


if __name__ == "__main__":
    sys.stdout.writelines(SCRIPTS[wanted].text for wanted in sys.argv[1:] or SCRIPTS)
