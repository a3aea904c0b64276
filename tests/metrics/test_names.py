"""Labels: many names become few, and never more than are allowed."""

from uuid import UUID

import pytest

from dsync.metrics.names import Names, general

# The same in every process of pytest-xdist: a test's name has its parameters.
SESSION = UUID("9c1185a5-c5e9-4ab0-8f6b-3c3f1a2e77d4")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("order:1234", "order:*"),
        ("invoices", "invoices"),
        ("user-7/cart-12", "user-*/cart-*"),
        ("report.2026-11-23", "report.*-*-*"),
        ("v2", "v*"),
        (f"session:{SESSION}", "session:*"),
        (f"session:{SESSION}".upper(), "SESSION:*"),
        (f"session:{SESSION.hex}", "session:*"),
        ("commit 3f2a9c1b", "commit *"),
        ("commit_deadbeef", "commit_*"),
        ("cafe", "cafe"),  # too short to be anything but a word
        ("decafbadly", "decafbadly"),  # goes on with other letters
        ("größe-٣", "größe-*"),
        ("*", "*"),
    ],
)
def test_what_looks_like_a_number_becomes_a_star(name: str, label: str):
    assert general(name) == Names()(name) == label


def test_a_callable_of_ones_own_makes_the_label():
    names = Names(lambda name: name.partition(":")[0])
    assert names("order:1234") == "order"
    assert names("order:ada") == "order"


def test_the_first_pattern_that_matches_is_the_label():
    names = Names(["tenant:*:order", "tenant:*", "a+b*"])
    assert names("tenant:ada:order") == "tenant:*:order"
    assert names("tenant:ada:cart") == "tenant:*"
    assert names("a+b7") == "a+b*"
    assert names("aab7") == "aab*"  # no pattern's: as without any


def test_what_comes_after_the_last_label_that_is_allowed_is_other():
    names = Names(most=3)
    assert [names(name) for name in ("a", "b", "c", "d", "e")] == ["a", "b", "c", "other", "other"]
    # The same for good: what was counted up under a label is counted down under it.
    assert [names(name) for name in ("c", "d", "a")] == ["c", "other", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "order:*"}, "template must be a callable or a list of patterns"),
        ({"most": -1}, "max_names must be >= 0"),
        ({"most": 2.5}, "max_names must be an int"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_at_once(arguments, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        Names(**arguments)
