"""Small things that several entrypoints need: nearest names, threads with a time limit, merged generators."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any, Generic, TypeVar

A = TypeVar("A")
T = TypeVar("T")

_END = object()
_BEGIN_AT_ONCE = 8
"""Pieces of one request's work that follow one another without a look at others'."""


def edit_distance(left: str, right: str, limit: int) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that turn `left` into `right`; limit + 1 if more."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    before_last: list[int] = []
    last = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        row = [i]
        for j, b in enumerate(right, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before_last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
        before_last, last = last, row
    return min(last[-1], limit + 1)


def nearest_field(name: str, known: Iterable[str]) -> str | None:
    """The known field that `name` is most likely a misspelling of, if it is one.

    A misspelling differs by one edit (two from six characters on), or only by case, underscores and dashes. Names of
    one or two characters are too short to tell.
    """
    if not 3 <= len(name) <= 64:
        return None
    plain = _plain(name)
    limit = 1 if len(name) < 6 else 2
    best: tuple[int, str] | None = None
    for candidate in known:
        distance = 0 if _plain(candidate) == plain else edit_distance(name, candidate, limit)
        if distance <= limit and len(candidate) >= 3 and (best is None or distance < best[0]):
            best = distance, candidate
    return best[1] if best else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


class DeadlineExceeded(Exception):
    """Raised inside a thread whose work took longer than it was given."""


async def run_with_deadline(executor: Executor, seconds: float, function: Callable[[], T]) -> T:
    """Run `function` in a thread of `executor` and interrupt it at its next bytecode once it has run too long.

    Raises DeadlineExceeded after `seconds` of running, or at most twice that if it had to wait for a free thread. The
    interrupt reaches Python code only: a call into native code ends first. It comes also when nobody waits any more.
    """
    loop = asyncio.get_running_loop()
    interruptible = _Interruptible(function)
    work = executor.submit(interruptible.run)

    def check() -> None:
        if not work.done():
            interruptible.interrupt()
            loop.call_later(seconds, check)

    timer = loop.call_later(seconds, check)
    try:
        return await asyncio.wrap_future(work)
    finally:
        if work.done():
            timer.cancel()


class _Interruptible(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._thread_id: int | None = None

    def run(self) -> T:
        thread_id = self._thread_id = threading.get_ident()
        try:
            return self._function()
        finally:
            with self._lock:
                self._thread_id = None
                _raise_in_thread(thread_id, None)

    def interrupt(self) -> None:
        with self._lock:
            if self._thread_id is not None:
                _raise_in_thread(self._thread_id, DeadlineExceeded)


def _raise_in_thread(thread_id: int, exception: type[Exception] | None) -> None:
    """Have `exception` raised in the thread soon; None takes back one that was not delivered yet."""
    argument = ctypes.py_object(exception) if exception else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), argument)


async def in_turn(work: Callable[[A], Awaitable[T]], items: Iterable[A]) -> list[T]:
    """The results of `work` for each of `items`, one after another; others have the event loop in between."""
    results: list[T] = []
    for item in items:
        results.append(await work(item))
        if len(results) % _BEGIN_AT_ONCE == 0:
            await asyncio.sleep(0)
    return results


async def merge_generators(generators: list[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all generators as they come, each with the index of its generator.

    They begin a few at a time, so that others have the event loop meanwhile. The first error ends all. However this
    generator ends, all others are closed before it returns.
    """
    if len(generators) == 1:
        async with aclosing(generators[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
    tasks: list[asyncio.Task[None]] = []
    try:
        for index, generator in enumerate(generators):
            tasks.append(asyncio.create_task(_pump(index, generator, queue)))
            if len(tasks) % _BEGIN_AT_ONCE == 0:
                await asyncio.sleep(0)
        remaining = len(tasks)
        while remaining:
            index, item = await queue.get()
            if item is _END:
                remaining -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for generator in generators[len(tasks) :]:
            await generator.aclose()


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error


async def _pump(index: int, generator: AsyncGenerator[Any, None], queue: asyncio.Queue[tuple[int, Any]]) -> None:
    try:
        async with aclosing(generator):
            async for item in generator:
                queue.put_nowait((index, item))
    except Exception as error:
        queue.put_nowait((index, _Failure(error)))
    else:
        queue.put_nowait((index, _END))
