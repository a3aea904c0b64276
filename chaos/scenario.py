"""One scenario from its beginning to its verdict."""

import asyncio
import math
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dsync
from chaos.faults import Fault
from chaos.scene import Scene, until
from chaos.servers import Backend
from chaos.work import Work
from dsync.testing import Event, Proxy, Violation, harms
from dsync.testing.history import who

__all__ = ["Result", "play"]

READY = 20.0  # seconds for all workers to come to work
BACK = 12.0  # seconds for all to get on again after the last harm; the heartbeat is 2
INSTANT = 0.1  # seconds: harms so short may come faster than everybody has a turn
HEARTBEAT = 2.0  # seconds for a fresh client to find free what nobody holds any more


@dataclass
class Result:
    """What was found in one scenario, or that there is none: the fault says nothing of this."""

    fault: str
    work: str
    seed: str
    applies: bool = True
    operations: int = 0
    harms: int = 0
    losses: int = 0
    recovery: float | None = None  # seconds, the worst
    goal: float | None = None
    violations: list[Violation] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether all promises were kept.  The goal is none of them."""
        return not (self.violations or self.leftovers)


async def play(
    fault: Fault,
    work: Work,
    seed: str,
    seconds: float,
    connect: str = "dsync:connect",
    keep: Path | None = None,
) -> Result:
    """Run a scenario for so many seconds, and some more to see that all comes right again.

    Args:
        fault: what is done.
        work: what it is done to.
        seed: what chance begins with.
        seconds: for which harm is done.
        connect: `module:function` to make the workers' clients with.
        keep: a directory to leave the history in.
    """
    result = Result(fault.name, work.name, seed, goal=fault.goal)
    if fault.waiters and not work.queues:
        result.applies = False
        return result
    with tempfile.TemporaryDirectory(prefix="dsync-chaos-") as directory:
        backend = await asyncio.to_thread(Backend, *fault.options, binary=fault.binary)
        try:
            async with Proxy.to(backend.url) as proxy:
                path = Path(directory) / "history"
                scene = Scene(fault, work, backend, proxy, path, seed, connect)
                try:
                    await _play(scene, seconds, result)
                finally:
                    await scene.close()
                    await scene.admin.aclose()
                    if keep is not None:
                        shutil.copy(path, keep / f"{fault.name}-{work.name}.jsonl")
        finally:
            await asyncio.to_thread(backend.close)
    return result


async def _play(scene: Scene, seconds: float, result: Result) -> None:
    history, work = scene.history, scene.work
    for _ in range(work.processes):
        scene.spawn()
    await until(lambda: len(history.events("ready")) >= work.processes, READY)
    scene.ends = time.monotonic() + seconds
    await scene.fault.harm(scene)
    await until(lambda: _all_ready(scene), READY)
    quiet = _claims_end(history.events(), scene.fault.lease)
    back = await until(lambda: time.monotonic() > quiet and _everybody_is_back(scene), BACK)
    stubborn = await scene.dismiss()
    _judge(scene, result, back, stubborn)
    await _look_around(scene, result)


def _judge(scene: Scene, result: Result, back: bool, stubborn: list[int]) -> None:
    events = scene.history.events()
    found = scene.work.check(events, scene.terms)
    if not back:
        found.append(Violation("progress", f"not everybody was back within {BACK:g} s"))
    for pid in stubborn:
        mine = tuple([event for event in events if event["pid"] == pid][-3:])
        found.append(Violation("ending", "a worker did not end when asked to", mine))
    words = Path(f"{scene.history.path}.stderr").read_text(errors="replace").strip()
    if words:
        found.append(Violation("silence", f"workers said {words[-2000:]}"))
    result.violations = found
    result.operations = sum(event["what"] == scene.work.success for event in events)
    result.losses = sum(event["what"] == "lost" for event in events)
    result.harms = len(harms(events))
    result.recovery = _worst(events, scene)
    for event in events:
        if event["what"] == "done":
            result.leftovers += event["left"]


async def _look_around(scene: Scene, result: Result) -> None:
    """What is left when all have gone: nothing held, no key for ever."""
    client: dsync.Client
    async with dsync.connect(scene.backend.url, namespace=scene.namespace) as client:
        try:
            async with asyncio.timeout(HEARTBEAT):
                await scene.work.free(client, scene.terms)
        except TimeoutError:
            result.leftovers.append(f"it was not free within {HEARTBEAT:g} s")
        except AssertionError as seen:
            result.leftovers.append(str(seen))
    key: Any
    async for key in scene.admin.scan_iter(match=f"{{{scene.namespace}:*"):
        name = key.decode()
        for_good = f"{{{scene.namespace}:event:" in name  # one that is set outlives everybody
        if not for_good and await scene.admin.pttl(key) == -1:
            result.leftovers.append(f"{name} has no time to live")


# -- recovery --------------------------------------------------------------------------------------


def _successes(events: Sequence[Event], success: str) -> dict[object, list[float]]:
    """When each task of each process succeeded."""
    found: dict[object, list[float]] = defaultdict(list)
    for event in events:
        if event["what"] == success:
            found[who(event)].append(event["t"])
    return found


def _worst(events: Sequence[Event], scene: Scene) -> float | None:
    """The longest that those concerned needed after a harm to succeed again, seconds."""
    last = events[-1]["t"]
    succeeded = _successes(events, scene.work.success)
    ends: dict[object, float] = {
        event["whom"]: event["t"] for event in events if event["what"] in ("killed", "ended")
    }
    asked_to_end = min((event["t"] for event in events if event["what"] == "done"), default=last)
    worst: list[float] = []
    done = [harm for harm in harms(events) if harm.ends < math.inf]
    for number, harm in enumerate(done):
        # A success after the next harm says nothing of this one.
        next_harm = done[number + 1].starts if number + 1 < len(done) else math.inf
        needed = []
        for key, times in succeeded.items():
            pid = key[1] if isinstance(key, tuple) else None
            next_ = min((t for t in times if t > harm.ends), default=None)
            if next_ is not None and times[0] < harm.starts:
                if next_ < next_harm or harm.ends - harm.starts < INSTANT:
                    needed.append(next_ - harm.ends)
            elif next_ is None and min(ends.get(pid, last), asked_to_end) > harm.ends + BACK:
                needed.append(math.inf)
        if needed:
            worst.append(min(needed) if scene.fault.concerns == "next" else max(needed))
    return max(worst, default=None)


def _everybody_is_back(scene: Scene) -> bool:
    """Whether each worker that runs has succeeded since the last harm."""
    events = scene.history.events()
    since = max((harm.ends for harm in harms(events)), default=0.0)
    succeeded = _successes(events, scene.work.success)
    tasks = {who(event) for event in events if event["what"] in ("waiting", scene.work.success)}
    return all(
        succeeded[key] and succeeded[key][-1] > since for key in tasks if key[1] in scene.workers
    )


def _all_ready(scene: Scene) -> bool:
    ready = {event["pid"] for event in scene.history.events("ready")}
    return scene.workers.keys() <= ready


def _claims_end(events: Sequence[Event], lease: float) -> float:
    """When the server has forgotten those that were killed."""
    return max((event["t"] for event in events if event["what"] == "killed"), default=0.0) + lease
