"""Rate limiters: the Lua transitions do what their Python twins do, and both keep to the rate.

The same random steps go through both under one clock, which moves back and forth; what is answered,
the text of the record and its time to live are the same after every step.  An oracle that knows
nothing of buckets counts what was used in every window.
"""

import random
import uuid
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import redis

from dsync.local.rates import KEEP_MS, TRANSITIONS, Bucket, Declared
from dsync.redis.script import SCRIPTS, Script
from tests.model.test_twins import FAKE, START, Args, Clock, Difference, Step, shortest

SECOND = 1_000_000  # µs
LIMITS = (
    ("1.0", SECOND, 1), ("3.0", SECOND, 3), ("0.1", SECOND, 7), ("1000.0", SECOND, 10),
    ("7.0", 3 * SECOND, 5), ("1e-09", 1000, 1), ("600.0", 60 * SECOND, 600),
    ("1000000000.0", SECOND, 2**31),
)  # fmt: skip
TOKENS = tuple(f"{process}.{i}/0" for process in ("a", "b") for i in range(4))
# µs
MOVES = (
    0, 1, 2, 333, 1000, 333_333, 333_334, 499_999, SECOND // 2, SECOND, 10 * SECOND,
    -1, -1000, -SECOND, -10 * SECOND,
)  # fmt: skip
LEAPS = (KEEP_MS * 1000 - 1, KEEP_MS * 1000, 2 * KEEP_MS * 1000, 366 * 86_400 * SECOND)
PATIENCE = (-1, -1, 0, 0, 1, 1000, SECOND, 10 * SECOND)
ONE = "a.0/0"


def take(
    token: str = ONE, amount: int = 1, patience: int = -1, limit: int = 1, born: int | str = START
) -> Step:
    declared, period, capacity = LIMITS[limit]
    return "rate_take", {
        "token": token, "amount": amount, "patience": patience, "declared": declared,
        "period": period, "capacity": capacity, "born": born,
    }  # fmt: skip


def give_back(token: str = ONE, position: int = 1, amount: int = 1) -> Step:
    return "rate_return", {"token": token, "position": position, "amount": amount}


def later(us: int) -> Step:
    return "clock", {"us": us}


LOOK: Step = ("rate_look", {})


def program(seed: int, length: int, moving: bool = True) -> list[Step]:
    """Random steps on one limiter: often repeated, handed back in and out of order.

    A shadow runs along, so that what is handed back is what was taken.
    """
    rng = random.Random(f"{seed} {moving}")
    shadow, us = Bucket(), START
    common = rng.randrange(len(LIMITS))
    ours: list[tuple[str, int, int]] = []
    steps: list[Step] = []
    kinds = {"take": 8, "return": 4, "look": 1, "clock": 5 if moving else 0}
    for i, kind in enumerate(rng.choices(list(kinds), list(kinds.values()), k=length)):
        if kind == "clock":
            us_moved = rng.choice(LEAPS if rng.random() < 0.04 else MOVES)
            us += us_moved
            steps.append(later(us_moved))
            continue
        if kind == "look":
            steps.append(LOOK)
            continue
        if kind == "return" and ours and rng.random() < 0.9:
            slot = ours[-1] if rng.random() < 0.7 else rng.choice(ours)
            if rng.random() < 0.8:
                ours.remove(slot)
            step = give_back(*slot)
        elif kind == "return":
            step = give_back(rng.choice(TOKENS), rng.randrange(5), rng.choice((1, 2)))
        else:
            limit = common if rng.random() < 0.9 else rng.randrange(len(LIMITS))
            capacity = LIMITS[limit][2]
            amount = rng.choice((1, 1, 1, 2, 3, capacity, capacity + 1, max(1, capacity // 2)))
            token = rng.choice(TOKENS) if rng.random() < 0.3 else f"c.{i}/0"
            patience = rng.choice(PATIENCE) if moving else rng.choice((-1, 0))
            born = rng.choice(("", START, START, START, START + 5, START + 20 * SECOND))
            step = take(token, amount, patience, limit, born)
        reply = TRANSITIONS[step[0]](shadow, us, **step[1])
        if step[0] == "rate_take" and reply[0] == 1:
            ours.append((step[1]["token"], reply[4], step[1]["amount"]))
        steps.append(step)
    return steps


def takes(count: int, limit: int = 1) -> list[Step]:
    return [take(f"c.{i}/0", limit=limit) for i in range(count)]


def older(number: str, value: str | int) -> Step:
    """A take of a client that was born before, and made with another number."""
    transition, args = take(f"old.{number}", born=START - 5)
    return transition, {**args, number: value}


# At the microsecond at which a unit has drained, and with a clock that steps.
SCENES: dict[str, list[Step]] = {
    "an older one differs in one number": [
        take("c"), *(older(one, value) for one, value in (
            ("declared", "11.0"), ("period", 2 * SECOND), ("capacity", 9),
        )),
    ],
    "a unit drains": [
        *takes(3), take("d", patience=0), later(333_333), take("d", patience=0), later(1),
        take("d", patience=0), LOOK,
    ],
    "patience to the microsecond": [
        *takes(3), take("d", patience=333_333), take("d", patience=333_334), LOOK,
    ],
    "one at a time": [
        take("c", limit=0), take("d", patience=0, limit=0), later(SECOND - 1),
        take("d", patience=0, limit=0), later(1), take("d", patience=0, limit=0), LOOK,
    ],
    "two of three are asked for": [
        take("c", 2), take("d", 2, patience=0), later(333_333), take("d", 2, patience=0), later(1),
        take("d", 2, patience=0), LOOK,
    ],
    "more than the burst": [take("c", 4), take("c", 4, patience=0), take("c", 3), LOOK],
    "reserved for later": [*takes(9), LOOK, take("d", patience=0), later(2 * SECOND), LOOK],
    "handed back, the newest first": [
        *takes(6), give_back("c.5/0", 6), LOOK, give_back("c.4/0", 5), LOOK, take("d"), LOOK,
    ],
    "handed back when somebody is behind": [
        *takes(6), give_back("c.4/0", 5), LOOK, give_back("c.5/0", 6), give_back("c.4/0", 5), LOOK,
    ],
    "handed back in one go": [*takes(6), give_back("c.5/0", 6, 4), LOOK, take("d"), LOOK],
    "handed back twice": [*takes(6), give_back("c.5/0", 6), give_back("c.5/0", 6), LOOK],
    "handed back twice, and taken by another in between": [
        *takes(6), give_back("c.5/0", 6), take("d"), give_back("c.5/0", 6), LOOK,
    ],
    "handed back late": [*takes(4), later(SECOND), give_back("c.3/0", 4), LOOK],
    "handed back, and asked again": [*takes(4), give_back("c.3/0", 4), take("c.3/0"), LOOK],
    "the clock steps back": [
        *takes(5), later(-SECOND), LOOK, take("d", patience=0), take("e"), later(SECOND), LOOK,
    ],
    "the clock steps back while somebody is refused": [
        *takes(3), later(-SECOND), take("d", patience=0), later(SECOND), LOOK,
    ],
    "the clock steps back while something is handed back": [
        *takes(5), later(-SECOND), give_back("c.4/0", 5), later(SECOND), LOOK,
    ],
    "the clock steps forward": [*takes(30), later(5 * SECOND), LOOK, take("d"), LOOK],
    "a repeated call": [*takes(5), take("c.4/0"), take("c.0/0"), later(SECOND), take("c.4/0")],
    "a repeated call of one that is refused": [*takes(3), take("d", patience=0), take("d")],
    "a repeated call after the clock stepped back": [*takes(5), later(-SECOND), take("c.4/0")],
    "a token that is the end of another": [take("ac.0/0"), take("c.0/0"), take("0/0"), LOOK],
    "a newer declaration": [
        *takes(9), take("d", limit=3, born=START + 5), take("e", born=START + 4), LOOK,
        take("f", born=START + 5), take("g", born=START + 6), LOOK,
    ],
    "a newer declaration that is refused": [
        *takes(3), take("d", 8, patience=0, limit=0, born=START + 5), LOOK,
        take("e", patience=0, limit=0, born=START + 6), LOOK, take("f", 3), LOOK,
    ],
    "declared now": [take("c", born=""), take("d", limit=0), later(1), take("e", limit=0, born="")],
    "many are remembered, not all": [*takes(30), *(take(f"c.{i}/0") for i in range(29, 10, -1))],
    "nobody asks until it expires": [
        *takes(3), later(SECOND + KEEP_MS * 1000 - 2000), LOOK, later(4000), LOOK, take("d"), LOOK,
    ],
    "slow": [take("c", limit=5), take("d", limit=5), LOOK, later(SECOND), LOOK],
    "fast": [take("c", 2**31, limit=7), take("d", 10**6, limit=7), LOOK, later(1), LOOK],
}  # fmt: skip


# -- the two sides --------------------------------------------------------------------------------


def text_of(bucket: Bucket) -> bytes | None:
    """The record as the server has it."""
    if not bucket.epoch:
        return None
    rate, per, burst = bucket.declared
    head = f"1 {bucket.clock} {bucket.level:.17g} {bucket.taken} {bucket.epoch} {bucket.stamp}"
    return f"{head} {rate} {per} {burst} {bucket.recent}".encode()


def plain(reply: list[Any]) -> list[Any]:
    return [word.decode() if isinstance(word, bytes) else word for word in reply]


class Server:
    """The Lua side: one limiter on a server."""

    def __init__(self, client: Any, key: str, scripts: dict[str, Script]) -> None:
        self.client = client
        self.key = f"{{{key}}}:state"
        self.scripts = scripts

    def run(self, transition: str, args: Args) -> list[Any]:
        script = self.scripts[transition]
        return plain(self.client.eval(script.text, 1, self.key, *script.values(args)))


def compare(steps: list[Step], scripts: dict[str, Script] = SCRIPTS) -> None:
    """Run steps through both sides; Difference says where they part."""
    clock = Clock()
    with mock.patch("time.time", clock):
        FAKE.flushall()
        server, bucket = Server(FAKE, "rate", scripts), Bucket()
        for number, (what, args) in enumerate(steps):
            if what == "clock":
                clock.move(int(args["us"]))
                if bucket.epoch and not FAKE.exists(server.key):
                    assert bucket.ends * 1000 <= clock.us + 1000, "it expired early"
                    assert bucket.level_at(clock.us) == 0, "it expired before it had drained"
                    bucket = Bucket()
            else:
                where = f"step {number}, {what}({args})"
                compare_step(where, what, args, clock.us, bucket, server)


def compare_step(
    where: str, what: str, args: Args, us: int, bucket: Bucket, server: Server
) -> None:
    before = text_of(bucket)
    wanted = TRANSITIONS[what](bucket, us, **args)
    got = server.run(what, args)
    for aspect, one, other in (
        ("reply", wanted, got),
        ("record", text_of(bucket), server.client.get(server.key)),
    ):
        if one != other:
            raise Difference(
                f"{where}: the {aspect} of the twin and of the script:\n{one!r}\n{other!r}"
            )
    assert what != "rate_look" or text_of(bucket) == before, "a look changed something"
    if text_of(bucket) != before:
        ttl = server.client.pttl(server.key)
        if not abs(ttl - (bucket.ends - us // 1000)) <= 1:
            raise Difference(f"{where}: time to live, ms: {bucket.ends - us // 1000} {ttl}")


def fails(steps: list[Step]) -> bool:
    try:
        compare(steps)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("scene", SCENES)
def test_scripts_and_twins_do_the_same_at_the_boundaries(scene: str) -> None:
    compare(SCENES[scene])


@pytest.mark.parametrize("seed", range(20))
def test_scripts_and_twins_do_the_same_under_one_clock(seed: int) -> None:
    steps = program(seed, 150)
    if fails(steps):
        few = shortest(steps, fails)
        print("\n".join(map(repr, few)))
        compare(few)


# -- planted mistakes -----------------------------------------------------------------------------

# Each is (what is there, what is put in its place), in every script that has it.
MISTAKES = {
    "any step drains": (
        "if us > clock then level = math.max(0, level - (us",
        "do level = math.max(0, level - math.abs(us",
    ),
    "a step back fills": ("if us > clock then level", "if us ~= clock then level"),
    "nothing drains": ("(us - clock) / pace", "0"),
    "it drains below nothing": ("level = math.max(0, level - (us", "level = (level - (us"),
    "seconds for microseconds": ("(us - clock) / pace", "(us - clock) / pace * 1e6"),
    "an old pace": ("capacity, period / declared", "capacity, pace or period / declared"),
    "a wait is rounded down": ("math.ceil(units * pace)", "math.floor(units * pace)"),
    "a wait is a microsecond longer": ("math.ceil(units * pace)", "(math.ceil(units * pace) + 1)"),
    "rounding counts": ("units > tiny()", "units > -1"),
    "remaining is rounded up": ("math.floor(burst - level", "math.ceil(burst - level"),
    "remaining may be less than nothing": ("math.max(0, math.floor(", "(math.floor("),
    "the epoch moves": ("if epoch == '0' then epoch", "epoch"),
    "the level in short": ("%.17g", "%.9g"),
    "the clock does not step back": (
        "us, level, taken,\n", "math.max(us, tonumber(clock)), level, taken,\n",
    ),
    "it expires too early": ("+ 60000", "+ 1"),
    "it expires before it has drained": ("math.ceil(drained(level) / 1000) + 60000", "60000"),
    "older declarations hold": ("(born) > tonumber(stamp)", "(born) < tonumber(stamp)"),
    "equal declarations hold": (
        "born ~= stamp and tonumber(born) > tonumber", "tonumber(born) >= tonumber",
    ),
    "the stamp stays": ("burst, pace = born,", "burst, pace = stamp,"),
    "a declaration empties the bucket": ("period / declared\n", "period / declared; level = 0\n"),
    "nobody is told of other numbers": ("if rate ~= declared or", "if false or rate == '' and"),
    "other periods are not told": ("or per ~= period", ""),
    "other bursts are not told": ("or burst ~= capacity", ""),
    "nobody knows copies": ("if position then return", "if false then return"),
    "a copy waits for the whole time": ("math.max(0, tonumber(at) - us)", "tonumber(at)"),
    "a copy's time may have passed": ("math.max(0, tonumber(at) - us)", "(tonumber(at) - us)"),
    "the end of a token is one": ("local named = ';' .. token", "local named = token"),
    "patience ends too early": ("wait > patience", "wait >= patience and wait > 0"),
    "nobody has patience": ("patience >= 0 and wait > patience", "wait > 0"),
    "more than the burst is taken": ("if amount > burst or patience", "if patience"),
    "a refused declaration is forgotten": ("if newer or us < clock", "if us < clock"),
    "a refused look at the clock is forgotten": ("if newer or us < clock", "if newer"),
    "units are not taken": ("level, taken = level + amount, taken", "level, taken = level, taken"),
    "units are not counted": ("level + amount, taken + amount", "level + amount, taken + 1"),
    "waits begin with the clock": ("taken, us + wait) .. recent", "taken, us) .. recent"),
    "few are remembered": ("1, 400)", "1, 40)"),
    "all are remembered": ("1, 400)", "1, 40000)"),
    "anybody's is handed back": ("taken ~= position or", ""),
    "the token does not matter": (" or last and last ~= token", ""),
    "what is handed back stays taken": ("- amount), taken - amount", "- amount), taken"),
    "what is handed back does not drain": ("math.max(0, level - amount), taken", "level, taken"),
    "handed back below nothing": ("math.max(0, level - amount), taken", "level - amount, taken"),
    "what was handed back is remembered": ("tonumber(at) <= taken", "true"),
    "the last is forgotten as well": ("tonumber(at) <= taken", "tonumber(at) < taken"),
    "what was handed back is not written": ("recent = kept\nwrite()", "recent = kept"),
    "the look forgets the burst": ("drained(level + 1 - burst)", "drained(level + 1)"),
    "reserved is rounded down": ("math.ceil(level - burst", "math.floor(level - burst"),
    "reserved may be less than nothing": ("math.max(0, math.ceil(", "(math.ceil("),
}  # fmt: skip


def with_mistake(old: str, new: str) -> dict[str, Script]:
    assert any(old in s.text for n, s in SCRIPTS.items() if n.startswith("rate_")), f"no {old!r}"
    return {name: Script(name, script.text.replace(old, new)) for name, script in SCRIPTS.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_script_is_found(mistake: str) -> None:
    scripts = with_mistake(*MISTAKES[mistake])
    with pytest.raises((AssertionError, redis.ResponseError)):
        for steps in SCENES.values():
            compare(steps, scripts)
        for seed in range(10):
            compare(program(seed, 150), scripts)


# -- a real server --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_real_server_does_the_same_as_the_twins(server_url: str, seed: int) -> None:
    """Under the clock that the server says it used: it is in the record."""
    with redis.Redis.from_url(server_url) as client:
        server, bucket = Server(client, f"twins-{uuid.uuid4().hex}", SCRIPTS), Bucket()
        try:
            for what, args in program(seed, 150, moving=False):
                before = client.get(server.key)
                got = server.run(what, args)
                record: Any = client.get(server.key)
                if record == before:
                    continue  # nothing says when it was
                assert record is not None
                us = int(record.split(b" ")[1])
                if args.get("born") == "":
                    args = {**args, "born": us}
                assert TRANSITIONS[what](bucket, us, **args) == got
                assert text_of(bucket) == record
                assert abs(client.pttl(server.key) - (bucket.ends - us // 1000)) < 100
        finally:
            client.delete(server.key)


# -- what the numbers promise ---------------------------------------------------------------------


class Use:
    """Units that were used at a time, µs."""

    def __init__(self, at: int, units: int) -> None:
        self.at = at
        self.units = units


def excess(uses: list[Use], limit: Declared) -> float:
    """By how many units the fullest window is over the rate and the burst; over all pairs."""
    uses = sorted(uses, key=lambda use: use.at)
    rate, worst = float(limit.rate) / int(limit.per), float("-inf")
    for first in range(len(uses)):
        units = 0
        for last in range(first, len(uses)):
            units += uses[last].units
            worst = max(worst, units - rate * (uses[last].at - uses[first].at) - limit.burst)
    return worst


def crowd(seed: int, limit: Declared, steps_back: bool) -> Iterator[tuple[int, list[Use]]]:
    """Random arrivals, amounts, patience and changes of mind.  -> the time, what is used of now"""
    rng = random.Random(seed)
    bucket, us, slip = Bucket(), START, 0
    interval = int(limit.per) / float(limit.rate)
    waiting: list[tuple[int, str, int, int]] = []  # when, token, position, units
    for number in range(300):
        us += int(rng.expovariate(1) * interval * rng.choice((0.1, 0.5, 1, 3)))
        if steps_back and rng.random() < 0.02:
            slip += int(rng.random() * 5 * interval)
        used = [Use(at, units) for at, _, _, units in waiting if at <= us]
        waiting = [each for each in waiting if each[0] > us]
        if used:
            yield us, used
        if waiting and rng.random() < 0.25:
            gone = waiting.pop(-1 if rng.random() < 0.6 else rng.randrange(len(waiting)))
            _, token, position, units = gone
            TRANSITIONS["rate_return"](
                bucket, us - slip, token=token, position=position, amount=units
            )
        units = rng.choice((1, 1, 1, 2, limit.burst))
        units = min(units, limit.burst)
        reply = TRANSITIONS["rate_take"](
            bucket, us - slip, token=f"t{number}", amount=units,
            patience=rng.choice((-1, 0, int(5 * interval))), declared=limit.rate,
            period=int(limit.per), capacity=limit.burst, born=START,
        )  # fmt: skip
        if reply[0] == 1:
            waiting.append((us + reply[1], f"t{number}", reply[4], units))
    yield us, [Use(at, units) for at, _, _, units in waiting]


ORACLE = [Declared("10.0", "1000000", 1), Declared("1000.0", "1000000", 100),
          Declared("7.0", "3000000", 5), Declared("0.3", "60000000", 2)]  # fmt: skip


@pytest.mark.parametrize("steps_back", [False, True], ids=["steady", "stepping back"])
@pytest.mark.parametrize("limit", ORACLE, ids=str)
def test_no_window_has_more_than_the_rate_and_the_burst(limit: Declared, steps_back: bool) -> None:
    for seed in range(15):
        uses = [use for _, used in crowd(seed, limit, steps_back) for use in used]
        assert len(uses) > 10
        # Each time is rounded up to a microsecond, so a window may look shorter by one.
        assert excess(uses, limit) < float(limit.rate) / int(limit.per) + 1e-6


@pytest.mark.parametrize("limit", ORACLE, ids=str)
def test_who_always_asks_gets_all_that_there_is(limit: Declared) -> None:
    """Whether they wait for it or try whenever they were told to."""
    for patience in (-1, 0):
        bucket, us, used, number = Bucket(), START, 0, 0
        interval = int(limit.per) / float(limit.rate)
        while us < START + 2000 * interval:
            number += 1
            reply = TRANSITIONS["rate_take"](
                bucket, us, token=f"t{number}", amount=1, patience=patience, declared=limit.rate,
                period=int(limit.per), capacity=limit.burst, born=START,
            )  # fmt: skip
            used += reply[0]
            us += reply[1]
        most = (us - START) / interval + limit.burst
        assert 0.99 * most <= used <= most + 1e-6


def test_nobody_is_served_before_who_came_earlier() -> None:
    for seed in range(20):
        rng, bucket, us, last = random.Random(seed), Bucket(), START, 0
        for number in range(200):
            us += rng.choice((0, 0, 1, 1000, 100_000))
            reply = TRANSITIONS["rate_take"](
                bucket, us, token=f"t{number}", amount=rng.randint(1, 5), patience=-1,
                declared="10.0", period=SECOND, capacity=5, born=START,
            )  # fmt: skip
            assert us + reply[1] >= last
            last = us + reply[1]


@pytest.mark.parametrize(
    ("rates", "bursts"), [((10, 20), (1, 1)), ((20, 10), (1, 1)), ((10, 10), (1, 50)),
                          ((10, 10), (50, 1)), ((10, 1000), (5, 5))],
    ids=["faster", "slower", "larger", "smaller", "much faster"],
)  # fmt: skip
def test_a_new_rate_does_not_add_to_what_was_reserved_under_the_old_one(
    rates: tuple[int, int], bursts: tuple[int, int]
) -> None:
    """From the declaration on no window has more than the larger of both allow."""
    bucket, us, uses = Bucket(), START, []
    for number in range(400):
        new = number >= 100
        us += 1000 * (number > 100)
        reply = TRANSITIONS["rate_take"](
            bucket, us, token=f"t{number}", amount=1, patience=-1, declared=f"{rates[new]:.1f}",
            period=SECOND, capacity=bursts[new], born=START + new,
        )  # fmt: skip
        uses.append(Use(us + reply[1], 1))
    fastest = Declared(str(max(rates)), str(SECOND), max(bursts))
    assert excess(uses, fastest) < max(rates) / SECOND + 1e-6


@pytest.mark.parametrize("burst", [10**6, 10**9, 2**31])
def test_a_large_burst_is_kept_to_the_unit(burst: int) -> None:
    bucket = Bucket()
    numbers: Args = {"declared": "1.0", "period": SECOND, "capacity": burst, "born": START}
    taking = TRANSITIONS["rate_take"]
    reply = taking(bucket, START, token="a", amount=1, patience=0, **numbers)
    assert reply[:3] == [1, 0, burst - 1]
    reply = taking(bucket, START, token="b", amount=burst - 1, patience=0, **numbers)
    assert reply[:3] == [1, 0, 0]
    reply = taking(bucket, START, token="c", amount=1, patience=0, **numbers)
    assert reply[:3] == [0, SECOND, 0]
    assert taking(bucket, START, token="d", amount=1, patience=-1, **numbers)[1] == SECOND


def test_who_gives_up_one_after_the_other_gives_back_everything() -> None:
    """However many: nobody has reserved behind them."""
    bucket = Bucket()
    numbers: Args = {"declared": "1.0", "period": SECOND, "capacity": 1, "born": START}
    for number in range(100):
        TRANSITIONS["rate_take"](
            bucket, START, token=f"t{number}", amount=1, patience=-1, **numbers
        )
    for number in reversed(range(100)):
        reply = TRANSITIONS["rate_return"](
            bucket, START, token=f"t{number}", position=number + 1, amount=1
        )
        assert reply == [1], f"{number + 1} are left"
    assert bucket.level == 0
