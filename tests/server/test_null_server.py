"""A real server and a real engine on the `null` target, through the official clients: any slip in rows, order or reuse
changes a text.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

MODEL = "test-model"
ROWS = 8
EXAMPLE = Path(__file__).parents[2] / "examples/online_serving/openai_client.py"


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--max-model-len", "256", "--max-num-seqs", str(ROWS)) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> openai.OpenAI:
    return server.client()


def streamed_texts(stream: Any) -> dict[int, str]:
    texts: dict[int, str] = defaultdict(str)
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    return texts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"n": 3, "seed": 5},
        {"prompt": ["one", "two", "three"], "n": 2, "seed": 1},
        {"prompt": [3, 4, 5, 6], "temperature": 0},
        {"echo": True, "temperature": 0},
        {"stop": ["e", "the "], "seed": 3, "max_tokens": 100},
        {"extra_body": {"top_k": 3, "min_p": 0.05, "repetition_penalty": 1.3, "ignore_eos": True}, "seed": 2},
        {"extra_body": {"allowed_token_ids": [40, 50, 60], "min_tokens": 10}, "seed": 2},
        {"presence_penalty": 1.0, "frequency_penalty": 1.0, "logit_bias": {"70": 5}, "seed": 9},
    ],
)
def test_streamed_equals_plain(client: openai.OpenAI, options: dict[str, Any]) -> None:
    asked = {"model": MODEL, "prompt": "The quick brown fox", "max_tokens": 24, "seed": 7, **options}
    plain = client.completions.create(**asked)
    texts = streamed_texts(client.completions.create(**asked, stream=True))
    assert texts == {choice.index: choice.text for choice in plain.choices}
    assert any(texts.values())


def test_chat_streamed_equals_plain(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_completion_tokens": 30,
        "seed": 11,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
    }
    plain = client.chat.completions.create(**asked)
    texts: dict[int, str] = defaultdict(str)
    tokens: dict[int, list[Any]] = defaultdict(list)
    finish: dict[int, str] = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += (choice.logprobs and choice.logprobs.content) or []
            finish[choice.index] = choice.finish_reason or finish.get(choice.index, "")
    for choice in plain.choices:
        assert texts[choice.index] == choice.message.content
        assert finish[choice.index] == choice.finish_reason
        assert choice.logprobs is not None and tokens[choice.index] == choice.logprobs.content
        assert all(len(token.top_logprobs) == 3 for token in tokens[choice.index])


def test_logprobs_and_echo(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The quick", "max_tokens": 5, "temperature": 0, "logprobs": 2}
    both = client.completions.create(**asked, echo=True).choices[0]
    prompt = client.completions.create(**{**asked, "max_tokens": 0}, echo=True).choices[0]
    output = client.completions.create(**asked).choices[0]
    assert both.text == prompt.text + output.text and prompt.text == "The quick"
    assert both.logprobs and prompt.logprobs and output.logprobs
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert getattr(both.logprobs, name) == getattr(prompt.logprobs, name) + getattr(output.logprobs, name)
    assert both.logprobs.token_logprobs is not None and both.logprobs.token_logprobs[0] is None
    # Tokens may have the same text, so they are counted by their ids.
    by_id = client.completions.create(**asked, echo=True, extra_body={"return_tokens_as_token_ids": True}).choices[0]
    assert by_id.logprobs and by_id.logprobs.top_logprobs
    assert all(len(top) in (2, 3) for top in by_id.logprobs.top_logprobs[1:])


def test_stop(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 200, "seed": 4}
    whole = client.completions.create(**asked, extra_body={"ignore_eos": True}).choices[0].text
    mark = next(whole[i : i + 3] for i in range(20, len(whole)) if whole[i : i + 3].isascii())
    cut = client.completions.create(**asked, stop=mark, extra_body={"ignore_eos": True}).choices[0]
    assert cut.text == whole[: whole.index(mark)]
    assert cut.finish_reason == "stop" and cut.stop_reason == mark  # type: ignore[attr-defined]
    kept = client.completions.create(
        **asked, stop=mark, extra_body={"ignore_eos": True, "include_stop_str_in_output": True}
    )
    assert kept.choices[0].text == whole[: whole.index(mark) + 3]


def test_prompt_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="The quick", max_tokens=1, extra_body={"prompt_logprobs": 0})
    entries = answer.choices[0].prompt_logprobs  # type: ignore[attr-defined]
    assert answer.usage is not None and len(entries) == answer.usage.prompt_tokens and entries[0] is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"logprobs": 21}, openai.BadRequestError),
        ({"prompt": [320]}, openai.BadRequestError),
        ({"prompt": "x " * 400}, openai.BadRequestError),
        ({"temperature": 3}, openai.BadRequestError),
        ({"stop": ["x"] * 200}, openai.BadRequestError),
        ({"logit_bias": {"320": 1}}, openai.BadRequestError),
        ({"extra_body": {"priority": 1}}, openai.BadRequestError),
        ({"extra_body": {"cache_salt": "x" * 5000}}, openai.BadRequestError),
        ({"extra_body": {"min_tokens": 20}, "max_tokens": 10}, openai.BadRequestError),
        ({"extra_body": {"prompt_logprobs": -1}}, openai.BadRequestError),
        ({"model": "other"}, openai.NotFoundError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(
    client: openai.OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], stream: bool
) -> None:
    if stream and "prompt_logprobs" in options.get("extra_body", {}):
        return
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": MODEL, "prompt": "a", "max_tokens": 4, **options}, stream=stream)
    assert caught.value.body["message"]  # type: ignore[index]


async def test_many_streams_over_few_rows(server: ServerProcess) -> None:
    """256 streams over 8 rows, all open at once: nothing is lost, and each text is the one its request gives alone."""

    async def complete(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.completions.create(
            model=MODEL, prompt=f"Prompt {i}:", max_tokens=10 + i % 23, seed=i, temperature=1, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async with server.async_client() as client:
        alone = [await complete(client, i) for i in range(64)]
        together = await asyncio.gather(*(complete(client, i % 64) for i in range(256)))
    assert together == alone * 4
    assert len(set(alone)) > 32
    wait_until(server.is_idle)


async def test_bad_requests_among_good_streams(server: ServerProcess) -> None:
    async def good(client: openai.AsyncOpenAI, i: int) -> str:
        answer = await client.completions.create(model=MODEL, prompt=f"Good {i}", max_tokens=30, seed=i)
        return answer.choices[0].text

    async def bad(client: httpx.AsyncClient, body: Any) -> int:
        return (await client.post(f"{server.url}/v1/completions", json=body)).status_code

    bodies = [
        {"prompt": [10**9]},
        {"prompt": "a", "n": 10**9},
        {"prompt": "a", "min_tokens": 50, "max_tokens": None},
        {"prompt": "a" * 5000},
        {"prompt": "a", "allowed_token_ids": [9999]},
        {"prompt": "a", "temperature": 1e308},
        {"prompt": "a", "cache_salt": "\u0000"},
    ]
    async with server.async_client() as client, httpx.AsyncClient() as plain:
        alone = [await good(client, i) for i in range(12)]
        results = await asyncio.gather(
            *(good(client, i) for i in range(12)), *(bad(plain, bodies[i % len(bodies)]) for i in range(40))
        )
    assert results[:12] == alone
    assert set(results[12:]) <= {200, 400}
    assert results[12] == 400


def test_models_tokenize_and_small_routes(server: ServerProcess) -> None:
    assert server.model == MODEL
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": "The quick \u2603"}).json()
    text = httpx.post(f"{server.url}/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert text == {"prompt": "The quick \u2603"} and tokens["max_model_len"] == 256
    chat = httpx.post(f"{server.url}/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert chat["count"] > 0
    assert server.get("/health").status_code == 200
    assert "vllm:generation_tokens_total" in server.get("/metrics").text


def test_example_client_runs_as_it_stands(server: ServerProcess) -> None:
    command = [sys.executable, str(EXAMPLE), "--url", f"{server.url}/v1", "--max-tokens", "8"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert f"Models: {MODEL}" in output and "Completion:" in output and "Chat:" in output and "Streamed:" in output


def test_terminal_clients(server: ServerProcess) -> None:
    for command in (["complete", "-q", "The quick"], ["chat", "-q", "hello", "--system-prompt", "Be brief."]):
        words = [*command, "--url", f"{server.url}/v1", "--max-tokens", "8", "--stats"]
        done = subprocess.run(
            [sys.executable, "-m", "vllm.entrypoints.cli.main", *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout and "tokens/s" in done.stderr


def test_log_holds_no_fault(server: ServerProcess) -> None:
    """Last in the file: whatever was asked above, nothing was unexpected."""
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]
    assert json.loads(server.get("/load").text) == {"server_load": 0}
