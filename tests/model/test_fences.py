"""Fences against clocks that stand still and step back; see docs/decisions/0015."""

from dsync.local.permits import Permits, permit_acquire, permit_release

BLOCK = 64
NOW = 1_700_000_000_000_000  # µs


def acquired(permits: Permits, us: int, token: str) -> int:
    fence = permit_acquire(
        permits, us, token=token, declared=1, stamp=0, lease=30_000, wait=1, block=BLOCK,
        inbox="", silence=6000,
    )  # fmt: skip
    assert isinstance(fence, int)
    return fence


def release(permits: Permits, us: int, token: str) -> None:
    permit_release(permits, us, token=token, block=BLOCK, inbox="", silence=6000, tombstone=0)


def test_fences_rise_when_the_time_catches_up_with_those_that_were_counted() -> None:
    permits = Permits(lambda process, message: 1)
    first = acquired(permits, NOW, "a.1/5000")
    release(permits, NOW + 10, "a.1/5000")
    second = acquired(permits, NOW - 100, "a.2/5000")  # the clock has stepped back
    assert second == first + BLOCK
    last = second + 40  # passed on 40 times, each of which takes 5 µs
    release(permits, NOW + 100, "a.2/5000")
    assert acquired(permits, NOW + 100, "b.1/5000") > last
    release(permits, NOW + 110, "b.1/5000")
    assert acquired(permits, NOW + 10_000, "b.2/5000") == NOW + 10_000, "the time again"
