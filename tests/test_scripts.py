"""Every .lua file reads as its header says, and is called by the names that it binds."""

import inspect
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import fakeredis
import pytest
import redis

from dsync.local import barriers, buses, events, flights, permits, rates, rolls
from dsync.local.store import TRANSITIONS
from dsync.redis.script import SCRIPTS, TEXTS, Script
from dsync.store import Arg

ROOT = Path(__file__).parent.parent
FOLDER = resources.files("dsync.redis") / "lua"
SOURCES = {
    file.name[:-4]: file.read_text(encoding="utf-8")
    for file in FOLDER.iterdir()
    if file.name.endswith(".lua")
}
INCLUDES = sorted(name for name in SOURCES if name.startswith("_"))

BINDING = re.compile(r"local (\w+) += (?:tonumber\((KEYS|ARGV)\[(\d+)\]\)|(KEYS|ARGV)\[(\d+)\])")
KEYWORDS = {
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local",
    "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
}  # fmt: skip
# What scripts may use of Lua's and Redis's: what every server and fakeredis have.
LIBRARY = {"ipairs", "math", "redis", "string", "tonumber"}


def header(text: str) -> list[str]:
    """The comment at the top, without its dashes."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line[2:].strip())
    return lines


def bindings(text: str) -> tuple[dict[str, str], str]:
    """What the lines after the header bind: name -> KEYS[i] or ARGV[i]; and the rest."""
    _, _, body = text.partition("\n\n")
    bound: dict[str, str] = {}
    lines = body.splitlines()
    while lines:
        if match := BINDING.match(lines[0]):
            bound[match[1]] = f"{match[2] or match[4]}[{match[3] or match[5]}]"
        elif not lines[0].lstrip().startswith("-- ") or lines[0].startswith("-- include"):
            break  # a comment may go on on the next line
        lines.pop(0)
    return bound, "\n".join(lines)


def code(text: str) -> str:
    """A Lua text without its comments and strings."""
    return re.sub(r"--[^\n]*|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"", " ", text)


def globals_of(text: str) -> set[str]:
    """The names in a Lua text that nothing in it makes local."""
    plain = code(text)
    declared = {"KEYS", "ARGV"}
    for names in re.findall(r"\blocal +(?!function)([\w ,]+)|\bfor +([\w ,]+?) *(?:=|in\b)", plain):
        declared |= set(re.findall(r"\w+", " ".join(names)))
    for name, arguments in re.findall(r"\blocal +function +(\w+) *\(([^)]*)\)", plain):
        declared |= {name, *re.findall(r"\w+", arguments)}
    used = set(re.findall(r"(?<![\w.:])[A-Za-z_]\w*", plain))
    return used - declared - KEYWORDS


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_header_says_what_for_what_returns_and_what_holds(name: str) -> None:
    lines = header(SOURCES[name])
    blank = lines.index("")
    assert " ".join(lines[:blank]).endswith("."), "a sentence says what it is for"
    assert sum(line.startswith("Returns ") for line in lines[blank:]) == 1
    assert sum(line.startswith("Invariant ") for line in lines[blank:]) == 1


@pytest.mark.parametrize("name", INCLUDES)
def test_an_include_says_so_and_what_it_needs(name: str) -> None:
    text = " ".join(header(SOURCES[name]))
    assert text.startswith("Included")
    assert "Needs `" in text


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_keys_and_arguments_are_bound_in_the_first_lines_and_nowhere_else(name: str) -> None:
    bound, rest = bindings(SOURCES[name])
    assert "KEYS" not in code(rest)
    assert "ARGV" not in code(rest)
    script = SCRIPTS[name]
    keys = {key: f"KEYS[{i}]" for i, key in enumerate(script.keys, 1)}
    arguments = {argument: f"ARGV[{i}]" for i, argument in enumerate(script.arguments, 1)}
    assert list(bound.items()) == list((keys | arguments).items())
    assert len(bound) == len(keys) + len(arguments), "a name is bound twice"


@pytest.mark.parametrize("name", INCLUDES)
def test_an_include_touches_neither_keys_nor_arguments(name: str) -> None:
    assert not re.search(r"\b(KEYS|ARGV)\b", code(SOURCES[name]))
    assert "-- include:" not in SOURCES[name], "includes do not nest"


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_includes_are_put_in(name: str) -> None:
    wanted = re.findall(r"^-- include: (\w+)$", SOURCES[name], re.MULTILINE)
    assert {f"_{include}" for include in wanted} <= set(INCLUDES)
    assert "-- include:" not in SCRIPTS[name].text
    for include in wanted:
        assert SOURCES[f"_{include}"] in SCRIPTS[name].text


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_uses_nothing_that_some_server_lacks(name: str) -> None:
    text = SCRIPTS[name].text
    assert not text.startswith("#!")
    assert globals_of(text) <= LIBRARY
    assert len(text.splitlines()) == len(text.split("\n")) - 1, "the text ends with its last line"


def test_a_global_would_be_found() -> None:
    text = "local a = KEYS[1]\nfor i, b in ipairs({}) do c = b .. 'd' end -- e\nreturn a.f + g(i)"
    assert globals_of(text) == {"c", "g", "ipairs"}


def test_the_scripts_of_one_record_call_its_keys_by_the_same_names() -> None:
    for family in {name.partition("_")[0] for name in SCRIPTS}:
        all_keys = [
            script.keys for name, script in SCRIPTS.items() if name.startswith(f"{family}_")
        ]
        longest = max(all_keys, key=len)
        for keys in all_keys:
            assert keys == longest[: len(keys)]


FAMILIES = {
    "permit": permits,
    "event": events,
    "barrier": barriers,
    "bus": buses,
    "rate": rates,
    "flight": flights,
    "roll": rolls,
}


def test_every_script_has_a_twin_and_every_twin_a_script() -> None:
    assert sorted(TRANSITIONS) == sorted(SCRIPTS)


def test_the_twins_of_a_family_are_in_one_module() -> None:
    assert {name.partition("_")[0] for name in SCRIPTS} == set(FAMILIES)
    for family, module in FAMILIES.items():
        scripts = sorted(name for name in SCRIPTS if name.startswith(f"{family}_"))
        assert sorted(module.TRANSITIONS) == scripts
        for name, twin in module.TRANSITIONS.items():
            assert TRANSITIONS[name] is twin, "two families have one name"
            assert twin.__module__ == module.__name__
    assert len(TRANSITIONS) == sum(len(module.TRANSITIONS) for module in FAMILIES.values())


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_twin_takes_the_same_arguments(name: str) -> None:
    twin = TRANSITIONS[name]
    assert twin.__name__ == name
    named = [
        parameter.name
        for parameter in inspect.signature(twin).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    assert tuple(named) == SCRIPTS[name].arguments


# -- calls by name --------------------------------------------------------------------------------


def arguments_of(name: str) -> dict[str, Arg]:
    return {argument: f"the {argument}" for argument in SCRIPTS[name].arguments}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_arguments_go_by_name_in_any_order(name: str) -> None:
    args = arguments_of(name)
    backwards = dict(reversed(args.items()))
    assert SCRIPTS[name].values(backwards) == tuple(args.values())


@pytest.mark.parametrize("name", sorted(SCRIPTS))
@pytest.mark.parametrize("mistake", ["missing", "extra", "wrong"])
def test_a_mistaken_argument_is_a_type_error_that_lists_both(name: str, mistake: str) -> None:
    args = arguments_of(name)
    if mistake in ("missing", "wrong") and args:
        args.popitem()
    if mistake in ("extra", "wrong") or not SCRIPTS[name].arguments:
        args["tokn"] = "x"
    with pytest.raises(TypeError) as raised:
        SCRIPTS[name].values(args)
    assert str(raised.value) == f"{name} takes {SCRIPTS[name].arguments}, got {tuple(args)}"


@pytest.mark.parametrize("text", ["local a = KEYS[2]\n", "local a = KEYS[1]\nlocal b = KEYS[3]\n"])
def test_a_gap_in_the_bindings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"gap\.lua does not bind KEYS\[1\]\.\.\[n\]"):
        Script("gap", text)


# -- servers --------------------------------------------------------------------------------------


def test_texts_are_found_by_what_the_server_calls_them(server_url: str) -> None:
    with redis.Redis.from_url(server_url) as client:
        for script in SCRIPTS.values():
            assert client.script_load(script.text) == script.sha
            assert TEXTS[script.sha] == script.text


def test_fakeredis_calls_them_the_same() -> None:
    with fakeredis.FakeRedis() as client:
        for script in SCRIPTS.values():
            assert client.script_load(script.text) == script.sha


@pytest.mark.parametrize("wanted", [["permit_acquire"], []], ids=["one", "all"])
def test_the_module_prints_what_the_server_runs(server_url: str, wanted: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dsync.redis.script", *wanted],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "".join(SCRIPTS[name].text for name in wanted or SCRIPTS)
    assert done.stderr == ""
    if wanted:
        with redis.Redis.from_url(server_url) as client:
            assert client.script_load(done.stdout) == SCRIPTS[wanted[0]].sha
