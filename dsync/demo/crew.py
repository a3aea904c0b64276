"""The worker processes: started, given orders, killed, stopped, and seen off."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from dsync.demo.journal import Journal

__all__ = ["Crew"]

PATIENCE = 10.0  # seconds until a worker that was asked to end is killed


class Crew:
    """Processes of `dsync.demo.worker`, numbered from 1."""

    def __init__(self, directory: Path, url: str, namespace: str, journal: Journal) -> None:
        self._directory = directory
        self._namespace = namespace
        self._journal = journal
        self._environ = os.environ | {"DSYNC_URL": url}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._seen_off: set[int] = set()

    @property
    def living(self) -> list[int]:
        return [n for n, process in self._processes.items() if process.returncode is None]

    async def add(self) -> int:
        """Start one more, and return its number."""
        number = len(self._processes) + 1
        with self._log(number).open("wb") as log:
            # It reads orders from stdin until we close it, or die.  Its process group is its own:
            # Ctrl-C is for us, who then let it finish.
            self._processes[number] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dsync.demo", "worker"),
                *(str(number), str(self._directory), self._namespace),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environ,
                process_group=0,
            )
        return number

    def order_to_linger(self, number: int, seconds: float) -> None:
        """Have this worker's next hold of the ledger take so long."""
        stdin = self._processes[number].stdin
        assert stdin is not None
        stdin.write(f"{seconds}\n".encode())

    async def kill(self, number: int) -> None:
        process = self._processes[number]
        self._journal.note("killed", whom=number, pid=process.pid)
        process.send_signal(signal.SIGKILL)
        await self._see_off(number)

    async def stop(self, number: int) -> None:
        """It stands still when this returns."""
        process = self._processes[number]
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.05)
        self._journal.note("stopped", whom=number, pid=process.pid)

    def resume(self, number: int) -> None:
        self._journal.note("continued", whom=number)
        self._processes[number].send_signal(signal.SIGCONT)

    async def dismiss(self) -> None:
        """Let all finish what they do, and wait until they have."""
        for number in self.living:
            with contextlib.suppress(ProcessLookupError):
                # It may stand still: we have been interrupted.
                self._processes[number].send_signal(signal.SIGCONT)
            stdin = self._processes[number].stdin
            assert stdin is not None
            stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._see_off(*self._processes)
        except TimeoutError:
            for number in self.living:
                self._processes[number].kill()
            await self._see_off(*self._processes)

    def _last_words(self, number: int) -> str:
        """The last line that it wrote to its terminal, had it one."""
        written = self._log(number).read_text(errors="replace").strip()
        return written.rpartition("\n")[2]

    def _log(self, number: int) -> Path:
        return self._directory / f"worker-{number}.log"

    async def _see_off(self, *numbers: int) -> None:
        for number in numbers:
            code = await self._processes[number].wait()
            if number not in self._seen_off:
                self._seen_off.add(number)
                words = self._last_words(number) if code > 0 else ""
                self._journal.note("ended", whom=number, code=code, words=words)
