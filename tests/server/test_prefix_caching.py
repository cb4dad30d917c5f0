"""Prefix caching over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.process import ServerProcess, serve

PROMPT = [*range(5, 38)]


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    words = ("--max-model-len", "256", "--max-num-seqs", "4", "--enable-prefix-caching", "--block-size", "8")
    with serve(tiny_llama, *words, "--enable-prompt-tokens-details", env={"VLLM_SERVER_DEV_MODE": "1"}) as running:
        yield running


def cached(server: ServerProcess, **options: object) -> int:
    client = server.client()
    answer = client.completions.create(
        model=client.models.list().data[0].id, prompt=PROMPT, max_tokens=2, temperature=0, extra_body=options
    )
    return answer.usage.prompt_tokens_details.cached_tokens


def test_usage_salts_and_reset(server: ServerProcess) -> None:
    assert [cached(server), cached(server)] == [0, 32]
    assert [cached(server, cache_salt="mine"), cached(server, cache_salt="mine")] == [0, 32]
    assert cached(server, cache_salt="other") == 0
    assert httpx.post(f"{server.url}/reset_prefix_cache").status_code == 200
    assert [cached(server), cached(server)] == [0, 32]
    metrics = httpx.get(f"{server.url}/metrics").text
    assert any(
        line.startswith("vllm:prefix_cache_hits_total") and line.endswith(" 96.0") for line in metrics.splitlines()
    )


async def test_reset_is_for_developers(make_client) -> None:
    client = await make_client()
    assert (await client.post("/reset_prefix_cache")).status_code == 404
