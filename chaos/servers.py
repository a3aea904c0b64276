"""A server that can be killed, restarted with its data or without, paused, and configured.

And a clock for it that can be stepped.
"""

import os
import shutil
import signal
import tempfile
from glob import glob
from pathlib import Path
from types import TracebackType
from typing import Self

from dsync.server import Server, find_binary

__all__ = ["Backend", "Clock"]


class Backend:
    """One address, and the server behind it; calls block until it is as they say.

    CONFIG SET and ACL SETUSER go through a client of one's own; a restart forgets them.

    Attributes:
        url: where it is, also after a restart.
        directory: where it keeps its data: an old snapshot may be put there before a restart.

    Args:
        options: the server's own, such as `"--maxmemory", "50mb"`; the last of a kind counts.
        binary: the server to run, such as `redis-server`; None: the embedded Valkey.
    """

    def __init__(self, *options: str, binary: str | None = None) -> None:
        self.options = options
        self._binary = shutil.which(binary) if binary else None
        if binary and self._binary is None:
            raise FileNotFoundError(f"{binary} is not on PATH")
        self.directory = Path(tempfile.mkdtemp(prefix="dsync-chaos-"))
        self._server = self._start(0)
        self.url = self._server.url
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])

    def _start(self, port: int) -> Server:
        return Server.start(self.directory, port, self.options, binary=self._binary)

    @property
    def pid(self) -> int:
        return self._server.pid

    def kill(self) -> None:
        """SIGKILL: what it has not written to its disk is gone."""
        if self._server.alive:
            os.kill(self._server.pid, signal.SIGKILL)
        self._server.stop()

    def restart(self, *, empty: bool) -> None:
        """Kill it if it lives, and start it at the same address; `empty`: without its data."""
        self.kill()
        if empty:
            for file in self.directory.iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        self._server = self._start(self.port)

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self._server.pid, signal.SIGCONT)

    def close(self) -> None:
        self._server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Clock:
    """A time of day for a server to run by, which steps forth and back; its monotonic clock stays.

        with Clock() as clock, Backend(binary=clock.binary) as backend:
            clock.step(3600)

    Needs libfaketime, of Debian's package of that name.

    Attributes:
        binary: runs the server by this clock.
    """

    LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"

    def __init__(self, binary: str | None = None) -> None:
        library = self.library()
        if library is None:
            raise FileNotFoundError(f"there is no libfaketime: {self.LIBRARY}")
        self._home = Path(tempfile.mkdtemp(prefix="dsync-clock-"))
        self._hand = self._home / "hand"
        self._offset = 0.0
        self.step(0)
        settings = (
            f"LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={self._hand} FAKETIME_NO_CACHE=1 "
            "FAKETIME_DONT_FAKE_MONOTONIC=1"
        )
        script = self._home / "server"
        script.write_text(f'#!/bin/sh\nexec env {settings} {binary or find_binary()} "$@"\n')
        script.chmod(0o700)
        self.binary = str(script)

    @classmethod
    def library(cls) -> str | None:
        """Where libfaketime is; None: nowhere."""
        return next(iter(sorted(glob(cls.LIBRARY))), None)

    def step(self, seconds: float) -> None:
        """Put it forward, or with a number below 0 back."""
        self._offset += seconds
        new = self._home / "new"
        new.write_text(f"{self._offset:+f}\n")
        new.replace(self._hand)  # never half written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
