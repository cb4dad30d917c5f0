"""Requests that are being answered: they end when their client goes away, or when the server does.

`InFlight.run` is the one place where a request's work is bound to its connection, for plain answers and for streams.
Cancelling the work closes its engine generators, which aborts the request in the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnected(Exception):
    """Nobody is left to answer."""


class ServerShutdown(Exception):
    """The server takes no more requests, or gave up on this one."""


class RequestTimedOut(Exception):
    """The request took longer than it may."""


class InFlight:
    """Counts and ends what runs. `draining`: no new work is taken; what runs goes on."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._num_reserved = 0
        self._draining = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def load(self) -> int:
        """Requests that the server answers."""
        return len(self)

    async def run(
        self,
        work: Coroutine[Any, Any, T],
        receive: Receive,
        *,
        started: bool = False,
        deadline: float | None = None,
    ) -> T:
        """The result of `work`. Raises ClientDisconnected, RequestTimedOut or ServerShutdown after `work` was cancelled
        and has ended.

        receive: the connection's; the request's body must have been read. started: the answer has begun, so that
        a draining server lets it finish. deadline: the event loop's time at which `work` is given up.
        """
        if self.draining and not started:
            work.close()
            raise ServerShutdown
        task = asyncio.create_task(work)
        watcher = asyncio.create_task(_wait_for_disconnect(receive))
        self._tasks.add(task)
        self._note()
        try:
            seconds = None if deadline is None else deadline - asyncio.get_running_loop().time()
            await asyncio.wait((task, watcher), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await _cancel(task)
                raise ClientDisconnected if watcher.done() else RequestTimedOut
            if task.cancelled():
                raise ServerShutdown
            return task.result()
        finally:
            self._tasks.discard(task)
            self._note()
            watcher.cancel()
            if not task.done():
                task.cancel()

    def reserve(self) -> None:
        """A stream was promised: draining waits for it though it has not begun. `release` it in the end."""
        self._num_reserved += 1

    def release(self) -> None:
        self._num_reserved -= 1

    async def drain(self, seconds: float) -> None:
        """Refuse new work, give what runs `seconds` to finish, then cancel the rest and wait for it to end."""
        self._draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (self._tasks or self._num_reserved) and loop.time() < deadline:
            await asyncio.sleep(0.01)
        told: set[asyncio.Task[Any]] = set()
        while self._tasks:
            for task in self._tasks - told:
                task.cancel()
            told |= self._tasks
            await asyncio.sleep(0.01)

    def cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _note(self) -> None:
        """Another number of requests is being answered."""


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
