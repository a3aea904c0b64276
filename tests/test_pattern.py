"""Patterns of event names."""

import time

import pytest

from dsync.pattern import literal, matcher

MATCHES = [
    ("order.created", "order.created"),
    ("order.*", "order.created"),
    ("order.*", "order."),
    ("order.*", "order.a.b"),
    ("*", ""),
    ("*", "a\nb c"),
    ("*.created", "order.created"),
    ("a*b*c", "abc"),
    ("a*b*c", "a.b.b.c.c"),
    ("*a*", "xay"),
    ("**", "x"),
    ("a**b", "ab"),
    ("ab*ab", "abab"),
    (r"a\*", "a*"),
    (r"a\\", "a\\"),
    (r"a\\*", "a\\anything"),
    (r"\**", "*x"),
    (r"a\b", r"a\b"),
    ("a\\", "a\\"),
    ("grün *", "grün é😀"),
    ("[a].+?(b)|{1}^$", "[a].+?(b)|{1}^$"),
    ("a\nb*", "a\nb\nc"),
]
DIFFERS = [
    ("order.created", "order.created2"),
    ("order.created", "Order.created"),
    ("order.*", "orders.created"),
    ("order.*", "order"),
    ("*.created", "order.created\n"),
    ("a*b*c", "acb"),
    ("ab*ab", "ab"),
    ("ab*ab", "aba"),
    ("*ab*ab*", "xaby"),
    (r"a\*", "ab"),
    (r"a\*", r"a\*"),
    (r"a\\", r"a\\"),
    ("a.c", "abc"),
    ("a?", "ab"),
]


@pytest.mark.parametrize(("pattern", "name"), MATCHES)
def test_it_matches(pattern: str, name: str) -> None:
    assert matcher(pattern)(name)
    if literal(pattern) is not None:
        assert literal(pattern) == name


@pytest.mark.parametrize(("pattern", "name"), DIFFERS)
def test_it_does_not_match(pattern: str, name: str) -> None:
    assert not matcher(pattern)(name)
    assert literal(pattern) != name


def test_only_what_has_no_star_is_literal() -> None:
    assert literal("a.b") == "a.b"
    assert literal(r"a\*\\b\c") == r"a*\b\c"
    assert literal("a*") is None
    assert literal(r"a\\*") is None


def test_many_stars_take_no_longer_than_they_must() -> None:
    began = time.monotonic()
    assert not matcher("*a" * 30 + "*b")("a" * 3000)
    assert matcher("*a" * 30 + "*b")("a" * 3000 + "b")
    assert time.monotonic() - began < 1
