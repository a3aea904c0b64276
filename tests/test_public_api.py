"""The public API holds still, and its docstrings say what its users have to know."""

import difflib
import re
from collections.abc import Iterator

import griffe

from tests.public_api import COMMAND, FILE, MADE, ROOT, Source, listing

SOURCE = Source()
# Numbers that may be fractions, and are no times.
NO_TIMES = {"burst", "rate"}
# "as for `lock()`", "see `Lock.acquire`", "those of `Client`", "what `wait()` raises"
REFERENCE = re.compile(r"\b(?:as for|of|see|what) `(?:(\w+)\.)?(\w+)(?:\(\))?`", re.IGNORECASE)
# What is awaited, entered or iterated over to hear of errors.
AWAITED = ("Reply", "Listening", "Stream")
# What is awaited, and raises nothing of what the store answers.
EXEMPT = {
    "Client.aclose": "it logs what was not confirmed",
    "Condition.notify": "it goes with the release, which says so",
    "Condition.notify_all": "the same",
}
Public = griffe.Class | griffe.Function | griffe.Attribute


def public() -> Iterator[tuple[str, Public, griffe.Class | None]]:
    """Everything, with its path and its class."""
    for path, thing in SOURCE.names.items():
        if isinstance(thing, Public):
            yield path, thing, None
        if isinstance(thing, griffe.Class):
            for name, member in SOURCE.members(thing).items():
                if isinstance(member, Public):
                    yield f"{path}.{name}", member, thing


EVERYTHING = {path: (thing, cls) for path, thing, cls in public()}
# What can have a docstring of its own: neither a value nor what a protocol calls.
TOLD = {
    path: thing
    for path, (thing, cls) in EVERYTHING.items()
    if not path.endswith("__")
    and (not isinstance(thing, griffe.Attribute) or "property" in thing.labels)
}
FUNCTIONS = {path: it for path, it in TOLD.items() if isinstance(it, griffe.Function)}


def documentation(path: str) -> str:
    """Its docstring, and those of what it overrides."""
    thing, cls = EVERYTHING[path]
    family = () if cls is None else SOURCE.family(cls)
    found = [thing, *(each.members[thing.name] for each in family if thing.name in each.members)]
    texts = [each.docstring.value for each in found if each.docstring is not None]
    return "\n\n".join(dict.fromkeys(texts))


def in_full(path: str) -> str:
    """The same, with its class's, and with what they refer to."""
    thing, cls = EVERYTHING[path]
    texts = [documentation(path)]
    if cls is not None and (path.endswith("__init__") or not isinstance(thing, griffe.Function)):
        texts += [each.docstring.value for each in SOURCE.family(cls) if each.docstring]
    here = path.rpartition(".")[0]
    for owner, name in REFERENCE.findall(texts[0]):
        for other in (f"dsync.{owner}.{name}", f"{here}.{name}", f"dsync.Client.{name}"):
            if other != path and other in EVERYTHING:
                texts.append(documentation(other))
                break
    return "\n\n".join(texts)


def section(text: str, title: str) -> str:
    """What stands under `Args:` or `Raises:`, wherever there is one."""
    found = re.findall(rf"^{title}:\n((?:(?: .*)?\n?)*)", text, re.MULTILINE)
    return "\n".join(found)


# -- names and signatures --------------------------------------------------------------------------


def test_the_public_api_is_the_one_that_is_written_down() -> None:
    expected, found = FILE.read_text(encoding="utf-8"), listing()
    changes = "\n".join(
        difflib.unified_diff(
            expected.splitlines(), found.splitlines(), FILE.name, "dsync", lineterm="", n=2
        )
    )
    assert not changes, f"the public API has changed:\n{changes}\n\nIf it was to:  {COMMAND}"


def test_docs_api_shows_what_is_promised_where_it_names_members() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"autoclass:: (\w+)\n(?:   :inherited.*\n)?   :members: (.+(?:\n      .+)*)", page
    )
    assert shown
    for name, listed in shown:
        cls = SOURCE.class_at(f"dsync.{name}")
        assert cls is not None
        promised = {path.rpartition(".")[2] for path in TOLD if path.startswith(f"dsync.{name}.")}
        assert set(re.findall(r"\w+", listed)) == promised, f"{name} in docs/api.md"


# -- docstrings ------------------------------------------------------------------------------------


def test_everything_public_has_a_docstring_that_begins_with_a_sentence() -> None:
    for path in TOLD:
        first = documentation(path).partition("\n\n")[0].rstrip()
        assert first.endswith((".", ":")), f"{path}: {first or 'no docstring'!r}"


def test_docstrings_name_only_arguments_that_there_are() -> None:
    for path, (thing, _) in EVERYTHING.items():
        function = thing.members.get("__init__") if isinstance(thing, griffe.Class) else thing
        if not isinstance(function, griffe.Function) or thing.docstring is None:
            continue
        told = re.findall(
            r"^    (\w[\w, ]*): ", section(thing.docstring.value, "Args"), re.MULTILINE
        )
        for name in ", ".join(told).split(", "):
            assert not name or name in function.parameters, f"{path} has no argument {name}"


def test_whatever_is_a_time_is_said_to_be_in_seconds() -> None:
    silent = []
    for path, (thing, _) in EVERYTHING.items():
        text = in_full(path)
        if isinstance(thing, griffe.Function):
            silent += [f"{path}({name})" for name in times(thing) if not in_seconds(name, text)]
        is_time = str(getattr(thing, "annotation", "")).startswith("float")  # or what it returns
        if is_time and thing.name not in NO_TIMES and not in_seconds("", text):
            silent.append(path)
    assert not silent, "\n".join(silent)


def times(function: griffe.Function) -> list[str]:
    """Its arguments that are numbers and no counts."""
    of = {one.name: str(one.annotation) for one in function.parameters}
    return [name for name in of if "float" in of[name] and name not in NO_TIMES]


def in_seconds(name: str, text: str) -> bool:
    """Whether that is said: where the argument is described, or else anywhere."""
    own = re.search(rf"^    {name}: (.*(?:\n      .*)*)", section(text, "Args"), re.MULTILINE)
    return "second" in (text if own is None else own[1]).lower()


def test_what_waits_asks_or_makes_a_primitive_says_what_it_raises() -> None:
    silent = [
        path
        for path, function in FUNCTIONS.items()
        if (is_awaited(function) or "timeout" in function.parameters or makes(function))
        and function.path.removeprefix(function.module.path + ".") not in EXEMPT
        and not section(in_full(path), "Raises")
    ]
    assert not silent, "\n".join(silent)


def test_what_has_a_timeout_says_what_comes_of_it() -> None:
    for path, function in FUNCTIONS.items():
        if "timeout" in function.parameters:
            assert re.search("AcquireTimeout|WaitTimeout|ServerError", in_full(path)), path


def test_what_asks_a_store_says_that_it_may_be_out_of_reach() -> None:
    silent = [
        path
        for path, function in FUNCTIONS.items()
        if is_awaited(function)
        and not path.startswith("dsync.testing.")
        and function.path.removeprefix(function.module.path + ".") not in EXEMPT
        and "StoreUnavailable" not in in_full(path)
    ]
    assert not silent, "\n".join(silent)


def is_awaited(function: griffe.Function) -> bool:
    return "async" in function.labels or str(function.returns).startswith(AWAITED)


def makes(function: griffe.Function) -> bool:
    """Whether it is where primitives come from."""
    return f"dsync.{function.returns}" in MADE | {"dsync.Client"}
