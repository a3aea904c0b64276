"""The transitions of Lock, Semaphore and Condition in this process: twins of lua/permit_*.

Each does what the script of its name does, in the same order, and returns the same reply; the
scripts' headers say what that is.  The model tests hold the two against each other.
"""

from collections.abc import Callable
from itertools import islice
from typing import Final

__all__ = ["TRANSITIONS", "Permits"]

# What a transition sends to a process: -> how many listen (0: nobody there), as PUBLISH answers.
Send = Callable[[str, list[bytes]], int]
Listing = list[bytes | int]
Answer = list[int | bytes]
Transitions = dict[str, Callable[..., int | Answer | list[int] | list[int | Listing]]]
KEEP_MS = 7 * 24 * 3600 * 1000  # for which a record outlives its last use


class Permits:
    """The state of one lock, with its conditions, or of one semaphore."""

    # holders, waiters and sleepers never share a token.
    # waiters, and the sleepers of each condition, are in order of arrival.
    __slots__ = (
        "alive", "clock", "counted", "extra", "fence", "holders", "left", "limit", "pinned", "send",
        "since", "sleepers", "stamp", "ticket", "waiters",
    )  # fmt: skip

    def __init__(self, send: Send) -> None:
        self.send: Send = send
        self.clock: int = 0  # ms; time as this record knows it, which never goes back
        self.fence: int = 0
        self.counted: int | None = None  # the last fence that was ahead of the time
        self.limit: int | None = None  # None: nobody has declared one, it counts as 1
        self.extra: int = 0
        self.stamp: int = 0
        self.pinned: bool = False
        self.ticket: int = 0
        self.holders: dict[str, int] = {}  # token -> end of lease, ms
        self.since: dict[str, int] = {}  # token -> ms
        self.waiters: dict[str, int] = {}  # token -> arrival, µs
        self.sleepers: dict[str, dict[str, int]] = {}  # condition -> token -> arrival, µs
        self.alive: dict[str, int] = {}  # process -> ms
        self.left: dict[str, int] = {}  # token -> ms

    def sweep(self, now: int) -> bool:
        """Drop what nobody needs any more.  -> whether Redis would have let it all expire"""
        self.left = {token: until for token, until in self.left.items() if until > now}
        idle = not (self.holders or self.waiters or self.sleepers or self.left)
        return idle and now - self.clock > KEEP_MS

    def empty(self) -> bool:
        """Nothing here that a fresh record would not have, but for the floor of the fences."""
        return not (self.holders or self.waiters or self.sleepers or self.left) and (
            self.limit is None and self.counted != self.fence
        )

    def capacity(self) -> int:
        return (1 if self.limit is None else self.limit) + self.extra

    def next_end(self, now: int) -> int:
        """ms until the next lease ends, -1 where there is none."""
        return max(min(self.holders.values()) - now, 1) if self.holders else -1

    def first(self, now: int = 0) -> bytes:
        """Whose lease ends next after `now`, ms; b"" where there is none."""
        live = [(end, token) for token, end in self.holders.items() if end > now]
        return min(live, default=(0, ""))[1].encode()

    def drop(self, token: str) -> bool:
        self.since.pop(token, None)
        return self.holders.pop(token, None) is not None

    def refuse(self, token: str, now: int, tombstone: int) -> None:
        self.left = {t: until for t, until in self.left.items() if until > now}
        self.left[token] = now + tombstone

    def new_ticket(self, us: int) -> int:
        self.ticket = max(self.ticket + 1, us)
        return self.ticket

    def note_alive(self, process: str, now: int, silence: int) -> None:
        fresh = process not in self.alive
        self.alive[process] = now
        if fresh:
            alive = self.alive.items()
            self.alive = {p: heard for p, heard in alive if heard > now - silence}

    def asleep(self, token: str) -> bool:
        return token in self.sleepers.get(condition_of(token), {})

    def forget_sleeper(self, token: str) -> bool:
        sleepers = self.sleepers.get(condition_of(token), {})
        asleep = sleepers.pop(token, None) is not None
        if asleep and not sleepers:
            del self.sleepers[condition_of(token)]
        return asleep

    def told(self, message: str, process: str, *values: object) -> int:
        return self.send(process, [part.encode() for part in (message, *map(str, values))])

    def tell(self, asker: str) -> None:
        told = {asker}
        by_end = sorted((end, token) for token, end in self.holders.items())
        for _, token in by_end[:32]:
            process = process_of(token)
            if process not in told:
                told.add(process)
                self.told("w", process, token, len(self.waiters), self.capacity())


class Step:
    """One transition at one moment: the server's time, and what a grant needs to know."""

    __slots__ = ("block", "gone", "handed", "now", "permits", "quiet", "silence", "us")

    def __init__(self, permits: Permits, us: int, block: int = 0, silence: int = 0) -> None:
        self.permits: Permits = permits
        self.us: int = us
        self.now: int = max(us // 1000, permits.clock)
        self.block: int = block
        self.silence: int = silence
        self.quiet: int = silence // 4
        self.gone: dict[str, bool] = {}  # processes that no message reaches
        self.handed: int = 0  # how many of those who waited got a permit

    def grant(self, token: str, lease: int) -> None:
        permits = self.permits
        permits.clock = self.now
        permits.holders[token] = self.now + lease
        permits.since[token] = self.now
        if self.block > 0:
            ahead = permits.counted == permits.fence
            last = permits.fence + self.block - 1 if ahead else permits.fence
            if self.us > last:
                permits.fence = self.us
            else:
                permits.fence = permits.counted = permits.fence + self.block

    def silence_of(self, token: str) -> int:
        return self.now - self.permits.alive.get(process_of(token), 0)

    def notify(self, condition: str, count: int) -> None:
        permits = self.permits
        for token in list(permits.sleepers.get(condition, ())):
            if count <= 0:
                break
            permits.forget_sleeper(token)
            if self.silence_of(token) < self.silence:
                permits.waiters[token] = permits.new_ticket(self.us)
                count -= 1
        if permits.waiters:
            permits.clock = self.now

    def bury(self, token: str) -> None:
        self.permits.drop(token)
        if condition_of(token):
            self.notify(condition_of(token), 1)

    def drop_expired(self) -> None:
        ended = sorted((e, t) for t, e in self.permits.holders.items() if e <= self.now)
        for _, token in ended[:100]:
            if self.silence_of(token) < self.quiet:
                self.permits.alive[process_of(token)] = self.now - self.quiet
            self.bury(token)

    def absent(self, token: str) -> bool:
        permits, process = self.permits, process_of(token)
        if process not in self.gone:
            waiting, limit = len(permits.waiters), permits.capacity()
            self.gone[process] = permits.told("w", process, token, waiting, limit) == 0
        return self.gone[process]

    def hand_over(self, asker: str, lease: int) -> bool:
        permits = self.permits
        if len(permits.holders) >= permits.capacity():
            self.drop_expired()
        overtaken = 0
        for _ in range(1000):
            head = next(islice(permits.waiters, overtaken, None), None)
            if len(permits.holders) >= permits.capacity() or head is None:
                return False
            silent = 0 if head == asker else self.silence_of(head)
            if silent >= self.silence:
                del permits.waiters[head]
                self.bury(head)
            elif silent >= self.quiet and self.absent(head):
                if silent <= self.silence / 2 or condition_of(head):
                    overtaken += 1
                else:
                    del permits.waiters[head]
            else:
                del permits.waiters[head]
                claim = lease if head == asker else claim_of(head)
                self.grant(head, claim)
                if head == asker:
                    return True
                self.handed += 1
                permits.told(
                    "g", process_of(head), head, permits.fence, claim,
                    len(permits.waiters), permits.capacity(),
                )  # fmt: skip
        return False

    def take(self, token: str, lease: int, wait: int) -> Answer:
        permits, now, process = self.permits, self.now, process_of(token)
        limit = permits.capacity()
        ends = permits.holders.get(token, 0)
        if ends > now:
            permits.holders[token] = max(ends, now + lease)
            return [1, permits.fence, lease, len(permits.waiters), limit]
        permits.drop(token)
        if permits.left.get(token, 0) > now:
            return [-1, 0, 0, 0, limit]
        if wait and (len(permits.holders) >= limit or permits.waiters):
            permits.note_alive(process, now, self.silence)
            if token not in permits.waiters:
                permits.clock = now
                permits.waiters[token] = permits.new_ticket(self.us)
        if self.hand_over(token, lease):
            return [1, permits.fence, lease, len(permits.waiters), limit]
        if token not in permits.waiters and len(permits.holders) < limit:
            self.grant(token, lease)
            return [1, permits.fence, lease, 0, limit]
        place = -1
        if wait and token in permits.waiters:
            place = 0 if next(iter(permits.waiters)) == token else 1
        if place == 0:
            permits.tell(process)
        return [0, place, permits.next_end(now), len(permits.waiters), limit, permits.first()]


def process_of(token: str) -> str:
    return token.rpartition(".")[0]


def claim_of(token: str) -> int:
    return int(token.split("/", 2)[1])


def condition_of(token: str) -> str:
    """The condition that a sleeper waits for, '' for any other token."""
    return token.partition("/")[2].partition("/")[2]


def permit_acquire(
    permits: Permits, us: int, *, token: str, declared: int, stamp: int | str, lease: int,
    wait: int, block: int, inbox: str, silence: int,
) -> int | Answer:  # fmt: skip
    step = Step(permits, us, block, silence)
    if stamp != 0 and not permits.pinned:
        mine = us if stamp == "" else int(stamp)
        if mine > permits.stamp:
            before, first = permits.capacity(), permits.limit is None
            permits.limit, permits.stamp, permits.clock = declared, mine, step.now
            if not first and permits.capacity() != before:
                permits.tell(process_of(token))
    limit = permits.capacity()
    if permits.holders or limit < 1 or permits.waiters or permits.left:
        return step.take(token, lease, wait)
    step.grant(token, lease)
    return permits.fence if stamp == 0 else [1, permits.fence, lease, 0, limit]


def permit_release(
    permits: Permits, us: int, *, token: str, block: int, inbox: str, silence: int,
    tombstone: int,
) -> int | Answer:  # fmt: skip
    held = permits.drop(token)
    if not held:
        permits.waiters.pop(token, None)
    if not tombstone and not permits.waiters:
        return 1 if held else [0, 0, permits.first()]
    step = Step(permits, us, block, silence)
    if tombstone:
        permits.refuse(token, step.now, tombstone)
    step.hand_over("", 0)
    waiting = len(permits.waiters)
    return [1, waiting, step.handed] if held else [0, waiting, permits.first()]


def permit_yield(
    permits: Permits, us: int, *, token: str, condition: str, count: int, sleeper: str, keep: int,
    block: int, inbox: str, silence: int, tombstone: int,
) -> Answer:  # fmt: skip
    step = Step(permits, us, block, silence)
    now = step.now
    held = notified = permits.holders.get(token, 0) > now
    known = f"{token} {condition}" if keep else token
    if keep:
        notified = held and permits.left.get(known, 0) <= now
    else:
        if not held:
            step.drop_expired()
        permits.drop(token)
        permits.forget_sleeper(token)
        notified = permits.waiters.pop(token, None) is not None or held
    if notified and count > 0:
        step.notify(condition, count)
    if held and sleeper and permits.left.get(sleeper, 0) <= now:
        permits.sleepers.setdefault(condition, {})[sleeper] = permits.new_ticket(us)
        permits.clock = now
        permits.note_alive(process_of(sleeper), now, silence)
    if tombstone:
        permits.refuse(known, now, tombstone)
    step.hand_over("", 0)
    waiting = len(permits.waiters)
    return [1, waiting, step.handed] if held else [0, waiting, permits.first()]


def permit_wake(
    permits: Permits, us: int, *, token: str, heir: str, lease: int, block: int, inbox: str,
    silence: int, tombstone: int,
) -> Answer:  # fmt: skip
    step = Step(permits, us, block, silence)
    now = step.now
    if not heir and permits.asleep(token):
        permits.note_alive(process_of(token), now, silence)
        step.hand_over("", 0)
        return [2, 0, permits.next_end(now), len(permits.waiters), permits.capacity(), 0]
    notified = token in permits.waiters or token in permits.holders
    woken = 0 if notified else 2
    if heir and not notified:
        woken = 1
        if not permits.forget_sleeper(token):
            permits.refuse(token, now, tombstone)
        token = heir
    reply = step.take(token, lease, 1)
    return [*reply[:5], woken, *reply[5:]]


def permit_renew(permits: Permits, us: int, *, token: str, lease: int, block: int) -> Answer:
    step = Step(permits, us)
    limit = permits.capacity()
    if permits.holders.get(token, 0) <= step.now:
        return [0, 0, 0, 0, limit, permits.first(step.now)]
    permits.clock = step.now
    permits.holders[token] = step.now + lease
    fence = 0
    if block > 0:
        if us > permits.fence + block:
            fence = permits.fence = us
        else:
            fence = permits.fence = permits.counted = permits.fence + block
    return [1, fence, lease, len(permits.waiters), limit]


def permit_revoke(
    permits: Permits, us: int, *, token: str, block: int, inbox: str, silence: int
) -> list[int]:
    step = Step(permits, us, block, silence)
    held = permits.drop(token)
    if held and block > 0:
        permits.clock = step.now
        permits.fence += block
    step.hand_over("", 0)
    if held:
        permits.told("l", process_of(token), token)
    return [int(held), len(permits.waiters)]


def permit_resize(
    permits: Permits, us: int, *, wanted: int, block: int, inbox: str, silence: int
) -> list[int]:
    step = Step(permits, us, block, silence)
    permits.clock = step.now
    permits.limit, permits.extra, permits.pinned = wanted, 0, True
    step.hand_over("", 0)
    permits.tell("")
    return [wanted, len(permits.waiters)]


def permit_add(
    permits: Permits, us: int, *, token: str, declared: int, stamp: int | str,
    block: int, inbox: str, silence: int, tombstone: int,
) -> list[int]:  # fmt: skip
    step = Step(permits, us, block, silence)
    if permits.left.get(token, 0) <= step.now:
        permits.clock = step.now
        if permits.limit is None:
            permits.limit, permits.stamp = declared, us if stamp == "" else int(stamp)
        permits.extra += 1
        permits.refuse(token, step.now, tombstone)
        step.hand_over("", 0)
        permits.tell("")
    return [permits.capacity(), len(permits.waiters)]


def permit_info(permits: Permits, us: int) -> list[int | Listing]:
    now = Step(permits, us).now
    live = sorted((end, token) for token, end in permits.holders.items() if end > now)
    holding: Listing = []
    for end, token in live[:1000]:
        holding += [token.encode(), end - now, now - permits.since.get(token, now)]
    waiting: Listing = []
    for token, ticket in list(permits.waiters.items())[:1000]:
        waiting += [token.encode(), max(0, (us - ticket) // 1000)]
    pinned = int(permits.pinned)
    waits = len(permits.waiters)
    limit = -1 if permits.limit is None else permits.capacity()
    return [limit, pinned, len(live), waits, holding, waiting, permits.fence]


TRANSITIONS: Final[Transitions] = {
    transition.__name__: transition
    for transition in (
        permit_acquire, permit_release, permit_renew, permit_revoke,
        permit_resize, permit_add, permit_info, permit_yield, permit_wake,
    )
}  # fmt: skip
