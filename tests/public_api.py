"""Every public name of dsync, as text to compare: `python -m tests.public_api --write`.

It is read from the source: annotations are as they are written, and no Python has a say in it.
`--types` has pyright say which types users' checkers could only guess.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

__all__ = ["COMMAND", "FILE", "Source", "listing"]

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_name("public_api.txt")
COMMAND = "python -m tests.public_api --write"
HEAD = f"""\
# Every public name of dsync: what it takes and gives.  tests/test_public_api.py compares.
# When a change is meant to be:  {COMMAND}
"""
MODULES = (
    *("dsync", "dsync.local", "dsync.metrics.otel", "dsync.metrics.prometheus", "dsync.server"),
    *("dsync.telemetry", "dsync.testing", "dsync.web", "pytest_dsync"),
)
# Without an underscore since other modules of dsync use them, and promised to nobody.
# What is new gets an underscore, a place here, or one in the file.
WITHIN = {
    "dsync.Client": {
        *("client_id", "cohorts", "declarations", "disagreement", "disconnected", "enter"),
        *("forked", "gap", "homes", "ignore", "keeper", "listen", "listening", "lost", "news"),
        *("outboxes", "patience", "phase", "probes", "pushed", "report", "store", "token"),
        *("tuned", "watch", "when_bound"),
    },
    "dsync.Lease": {
        *("error", "guard", "hold", "holder", "lift", "lose", "orphan", "outer", "owner", "pause"),
        *("reason", "released", "resume", "since", "succeed", "told", "unguard", "what"),
    },
    "dsync.Reply": {"settle"},
    "dsync.Subscription": {
        *("awaited", "close", "closed", "complained", "event", "full", "live", "matches"),
        *("maxsize", "overflow", "pattern", "put", "put_gap", "since"),
    },
}
# A client makes their objects, or a method of their own: nobody calls their constructors.
MADE = {
    *("dsync.Barrier", "dsync.BoundedSemaphore", "dsync.Condition", "dsync.Election"),
    *("dsync.Event", "dsync.EventBus", "dsync.Lease", "dsync.Lock", "dsync.RateLimiter"),
    *("dsync.Reply", "dsync.Semaphore", "dsync.Stream", "dsync.Subscription"),
    "dsync.server.Server",
}
WORDS: tuple[str, ...] = ("async", "classmethod", "staticmethod")
VARIABLES = ("ParamSpec(", "TypeVar(")  # what is made so stands for any type
# Everything has them, or they say nothing that their fellow does not.
DULL = {"__aexit__", "__del__", "__exit__", "__repr__", "__slots__"}


class Source:
    """What is public, found by reading the source.  Paths are those that users write."""

    def __init__(self) -> None:
        loader = griffe.GriffeLoader(search_paths=[ROOT], allow_inspection=False)
        for package in ("dsync", "pytest_dsync"):
            loader.load(package, try_relative_path=False)
        loader.resolve_aliases()
        self._modules = loader.modules_collection
        self.names = {
            f"{module}.{name}": self.find(f"{module}.{name}")
            for module in MODULES
            for name in self._modules[module].exports or ()
        }
        self.paths = {thing.path: path for path, thing in self.names.items()}

    def find(self, path: str) -> griffe.Object:
        """What is defined there, or imported there."""
        return _target(self._modules[path])

    def class_at(self, path: str) -> griffe.Class | None:
        """The class of ours that is there, if there is one."""
        try:
            found = self.find(path)
        except KeyError:
            return None
        return found if isinstance(found, griffe.Class) else None

    def members(self, cls: griffe.Class) -> dict[str, griffe.Object]:
        """What a class promises: its fields in their order, then all else by name.

        What it has from another public class is promised there.
        """
        path = self.paths.get(cls.path, "")
        within = WITHIN.get(path, set())
        found = {
            name: _target(member)
            for each in reversed([cls, *self._private_bases(cls)])
            for name, member in each.members.items()
        }
        unknown = within - found.keys()
        assert not unknown, f"WITHIN[{path!r}] names what is not there: {sorted(unknown)}"
        made = path in MADE or "dataclass" in cls.labels
        promised = {
            name: member
            for name, member in found.items()
            if name not in within | DULL
            and (not name.startswith("_") or name.endswith("__"))
            and not (name == "__init__" and made)
        }
        fields = {name: member for name, member in promised.items() if is_field(member)}
        return fields | dict(sorted(promised.items() - fields.items()))

    def bases(self, cls: griffe.Class) -> list[str]:
        """The public and the foreign classes that it is one of, as close as they come."""
        found = []
        for base in cls.bases:
            ours = self._base(base)
            if ours is None:
                found.append(str(base))
            else:
                found += [self.paths[ours.path]] if ours.path in self.paths else self.bases(ours)
        return found

    def family(self, cls: griffe.Class) -> Iterator[griffe.Class]:
        """It, and what it inherits from of ours."""
        yield cls
        for base in cls.bases:
            if (ours := self._base(base)) is not None:
                yield from self.family(ours)

    def _private_bases(self, cls: griffe.Class) -> list[griffe.Class]:
        found = []
        for base in cls.bases:
            ours = self._base(base)
            if ours is not None and ours.path not in self.paths:
                found += [ours, *self._private_bases(ours)]
        return found

    def _base(self, base: str | griffe.Expr) -> griffe.Class | None:
        return self.class_at(base if isinstance(base, str) else base.canonical_path)


def _target(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if isinstance(found, griffe.Alias) else found


def is_field(member: griffe.Object) -> bool:
    """Whether it is one of a dataclass or named tuple: its place counts."""
    cls = member.parent
    if not isinstance(cls, griffe.Class) or not isinstance(member, griffe.Attribute):
        return False
    has_fields = "dataclass" in cls.labels or "NamedTuple" in map(str, cls.bases)
    return has_fields and "property" not in member.labels


class Listing:
    """The text, line by line."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lines = [HEAD.rstrip()]
        self._after_class = False  # then a blank line is due
        self._referred: dict[str, griffe.Object] = {}  # by path: what signatures name

    def __str__(self) -> str:
        module = ""
        for path, thing in self._source.names.items():
            of, _, name = path.rpartition(".")
            if of != module:
                module = of
                self._start(module)
            self._add(name, thing, module)
        self._start("Not exported, and named above")
        told: set[str] = set()
        while new := {path: self._referred[path] for path in self._referred.keys() - told}:
            told |= new.keys()
            for path in sorted(new, key=lambda path: path.rpartition(".")[2]):
                self._add(new[path].name, new[path], "dsync")
        return "\n".join(self._lines) + "\n"

    def _start(self, title: str) -> None:
        self._lines += ["", "", title]
        self._after_class = False

    def _add(self, name: str, thing: griffe.Object, module: str) -> None:
        """A class with its members, or anything else."""
        if not isinstance(thing, griffe.Class):
            if self._after_class:
                self._lines.append("")
            self._after_class = False
            self._lines += (f"    {line}" for line in self._described(name, thing))
            return
        bases = [base.removeprefix(f"{module}.") for base in self._source.bases(thing)]
        kind = "dataclass" if "dataclass" in thing.labels else "class"
        if any("frozen=True" in str(decorator.value) for decorator in thing.decorators):
            kind = f"frozen {kind}"
        head = f"    {kind} {name}" + (f"({', '.join(bases)})" if bases else "")
        if thing.path not in self._source.paths and "Protocol" not in bases:
            self._lines.append(head)  # one that comes out of something; what matters is what it is
            return
        self._after_class = True
        self._lines += ["", head]
        for member, what in self._source.members(thing).items():
            word = (
                "" if is_field(what) else "property " if "property" in what.labels else "attribute "
            )
            self._lines += (f"        {line}" for line in self._described(member, what, word))

    def _described(self, name: str, thing: griffe.Object, word: str = "") -> Iterator[str]:
        """A line, or one for each overload.  `word`: comes before what is no function."""
        if isinstance(thing, griffe.Attribute):
            yield f"{word}{name}{self._type(thing)}"
            return
        assert isinstance(thing, griffe.Function)
        if any("fixture" in str(decorator.value) for decorator in thing.decorators):
            yield f"fixture {name}: {thing.returns}"
            return
        for each in thing.overloads or [thing]:
            words = [word for word in WORDS if word in each.labels]
            if thing.overloads:
                words.insert(0, "overload")
            for expression in (each.returns, *(one.annotation for one in each.parameters)):
                self._refer(expression)
            yield " ".join([*words, each.signature(name=name)])

    def _type(self, attribute: griffe.Attribute) -> str:
        """`: type`, as it is written or as of the argument that it is set to, and `= value`."""
        written, value, cls = attribute.annotation, attribute.value, attribute.parent
        if written is None and isinstance(cls, griffe.Class) and "__init__" in cls.members:
            constructor = cls.members["__init__"]
            assert isinstance(constructor, griffe.Function)
            if str(value) in constructor.parameters:
                written = constructor.parameters[str(value)].annotation
        self._refer(written)
        text = "" if written is None else f": {written}"
        # What an __init__ sets it to is nobody's business.
        if value is None or attribute.labels.isdisjoint({"class-attribute", "module-attribute"}):
            return text
        self._refer(value)
        return f"{text} = {value}"

    def _refer(self, expression: str | griffe.Expr | None) -> None:
        """Note what of ours it names that is not public."""
        if not isinstance(expression, griffe.Expr):
            return
        for part in expression.iterate():
            if not isinstance(part, griffe.ExprName):
                continue
            path = part.canonical_path
            if path.startswith("dsync.") and path not in self._source.paths:
                thing = self._source.find(path)
                of_module = thing.parent is not None and thing.parent.is_module
                if of_module and not str(getattr(thing, "value", "")).startswith(VARIABLES):
                    self._referred[path] = thing


def listing() -> str:
    """The text that the file has to be."""
    return str(Listing(Source()))


def guessed() -> tuple[float, list[str]]:
    """How complete the types are, of 1.0, and where they are not."""
    own = Path(sys.executable).parent  # pyright looks where the `python` on PATH does
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--verifytypes=dsync",
            "--ignoreexternal",
            "--outputjson",
        ],
        env={**os.environ, "PATH": f"{own}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    found = {
        f"{one.get('file', '?')}:{one.get('range', {}).get('start', {}).get('line', -1) + 1}: "
        f"{symbol['name']}: {one['message']}": None
        for symbol in report["symbols"]
        for one in symbol["diagnostics"]
        if one["severity"] == "error"
    }
    return report["completenessScore"], list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help=f"write {FILE.name}, do not print it")
    action.add_argument("--types", action="store_true", help="fail unless all types are known")
    args = parser.parse_args()
    if args.types:
        score, found = guessed()
        print(*found, f"{score:.2%} of the types are known", sep="\n")
        sys.exit(score < 1.0)
    if args.write:
        FILE.write_text(listing(), encoding="utf-8")
    else:
        print(listing(), end="")


if __name__ == "__main__":
    main()
