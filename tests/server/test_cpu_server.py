"""SmolLM2 on the `cpu` target, served and asked through the official client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server.process import ServerProcess, serve
from tests.waiting import wait_until

MODEL = "test-model"


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[ServerProcess]:
    with serve(smollm2, "--max-model-len", "256", "--max-num-seqs", "4", device="cpu") as running:
        yield running


def test_chat_makes_sense(server: ServerProcess) -> None:
    answer = server.client().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Who wrote Hamlet?"}],
        temperature=0,
        max_completion_tokens=32,
    )
    assert "Shakespeare" in (answer.choices[0].message.content or "")


def test_streamed_chat_equals_plain(server: ServerProcess) -> None:
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Name three primary colours."}],
        "max_completion_tokens": 24,
        "seed": 3,
        "extra_body": {"top_k": 50},
    }
    client = server.client()
    plain = client.chat.completions.create(**asked).choices[0].message.content  # type: ignore[call-overload]
    stream = client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == plain


async def test_streams_over_few_rows(server: ServerProcess) -> None:
    """Each text is the one that its request gives alone."""

    async def complete(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.completions.create(
            model=MODEL, prompt=f"Fact number {i}:", max_tokens=6 + i % 5, seed=i, temperature=0.8, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async with server.async_client() as client:
        alone = [await complete(client, i) for i in range(16)]
        assert await asyncio.gather(*(complete(client, i) for i in range(16))) == alone
    wait_until(server.is_idle)
