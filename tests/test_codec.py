"""How the data of a message becomes bytes, and data again."""

import json
import pickle
import types
from typing import Any

import pytest

from dsync.codec import codec_of


class Packer:
    """As msgspec.msgpack.Encoder and Decoder in one."""

    def encode(self, data: Any) -> bytearray:
        return bytearray(repr(data).encode())

    def decode(self, payload: bytes) -> Any:
        return eval(payload)


class Own(Exception):
    """What a codec of somebody's raises."""


def fails(data: Any) -> Any:
    raise Own("it is too deep")


DATA: list[Any] = [None, True, 0, -1.5, "", "grün 😀\n\0", [1, [2, None]], {"a": {"b": []}}]


@pytest.mark.parametrize("codec", [None, json, pickle, Packer()], ids=["-", "json", "pickle", "x"])
@pytest.mark.parametrize("data", DATA)
def test_data_come_back(codec: Any, data: Any) -> None:
    made = codec_of(codec)
    payload = made.dumps("x", data)
    assert type(payload) is bytes
    assert made.loads(payload) == data


def test_bytes_go_as_they_are() -> None:
    made = codec_of(bytes)
    assert made.loads(made.dumps("x", b"\0\xff")) == b"\0\xff"
    assert made.dumps("x", bytearray(b"ab")) == b"ab"
    assert made.dumps("x", memoryview(b"ab")) == b"ab"
    assert made.dumps("x", None) == b""
    with pytest.raises(TypeError, match=r"x: .*bytes.*a str"):
        made.dumps("x", "text")


def test_json_is_short_and_plain() -> None:
    assert codec_of(None).dumps("x", {"ä": [1, 2]}) == '{"ä":[1,2]}'.encode()


ROUND: list[Any] = []
ROUND.append(ROUND)


@pytest.mark.parametrize(
    ("codec", "data", "kind"),
    [
        (None, object(), TypeError),
        (None, {1, 2}, TypeError),
        (None, b"bytes", TypeError),
        (None, {(1, 2): 3}, TypeError),
        (None, ROUND, ValueError),
        (None, "\ud800", ValueError),
        (pickle, lambda: None, TypeError),
        (types.SimpleNamespace(dumps=fails, loads=fails), 1, TypeError),
        (types.SimpleNamespace(dumps=lambda data: 5.5, loads=fails), 1, TypeError),
    ],
)
def test_what_cannot_be_encoded_is_named(codec: Any, data: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"event 'a\.b': \w+ cannot .* {type(data).__name__}") as raised:
        codec_of(codec).dumps("event 'a.b'", data)
    assert isinstance(raised.value.__cause__, Exception)


@pytest.mark.parametrize("codec", [5, "json", str, object(), types.SimpleNamespace(dumps=fails)])
def test_what_is_no_codec_is_refused(codec: Any) -> None:
    with pytest.raises(TypeError, match="codec must have dumps and loads"):
        codec_of(codec)
