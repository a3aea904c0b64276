"""Barrier: asyncio's, in one process."""

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from dsync.arguments import checked_seconds
from dsync.barrier import Barrier as _Barrier
from dsync.barrier import BarrierInfo
from dsync.errors import WaitTimeout
from dsync.line import DONE
from dsync.local.waiting import Waiter, Waiting, current_task, wake
from dsync.reply import Reply

__all__ = ["Barrier"]


class State(enum.Enum):
    FILLING = "filling"  # tasks come and wait
    DRAINING = "draining"  # all have come; they leave, and who comes now waits for the last
    RESETTING = "resetting"  # the same, but they leave as BrokenBarrierError
    BROKEN = "broken"  # nobody waits until it is reset


Order = tuple["asyncio.Task[Any]", Callable[[], None]]  # by whom, and what for


class Barrier(Waiting, _Barrier):
    """asyncio.Barrier, with `timeout=`, and `reset()` and `abort()` that need not be awaited."""

    # asyncio has a Condition in here.  Its lock would protect nothing: between two awaits no other
    # task runs.

    name = ""

    def __init__(self, parties: int) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        self._waiters: deque[Waiter] = deque()  # for another state
        self._parties = parties
        self._state = State.FILLING
        self._count = 0  # tasks inside
        self._generation = 0  # how often it has tripped
        # Indices of those who came and left again; with those inside, all from 0 up.
        self._given_back: list[int] = []
        self._orders: list[Order] = []

    def _extra(self) -> str:
        self._carry_out_own()
        state = self._state.value
        return state if self.broken else f"{state}, waiters:{self.n_waiting}/{self._parties}"

    async def wait(self, timeout: float | None = None) -> int:
        ends = None
        if timeout is not None:
            ends = time.monotonic() + checked_seconds("timeout", timeout)
        self._carry_out_own()
        await self._block(ends)
        index = self._enter()
        try:
            if self._count == self._parties:
                self._release()
            else:
                await self._wait(ends)
            return index
        finally:
            self._exit(index)

    async def _block(self, ends: float | None) -> None:
        """Wait until those who are leaving have left."""
        while self._state in (State.DRAINING, State.RESETTING):
            await self._change(ends)
        if self._state is State.BROKEN:
            raise asyncio.BrokenBarrierError("Barrier aborted")

    async def _wait(self, ends: float | None) -> None:
        """Wait for the others."""
        while self._state is State.FILLING:
            await self._change(ends)
        if self._state is not State.DRAINING:
            raise asyncio.BrokenBarrierError("Abort or reset of barrier")

    def _enter(self) -> int:
        index = min(self._given_back, default=self._count)
        if self._given_back:
            self._given_back.remove(index)
        self._count += 1
        return index

    def _exit(self, index: int) -> None:
        self._count -= 1
        if self._state is State.FILLING:
            self._given_back.append(index)
        elif self._count == 0 and self._state is not State.BROKEN:
            self._fill()

    def _fill(self) -> None:
        self._given_back.clear()
        self._enter_state(State.FILLING)

    def _release(self) -> None:
        self._generation += 1
        self._enter_state(State.DRAINING)

    def _reset(self) -> None:
        if self._count > 0:
            self._enter_state(State.RESETTING)
        else:
            self._fill()

    def _abort(self) -> None:
        self._enter_state(State.BROKEN)

    def _enter_state(self, state: State) -> None:
        self._state = state
        for waiter in self._waiters:
            wake(waiter)

    # -- reset and abort --------------------------------------------------------------------------

    # In asyncio they are coroutines, and `create_task(barrier.reset())` happens behind what the
    # tasks do that were to run already.  So the change is made when the Reply is awaited, or in
    # the next turn of the loop; and before that, if its own task looks at the barrier.

    def reset(self) -> Reply[None]:
        return self._order(self._reset)

    def abort(self) -> Reply[None]:
        return self._order(self._abort)

    def _order(self, change: Callable[[], None]) -> Reply[None]:
        task = current_task()
        if task is None:
            change()
            return DONE
        order = (task, change)
        self._orders.append(order)
        task.get_loop().call_soon(self._carry_out, order)

        def awaited(reply: Reply[None]) -> None:
            self._carry_out(order)
            reply.settle(None)

        return Reply(ask=awaited)

    def _carry_out(self, order: Order) -> None:
        if order in self._orders:
            self._orders.remove(order)
            order[1]()

    def _carry_out_own(self) -> None:
        if self._orders:
            task = current_task()
            for order in [order for order in self._orders if order[0] is task]:
                self._carry_out(order)

    async def _change(self, ends: float | None) -> None:
        """Wait for another state."""
        state = self._state
        left = None if ends is None else ends - time.monotonic()
        in_time = False
        if left is None or left > 0:
            waiter = self._waiter(left)
            self._waiters.append(waiter)
            try:
                in_time = await waiter
            finally:
                self._waiters.remove(waiter)
        if not in_time and self._state is state:
            raise WaitTimeout(
                f"the others did not come in time ({self.n_waiting} of {self._parties} waited); "
                "this task has left"
            )

    @property
    def parties(self) -> int:
        return self._parties

    @property
    def n_waiting(self) -> int:
        self._carry_out_own()
        return self._count if self._state is State.FILLING else 0

    @property
    def broken(self) -> bool:
        self._carry_out_own()
        return self._state is State.BROKEN

    async def info(self) -> BarrierInfo:
        """How things stand; who they are that wait is not kept."""
        waiting, broken = self.n_waiting, self.broken
        state = self._state.value
        return BarrierInfo("", self._parties, waiting, broken, self._generation, state, ())
