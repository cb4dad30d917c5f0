"""When requests are sent: at a rate, in bursts or evenly, and never more than so many at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def arrival_times(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> list[float]:
    """Seconds from the start at which each request is sent.

    The gaps are drawn from a gamma distribution of shape `burstiness`: 1 makes a Poisson process, less comes in bursts,
    more is more even. They are scaled so that the last is at count / rate. An infinite rate sends all at once.
    """
    if math.isinf(rate):
        return [0.0] * count
    moments = np.cumsum(rng.gamma(burstiness, 1.0, count))
    return (moments * (count / rate / moments[-1])).tolist() if count else []


async def send_all(
    requests: Sequence[Request],
    send: Callable[[Request], Awaitable[Answer]],
    arrivals: Sequence[float],
    max_concurrency: int | None,
    on_done: Callable[[], object] = lambda: None,
) -> tuple[list[Answer], list[float], float]:
    """The answers and the seconds waited, in the order of the requests; and the seconds that it all took.

    A request that has arrived waits here while max_concurrency others are under way.
    """
    gate: contextlib.AbstractAsyncContextManager[object] = (
        contextlib.nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    )

    async def send_one(request: Request) -> tuple[Answer, float]:
        arrived = time.perf_counter()
        async with gate:
            waited = time.perf_counter() - arrived
            answer = await send(request)
        on_done()
        return answer, waited

    start = time.perf_counter()
    tasks: list[asyncio.Task[tuple[Answer, float]]] = []
    try:
        for request, arrival in zip(requests, arrivals, strict=True):
            delay = start + arrival - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.append(asyncio.create_task(send_one(request)))
        done = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    seconds = time.perf_counter() - start
    return [answer for answer, _ in done], [waited for _, waited in done], seconds
