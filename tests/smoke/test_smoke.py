"""`make smoke`: one path through every room of the house, on `null` and on a tiny model on `cpu`, in some seconds."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.engines import engine_args, greedy
from tests.server.conftest import BASE
from vllm import LLM
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.cli.main import main
from vllm.entrypoints.openai.api_server import build_app, init_app_state
from vllm.entrypoints.openai.cli_args import make_arg_parser, parse_server_args
from vllm.sampling_params import StructuredOutputsParams
from vllm.utils.argparse_utils import FlexibleArgumentParser

PREFIX = [*range(20, 60)]


@pytest.mark.parametrize("device", ["null", "cpu"])
def test_offline(tiny_llama: Path, device: str) -> None:
    """Compile, load, generate; the prefix cache, log-probabilities and a grammar on the way."""
    llm = LLM.from_engine_args(engine_args(tiny_llama, device=device, enable_prefix_caching=True, block_size=16))
    prompts: list[Any] = [{"prompt_token_ids": [*PREFIX, 5]}, {"prompt_token_ids": [*PREFIX, 6]}]
    first, second = llm.generate(prompts, greedy(8, logprobs=1), use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in (first, second)] == [8, 8]
    (again,) = llm.generate(prompts[:1], greedy(8, logprobs=1), use_tqdm=False)
    assert again.outputs[0].token_ids == first.outputs[0].token_ids and again.num_cached_tokens == 32
    choice = greedy(16, ignore_eos=False, structured_outputs=StructuredOutputsParams(choice=["yes", "no"]))
    (answer,) = llm.generate(["Well?"], choice, use_tqdm=False)
    assert answer.outputs[0].text in ("yes", "no")
    assert llm.llm_engine.engine_core.call("check_integrity")
    llm.shutdown()


async def test_server(tiny_llama: Path) -> None:
    """The application over an engine in a process of its own: chat, plain and streamed, metrics and health."""
    words = ["--model", str(tiny_llama), "--device", "null", "--served-model-name", "m"]
    args = parse_server_args(make_arg_parser(FlexibleArgumentParser()), words)
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))
    try:
        app = build_app(args)
        await init_app_state(engine, app.state, args)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
            chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
            plain = (await client.post("/v1/chat/completions", json=chat)).json()["choices"][0]["message"]["content"]
            stream = (await client.post("/v1/chat/completions", json={**chat, "stream": True})).text
            events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
            assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == plain != ""
            assert "vllm:request_success_total" in (await client.get("/metrics")).text
            assert (await client.get("/health")).status_code == 200
    finally:
        engine.shutdown()


def test_plan() -> None:
    """What fits on an accelerator, without one."""
    config = Path(__file__).parents[1] / "data" / "configs" / "llama-3.1-8b"
    words = ["neuron", "plan", "--model", str(config), "-tp", "8", "--max-num-seqs", "4", "--max-model-len", "2048"]
    told = io.StringIO()
    with redirect_stdout(told):
        assert main(words) == 0
    assert "GiB" in told.getvalue()
