"""Faults on demand: a lease that is lost, a client cut off, a process that dies."""

from collections.abc import Callable

from dsync.client import Client
from dsync.errors import ClientClosed, DsyncError, StoreUnavailable
from dsync.holding import Holding
from dsync.local.store import Memory, MemoryStore
from dsync.store import Arg
from dsync.testing.asserting import holders
from dsync.testing.wires import admit, hang_up, refuse

__all__ = ["cut", "heal", "kill_process", "lose"]


class Unreachable(Memory):
    """What a client of a memory sees of it that cannot reach it: every step is an error.

    It keeps what the client listens to meanwhile.
    """

    def __init__(self, memory: Memory, error: Callable[[], DsyncError]) -> None:
        super().__init__(memory.clock)
        self.memory = memory
        self._error = error

    def apply(self, key: str, transition: str, args: dict[str, Arg]) -> object:
        return self._error()


async def lose(primitive: Holding) -> None:
    """Take a lock or semaphore from all who hold it, as if their leases had run out.

    True on return: none of them has a permit any more, those of this primitive's client know it
    (`on_lost`), and whoever waited next may have it.

    Raises:
        AssertionError: nobody holds it.
    """
    listed = await holders(primitive)
    cohort = primitive._cohort
    if not listed:
        raise AssertionError(f"{cohort.what} is held by nobody: nothing can be lost")
    for holder in listed:
        hold = cohort.holds.get(holder.token)
        lease = hold.lease if hold is not None else None
        await cohort.revoke(holder.token)
        if lease is not None:  # over a pool it may hear of it later than we
            await lease.lost.wait()


def cut(client: Client) -> None:
    """Cut a client off from its store, until `heal()`.

    Its leases run out, messages pass it by, and what it asks ends in StoreUnavailable: on a server
    after `outage_timeout`, in memory at once, as if that had passed already.

    Raises:
        TypeError: it is a client of a cluster or of a pool; put a Proxy in front of these.
        RuntimeError: it is cut off already.
    """
    store = client.store
    if isinstance(store, MemoryStore):
        if isinstance(store.memory, Unreachable):
            raise RuntimeError(f"{client!r} is cut off already")
        _sever(store, lambda: StoreUnavailable("the memory could not be asked: the test cut it"))
    else:
        refuse(client)


def heal(client: Client) -> None:
    """Undo `cut()`: the client asks again for all that it waits for or holds.

    Raises:
        RuntimeError: it is not cut off.
    """
    store = client.store
    if not isinstance(store, MemoryStore):
        admit(client)
        return
    severed = store.memory
    if not isinstance(severed, Unreachable) or client._closed:
        raise RuntimeError(f"{client!r} is not cut off")
    store._memory = memory = severed.memory
    memory.inboxes[store.client_id] = client
    for channel in severed.listeners:
        memory.listeners.setdefault(channel, {})[store.client_id] = client
    store.listening = store.connected = True
    client.gap()


def kill_process(client: Client) -> None:
    """Let a client fall silent as if its process had been killed, for good.

    What it holds stays held until the leases run out, what it waits for until its silence is
    noticed.  It releases, renews and hears nothing any more; who uses it gets ClientClosed.
    """
    if client._closed:
        return
    client.keeper.close()
    store = client.store
    if isinstance(store, MemoryStore):
        _sever(store, lambda: ClientClosed(f"the process of {client.client_id} was killed"))
    else:
        hang_up(client)
    client._closed = True
    client._entered = None


def _sever(store: MemoryStore, error: Callable[[], DsyncError]) -> None:
    """Put a memory that cannot be reached in place of the one that can."""
    memory = store.memory
    store._memory = severed = Unreachable(memory, error)
    memory.inboxes.pop(store.client_id, None)
    for channel, listeners in list(memory.listeners.items()):
        if store.client_id in listeners:
            severed.listeners[channel] = {store.client_id: listeners.pop(store.client_id)}
            if not listeners:
                del memory.listeners[channel]
    store.listening = store.connected = False
