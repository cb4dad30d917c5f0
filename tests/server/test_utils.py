"""Threads with a time limit, merged generators, events that end in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.entrypoints.openai.sse import Events
from vllm.entrypoints.utils import DeadlineExceeded, edit_distance, in_turn, merge_generators, run_with_deadline


def spin() -> None:
    while True:
        pass


async def test_deadline() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert await run_with_deadline(pool, 5, lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await run_with_deadline(pool, 5, lambda: 1 // 0)
        with pytest.raises(DeadlineExceeded):
            await run_with_deadline(pool, 0.05, spin)
        assert await run_with_deadline(pool, 5, lambda: 8) == 8, "the thread is free again"


async def test_deadline_when_nobody_waits_any_more() -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = asyncio.create_task(run_with_deadline(pool, 0.1, spin))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await run_with_deadline(pool, 5, time.monotonic) > 0


class Source:
    """A generator that knows whether it was closed."""

    def __init__(self, items: list[int], failure: Exception | None = None) -> None:
        self.closed = False
        self._items = items
        self._failure = failure

    async def events(self) -> AsyncGenerator[int, None]:
        try:
            for item in self._items:
                await asyncio.sleep(0)
                yield item
            if self._failure:
                raise self._failure
        finally:
            self.closed = True


async def test_merge_gives_everything_in_order() -> None:
    sources = [Source(list(range(10 * i, 10 * i + i))) for i in range(5)]
    seen: dict[int, list[int]] = {}
    async for index, item in merge_generators([source.events() for source in sources]):
        seen.setdefault(index, []).append(item)
    assert seen == {i: list(range(10 * i, 10 * i + i)) for i in range(1, 5)}


@pytest.mark.parametrize("count", [1, 3])
async def test_merge_closes_all_when_it_is_closed(count: int) -> None:
    sources = [Source(list(range(1000))) for _ in range(count)]
    merged = merge_generators([source.events() for source in sources])
    await anext(merged)
    await asyncio.sleep(0)
    await merged.aclose()
    assert all(source.closed for source in sources)


async def test_merge_closes_all_when_one_fails() -> None:
    sources = [Source(list(range(1000))), Source([1], ValueError("no"))]
    with pytest.raises(ValueError, match="no"):
        async for _ in merge_generators([source.events() for source in sources]):
            pass
    assert all(source.closed for source in sources)


@given(st.text("ab_c", max_size=6), st.text("ab_c", max_size=6))
def test_edit_distance_is_that_of_the_plain_recursion(left: str, right: str) -> None:
    def distance(i: int, j: int) -> int:
        if min(i, j) == 0:
            return max(i, j)
        best = min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (left[i - 1] != right[j - 1])
        )
        if i > 1 and j > 1 and left[i - 1] == right[j - 2] and left[i - 2] == right[j - 1]:
            best = min(best, distance(i - 2, j - 2) + 1)
        return best

    assert edit_distance(left, right, 10) == distance(len(left), len(right))


class ByteSource(Source):
    async def bytes(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.events()) as items:
            async for item in items:
                yield b"%d" % item


async def test_events_raise_before_the_first_and_report_after() -> None:
    with pytest.raises(ValueError):
        await Events(ByteSource([], ValueError("at once")).bytes()).prime()
    events = await Events(ByteSource([1, 2], RuntimeError("later")).bytes()).prime()
    got = [event async for event in events]
    assert got[:2] == [b"1", b"2"] and b'"code":500' in got[2] and got[2].endswith(b"data: [DONE]\n\n")
    assert len(got) == 3


async def test_events_close_their_source_though_never_read() -> None:
    source = ByteSource(list(range(10)))
    events = await Events(source.bytes()).prime()
    await events.aclose()
    await asyncio.sleep(0)
    assert source.closed


async def turns_of_others(work: Awaitable[object]) -> int:
    """How often another task has the event loop while `work` is done."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await work
    counting.cancel()
    return turns


async def test_many_pieces_of_work_let_others_have_the_loop() -> None:
    """S1: a request of a thousand prompts is as many pieces, none of which waits for anything."""

    async def one(number: int) -> int:
        return number

    async def items() -> AsyncGenerator[int, None]:
        yield 1

    async def drain() -> None:
        async for _ in merge_generators([items() for _ in range(400)]):
            pass

    assert await in_turn(one, range(20)) == list(range(20))
    assert await turns_of_others(in_turn(one, range(400))) >= 40
    assert await turns_of_others(drain()) >= 40


async def test_generators_that_have_not_begun_are_closed() -> None:
    sources = [Source([1]) for _ in range(50)]
    merged = merge_generators([source.events() for source in sources])
    waiting = asyncio.ensure_future(merged.__anext__())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await merged.aclose()
