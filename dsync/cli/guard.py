"""The guard of `dsync lock`: ends a command that nobody keeps the lock for any more.

It is a process of its own, the leader of the group that the command joins, so it is there whatever
becomes of `dsync lock`: stopped, killed, or in a loop.  Each line on stdin is two times, by the
clock that all processes share (time.monotonic()): SIGTERM goes to the group at the first, SIGKILL
at the second, unless a later line moves them.  After SIGTERM nothing moves them.  End of file means
that `dsync lock` is gone: SIGTERM at once, SIGKILL as much later as between the two times, and not
after the second.  The line `done` ends the guard, and nothing else.

It runs as a script, isolated and with the smallest imports: it has to be there in no time.
"""

import os
import select
import signal
import time

__all__ = ["main"]

NEVER = float("inf")


def main() -> None:
    """Watch, until the command has ended or is ended."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)  # what the group gets is for the command
    os.write(1, b"ready\n")
    watched, unread = [0], b""
    term_at, kill_at, grace = NEVER, NEVER, NEVER
    ended = False
    while True:
        now = time.monotonic()
        if not ended and now >= term_at:
            ended = True
            os.kill(0, signal.SIGTERM)
            os.kill(0, signal.SIGCONT)  # what stands still would not hear of it
        if now >= kill_at:
            os.kill(0, signal.SIGKILL)  # which is our end, too
        wake = kill_at if ended else min(term_at, kill_at)
        wait = None if wake == NEVER else max(wake - now, 0)
        if not select.select(watched, [], [], wait)[0]:
            continue
        data = os.read(0, 65536)
        if not data:
            watched, term_at = [], 0.0
            kill_at = min(kill_at, time.monotonic() + grace)
            if kill_at == NEVER:
                return  # no command has begun
            continue
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            if line == b"done":
                return
            if not ended:
                term_at, kill_at = map(float, line.split())
                grace = max(kill_at - term_at, 0.0)


if __name__ == "__main__":
    main()
