"""Arrivals and the bound on requests under way."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.entrypoints.bench.load import arrival_times, send_all


@given(st.integers(0, 200), st.floats(0.01, 1000), st.floats(0.1, 50), st.integers(0, 9))
def test_arrivals_rise_to_count_over_rate(count: int, rate: float, burstiness: float, seed: int) -> None:
    moments = arrival_times(count, rate, burstiness, np.random.default_rng(seed))
    assert len(moments) == count and moments == sorted(moments)
    if count:
        assert moments[0] >= 0 and moments[-1] == pytest.approx(count / rate)
    assert moments == arrival_times(count, rate, burstiness, np.random.default_rng(seed))


def test_burstiness_is_the_spread_of_gaps() -> None:
    def spread(burstiness: float) -> float:
        gaps = np.diff([0.0, *arrival_times(4000, 10, burstiness, np.random.default_rng(0))])
        return float(gaps.std() / gaps.mean())

    for burstiness in (0.25, 1.0, 16.0):
        assert spread(burstiness) == pytest.approx(burstiness**-0.5, rel=0.1)


def test_infinite_rate_is_all_at_once() -> None:
    assert arrival_times(3, float("inf"), 1.0, np.random.default_rng(0)) == [0.0, 0.0, 0.0]


async def test_never_more_at_once_than_allowed() -> None:
    running = most = 0

    async def send(i: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (i % 3))
        running -= 1
        return -i

    done: list[None] = []
    answers, waits, seconds = await send_all(range(20), send, [0.0] * 20, 4, lambda: done.append(None))
    assert answers == [-i for i in range(20)] and most == 4 and len(done) == 20 and seconds > 0
    assert all(waited >= 0 for waited in waits) and max(waits[:4]) < min(waits[4:])
    most = 0
    await send_all(range(20), send, [0.0] * 20, None)
    assert most == 20


async def test_requests_are_not_sent_before_they_arrive() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def send(_: float) -> float:
        return loop.time() - start

    arrivals = [0.0, 0.02, 0.05]
    sent, _, _ = await send_all(arrivals, send, arrivals, None)
    assert all(moment >= arrival for moment, arrival in zip(sent, arrivals, strict=True))


async def test_what_runs_is_cancelled_when_one_raises() -> None:
    cancelled = 0

    async def send(i: int) -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(0 if i == 0 else 30)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        raise RuntimeError("one")

    with pytest.raises(RuntimeError):
        await send_all(range(4), send, [0.0] * 4, None)
    await asyncio.sleep(0)
    assert cancelled == 3
