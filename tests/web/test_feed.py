"""One look for all who watch, and none where nobody does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

import dsync
from dsync.web import feed as module
from dsync.web.feed import Feed
from tests.conftest import settled


class World:
    """What is looked at: a number that says how often that was."""

    def __init__(self) -> None:
        self.looks = 0
        self.rests = 0
        self.there = asyncio.Event()
        self.there.set()
        self.trouble: Exception | None = None

    async def look(self) -> dict[str, int]:
        self.looks += 1
        await self.there.wait()
        if self.trouble is not None:
            raise self.trouble
        return {"look": self.looks}

    async def rest(self) -> None:
        self.rests += 1

    def feed(self, every: float = 0.01) -> Feed:
        return Feed(self.look, self.rest, every)


@asynccontextmanager
async def watcher(feed: Feed) -> AsyncIterator[list[str]]:
    """What somebody who watches has seen."""
    seen: list[str] = []

    async def watch() -> None:
        async with aclosing(feed.watch()) as watched:
            async for each in watched:
                seen.append("" if each is None else each.text)  # noqa: PERF401 - as it comes

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_all_who_watch_see_the_same_look() -> None:
    world = World()
    feed = world.feed()
    async with watcher(feed) as one, watcher(feed) as other, watcher(feed) as third:
        await settled(lambda: min(len(one), len(other), len(third)) >= 5)
        assert one[:5] == other[:5] == third[:5] == [f'{{"look": {n}}}' for n in range(1, 6)]
        assert world.looks <= len(one) + 1


async def test_nobody_looks_where_nobody_watches() -> None:
    world = World()
    feed = world.feed()
    before = asyncio.all_tasks()
    async with watcher(feed) as seen:
        await settled(lambda: len(seen) > 2)
    assert feed.viewers == 0
    await settled(lambda: asyncio.all_tasks() == before)
    assert world.rests == 1


async def test_who_comes_back_later_is_not_shown_what_was() -> None:
    world = World()
    feed = world.feed()
    async with watcher(feed) as seen:
        await settled(lambda: bool(seen))
    last = world.looks
    clock = asyncio.get_running_loop().time
    old = clock() + feed.every
    await settled(lambda: clock() > old)
    async with watcher(feed) as seen:
        await settled(lambda: bool(seen))
        assert seen[0] == f'{{"look": {last + 1}}}'


async def test_who_comes_to_others_sees_at_once_what_they_have_seen() -> None:
    world = World()
    feed = world.feed(every=100)
    async with watcher(feed) as one:
        await settled(lambda: bool(one))
        async with watcher(feed) as other:
            await settled(lambda: bool(other))
        assert (one, other, world.looks) == (one, one, 1)


async def test_who_is_slow_sees_the_newest_and_nothing_is_kept_for_it() -> None:
    world = World()
    feed = world.feed()
    slow = feed.watch()
    first = await anext(slow)
    async with watcher(feed) as quick:
        await settled(lambda: len(quick) > 10)
        newest = await anext(slow)
        assert first is not None
        assert newest is not None
        assert newest.text in quick[-2:]
    await slow.aclose()


async def test_asking_twice_looks_once() -> None:
    world = World()
    feed = world.feed(every=100)
    world.there.clear()
    asked = [asyncio.create_task(feed.now()) for _ in range(5)]
    await settled(lambda: world.looks == 1)
    world.there.set()
    assert {(await each).text for each in asked} == {'{"look": 1}'}
    assert world.looks == 1


async def test_trouble_is_shown_and_the_next_look_may_be_well() -> None:
    world = World()
    feed = world.feed()
    world.trouble = dsync.StoreUnavailable("out of reach")
    async with watcher(feed) as seen:
        await settled(lambda: bool(seen))
        assert seen[0] == '{"error": "out of reach"}'
        assert not (await feed.now()).ok
        world.trouble = None
        await settled(lambda: "look" in seen[-1])


@pytest.mark.parametrize("trouble", [ValueError("secret"), OSError("secret")])
async def test_a_mistake_of_ours_is_logged_and_ends_nothing(
    trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    feed = world.feed()
    world.trouble = trouble
    async with watcher(feed) as seen:
        await settled(lambda: len(seen) > 1)
        assert seen[0] == '{"error": "the look failed: see the log"}'
    assert caplog.records[0].exc_info


async def test_where_nothing_is_seen_something_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 0.01)
    world = World()
    world.there.clear()
    async with watcher(world.feed()) as seen:
        await settled(lambda: len(seen) > 2)
        assert set(seen) == {""}


async def test_closing_ends_all_who_watch() -> None:
    world = World()
    feed = world.feed(every=100)
    async with watcher(feed) as one, watcher(feed) as other:
        await settled(lambda: bool(one) and bool(other))
        feed.close()
        await settled(lambda: feed.viewers == 0)
