"""`use_beam_search` through the official client, on the null target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

MODEL = "test-model"


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--max-model-len", "128", "--max-num-seqs", "4") as running:
        yield running


def test_best_first(server: ServerProcess) -> None:
    client = server.client()
    body = {"use_beam_search": True, "length_penalty": 0.8}
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], n=3, max_tokens=5, logprobs=1, extra_body=body)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices[:3]}) == 3
    for choice in answer.choices:
        assert choice.logprobs and all(1 <= len(top) <= 2 for top in choice.logprobs.top_logprobs or [])
    chat: Any = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 5}
    assert (
        len({choice.message.content for choice in client.chat.completions.create(**chat, n=2, extra_body=body).choices})
        == 2
    )
    greedy = client.chat.completions.create(**chat, temperature=0, extra_body={"ignore_eos": True}).choices[0]
    one = client.chat.completions.create(**chat, extra_body={"use_beam_search": True, "ignore_eos": True}).choices[0]
    assert one.message.content == greedy.message.content
    wait_until(server.is_idle)


def test_many_beams(server: ServerProcess) -> None:  # A8
    body = {"prompt": "a", "use_beam_search": True, "n": 16, "max_tokens": 3, "ignore_eos": True, "logprobs": 20}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(texts) == 16
    for choice in answer["choices"]:
        shown = choice["logprobs"]
        assert [len(top) for top in shown["top_logprobs"]] == [20] * 3
        assert all(name in top for name, top in zip(shown["tokens"], shown["top_logprobs"], strict=True))
        assert shown["text_offset"][0] == 0 and shown["text_offset"][-1] <= len(choice["text"])
    wide = httpx.post(f"{server.url}/v1/completions", json={**body, "n": 129}, timeout=30).json()
    assert wide["error"]["param"] == "n" and "129" in wide["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True},
        {"stop": "a"},
        {"presence_penalty": 1},
        {"top_p": 0.5},
        {"logit_bias": {"5": 1}},
        {"guided_regex": "a"},
        {"n": 129},
        {"logprobs": 21},
        {"length_penalty": 1e308},
        {"length_penalty": -1e308},
        {"echo": True},
    ],
)
def test_what_does_not_go_with_it(server: ServerProcess, fields: dict[str, Any]) -> None:
    body = {"prompt": "a", "max_tokens": 4, "use_beam_search": True, **fields}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    assert response.status_code == 400, response.text
