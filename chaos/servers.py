"""A server that can be killed, restarted with its data or without, paused, and configured."""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from dsync.server import Server

__all__ = ["Backend"]


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
