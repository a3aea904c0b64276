"""Services that read a file of settings again when somebody has changed it.

    python examples/config_reload.py [URL]

The URL defaults to $DSYNC_URL, else to memory://: here all services live in one process.
"""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import dsync


class Service:
    """Works by settings that may change at any time."""

    def __init__(self, name: str, path: Path, bus: dsync.EventBus) -> None:
        self.name = name
        self.settings: dict[str, Any] = {}
        self._path = path
        self._bus = bus
        self._reading = asyncio.Lock()  # one read at a time, so the last one to end began last

    async def start(self) -> None:
        # The event says only *that* they changed, so hearing of it twice does no harm, and where
        # one may have been lost (`on_gap`) we read them as well.
        await self._bus.on("settings.changed", self.reload, on_gap=self.reload)
        await self.reload()  # listen first, read then: no change falls in between

    async def reload(self, _: object = None) -> None:
        async with self._reading:
            self.settings = json.loads(await asyncio.to_thread(self._path.read_text))
        self._bus.trigger("settings.loaded", {"by": self.name, "version": self.settings["version"]})


async def change(path: Path, settings: dict[str, Any], bus: dsync.EventBus, services: int) -> None:
    """Write new settings, and return when so many services work by them."""
    async with bus.subscribe("settings.loaded") as loaded:
        draft = path.with_suffix(".draft")
        await asyncio.to_thread(draft.write_text, json.dumps(settings))
        await asyncio.to_thread(os.replace, draft, path)  # nobody ever reads half of it
        await bus.trigger("settings.changed")
        done = set()
        async with asyncio.timeout(10):
            async for message in loaded:
                if isinstance(message, dsync.Gap):
                    await bus.trigger("settings.changed")  # ask again: we have missed an answer
                elif message.data["version"] == settings["version"]:
                    done.add(message.data["by"])
                    print(message.data["by"], "has version", settings["version"])
                    if len(done) == services:
                        return


async def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DSYNC_URL", "memory://")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "settings.json"
        await asyncio.to_thread(path.write_text, json.dumps({"version": 1, "greeting": "Hello"}))
        async with dsync.connect(url, namespace="example-settings") as client:
            bus = client.event_bus("settings")
            services = [Service(name, path, bus) for name in ("web", "mail", "billing")]
            for service in services:
                await service.start()
            await change(path, {"version": 2, "greeting": "Bonjour"}, bus, len(services))
        assert all(service.settings["greeting"] == "Bonjour" for service in services)


if __name__ == "__main__":
    asyncio.run(main())
