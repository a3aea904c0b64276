"""Assertions about who holds what, as the store has it."""

from dsync.client import Client
from dsync.holding import Holding
from dsync.info import Holder, holders_of
from dsync.names import who

__all__ = ["assert_free", "assert_held", "holders", "leaks"]


async def holders(primitive: Holding) -> tuple[Holder, ...]:
    """Who holds permits of a lock or semaphore now, over all processes."""
    if not isinstance(primitive, Holding):
        raise TypeError(f"it takes a lock or a semaphore, got {primitive!r}")
    *_, holding, _, _ = await primitive._cohort.answer("permit_info")
    return holders_of(holding)


async def assert_held(primitive: Holding, by: Client | None = None) -> None:
    """Somebody holds this lock, or a permit of this semaphore; `by`: this client does.

    Raises:
        AssertionError: it says who holds it instead.
    """
    listed = await holders(primitive)
    what = primitive._cohort.what
    if not listed:
        raise AssertionError(f"{what} is held by nobody")
    if by is not None and not any(who(holder.token)[0] == by.client_id for holder in listed):
        raise AssertionError(f"{what} is not held by {by!r}, but by {_names(listed)}")


async def assert_free(primitive: Holding) -> None:
    """Nobody holds this lock, or any permit of this semaphore.

    Raises:
        AssertionError: it says who does.
    """
    listed = await holders(primitive)
    if listed:
        raise AssertionError(f"{primitive._cohort.what} is held by {_names(listed)}")


def _names(listed: tuple[Holder, ...]) -> str:
    return ", ".join(
        f"{holder.label} (pid {holder.pid} on {holder.host}, for {holder.held:.1f} s, "
        f"{holder.lease_left:.1f} s of its lease left)"
        for holder in listed
    )


def leaks(client: Client) -> list[str]:
    """What tasks of a client have acquired that ended without releasing it, for messages."""
    found: list[str] = []
    if client._closed:
        return found
    for hold in client.keeper.holds():
        owner = hold.lease.owner if hold.lease is not None else None
        if owner is not None and owner.done():
            coroutine = getattr(owner.get_coro(), "__qualname__", "?")
            found.append(f"{hold.cohort.what}, acquired by {owner.get_name()} ({coroutine})")
    return found
