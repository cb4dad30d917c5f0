"""Random requests against a real server on the `null` target: nothing dies, nobody else's text changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.security.fuzzer import Fuzzer
from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

NUM_REQUESTS = 600


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--max-model-len", "256", "--max-num-seqs", "8") as running:
        yield running


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_requests(server: ServerProcess, seed: int) -> None:
    async def good(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.completions.create(
            model="test-model", prompt=f"Good {i}", max_tokens=40, seed=i, temperature=1, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async with server.async_client() as client, httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as plain:
        alone = [await good(client, i) for i in range(8)]
        fuzzer = Fuzzer(plain, seed)
        fuzzing = asyncio.create_task(fuzzer.run(NUM_REQUESTS))
        while not fuzzing.done():
            assert await asyncio.gather(*(good(client, i) for i in range(8))) == alone
        await fuzzing
    assert not fuzzer.faults, fuzzer.faults[:3]
    assert fuzzer.counts[200] > NUM_REQUESTS / 20 and fuzzer.counts[400] > NUM_REQUESTS / 20
    wait_until(server.is_idle)
    assert server.get("/health").status_code == 200
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]
