"""A command under a lock: in a process group of its own, with a guard that ends it in time."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dsync.cli.options import CANNOT, NO_COMMAND, Failure, say
from dsync.cli.terminal import Terminal

__all__ = ["Child", "forwarding"]

# What we are sent is for the command.
FORWARDED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
# ... and, while there is one, Ctrl-Z and another size of the terminal.
FORWARDED_TO_CHILD = (signal.SIGTSTP, signal.SIGWINCH)
LAST_RESORT = 5.0  # seconds for which we wait for the kernel to end what was killed


@contextmanager
def forwarding(to: Callable[[int], None]) -> Iterator[None]:
    """Signals sent to us go to `to` instead; what is ignored already stays so (`nohup`)."""
    loop = asyncio.get_running_loop()
    taken = [number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
    for number in taken:
        loop.add_signal_handler(number, to, number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


class Child:
    """The command, its guard, and the terminal.

    The guard leads the group, so the group's number means nothing else as long as it is there.  It
    is ready before the command begins.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # By its file, and without what an environment could add: nothing to import, nothing to
        # go wrong.  stdin and stdout are ours, or a pipeline would wait for it.
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                process_group=0,
            )
        except OSError as error:
            raise Failure(f"cannot start the guard process: {error.strerror}", CANNOT) from None
        assert self._guard.stdin is not None
        os.set_blocking(
            self._guard.stdin.fileno(), False
        )  # one that stands still is not to stop us
        self.group: int = self._guard.pid
        self._terminal = Terminal()
        self._process: subprocess.Popen[bytes] | None = None
        self.ended: asyncio.Future[int] = self._loop.create_future()  # -> its code, -N by signal N
        self._guarded = True
        self._ending = False
        self._closed = False
        self.term_at: float = float("inf")  # when the guard ends it, time.monotonic()
        self.kill_at: float = float("inf")

    def start(self, command: Sequence[str], environ: dict[str, str]) -> None:
        """Start it.  `live_until()` was called."""
        assert self._guard.stdout is not None
        if not self._guard.stdout.read(1):
            raise Failure("the guard process could not be started", CANNOT)
        self._loop.add_signal_handler(signal.SIGCHLD, self._look)
        self._loop.add_signal_handler(signal.SIGCONT, self._continued)
        for number in FORWARDED_TO_CHILD:
            self._loop.add_signal_handler(number, self.signal, number)
        try:
            self._process = subprocess.Popen(command, env=environ, process_group=self.group)
        except OSError as error:
            code = NO_COMMAND if isinstance(error, FileNotFoundError) else CANNOT
            raise Failure(f"cannot run {command[0]!r}: {error.strerror}", code) from None
        self._look()  # it may have ended before the handler was there

    def live_until(self, term_at: float, kill_at: float) -> None:
        """Unless this is called again it gets SIGTERM and SIGKILL then, time.monotonic()."""
        if (term_at, kill_at) != (self.term_at, self.kill_at):
            self.term_at, self.kill_at = term_at, kill_at
            self._tell(f"{term_at!r} {kill_at!r}\n")

    async def end(self, grace: float) -> None:
        """SIGTERM now, SIGKILL `grace` seconds later, or when it was to be anyway."""
        self._ending = True
        now = self._loop.time()  # time.monotonic()
        self.live_until(now, min(self.kill_at, now + grace))
        if not self._guarded:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
        if not await self._has_ended(self.kill_at - now):
            self.signal(signal.SIGKILL)  # the guard stands still, or is gone
            if not await self._has_ended(LAST_RESORT):
                say("lock", f"process group {self.group} was killed and does not end")

    async def _has_ended(self, within: float) -> bool:
        return bool((await asyncio.wait([self.ended], timeout=max(within, 0)))[0])

    def signal(self, number: int) -> None:
        """To all of the group."""
        try:
            os.killpg(self.group, number)
        except (ProcessLookupError, PermissionError):
            pass  # all have ended (macOS says it the other way)

    def close(self, *, spare: bool) -> None:
        """The guard goes.  `spare`: what the command has left running goes on."""
        if self._closed:
            return
        self._closed = True
        for number in (signal.SIGCHLD, signal.SIGCONT, *FORWARDED_TO_CHILD):
            self._loop.remove_signal_handler(number)
        self._terminal.close()
        if spare:
            self._tell("done\n")
        for stream in (self._guard.stdin, self._guard.stdout):
            assert stream is not None
            stream.close()
        if spare:
            self._guard.wait()
        else:
            self._guard.returncode = 0  # it does what is left to do after us
        if self._process is not None:
            self._process.returncode = 0  # it was waited for, here

    def _tell(self, line: str) -> None:
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(line.encode())
        except BrokenPipeError:
            pass  # _look() says so

    def _look(self) -> None:
        """Somebody has ended or stands still."""
        assert self._process is not None
        if self._guarded and self._guard.poll() is not None:
            self._guarded = False
            if not self._ending and self._loop.time() < self.kill_at:  # else it did its work
                say(
                    "lock", "the guard process was killed: COMMAND outlives this process if that is"
                )
        while not self.ended.done():
            pid, status = os.waitpid(self._process.pid, os.WNOHANG | os.WUNTRACED)
            if not pid:
                return
            if os.WIFSTOPPED(status):
                self._stopped(os.WSTOPSIG(status))
            else:
                self.ended.set_result(os.waitstatus_to_exitcode(status))

    def _stopped(self, number: int) -> None:
        wants_terminal = number in (signal.SIGTTIN, signal.SIGTTOU)
        if wants_terminal and self._terminal.lend(self.group):
            self.signal(signal.SIGCONT)
        elif number != signal.SIGSTOP and self._terminal.there:
            # Ctrl-Z, or it wants the terminal in the background: the whole job stops, for the shell
            # to take over.  The guard sees to it that it does not stand longer than the lease.
            handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(0, signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, handler)

    def _continued(self) -> None:
        """`fg` or `bg`."""
        self._terminal.lend_again()
        self.signal(signal.SIGCONT)
