"""Patterns of event names: `*` stands for any text, `\\*` for a star, `\\\\` for a backslash."""

import re
from collections.abc import Callable

__all__ = ["literal", "matcher"]

_PART = re.compile(r"\\([*\\])|(\*)|(.)", re.DOTALL)


def literal(pattern: str) -> str | None:
    """The one name that it matches, or None if it has a star."""
    name = ""
    for escaped, star, plain in _PART.findall(pattern):
        if star:
            return None
        name += escaped or plain
    return name


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches."""
    parts = [
        ".*" if star else re.escape(escaped or plain)
        for escaped, star, plain in _PART.findall(pattern)
    ]
    match = re.compile("".join(parts), re.DOTALL).fullmatch
    return lambda name: match(name) is not None
