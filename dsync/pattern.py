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
    pieces = [""]  # what stands between the stars
    for escaped, star, plain in _PART.findall(pattern):
        if star:
            pieces.append("")
        else:
            pieces[-1] += re.escape(escaped or plain)
    first, *middle = pieces
    regex = first
    if middle:
        # Each piece where it occurs first: there is no need to look further (`(?>`), and to try all
        # combinations takes for ever.
        last = middle.pop()
        regex += "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last
    match = re.compile(regex, re.DOTALL).fullmatch
    return lambda name: match(name) is not None
