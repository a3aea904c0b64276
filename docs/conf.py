"""The documentation site.  `make docs` builds it, offline, into build/docs; warnings are errors."""

import re
from dataclasses import is_dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

HERE = Path(__file__).parent

project = "dsync"
author = "dsync contributors"
release = version = version_of("dsync-redis")

extensions = ["myst_parser", "sphinx.ext.autodoc"]

# Markdown, as it also reads on a forge: headings are anchors, links go to files.
myst_heading_anchors = 3

default_role = "code"  # `name` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "furo"  # in the fonts of the system: no page asks another host for anything
html_title = "dsync"
html_show_copyright = False


# What readers make themselves; all else is made by clients, and how is of no use to anybody.
MADE_BY_READERS = {
    "dsync.Client",
    "dsync.metrics.otel.OpenTelemetryHook",
    "dsync.metrics.prometheus.PrometheusHook",
    "dsync.testing.History",
    "dsync.testing.Proxy",
    "dsync.testing.Span",
    "dsync.testing.VirtualClock",
}


def read_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """Show how to make what readers make."""
    made = what != "class" or is_dataclass(obj) or name in MADE_BY_READERS
    return None if made else ("", None)


def read_docstring(app: Sphinx, what: Any, name: str, obj: Any, options: Any, lines: Any) -> None:
    """Make sections of "Args:" and "Raises:"."""
    # Of these it would take what stands before a colon for the type.
    kind: Any = "object" if what in ("property", "attribute", "data") else what
    lines[:] = GoogleDocstring(lines, Config(), app, kind, name, obj, options).lines()


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to documents outside of docs/ lead to the file, as those to other files do."""

    def link(match: "re.Match[str]") -> str:
        there = (HERE / page).parent.joinpath(match[1]).resolve()
        return match[0] if there.is_relative_to(HERE) else f"](path:{match[1]})"

    source[0] = re.sub(r"\]\(([^):#]+\.md)\)", link, source[0])


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", read_signature)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("source-read", read_page)
