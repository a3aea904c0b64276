"""Assertions about who holds what ask the store, and say what they found."""

import pytest

import dsync
from dsync.testing import assert_free, assert_held
from tests.testing.conftest import Process


async def test_a_lock_is_held_or_free_whoever_asks(process: Process) -> None:
    client, other = process(), process()
    await assert_free(client.lock("x"))
    with pytest.raises(AssertionError, match="lock 'x' is held by nobody"):
        await assert_held(client.lock("x"))
    async with client.lock("x"):
        for asks in (client, other):
            await assert_held(asks.lock("x"))
            await assert_held(asks.lock("x"), by=client)
            with pytest.raises(AssertionError, match=r"lock 'x' is not held by .*, but by .*pid"):
                await assert_held(asks.lock("x"), by=other)
            with pytest.raises(AssertionError, match=r"lock 'x' is held by .* of its lease left"):
                await assert_free(asks.lock("x"))
    await assert_free(other.lock("x"))


async def test_one_permit_is_enough_for_a_semaphore_to_be_held(process: Process) -> None:
    client = process()
    semaphore = client.semaphore("s", 3)
    await assert_free(semaphore)
    async with semaphore:
        await assert_held(semaphore, by=client)
        with pytest.raises(AssertionError, match="semaphore 's' is held by"):
            await assert_free(semaphore)
    await assert_free(semaphore)


async def test_what_is_not_a_lock_or_semaphore_is_refused_by_name(process: Process) -> None:
    event: dsync.Event = process().event("e")
    with pytest.raises(TypeError, match="a lock or a semaphore"):
        await assert_free(event)  # type: ignore[arg-type]
