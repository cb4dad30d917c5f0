"""Every sampling parameter in every mode of the engine: what one mode takes, the others must not die of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

MODES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "lookup drafts": ("--spec-method", "ngram", "--spec-tokens", "3"),
    "overlapped": ("--async-scheduling",),
    "contiguous": ("--no-enable-prefix-caching", "--no-enable-chunked-prefill"),
    "small steps": ("--max-num-batched-tokens", "16", "--block-size", "8"),
    "offload": ("--kv-offloading-size", "0.01", "--block-size", "8"),
}
PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 2, "seed": 1},
    {"top_p": 0.1, "top_k": 1, "min_p": 1},
    {"presence_penalty": 2, "frequency_penalty": -2},
    {"repetition_penalty": 1.5},
    {"logit_bias": {"40": 100}},
    {"allowed_token_ids": [40, 41]},
    {"bad_words": ["the", "a b"]},
    {"stop": ["e"], "include_stop_str_in_output": True},
    {"stop_token_ids": [40], "min_tokens": 5},
    {"ignore_eos": True, "max_tokens": 40},
    {"logprobs": 5, "prompt_logprobs": 5},
    {"logprobs": 0, "logprob_token_ids": [1, 2]},
    {"n": 3, "temperature": 1},
    {"structured_outputs": {"regex": "[ab]{6}"}},
    {"use_beam_search": True, "n": 2, "temperature": 0},
    {"echo": True, "max_tokens": 1},
    {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    {"truncate_prompt_tokens": 3},
    {"priority": 0, "cache_salt": "x"},
]


@pytest.fixture(scope="module", params=MODES)
def server(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--max-model-len", "128", "--max-num-seqs", "4", *MODES[request.param]) as running:
        yield running


class TestEveryParameterInEveryMode:
    def test_each_alone_and_all_together(self, server: ServerProcess) -> None:
        """Penalties beside drafts have ended engines. Each is answered, alone and with those that agree with it."""
        together: dict[str, Any] = {}
        for fields in PARAMETERS:
            self.ask(server, fields)
            lonely = {"use_beam_search", "structured_outputs", "allowed_token_ids", "echo", "n"} & fields.keys()
            together |= {} if lonely else fields
        self.ask(server, {**together, "temperature": 1})
        wait_until(server.is_idle)
        assert server.get("/health").status_code == 200
        assert not [line for line in server.log if " ERROR " in line or "Traceback" in line]

    def ask(self, server: ServerProcess, fields: dict[str, Any]) -> None:
        for stream in (False, True):
            if stream and {"prompt_logprobs", "use_beam_search"} & fields.keys():
                continue
            body = {"prompt": "The quick brown fox jumps over it.", "max_tokens": 12, "stream": stream, **fields}
            response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
            assert response.status_code == 200, (fields, response.text)
            assert "error" not in response.text, (fields, response.text)
