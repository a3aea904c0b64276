"""Codecs: how the data of a message becomes bytes, and data again."""

import json
from collections.abc import Callable
from typing import Any

__all__ = ["Codec", "codec_of"]


class Codec:
    """A pair of functions, under the name that errors call it by."""

    def __init__(
        self, name: str, dumps: Callable[[Any], Any], loads: Callable[[bytes], Any]
    ) -> None:
        self.name = name
        self.loads = loads
        self._dumps = dumps

    def dumps(self, what: str, data: Any) -> bytes:
        """The data as bytes; TypeError and ValueError say of what."""
        try:
            encoded = self._dumps(data)
            return encoded.encode() if isinstance(encoded, str) else bytes(memoryview(encoded))
        except Exception as error:  # each codec has errors of its own
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(
                f"{what}: {self.name} cannot encode its data, a {type(data).__name__}: {error}"
            ) from error


def _as_json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def _as_is(data: Any) -> Any:
    if data is None:
        return b""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError("codec=bytes takes bytes")
    return data


JSON = Codec("json", _as_json, json.loads)
BYTES = Codec("bytes", _as_is, bytes)


def codec_of(codec: Any) -> Codec:
    """What was given as `codec=`: None (JSON), `bytes`, or anything with dumps and loads, or with
    encode and decode (a module such as pickle or msgspec.msgpack, or an object).
    """
    if codec is None:
        return JSON
    if codec is bytes:
        return BYTES
    name = getattr(codec, "__name__", type(codec).__name__)
    for dumps, loads in (("dumps", "loads"), ("encode", "decode")):
        if callable(getattr(codec, dumps, None)) and callable(getattr(codec, loads, None)):
            return Codec(name, getattr(codec, dumps), getattr(codec, loads))
    raise TypeError(
        f"codec must have dumps and loads, or encode and decode, or be bytes; got {codec!r}"
    )
