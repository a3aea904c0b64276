"""Calls of decorated functions: the name each goes by, and what it does where it would wait."""

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import Enum
from string import Formatter
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, get_args

from dsync.arguments import checked_seconds
from dsync.errors import AcquireTimeout
from dsync.holding import Holding
from dsync.names import checked_name

__all__ = ["SKIPPED", "Busy", "Name", "Skipped", "Turn", "checked_busy", "each_call"]

Busy = Literal["wait", "skip", "raise"]


class Skipped(Enum):
    """The type of `dsync.SKIPPED`: what a call returns whose function was not run.  It is false."""

    SKIPPED = "skipped"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "dsync.SKIPPED"


SKIPPED: Final = Skipped.SKIPPED


def checked_busy(busy: object, timeout: object) -> float | None:
    """The two arguments, checked.  -> seconds for which a call waits; None: for ever"""
    if busy not in get_args(Busy):
        raise ValueError(f"busy must be 'wait', 'skip' or 'raise', got {busy!r}")
    if timeout is not None:
        seconds = checked_seconds("timeout", timeout)
        if busy != "wait":
            raise ValueError(f"timeout={timeout!r} goes with busy='wait' only, got {busy!r}")
        return seconds
    return None if busy == "wait" else 0.0


class Turn:
    """`async with` of a lock or semaphore of its own, for a call that may not wait for ever.

    Its value says whether it is held inside.  It is, or AcquireTimeout is raised, unless the call
    is to be skipped.
    """

    def __init__(self, thing: Holding, busy: Busy, patience: float | None) -> None:
        self._thing = thing
        self._skips = busy == "skip"
        self._patience = patience  # seconds
        self._held = False

    async def __aenter__(self) -> bool:
        try:
            lease = await self._thing._acquire(self._patience)
        except AcquireTimeout:
            if self._skips:
                return False
            raise
        # From here to the function nothing waits, so it begins with the lease or not at all.
        self._thing._enter_body(lease)
        self._held = True
        return True

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._held:
            await self._thing.__aexit__(exc_type, exc, traceback)


def each_call(name: str, run: Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> Any:
    """A decorator: a call of the function is `run` with the name it goes by, and what it does."""
    checked_name(name)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(function):
            if inspect.isasyncgenfunction(function):
                raise TypeError(
                    f"{_called(function)} is an async generator: who takes its items decides when "
                    "it ends; decorate an async function that uses it up"
                )
            raise TypeError(
                "only an async function can be decorated, got "
                f"{type(function).__name__} {_called(function)}"
            )
        named = Name(name, function)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await run(named(args, kwargs), functools.partial(function, *args, **kwargs))

        return call

    return decorate


def _called(function: object) -> str:
    """Its name, for messages."""
    return str(getattr(function, "__qualname__", None) or repr(function))


class _Field(NamedTuple):
    """A place in a name where an argument goes."""

    before: str  # the text between the one before and this one
    path: str  # "user.id"
    conversion: str | None
    format: str


_FORMATTER = Formatter()
# The text of what has no text of its own: another for the same thing in each process.
_ADDRESS = re.compile(" at 0x[0-9a-fA-F]+>")


class Name:
    """A name in which `{argument}` stands for an argument of a call, as in `str.format()`.

    Calls with different arguments get different names: where two fields follow each other, the
    first character of what is between them, and '%', are percent-encoded in the first.
    """

    def __init__(self, text: str, function: Callable[..., Any]) -> None:
        self._text = text
        self._function = _called(function)
        self._signature = inspect.signature(function)
        self._fields: list[_Field] = []
        self._end = ""
        self._parse()

    def _parse(self) -> None:
        before = ""
        try:
            for literal, path, format_, conversion in _FORMATTER.parse(self._text):
                before += literal
                if path is None:
                    continue
                self._check(path, format_ or "", conversion)
                if self._fields and (not before or before[0].isalnum() or before[0] == "%"):
                    raise ValueError(
                        f"between {{{self._fields[-1].path}}} and {{{path}}} has to be text that "
                        "begins with a mark such as ':', else two calls could go by one name"
                    )
                self._fields.append(_Field(before, path, conversion, format_ or ""))
                before = ""
        except ValueError as error:
            raise ValueError(f"name {self._text!r} of {self._function}(): {error}") from None
        self._end = before

    def _check(self, path: str, format_: str, conversion: str | None) -> None:
        if conversion not in (None, "r", "s", "a"):
            raise ValueError(f"{{{path}!{conversion}}} is converted by none of !r, !s and !a")
        for each in (path, *_paths(format_)):
            first = re.split(r"[.\[]", each, maxsplit=1)[0]
            if first not in self._signature.parameters:
                raise ValueError(
                    f"{{{each}}} is no parameter of {self._function}{self._signature} "
                    "(a brace that is meant as one is written twice)"
                )

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """The name that a call with these arguments goes by."""
        if not self._fields:
            return self._end
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._function}(): {error}") from None
        bound.apply_defaults()
        texts = [self._text_of(field, bound.arguments) for field in self._fields]
        name = ""
        for index, (field, text) in enumerate(zip(self._fields, texts, strict=True)):
            if index + 1 < len(texts):
                text = _without(self._fields[index + 1].before[0], text)
            name += field.before + text
        name += self._end
        if not name:
            raise ValueError(f"name {self._text!r} of {self._function}() is empty for this call")
        return name

    def _text_of(self, field: _Field, arguments: Mapping[str, Any]) -> str:
        value, _ = _FORMATTER.get_field(field.path, (), arguments)
        converted = _FORMATTER.convert_field(value, field.conversion)
        text = format(converted, field.format.format_map(arguments))
        if not isinstance(value, str) and _ADDRESS.search(text):
            raise TypeError(
                f"name {self._text!r} of {self._function}(): {{{field.path}}} is {text}, which "
                "other processes do not know by that text; take an attribute that they do"
            )
        return text


def _paths(text: str) -> Iterator[str]:
    """The fields in a format: `{width}` in `{number:{width}}`."""
    for _, path, _, _ in _FORMATTER.parse(text):
        if path is not None:
            yield path


def _without(mark: str, text: str) -> str:
    """`text` with the mark, and what stands for it, percent-encoded."""
    for each in ("%", mark):
        text = text.replace(each, "".join(f"%{byte:02X}" for byte in each.encode()))
    return text
