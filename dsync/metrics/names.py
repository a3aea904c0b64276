"""Names as labels: of thousands of names a few patterns are made, and never too many."""

import re
from collections.abc import Callable, Sequence

from dsync.arguments import checked_count
from dsync.pattern import matcher

__all__ = ["OTHER", "Names", "Template", "general"]

Template = Callable[[str], str] | Sequence[str]

OTHER = "other"
# A UUID, eight or more hexadecimal digits that stand alone, any digits.
_VARYING = re.compile(
    r"""[0-9a-f]{8} (?:-[0-9a-f]{4}){3} -[0-9a-f]{12}
      | (?<![^\W_]) [0-9a-f]{8,} (?![^\W_])
      | \d+""",
    re.IGNORECASE | re.VERBOSE,
)


def general(name: str) -> str:
    """`name` with a `*` for each part that looks like a number: "order:1234" -> "order:*"."""
    return _VARYING.sub("*", name)


class Names:
    """Makes labels of names; after `most` different ones it has given, all others are "other".

    Args:
        template: what makes a label of a name; or patterns in which `*` stands for any text: a name
            becomes the first that it matches, or else what `general()` makes of it.
        most: how many different labels there may be.
    """

    def __init__(self, template: Template | None = None, most: int = 200) -> None:
        self._most = checked_count("max_names", most)
        self._given: set[str] = set()
        self._template = _compiled(template)

    def __call__(self, name: str) -> str:
        """The label of this name: the same for good, once it was given."""
        label = self._template(name)
        if label in self._given:
            return label
        if len(self._given) >= self._most:
            return OTHER
        self._given.add(label)
        return label


def _compiled(template: Template | None) -> Callable[[str], str]:
    if template is None:
        return general
    if callable(template):
        return template
    if isinstance(template, str):
        raise TypeError(f"template must be a callable or a list of patterns, got {template!r}")
    matchers = [(pattern, matcher(pattern)) for pattern in template]

    def first(name: str) -> str:
        for pattern, matches in matchers:
            if matches(name):
                return pattern
        return general(name)

    return first
