"""The condition's rules suffice, and each is needed: every interleaving of a few clients.

The model says what is explored and what is left out.  Run with `-rP` to read the counterexamples.
"""

from dataclasses import fields, replace
from functools import cache

import pytest

from tests.model.condition_model import Budget, Finding, Model, Rules, Violation, explore

TWICE, GHOST, STUCK = Violation.TWICE, Violation.GHOST, Violation.STUCK
LOST, SPURIOUS, ORPHAN = Violation.LOST, Violation.SPURIOUS, Violation.ORPHAN


def model(
    programs: str, *without: str, tolerates: tuple[Violation, ...] = (), **budget: int
) -> Model:
    return Model(Rules().without(*without), programs, Budget(**budget), tolerates)


@cache
def walk(world: Model) -> Finding:
    return explore(world)


def name(value: object) -> str | None:
    """What tells this model from the plain one."""
    if not isinstance(value, Model):
        return None
    rules = [field.name for field in fields(Rules) if not getattr(value.rules, field.name)]
    budget = [f"{what}={number}" for what, number in value.budget._asdict().items() if number]
    return " ".join([*rules, value.programs, *budget])


# W waits (w: and sleeps already), N notifies.
WORLDS = [
    model("wwNN"),
    model("wwNN", cancel=1),
    model("WN", cut=2),
    model("wWN", cut=1),
    model("WN", cut=1, zombie=1, cancel=1, beat=1),
    model("WN", cut=1, slow=1, cancel=1),
    model("WN", cut=1, cancel=1, refuse=1),
    model("WwN", crash=1, cancel=1),
    model("wwN", crash=1, slow=1),
    model("wwN", crash=1, cut=1),
]

HARM = [
    (model("WN", "heir_only_if_not_notified", cut=1, cancel=1), ORPHAN),
    (model("WN", "only_a_holder_falls_asleep", cut=1), TWICE),
    (model("wwN", "only_a_holder_notifies", cut=1, cancel=1), SPURIOUS),
    (model("wwN", "the_dead_pass_on", crash=1), LOST),
    (model("wwN", "the_late_pass_on", crash=1, slow=1), LOST),
    (model("wwN", "sleepers_move_the_queue", crash=1), LOST),
    (model("wwN", "sleepers_ask", crash=1), LOST),
    (model("WN", "sleepers_ask", cut=1), STUCK),
    (model("wwN", "the_cancelled_pass_on", cancel=1), LOST),
    (model("WN", "release_leaves_a_tombstone", cut=1, zombie=1), ORPHAN),
    (model("wN", "keeping_counts_as_asking", cut=1, zombie=1, beat=1), ORPHAN),
    (
        model("WN", "woken_sleeper_leaves_a_tombstone", cut=1, zombie=1, cancel=1, beat=1),
        ORPHAN,
    ),
    (model("WN", "one_question_at_a_time", cut=1, cancel=1), ORPHAN),
    # Not even a fault is needed for this one.
    (
        model(
            "wN", "one_question_at_a_time", "heir_hears_twice",
            tolerates=(ORPHAN,), cancel=1, beat=1,
        ),
        STUCK,
    ),
    (model("wNN", "notified_has_no_heir", tolerates=(ORPHAN,), cut=1, cancel=1), STUCK),
    (model("wN", "heir_ends_the_sleeper", cut=1, cancel=1), GHOST),
    (model("wN", "heir_leaves_if_not_needed", cut=1, cancel=1), ORPHAN),
]  # fmt: skip

# Needless for as long as each token has one question on its way.
SPARE = [
    model("WN", "heir_hears_twice", cut=1, cancel=1, beat=1),
    model("WN", "waking_leaves_a_tombstone", cut=1, cancel=1, refuse=1),
]
# The harm takes a slow grant, a cut, a cancellation and three clients: half a minute's walk.
FAR = {"who_is_served_takes_no_more"}


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_with_every_rule_no_notification_is_lost_and_no_task_stuck(world: Model) -> None:
    finding = walk(world)
    assert finding.violation is None, f"\n{finding}"


@pytest.mark.parametrize(("world", "harm"), HARM, ids=name)
def test_without_this_rule_a_promise_is_broken(world: Model, harm: Violation) -> None:
    finding = walk(world)
    print(f"\n{finding}")
    assert finding.violation is harm, f"\n{finding}"
    assert finding.trace


@pytest.mark.parametrize(("world", "harm"), HARM, ids=name)
def test_the_same_events_do_no_harm_when_the_rule_is_kept(world: Model, harm: Violation) -> None:
    """So it is the rule that makes the difference."""
    finding = walk(replace(world, rules=Rules(), tolerates=()))
    assert finding.violation is None, f"\n{finding}, not {harm}"


@pytest.mark.parametrize("world", SPARE, ids=name)
def test_this_rule_is_needless_beside_the_others(world: Model) -> None:
    finding = walk(world)
    assert finding.violation is None, f"\n{finding}"


def test_for_every_rule_some_test_shows_the_harm_of_its_lack() -> None:
    lacking = {
        field.name
        for field in fields(Rules)
        for world in [*(world for world, _ in HARM), *SPARE]
        if not getattr(world.rules, field.name)
    }
    assert lacking | FAR == {field.name for field in fields(Rules)}


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="no such rule: optimism"):
        Rules().without("optimism")
