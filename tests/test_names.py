"""Names become keys: no two alike, safe to print, in one cluster slot; ids say who they are."""

import string
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsync.names import LONGEST, checked_name, identify, tag, who

# What people write, and what they write to see what happens.
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.text("{}:%#/. ab\n\0é🔒", min_size=1, max_size=12),
    st.text("ab%:", min_size=LONGEST - 2, max_size=LONGEST + 2),
)
KINDS = st.sampled_from(("lock", "semaphore", "event", "inbox"))
TRIPLES = st.tuples(NAMES, KINDS, NAMES)
LONG = "x" * (LONGEST + 1)


@given(TRIPLES, TRIPLES)
@example(("a:lock", "lock", "x"), ("a", "lock", "lock:x"))
@example(("a", "lock", "x:y"), ("a", "lock", "x%3Ay"))
@example(("a", "lock", "{x}"), ("a", "lock", "x"))
@example(("a", "lock", LONG), ("a", "lock", LONG + "x"))
@example(("a", "lock", LONG), ("a", "lock", tag("a", "lock", LONG)[8:-1]))
def test_different_names_never_share_a_key(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert (tag(*one) == tag(*other)) == (one == other)


@given(TRIPLES)
def test_a_key_is_printable_ascii_without_spaces_and_has_one_hash_tag(
    triple: tuple[str, str, str],
) -> None:
    key = tag(*triple)
    assert set(key) <= set(string.printable) - set(string.whitespace)
    assert (key[0], key[-1]) == ("{", "}")
    assert (key.count("{"), key.count("}")) == (1, 1)
    # Each of two texts is cut to half of the limit, with its digest put behind.
    assert len(key) <= 2 * LONGEST + len("{:semaphore:}")


@given(st.text("abc:/", min_size=1, max_size=40))
def test_a_plain_name_can_be_read_in_its_key(name: str) -> None:
    assert tag("shop", "lock", name) == f"{{shop:lock:{name}}}"


@given(
    label=NAMES.map(lambda text: text[:40]),
    host=NAMES.map(lambda text: text[:60]),
    pid=st.integers(1, 2**22),
    unique=st.integers(0, 2**48 - 1).map("{:012x}".format),
    counter=st.integers(1, 2**53),
)
def test_a_token_says_who_made_it(
    label: str, host: str, pid: int, unique: str, counter: int
) -> None:
    with mock.patch("socket.gethostname", return_value=host):
        client = identify(label, pid, unique)
    # Messages are split at spaces, and a token at its last dot.
    assert set(client) <= set(string.printable) - set(string.whitespace)
    assert who(f"{client}.{counter}") == (client, label, host, pid)


@pytest.mark.parametrize("name", ["", b"x", None, 1, ["x"], "\ud800", "x\udcff"])
def test_what_cannot_be_a_name_is_refused_with_what_and_value(name: object) -> None:
    wrong = TypeError if not isinstance(name, str) else ValueError
    with pytest.raises(wrong, match=r"^namespace must ") as raised:
        checked_name(name, "namespace")
    if name:
        assert repr(name) in str(raised.value)
