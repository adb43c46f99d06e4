"""Whose work runs: a line in which clients take turns, and rows that are computed in turn.

All of it happens in one event loop, so that nothing but the computing itself needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any, TypeVar

from imagegpt.errors import InputError
from imagegpt.studio.limits import Limits

T = TypeVar("T")
Line = deque[asyncio.Future[None]]


class Busy(InputError):  # noqa: N818 - no error in what was asked
    """More wait already than may wait."""


class Turns:
    """Lets requests run: so many at once, and of those who wait each client's first before anyone's second.

    One computation uses all cores, so one runs at a time: requests that are admitted compute a piece each in turn, such
    as a row of pixels, and a short one does not wait for a long one to end.

    Args:
        limits: how many run, how many wait, and for how long one may run.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._free = limits, limits.running
        self._lines: OrderedDict[str, Line] = OrderedDict()  # of each client that waits; the first has the next turn
        self._cores = asyncio.Lock()  # first come, first served: that makes the pieces take turns
        # One thread for all: each thread keeps the memory that it has used, and the next one would ask for more.
        self._thread = ThreadPoolExecutor(1, "studio")

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._lines.values()))

    @property
    def running(self) -> int:
        """How many requests run."""
        return self._limits.running - self._free

    async def run(self, client: str, call: Callable[[], T]) -> T:
        """Compute something short.

        Args:
            client: who asks.
            call: runs in a thread.

        Raises:
            Busy: the line is full.
        """
        async with self._admitted(client):
            return await self._compute(call)

    async def stream(self, client: str, start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Compute something long piece by piece; closing or cancelling this closes it between two pieces.

        Args:
            client: who asks.
            start: makes the iterator, in a thread as all of its pieces.

        Raises:
            Busy: the line is full.
            InputError: the time is over.
        """
        async with self._admitted(client):
            until = time.monotonic() + self._limits.seconds
            pieces: Any = await self._compute(start)
            try:
                while (piece := await self._compute(lambda: next(pieces, None))) is not None:
                    yield piece
                    if time.monotonic() > until:
                        raise InputError(
                            f"Stopped after {self._limits.seconds:g} seconds, the limit: ask for fewer pictures."
                        )
            finally:
                pieces.close()

    @asynccontextmanager
    async def _admitted(self, client: str) -> AsyncIterator[None]:
        await self._enter(client)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, client: str) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        line = self._lines.get(client, ())
        if self.waiting >= self._limits.waiting:
            raise Busy(f"The queue is full: {self.waiting} requests are waiting. Try again in a moment.")
        if len(line) >= self._limits.share:
            raise Busy(f"The queue is full for you: {len(line)} of your requests are waiting. Try again in a moment.")
        turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the turn came at the same moment
            else:
                self._forget(client, turn)
            raise

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(client)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[client]

    def _leave(self) -> None:
        while self._lines:
            client, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[client] = line  # behind all others
            if not turn.done():  # else its request was cancelled at the same moment
                turn.set_result(None)
                return
        self._free += 1

    async def _compute(self, call: Callable[[], T]) -> T:
        async with self._cores:
            working = asyncio.get_running_loop().run_in_executor(self._thread, copy_context().run, call)
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:
                # A thread can't be stopped: what it works on may be touched, and the cores be given on, after it.
                while not working.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([working])
                if not working.cancelled():
                    working.exception()  # looked at, so that asyncio does not report it
                raise
