"""The lock's rules suffice, and each is needed: every interleaving of a few clients and faults.

The model says what is explored and what is left out.  Run with `-rP` to read the counterexamples.
"""

from dataclasses import fields, replace
from functools import cache

import pytest

from tests.model.handover_model import Budget, Finding, Model, Rules, Violation, explore

UNSAFE, FENCE, STUCK, ORPHAN = Violation


def model(*without: str, clients: int = 2, local_tasks: bool = False, **budget: int) -> Model:
    return Model(Rules().without(*without), clients, Budget(**budget), local_tasks)


@cache
def walk(world: Model) -> Finding:
    return explore(world)


def name(value: object) -> str | None:
    """What tells this model from the plain one."""
    if not isinstance(value, Model):
        return None
    rules = [field.name for field in fields(Rules) if not getattr(value.rules, field.name)]
    budget = [f"{what}={number}" for what, number in value.budget._asdict().items() if number]
    local = ["local"] if value.local_tasks else []
    return " ".join([*rules, f"{value.clients} clients", *local, *budget])


# "again" and "ping" are no faults: one more attempt, and one command about something else.
WORLDS = [
    model(again=2),
    model(again=1, crash=1, slow=1),
    model(again=1, cancel=1),
    model(again=1, cut=1, zombie=1),
    model(crash=1, slow=2),
    model(crash=1, cut=1, zombie=1),
    model(cut=1, zombie=1, cancel=1),
    model(cut=1, slow=1),
    model(cut=2, cancel=1),
    model(local_tasks=True, again=1),
    model(local_tasks=True, slow=2),
    model(local_tasks=True, cut=1),
    model(clients=3, crash=1),
]

HARM = [
    (model("answer_counts_from_its_send", slow=1), UNSAFE),
    (model("push_needs_fresh_evidence", again=1, slow=1), UNSAFE),
    (model("push_names_its_token", again=2, cancel=1), UNSAFE),
    (model("pushes_keep_their_place", again=1, ping=1, slow=1), UNSAFE),
    (model("leave_compares_the_token", again=1, cut=1), UNSAFE),
    (model("pass_checks_the_deadline", local_tasks=True), UNSAFE),
    (model("hand_over_mints_a_fence"), FENCE),
    (model("passes_stay_in_the_block", local_tasks=True), FENCE),
    (model("leases_expire", crash=1), STUCK),
    (model("claims_expire", again=1, crash=1), STUCK),
    (model("waiter_asks_again", crash=1), STUCK),
    (model("waiter_asks_again", "waiter_asks_after_reconnect", cut=1), STUCK),
    (model("unanswered_is_sent_again", cut=1), ORPHAN),
    (model("cancel_leaves_a_tombstone", cut=1, zombie=1, cancel=1), ORPHAN),
    (model("release_after_a_cut_leaves_a_tombstone", cut=1, zombie=1), ORPHAN),
    (model("release_beside_an_acquire_leaves_a_tombstone", again=1, cut=1, zombie=1), ORPHAN),
    (model("lost_holder_leaves", slow=1), ORPHAN),
]

# A timer makes up for these, and only for as long as it is there.
DELAY = [
    model("waiter_asks_after_reconnect", cut=1, slow=1),
    model("waiter_asks_again", cut=1, slow=1),  # nobody dies, and a reconnect makes up for it
]


@pytest.mark.parametrize("world", WORLDS, ids=name)
def test_with_every_rule_the_lock_is_safe_and_every_waiter_can_be_served(world: Model) -> None:
    finding = walk(world)
    assert finding.violation is None, f"\n{finding}"


@pytest.mark.parametrize(("world", "harm"), HARM, ids=name)
def test_without_this_rule_a_promise_is_broken(world: Model, harm: Violation) -> None:
    finding = walk(world)
    print(f"\n{finding}")
    assert finding.violation is harm, f"\n{finding}"
    assert finding.trace


@pytest.mark.parametrize("world", DELAY, ids=name)
def test_without_this_rule_it_only_takes_longer(world: Model) -> None:
    finding = walk(world)
    assert finding.violation is None, f"\n{finding}"


@pytest.mark.parametrize(("world", "harm"), HARM, ids=name)
def test_the_same_events_do_no_harm_when_the_rule_is_kept(world: Model, harm: Violation) -> None:
    """So it is the rule that makes the difference."""
    finding = walk(replace(world, rules=Rules()))
    assert finding.violation is None, f"\n{finding}, not {harm}"


def test_for_every_rule_some_test_shows_the_harm_of_its_lack() -> None:
    lacking = {
        field.name
        for field in fields(Rules)
        for world, _ in HARM
        if not getattr(world.rules, field.name)
    }
    assert lacking == {field.name for field in fields(Rules)}


@pytest.mark.parametrize(
    "world",
    [
        model(again=1),
        model(cancel=1, slow=1),
        model(crash=1, slow=1),
        model(local_tasks=True, slow=1),
        *(world for world, _ in HARM if not world.budget.cut and not world.budget.ping),
    ],
    ids=name,
)
def test_leaving_out_orders_that_make_no_odds_hides_no_harm(world: Model) -> None:
    everything = walk(replace(world, every_order=True))
    assert walk(world).violation is everything.violation
    assert walk(world).states <= everything.states or everything.violation


def test_a_counterexample_is_the_shortest_one_and_tells_who_believes_what() -> None:
    finding = walk(model("answer_counts_from_its_send", slow=1))
    assert len(finding.trace) == 9
    assert "FAULT a tick passes, messages still on their way" in finding.trace[2]
    assert finding.trace[-1].endswith("server: B1 for 3 | A: holding 1 | B: holding 3")


def test_a_stuck_waiter_is_followed_until_nothing_new_happens() -> None:
    finding = walk(model("leases_expire", crash=1))
    assert "A: crashed | B: waiting" in finding.trace[-2]
    assert "and so on for ever" in finding.trace[-1]


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="no such rule: optimism"):
        Rules().without("optimism")
