"""Conditions: the Lua transitions do what their twins do, and no notification gets lost.

The comparison and what has to hold after each step are those of test_twins.py; the programs here
are about sleepers for the most part.
"""

from unittest import mock

import pytest
import redis

from dsync.local.permits import Permits, process_of
from dsync.redis.script import SCRIPTS, Script
from tests.model.test_twins import (
    CLAIM,
    CONDITIONS,
    FAKE,
    INBOX,
    SILENCE,
    START,
    TOMBSTONE,
    Args,
    Clock,
    Server,
    Step,
    Twin,
    Watch,
    compare,
    fails,
    program,
    same_on_a_server,
    shortest,
)

ALL = 2**31
FULL, ODD = CONDITIONS
HOLDER, OTHER, THIRD = (f"{process}.1/{CLAIM}" for process in ("a", "b", "c.d"))
# Of three processes that nobody hears of but by what their sleepers do.
ANN, BOB, CAT = (f"{name}.1/{CLAIM}/{FULL}" for name in ("ann", "bob", "cat"))
HEIR = f"ann.2/{CLAIM}"


def step(kind: str, token: str = "", **others: str | int) -> Step:
    everything: Args = {
        "declared": 1, "stamp": 0, "lease": 1000, "wait": 1, "claim": CLAIM, "silence": SILENCE,
        "inbox": INBOX, "block": 64, "tombstone": 0, "condition": FULL, "count": 0, "sleeper": "",
        "keep": 0, "heir": "", "token": token, **others,
    }  # fmt: skip
    return kind, {name: everything[name] for name in SCRIPTS[kind].arguments}


def later(ms: float) -> Step:
    return "clock", {"us": int(ms * 1000)}


def listen(token: str) -> Step:
    return "listen", {"process": process_of(token)}


def sleep(*sleepers: str) -> list[Step]:
    """Each takes the lock, which must be free, and begins to sleep."""
    steps: list[Step] = []
    for sleeper in sleepers:
        holder = f"{process_of(sleeper)}.0/{CLAIM}"
        condition = sleeper.split("/", 2)[2]
        steps += [
            step("permit_acquire", holder),
            step("permit_yield", holder, condition=condition, sleeper=sleeper),
        ]
    return steps


def beats(sleeper: str, ms: int, *others: Step) -> list[Step]:
    """A sleeper keeps its place for a while; others do something as often."""
    return [
        s for _ in range(ms // 2000) for s in (later(2000), *others, step("permit_wake", sleeper))
    ]


def take(lease: int = 1000) -> Step:
    return step("permit_acquire", HOLDER, lease=lease)


def notify(count: int, **others: str | int) -> Step:
    return step("permit_yield", HOLDER, count=count, **others)


# -- what becomes of a notification ---------------------------------------------------------------

# Ann is notified, something happens to her, and in the end Bob has it or not.
SCENES: dict[str, tuple[list[Step], list[str]]] = {
    "it wakes her": (
        [*sleep(ANN, BOB), listen(ANN), take(), notify(1)],
        [],
    ),
    "two of them": (
        [*sleep(ANN, BOB), take(), notify(2)],
        [BOB],
    ),
    "others sleep on": (
        [*sleep(ANN, BOB, f"cat.1/500/{ODD}"), take(), notify(ALL, condition=ODD)],
        [],
    ),
    "the holder stays, and its call comes twice": (
        [
            *sleep(ANN, BOB), listen(ANN), take(60_000), notify(1, keep=1, tombstone=TOMBSTONE),
            notify(1, keep=1, tombstone=TOMBSTONE),
        ],
        [],
    ),
    "the holder stays, and its call comes again much later": (
        [
            *sleep(ANN, BOB), take(60_000), notify(1, keep=1, tombstone=TOMBSTONE),
            later(TOMBSTONE), notify(1, keep=1, tombstone=TOMBSTONE),
        ],
        [BOB],
    ),
    "the holder stays, and notifies of something else": (
        [
            *sleep(ANN, BOB), take(60_000), notify(1, keep=1, tombstone=TOMBSTONE, condition=ODD),
            notify(2, keep=1, tombstone=TOMBSTONE),
        ],
        [BOB],
    ),
    "she dies before it": (
        [*sleep(ANN, BOB), *beats(BOB, SILENCE), take(), notify(1)],
        [BOB],
    ),
    "she dies just before it": (
        [*sleep(ANN, BOB), *beats(BOB, SILENCE), take(), notify(1, keep=1)],
        [BOB],
    ),
    "she dies in the queue": (
        [
            *sleep(ANN, BOB), take(60_000), notify(1, keep=1), *beats(BOB, SILENCE),
            step("permit_release", HOLDER),
        ],
        [BOB],
    ),
    "she dies at her turn": (
        [*sleep(ANN, BOB), take(), notify(1), later(CLAIM), step("permit_wake", BOB)],
        [BOB],
    ),
    "she dies at her turn, and nobody looks for a while": (
        [*sleep(ANN, BOB), take(), notify(1), later(SILENCE - 1), step("permit_wake", BOB)],
        [BOB],
    ),
    "she is late and does not listen at her turn": (
        [*sleep(ANN, BOB), later(SILENCE // 2 + 1), step("permit_wake", BOB), take(), notify(1)],
        [],
    ),
    "they die one after the other": (
        [
            *sleep(ANN, BOB, CAT), take(), notify(1), later(CLAIM), step("permit_wake", CAT),
            later(CLAIM), step("permit_wake", CAT),
        ],
        [CAT],
    ),
    "she leaves the queue": (
        [*sleep(ANN, BOB), take(), notify(1, keep=1), step("permit_yield", ANN, count=1)],
        [BOB],
    ),
    "she leaves at her turn": (
        [*sleep(ANN, BOB), take(), notify(1), step("permit_yield", ANN, count=1)],
        [BOB],
    ),
    "she leaves after her turn": (
        [*sleep(ANN, BOB), take(), notify(1), later(CLAIM), step("permit_yield", ANN, count=1)],
        [BOB],
    ),
    "she leaves twice": (
        [
            *sleep(ANN, BOB, CAT), take(), notify(1, keep=1), step("permit_yield", ANN, count=1),
            step("permit_yield", ANN, count=1),
        ],
        [BOB],
    ),
    "she leaves before it": (
        [*sleep(ANN, BOB), step("permit_yield", ANN, count=1)],
        [],
    ),
    "she has an heir before it": (
        [*sleep(ANN, BOB), take(), step("permit_wake", ANN, heir=HEIR), notify(1)],
        [BOB],
    ),
    "she gets no heir after it": (
        [*sleep(ANN, BOB), take(), notify(1, keep=1), step("permit_wake", ANN, heir=HEIR)],
        [],
    ),
    "it comes from one who has lost the lock": (
        [*sleep(ANN, BOB), take(), later(1000), notify(1)],
        [],
    ),
    "it comes from one who waits": (
        [*sleep(ANN, BOB), step("permit_acquire", OTHER), take(), notify(1)],
        [],
    ),
    "it comes from one who sleeps": (
        [*sleep(ANN, BOB, CAT), step("permit_yield", CAT, count=1)],
        [],
    ),
    "it comes twice": (
        [*sleep(ANN, BOB), take(), notify(1), notify(1)],
        [],
    ),
    "she sleeps for longer than anything is kept": (
        [*sleep(ANN, BOB), *beats(BOB, 11 * SILENCE), take(), notify(1)],
        [BOB],
    ),
    "she dies in the queue of a lock that is held for long": (
        [
            *sleep(ANN, BOB), take(60_000), notify(1, keep=1),
            *beats(BOB, 11 * SILENCE, step("permit_renew", HOLDER, lease=60_000)),
            step("permit_release", HOLDER),
        ],
        [BOB],
    ),
    "she asks again after her turn, and dies": (
        [
            *sleep(ANN, BOB), take(), notify(1), later(CLAIM),
            step("permit_wake", ANN, lease=300), *beats(BOB, 2000),
        ],
        [BOB],
    ),
    "she has an heir before she comes": (
        [
            take(), step("permit_wake", ANN, heir=HEIR, tombstone=TOMBSTONE),
            step("permit_yield", HOLDER, sleeper=ANN),
        ],
        [],
    ),
    "she has an heir, and comes when nobody remembers": (
        [
            take(60_000), step("permit_wake", ANN, heir=HEIR, tombstone=TOMBSTONE),
            later(TOMBSTONE), step("permit_yield", HOLDER, sleeper=ANN),
        ],
        [],
    ),
}  # fmt: skip


FOR_TWO = (
    "two of them",
    "the holder stays, and its call comes again much later",
    "the holder stays, and notifies of something else",
)


@pytest.mark.parametrize("scene", SCENES)
def test_a_notification_is_for_one_who_lives(scene: str) -> None:
    steps, awake = SCENES[scene]
    permits = compare(steps).permits
    there = {*permits.holders, *permits.waiters}
    assert [one for one in (BOB, CAT) if one in there] == awake
    assert ANN not in there or not awake or scene in FOR_TWO, "it was spent twice"


def test_the_notified_come_in_their_order_behind_those_who_wait() -> None:
    waits = step("permit_acquire", OTHER)
    permits = compare([*sleep(CAT, ANN, BOB), take(), waits, notify(2)]).permits
    assert [*permits.holders, *permits.waiters] == [OTHER, CAT, ANN]
    assert list(permits.sleepers) == [FULL]
    assert list(permits.sleepers[FULL]) == [BOB]


def test_what_sleeps_is_gone_when_its_time_has_run_out() -> None:
    steps = [*sleep(ANN, f"bob.1/500/{ODD}"), later(10 * SILENCE + 1), step("permit_info")]
    assert not compare(steps).permits.sleepers


# -- random programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(14))
def test_scripts_and_twins_do_the_same_with_sleepers(seed: int) -> None:
    steps = program(seed, 64, 200, sleepy=True)
    if fails(steps):
        few = shortest(steps, fails)
        print("\n".join(map(repr, few)))
        compare(few)


def test_the_programs_are_about_everything_that_happens_to_sleepers() -> None:
    watch = Watch(Permits(lambda process, message: 0), set())
    for steps, _ in SCENES.values():
        watch.seen += compare(steps).seen
    for seed in range(6):
        watch.seen += compare(program(seed, 64, 200, sleepy=True)).seen
    assert watch.seen.keys() == {
        "sleeper", "late sleeper", "notified", "heir", "passed on", "dead sleeper", "dead holder",
        "dead waiter", "repeated", "overtaken",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_a_real_server_does_the_same_with_sleepers(server_url: str, seed: int) -> None:
    same_on_a_server(server_url, program(seed, 64, 200, moving=False, sleepy=True), 64)


# -- planted mistakes -----------------------------------------------------------------------------

# Each is (where, what is there, what is put in its place).
MISTAKES = {
    "anybody notifies": ("permit_yield", "local notified = held", "local notified = 1"),
    "who has lost the lock notifies": ("permit_yield", "> now and 1 or 0", ">= 0 and 1 or 0"),
    "a lease that ends now is alive": ("permit_yield", "> now and 1 or 0", ">= now and 1 or 0"),
    "keeping gives back": ("permit_yield", "if keep == '1' then", "if false then"),
    "giving back keeps": ("permit_yield", "if keep == '1' then", "if true then"),
    "keeping notifies again": ("permit_yield", "then notified = 0", "then notified = held"),
    "what was kept is known too long": (
        "permit_yield", "left, known)) or 0) > now", "left, known)) or 0) >= now"
    ),
    "keeping for one condition is for all": (
        "permit_yield", "known = token .. ' ' .. condition", "known = token .. ' '"
    ),
    "the ended is not collected": ("permit_yield", "if held == 0 then drop_expired() end", ""),
    "one is enough": ("permit_yield", "then notify(condition, count)", "then notify(condition, 1)"),
    "one is the least": ("permit_yield", "== 1 and count > 0 then", "== 1 then count = count + 1"),
    "nobody is notified": ("permit_yield", "then notify(condition, count) end", "then end"),
    "who sleeps notifies": (
        "permit_yield", "notified = redis.call('ZREM', waiters, token)", "notified = 1",
    ),
    "who leaves sleeps on": (
        "permit_yield", "redis.call('ZREM', sleepers_of(condition_of(token)), token)",
        "",
    ),
    "who leaves the queue passes nothing on": (
        "permit_yield",
        "redis.call('ZREM', waiters, token)",
        "0 * redis.call('ZREM', waiters, token)",
    ),
    "who leaves the queue is counted": ("permit_yield", "waiting = waiting - notified", ""),
    "who leaves waits on": (
        "permit_yield", "redis.call('ZREM', waiters, token)",
        "(redis.call('ZSCORE', waiters, token) and 1 or 0)",
    ),
    "who has lost the lock sleeps": ("permit_yield", "held == 1 and sleeper", "sleeper"),
    "who has left sleeps": (
        "permit_yield", "left, sleeper)) or 0) <= now",
        "left, token)) or 0) >= 0",
    ),
    "a sleeper is refused for too long": (
        "permit_yield", "left, sleeper)) or 0) <= now",
        "left, sleeper)) or 0) < now",
    ),
    "the newest sleeper is the first": ("permit_yield", "new_ticket(), sleeper", "-us, sleeper"),
    "a sleeper's ticket is not written": (
        "permit_yield", "write('ticket', last_ticket)\n  note_alive(sleeper)",
        "write()\n  note_alive(sleeper)",
    ),
    "a sleeper's coming moves no clock": (
        "permit_yield", "write('ticket', last_ticket)\n  note_alive(sleeper)",
        "note_alive(sleeper)",
    ),
    "a sleeper does not count as heard": ("permit_yield", "note_alive(sleeper)", ""),
    "sleepers have no time to live": (
        "permit_yield", "redis.call('PEXPIRE', sleepers, 10 * silence)",
        "",
    ),
    "sleepers do not live long": (
        "permit_yield", "sleepers, 10 * silence)",
        "sleepers, silence / 2)",
    ),
    "who yields leaves no tombstone": (
        "permit_yield", "redis.call('ZADD', left, now + tombstone, known)",
        "",
    ),
    "who yields hands nothing over": ("permit_yield", "hand_over('', 0)", ""),
    "all that are asked after sleep": (
        "permit_wake", "heir == '' and redis.call('ZSCORE', sleepers, token)",
        "heir == ''",
    ),
    "a sleeper with an heir sleeps on": ("permit_wake", "if heir == '' and", "if"),
    "a sleeper's beat is not noted": ("permit_wake", "note_alive(token)\n  redis", "redis"),
    "a sleeper's beat keeps no place": (
        "permit_wake", "redis.call('PEXPIRE', sleepers, 10 * silence)",
        "",
    ),
    "a sleeper's beat moves nobody": ("permit_wake", "hand_over('', 0)", ""),
    "a sleeper does not hear when a lease ends": (
        "permit_wake", "return {2, 0, ms",
        "return {2, 0, -1",
    ),
    "an heir of one that waits": (
        "permit_wake", "redis.call('ZSCORE', waiters, token) or ",
        "",
    ),
    "an heir of one that holds": (
        "permit_wake", " or redis.call('ZSCORE', holders, token)",
        "",
    ),
    "a sleeper sleeps beside its heir": (
        "permit_wake", "redis.call('ZREM', sleepers, token) == 0",
        "not redis.call('ZSCORE', sleepers, token)",
    ),
    "a sleeper that is known is refused": (
        "permit_wake", "redis.call('ZREM', sleepers, token) == 0",
        "redis.call('ZREM', sleepers, token) >= 0",
    ),
    "a sleeper comes late": ("permit_wake", "redis.call('ZADD', left, now + tombstone, token)", ""),
    "a sleeper waits for its heir": ("permit_wake", "token = heir", ""),
    "nobody says that there is an heir": ("permit_wake", "reply[6] = woken", "reply[6] = 0"),
    "nobody says who is forgotten": ("permit_wake", "notified and 0 or 2", "0"),
    "an heir does not wait": ("permit_wake", "take(token, lease, '1')", "take(token, lease, '0')"),
    "the dead are notified": ("", "if silence_of(token) < silence then", "if true then"),
    "the dead are notified at the last moment": (
        "", "if silence_of(token) < silence then",
        "if silence_of(token) <= silence then",
    ),
    "the dead count": ("", "      count = count - 1\n    end", "    end\n    count = count - 1"),
    "the last to sleep is the first": ("", "'ZPOPMIN', sleepers", "'ZPOPMAX', sleepers"),
    "the notified are the first in the queue": (
        "", "new_ticket(), token)\n      count",
        "-new_ticket(), token)\n      count",
    ),
    "the notified have one ticket": (
        "", "new_ticket(), token)\n      count",
        "us, token)\n      count",
    ),
    "the notified's tickets are not written": (
        "", "then write('ticket', last_ticket) end",
        "then write() end",
    ),
    "a notification moves no clock": ("", "then write('ticket', last_ticket) end", "then end"),
    "the notified have no time to live": (
        "", "if redis.call('PEXPIRE', waiters, 10 * silence) == 1 then",
        "if redis.call('EXISTS', waiters) == 1 then",
    ),
    "the dead pass nothing on": ("", "if condition then notify(condition, 1) end", ""),
    "the dead pass on two": (
        "", "if condition then notify(condition, 1)",
        "if condition then notify(condition, 2)",
    ),
    "those who have held pass nothing on": (
        "", "    end\n    bury(token)",
        "    end\n    drop(token)",
    ),
    "those who have waited pass nothing on": (
        "", "waiters, head)\n      bury(",
        "waiters, head)\n      drop(",
    ),
    "those who do not listen are passed over early": (
        "", " or condition_of(head)",
        "",
    ),
    "those who were notified are forgotten as holders": (
        "", "redis.call('PEXPIRE', holders, math.max(ttl, 2 * lease, 10 * silence))",
        "",
    ),
    "all conditions are one": ("", "'sleepers:' .. condition", "'sleepers:not-empty'"),
    "a condition's name is plain": ("", "'/%d+/(.+)$'", "'/%d+/([%a-]+)$'"),
    "who asks again after its turn passes it on": (
        "", "if ends then drop(token) end",
        "if ends then bury(token) end",
    ),
}  # fmt: skip


def with_mistake(where: str, old: str, new: str) -> dict[str, Script]:
    scripts = {
        name: Script(name, script.text.replace(old, new)) if name.startswith(where) else script
        for name, script in SCRIPTS.items()
    }
    assert any(scripts[name].text != SCRIPTS[name].text for name in SCRIPTS), f"no {old!r}"
    return scripts


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_about_sleepers_is_found(mistake: str) -> None:
    scripts = with_mistake(*MISTAKES[mistake])
    with pytest.raises((AssertionError, redis.ResponseError)):
        for steps, _ in SCENES.values():
            compare(steps, scripts)
        for seed in range(20):
            compare(program(seed, 64, 200, sleepy=True), scripts)


# -- bounds ---------------------------------------------------------------------------------------


def calls_of(sleepers: int, dead: int, count: int, keep: int = 1) -> int:
    """How many calls a yield costs the server that notifies so many; its twin does the same."""
    counter = "local function counted(...) redis.call('INCR', 'calls') return redis.call(...) end\n"
    scripts = {
        name: Script(name, counter + script.text.replace("redis.call(", "counted("))
        for name, script in SCRIPTS.items()
    }
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "r", scripts)
        twin = Twin(set())
        try:
            asleep = {f"p{i % 40}.{i}/{CLAIM}/{FULL}": i + 1 for i in range(sleepers)}
            alive = {f"p{i}": START // 1000 for i in range(40 * (sleepers - dead) // sleepers)}
            FAKE.zadd(server.sleepers[FULL], asleep)
            FAKE.zadd(server.keys["alive"], alive)
            twin.permits.sleepers[FULL], twin.permits.alive = asleep, alive
            what, args = step("permit_acquire", HOLDER)
            assert twin.run(what, clock.us, args) == server.run(what, args)
            FAKE.set("calls", 0)
            what, args = notify(count, keep=keep)
            assert twin.run(what, clock.us, args) == server.run(what, args)
            calls = int(FAKE.get("calls") or 0)
            assert server.record() == twin.record()
        finally:
            server.close()
    there = [*twin.permits.holders, *twin.permits.waiters]
    assert len([token for token in there if token != HOLDER]) == min(count, sleepers - dead)
    return calls


def test_notifying_costs_as_many_calls_as_there_are_sleepers() -> None:
    few, many = calls_of(400, 100, ALL), calls_of(2000, 500, ALL)
    assert few <= 2 * 400 + 60, "a sleeper is popped and queued, a process is looked at once"
    assert many <= 5 * few


def test_notifying_one_costs_the_same_however_many_sleep() -> None:
    assert calls_of(2000, 0, 1) == calls_of(20, 0, 1)


def test_all_the_dead_are_passed_once() -> None:
    assert calls_of(2000, 1950, 1) <= 2000 + 100


def test_the_dead_in_the_queue_cost_their_number() -> None:
    """A thousand who were notified die in the queue: each passes on to one who lives."""
    dead = {f"d{i % 40}.{i}/{CLAIM}/{FULL}": i + 1 for i in range(999)}
    asleep = {f"p{i % 40}.{i}/{CLAIM}/{FULL}": i + 1 for i in range(1500)}
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server = Server(FAKE, "r", SCRIPTS)
        twin = Twin(set())
        try:
            alive = {f"p{i}": START // 1000 for i in range(40)}
            FAKE.zadd(server.keys["waiters"], dead)
            FAKE.zadd(server.sleepers[FULL], asleep)
            FAKE.zadd(server.keys["alive"], alive)
            twin.permits.waiters = dead
            twin.permits.sleepers[FULL], twin.permits.alive = asleep, alive
            what, args = step("permit_wake", f"p0.0/{CLAIM}/{FULL}")
            assert twin.run(what, clock.us, args) == server.run(what, args)
            assert server.record() == twin.record()
        finally:
            server.close()
    assert len(twin.permits.waiters) == 998
    assert len(twin.permits.sleepers[FULL]) == 501
    assert list(twin.permits.holders) == [f"p0.0/{CLAIM}/{FULL}"]
