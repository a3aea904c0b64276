"""However a program ends, forks or changes loops: nothing hangs, and not a word from dsync."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import dsync
from tests.conftest import World, settled

ROOT = Path(__file__).parents[2]
STRICT = ("-X", "dev", "-W", "error")
# Of what a program has not closed Python warns, as of any connection.  dsync has no more to say.
UNCLOSED = tuple(
    word
    for about in ("unclosed transport", "unclosed <socket", "unclosed resource", "loop is closed")
    for word in ("-W", f"ignore:{about}:ResourceWarning")
)

# What is held, waited for, heard and owed at the moment when it ends.
BUSY = """
import asyncio, atexit, gc, os, signal, sys, dsync

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell ignores it
URL, NAMESPACE, LOOP = sys.argv[1:4]
waiting = []  # else the collector would end them

async def wait_inside(condition):
    async with condition:
        await condition.wait()

async def lead(election):
    async with election:
        await asyncio.sleep(100)

async def busy(namespace=NAMESPACE):
    asyncio.get_running_loop().slow_callback_duration = 10  # this machine may be slow
    client = dsync.connect(URL, namespace=namespace)
    lock, permits = client.lock("lock", lease=2), client.semaphore("semaphore", 2, lease=2)
    await lock.acquire()
    await permits.acquire()
    await client.rate_limiter("rate", 1, per=100).acquire()
    flying = asyncio.Event()

    async def compute():
        global computing
        computing = asyncio.current_task()
        flying.set()
        await asyncio.sleep(100)

    stream = client.event_bus("bus").subscribe()
    await stream
    await client.event_bus("bus").on("n", lambda data: None)
    waits = [
        client.lock("lock", lease=2).acquire(),
        client.event("event").wait(),
        wait_inside(client.condition("condition", lease=2)),
        client.barrier("barrier", 2, lease=2).wait(),
        client.rate_limiter("rate", 1, per=100).acquire(),
        client.single_flight("flight", compute, ttl=1, lease=2),
        lead(client.leader("election", lease=2)),
        lead(client.leader("election", lease=2)),
        anext(stream),
    ]
    waiting.extend(asyncio.ensure_future(wait) for wait in waits)
    await flying.wait()
    await client.check()
    client.event("other").set()      # nobody awaits these
    client.event_bus("bus").trigger("n", 1)
    return client

def run(main):
    if LOOP == "uvloop":
        import uvloop
        return uvloop.run(main)
    return asyncio.run(main)
"""


def ends(
    source: str, real: World, *, loop: str = "asyncio", options: tuple[str, ...] = UNCLOSED
) -> "subprocess.CompletedProcess[str]":
    """The program that has said all of BUSY, and then this."""
    done = subprocess.run(
        [
            *(sys.executable, *STRICT, *options),
            *("-c", BUSY + textwrap.dedent(source)),
            *(real.url, real.namespace, loop),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    # What asyncio says in its debug mode of a machine that is slow.
    done.stderr = re.sub(r"^Executing .* took .* seconds\n", "", done.stderr, flags=re.MULTILINE)
    return done


ENDS: dict[str, tuple[str, int]] = {  # the program, and what it returns
    "main returns": (
        """
        async def main():
            await busy()
        run(main())
        """,
        0,
    ),
    "main returns, and all is closed": (
        """
        async def main():
            async with await busy():
                computing.cancel()  # it would go on
            await asyncio.gather(*waiting, return_exceptions=True)
        run(main())
        """,
        0,
    ),
    "sys.exit": (
        """
        async def main():
            await busy()
            sys.exit(3)
        run(main())
        """,
        3,
    ),
    "sys.exit in a callback": (
        """
        async def main():
            await busy()
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(100)
        run(main())
        """,
        3,
    ),
    "an exception": (
        """
        class Ours(Exception): pass
        sys.excepthook = lambda kind, error, traceback: print(kind.__name__)
        async def main():
            await busy()
            raise Ours
        run(main())
        """,
        1,
    ),
    "an exception in the body": (
        """
        class Ours(Exception): pass
        sys.excepthook = lambda kind, error, traceback: print(kind.__name__)
        async def main():
            client = await busy()
            async with client.lock("another"), client.semaphore("another"):
                raise Ours
        run(main())
        """,
        1,
    ),
    "Ctrl-C": (
        """
        sys.excepthook = lambda kind, error, traceback: print(kind.__name__)
        async def main():
            client = await busy()
            async with client.lock("another"):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(100)
        run(main())
        """,
        -signal.SIGINT,
    ),
    "Ctrl-C while it waits": (
        """
        sys.excepthook = lambda kind, error, traceback: print(kind.__name__)
        async def main():
            client = await busy()
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
            await client.lock("lock").acquire()
        run(main())
        """,
        -signal.SIGINT,
    ),
    "a loop that is stopped by hand": (
        """
        loop = asyncio.new_event_loop()
        client = loop.run_until_complete(busy())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
        loop.close()
        del client
        gc.collect()
        """,
        0,
    ),
    "atexit": (
        """
        kept = []
        async def main():
            kept.append(await busy())
        run(main())
        def late():
            # The loop is gone: whatever is called now says so and does not hang.
            for call in (kept[0].lock("lock").locked, kept[0].event("event").is_set):
                call()
            try:
                run(kept[0].aclose())
            except RuntimeError as error:
                print("different event loop" in str(error))
        atexit.register(late)
        """,
        0,
    ),
    "a client of its own in atexit": (
        """
        async def main():
            await busy()
        run(main())
        async def tidy():
            async with dsync.connect(URL, namespace=NAMESPACE) as client:
                async with client.lock("at exit"):
                    print("tidy")
        atexit.register(lambda: run(tidy()))
        """,
        0,
    ),
}
SAYS = {
    "an exception": "Ours\n", "an exception in the body": "Ours\n", "atexit": "True\n",
    "Ctrl-C": "KeyboardInterrupt\n", "Ctrl-C while it waits": "KeyboardInterrupt\n",
    "a client of its own in atexit": "tidy\n",
}  # fmt: skip


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("how", ENDS)
def test_a_busy_program_ends_without_a_word(server_url: str, how: str, loop: str) -> None:
    if loop == "uvloop" and "by hand" in how:
        pytest.skip("it makes its own loop")
    source, code = ENDS[how]
    world = World("server", server_url)
    began = time.monotonic()
    done = ends(source, world, loop=loop, options=() if "closed" in how else UNCLOSED)
    assert (done.returncode, done.stdout, done.stderr) == (code, SAYS.get(how, ""), "")
    assert time.monotonic() - began < 4, "it hung"


@pytest.mark.parametrize("kind", ["with", "client"])
def test_what_a_program_held_that_ended_by_an_exception_is_free(server_url: str, kind: str) -> None:
    """In a body or in a client that was entered: both are left on the way out."""
    world = World("server", server_url)
    source = {
        "with": """
            async def main():
                client = await busy()
                async with client.lock("mine", lease=60), client.semaphore("mine", lease=60):
                    sys.exit(1)
            run(main())
            """,
        "client": """
            async def main():
                async with dsync.connect(URL, namespace=NAMESPACE) as client:
                    await client.lock("mine", lease=60).acquire()
                    await client.semaphore("mine", lease=60).acquire()
                    sys.exit(1)
            run(main())
            """,
    }[kind]
    done = ends(source, world)
    assert (done.returncode, done.stderr) == (1, "")

    async def free() -> None:
        async with dsync.connect(server_url, namespace=world.namespace) as client:
            assert await client.lock("mine").try_acquire()
            assert await client.semaphore("mine").try_acquire()

    asyncio.run(free())


async def test_what_a_program_leaves_that_closed_nothing_is_free_when_its_leases_end(
    real: World,
) -> None:
    """And nothing of it stays: it never said goodbye."""
    real.leftovers_allowed = True
    async with asyncio.timeout(10):
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, *STRICT, *UNCLOSED, "-c"),
            BUSY + "run(busy())\n", real.url, real.namespace, "asyncio",
        )  # fmt: skip
        assert await program.wait() == 0
        began = time.monotonic()
        client = real.client()
        async with (
            client.lock("lock"), client.semaphore("semaphore", 2), client.semaphore("semaphore", 2),
            client.condition("condition"), client.leader("election", sigterm=False),
        ):  # fmt: skip
            assert time.monotonic() - began < 2 + 0.5
        indices = await asyncio.gather(*(client.barrier("barrier", 2).wait() for _ in range(2)))
        assert sorted(indices) == [0, 1]
        assert await client.single_flight("flight", lambda: asyncio.sleep(0, 1), ttl=1) == 1
    await client.event("other").clear()


# -- forks -----------------------------------------------------------------------------------------


def forked(act: Callable[[], object]) -> tuple[int, str]:
    """What a forked child says, which then ends as if it had never been; and its exit code."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 70
        try:
            os.write(writing, repr(act()).encode())
            code = 0
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_child_forked_in_a_running_loop_works_with_a_client_and_a_loop_of_its_own(
    real: World,
) -> None:
    """While the parent holds, waits and listens, and goes on doing so."""
    client = real.client()
    lock = client.lock("x")
    await lock.acquire()
    waiting = asyncio.create_task(client.lock("x").acquire())
    pulse = asyncio.create_task(client.event("x").wait())
    stream = client.event_bus("x").subscribe()
    await stream
    await client.check()

    async def work() -> str:
        async with dsync.connect(real.url, namespace=real.namespace) as own:
            assert not await own.lock("x").try_acquire(), "the parent's"
            async with own.lock("y") as lease:
                await own.event_bus("x").trigger("n", "from the child")
                await own.event("x").set()
                return "held" if lease.held else "lost"

    def child() -> str:
        # This thread runs the parent's loop, in the copy; as multiprocessing, step out of it.
        asyncio._set_running_loop(None)
        loop = asyncio.new_event_loop()
        return loop.run_until_complete(asyncio.wait_for(work(), 5))

    assert forked(child) == (0, "'held'")
    assert await asyncio.wait_for(pulse, 2)
    message = await asyncio.wait_for(anext(stream), 2)
    assert isinstance(message, dsync.Message)
    assert message.data == "from the child"
    assert lock.lease is not None
    assert lock.lease.held
    await lock.release()
    await asyncio.wait_for(waiting, 2)
    client.lock("x")
    await client.event("x").clear()
    stream.cancel()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_childs_exit_and_collector_leave_the_parents_connection_alone(
    real: World,
) -> None:
    client = real.client()
    async with client.lock("x") as lease:
        before = [c["id"] for c in await real.admin.client_list()]

        def child() -> int:
            import gc

            client.__dict__.clear()
            return 0 if gc.collect() >= 0 else 1

        code, _ = forked(child)
        assert code == 0
        await client.check()
        assert lease.held
        assert [c["id"] for c in await real.admin.client_list()] == before


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_process_pool_that_forks_from_a_busy_program_works(server_url: str, loop: str) -> None:
    done = ends(
        """
        import concurrent.futures, multiprocessing, warnings

        def work(number):
            async def main():
                async with dsync.connect(URL, namespace=NAMESPACE) as client:
                    async with client.lock("pool"):
                        return number * number
            return asyncio.run(main())

        async def main():
            client = await busy()
            context = multiprocessing.get_context("fork")
            loop = asyncio.get_running_loop()
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                print(*await asyncio.gather(*(loop.run_in_executor(pool, work, n) for n in (2, 3))))
            await client.check()
            async with client.lock("pool"):
                pass

        run(main())
        """,
        World("server", server_url), loop=loop,
        options=(*UNCLOSED, "-W", "ignore:This process:DeprecationWarning"),  # of its threads
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 9\n", "")


# -- loops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_two_loops_in_two_threads_share_a_lock_by_a_client_each(server_url: str, loop: str) -> None:
    done = ends(
        """
        import threading
        inside = most = total = 0

        async def work():
            global inside, most, total
            asyncio.get_running_loop().slow_callback_duration = 10
            async with dsync.connect(URL, namespace=NAMESPACE) as client:
                for _ in range(50):
                    async with client.lock("threads"):
                        inside += 1
                        total += 1
                        most = max(most, inside)
                        await asyncio.sleep(0)
                        inside -= 1

        threads = [threading.Thread(target=lambda: run(work())) for _ in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(total, most)
        """,
        World("server", server_url), loop=loop,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "100 1\n", "")


def test_a_client_for_each_run_of_a_loop_leaves_nothing_of_the_one_before(server_url: str) -> None:
    done = ends(
        """
        async def main(number):
            global computing
            async with await busy(f"{NAMESPACE}-{number}"):
                computing.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            waiting.clear()
            del computing
        for number in range(3):
            run(main(number))
        gc.collect()
        print(sum(isinstance(thing, dsync.Client) for thing in gc.get_objects()))
        """,
        World("server", server_url),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


async def test_sigterm_in_the_middle_of_everything_ends_it_at_once(real: World) -> None:
    """By default nobody handles it; an election does, and steps down first."""
    real.leftovers_allowed = True
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, *STRICT, "-c"),
        BUSY + "async def main():\n await busy()\n print('up', flush=True)\n"
        " await asyncio.sleep(100)\nrun(main())\n",
        real.url, real.namespace, "asyncio",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stderr is not None
    assert await asyncio.wait_for(program.stdout.readline(), 8) == b"up\n"
    program.send_signal(signal.SIGTERM)
    async with asyncio.timeout(3):
        assert await program.wait() == -signal.SIGTERM
        assert await program.stderr.read() == b""

    async def vacant() -> bool:
        return await real.clients[0].leader("election").leader() is None

    real.client()
    await settled(vacant, "it has stepped down", 1)
