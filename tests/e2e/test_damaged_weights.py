"""NaN and infinite logits end the request that has them, and no other: a checkpoint with one damaged row. M4."""

from __future__ import annotations

import json

import httpx
import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

from tests.server.conftest import BASE, make_app
from tests.tiny import make_checkpoint
from vllm import LLM, EngineArgs, SamplingParams
from vllm.core.contract import LOGITS_FAULT
from vllm.engine.async_llm import AsyncLLM

pytestmark = pytest.mark.asyncio(loop_scope="module")
SOUND = ["The quick brown fox", "Prefill writes", "decode reads them again for every token"]
DAMAGED = "a prompt with Z in it, and more text behind"
SIZES = {"max_model_len": 64, "max_num_seqs": 4, "dtype": "float32"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The same checkpoint; the embeddings of the tokens "Z" and "Q" are damaged."""
    directory = make_checkpoint(tmp_path_factory.mktemp("damaged"))
    weights = load_file(directory / "model.safetensors")
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    for token, value in (("Z", "nan"), ("Q", "inf")):
        weights["model.embed_tokens.weight"][vocabulary[token], 5] = float(value)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def _generate(llm, prompts, **fields):
    fields = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logprobs": 3, **fields}
    outputs = llm.generate(prompts, SamplingParams(**fields), use_tqdm=False)
    for output in outputs:
        assert output.metrics is None or output.metrics.is_corrupted == (output.outputs[0].finish_reason == "error")
    return [output.outputs[0] for output in outputs]


def _corrupted(metrics):
    return [metric.value for metric in metrics if metric.name == "vllm:corrupted_requests"]


@pytest.mark.parametrize("options", [{}, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}])
async def test_neighbours_go_on(sound, damaged, options):
    """Also those that get the blocks of KV that the damaged one had."""
    options = {**SIZES, "num_gpu_blocks_override": 16, "block_size": 16, "disable_log_stats": False, **options}
    expected = _generate(LLM(model=str(sound), device="cpu", **SIZES), SOUND)
    llm = LLM(model=str(damaged), device="cpu", **options)
    for prompt in (DAMAGED, DAMAGED.replace("Z", "Q"), DAMAGED):
        *found, failed = _generate(llm, [*SOUND, prompt])
        assert [(each.token_ids, each.logprobs) for each in found] == [
            (each.token_ids, each.logprobs) for each in expected
        ]
        assert (failed.finish_reason, list(failed.token_ids)) == ("error", [])
        assert failed.stop_reason.startswith(LOGITS_FAULT)
    assert _corrupted(llm.get_metrics()) == [3]
    (scored,) = _generate(llm, [DAMAGED], prompt_logprobs=1)
    assert scored.finish_reason == "error" and "a token of the prompt" in scored.stop_reason


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(damaged):
    engine = AsyncLLM.from_engine_args(EngineArgs(model=str(damaged), device="cpu", **SIZES))
    app = await make_app(engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as client:
        yield client
    engine.shutdown()


LATER = {"prompt": "a", "allowed_token_ids": [60], "max_tokens": 5, "logprobs": 2}
"""Its first token is the damaged one."""
ROUTES = {
    "/v1/completions": {"prompt": DAMAGED, "logprobs": 2, "echo": True},
    "/v1/completions#": LATER,
    "/v1/chat/completions": {"messages": [{"role": "user", "content": DAMAGED}], "logprobs": True, "top_logprobs": 2},
    "/v1/responses": {"input": DAMAGED},
    "/v1/messages": {"messages": [{"role": "user", "content": DAMAGED}], "max_tokens": 8},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
async def test_no_answer_holds_nan(http, path, stream):
    before = (await http.get("/metrics")).text
    answer = await http.post(path.rstrip("#"), json={**ROUTES[path], "stream": stream})
    begins = stream and path in ("/v1/completions#", "/v1/responses")
    assert answer.status_code == (200 if begins else 500)
    assert LOGITS_FAULT in answer.text
    assert not {"NaN", "Infinity"} & set(answer.text.replace(LOGITS_FAULT, "").split('"'))
    after = (await http.get("/metrics")).text
    assert _count(after) == _count(before) + 1


def _count(exposed: str) -> float:
    (line,) = [line for line in exposed.splitlines() if line.startswith("vllm:corrupted_requests_total{")]
    return float(line.rpartition(" ")[2])
