"""The terminal of `dsync lock`, lent to its command when that wants it."""

import os
import signal

__all__ = ["Terminal"]


class Terminal:
    """The controlling terminal, if there is one.

    One process group at a time may read from it and gets its Ctrl-C: the shell's job, which we are
    part of.  The command is a group of its own, so the terminal stops it when it reads.  Then we
    lend it the terminal.  A command that does not read leaves it with the job: with what stands
    behind it in a pipeline, such as a pager.
    """

    def __init__(self) -> None:
        self._lent_to: int | None = None  # the group that has it from us
        try:
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            self._fd = -1

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return self._fd >= 0

    def lend(self, group: int) -> bool:
        """Let this group have it, if it is ours to lend.  -> whether it has it now"""
        if self._owner() != os.getpgrp():
            return False
        self._give(group)
        self._lent_to = group
        return True

    def lend_again(self) -> None:
        """We were stopped and go on: who had it before has it again, if we are in front."""
        if self._lent_to is not None:
            self.lend(self._lent_to)

    def take_back(self) -> None:
        """It is the job's again."""
        if self._lent_to is not None and self._owner() == self._lent_to:
            self._give(os.getpgrp())
        self._lent_to = None

    def close(self) -> None:
        """Take it back for good."""
        if self.there:
            self.take_back()
            os.close(self._fd)
            self._fd = -1

    def _owner(self) -> int:
        try:
            return os.tcgetpgrp(self._fd) if self.there else -1
        except OSError:  # it was hung up
            return -1

    def _give(self, group: int) -> None:
        # Who gives it away from the background is stopped by SIGTTOU, unless that is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.tcsetpgrp(self._fd, group)
        except OSError:
            pass  # the group has just ended, or the terminal
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
