"""The KV store as users meet it: what was pushed out, or computed before a restart, is found and changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.engines import engine_args, greedy
from vllm import LLM

SMALL = {"enable_prefix_caching": True, "block_size": 16, "max_num_seqs": 1, "max_model_len": 96}
PROMPTS = [[5 + i, *range(20, 84)] for i in range(8)]


def start(model: Path, device: str, **options: Any) -> LLM:
    return LLM.from_engine_args(engine_args(model, device=device, disable_log_stats=False, **SMALL, **options))


def ask(llm: LLM, ids: list[int], **fields: Any) -> tuple[Any, int]:
    """What a user sees of an answer, and how much of the prompt was cached."""
    (output,) = llm.generate([{"prompt_token_ids": ids}], greedy(6, logprobs=2, **fields), use_tqdm=False)
    return (output.outputs[0].token_ids, output.outputs[0].logprobs), output.num_cached_tokens


def metric(llm: LLM, name: str, **labels: str) -> float:
    found = [m for m in llm.llm_engine.get_metrics() if m.name == name and labels.items() <= m.labels.items()]
    assert found, name
    return sum(m.value for m in found)


def end(llm: LLM) -> None:
    assert llm.llm_engine.engine_core.call("check_integrity")
    llm.shutdown()


@pytest.fixture(scope="module", params=["null", "cpu"])
def expected(tiny_llama, request):
    """(target, the answer to each prompt without a cache)."""
    options = {**SMALL, "enable_prefix_caching": False, "block_size": None, "enable_chunked_prefill": False}
    llm = LLM.from_engine_args(engine_args(tiny_llama, device=request.param, **options))
    answers = [ask(llm, prompt)[0] for prompt in PROMPTS]
    llm.shutdown()
    return request.param, answers


def test_what_the_pool_pushed_out_comes_back(tiny_llama, expected):
    device, answers = expected
    llm = start(tiny_llama, device, kv_offloading_size=0.1)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert ask(llm, prompt) == (answer, 0)
    assert ask(llm, PROMPTS[0]) == (answers[0], 64)
    assert metric(llm, "vllm:external_prefix_cache_hits") == 64
    assert metric(llm, "vllm:external_prefix_cache_queries") == 9 * 65
    assert metric(llm, "vllm:prefix_cache_hits") == 0
    assert metric(llm, "vllm:prompt_tokens_by_source", source="external_kv_transfer") == 64
    end(llm)


def test_without_a_store_it_is_computed_again(tiny_llama, expected):
    device, answers = expected
    llm = start(tiny_llama, device)
    for prompt in PROMPTS:
        ask(llm, prompt)
    assert ask(llm, PROMPTS[0]) == (answers[0], 0)
    end(llm)


def test_files_outlive_the_engine(tiny_llama, expected, tmp_path):
    device, answers = expected
    options = {"kv_offloading_dir": str(tmp_path)}
    llm = start(tiny_llama, device, **options)
    assert ask(llm, PROMPTS[0]) == (answers[0], 0)
    end(llm)
    llm = start(tiny_llama, device, **options)
    assert ask(llm, PROMPTS[0]) == (answers[0], 64)
    assert ask(llm, PROMPTS[0]) == (answers[0], 64)
    assert metric(llm, "vllm:external_prefix_cache_hits") == 64
    assert metric(llm, "vllm:prefix_cache_hits") == 64
    end(llm)


def test_damaged_files_cost_time_only(tiny_llama, expected, tmp_path):
    device, answers = expected
    options = {"kv_offloading_dir": str(tmp_path)}
    llm = start(tiny_llama, device, **options)
    ask(llm, PROMPTS[0])
    end(llm)
    for path in tmp_path.glob("kv-*/*"):
        path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
    llm = start(tiny_llama, device, **options)
    assert ask(llm, PROMPTS[0]) == (answers[0], 0)
    end(llm)
    llm = start(tiny_llama, device, **options)
    assert ask(llm, PROMPTS[0])[1] == 64
    end(llm)


def test_a_reset_forgets_the_store_when_told(tiny_llama, tmp_path):
    llm = start(tiny_llama, "null", kv_offloading_dir=str(tmp_path))
    ask(llm, PROMPTS[0])
    ask(llm, PROMPTS[1])
    assert llm.reset_prefix_cache()
    assert ask(llm, PROMPTS[0])[1] == 64
    assert llm.reset_prefix_cache(reset_connector=True)
    assert ask(llm, PROMPTS[0])[1] == 0
    end(llm)


def test_salts_and_prompt_logprobs_read_nothing_of_others(tiny_llama, tmp_path):
    llm = start(tiny_llama, "null", kv_offloading_dir=str(tmp_path))
    ask(llm, PROMPTS[0])
    llm.reset_prefix_cache()
    salted = {"prompt_token_ids": PROMPTS[0], "cache_salt": "mine"}
    (output,) = llm.generate([salted], greedy(2), use_tqdm=False)
    assert output.num_cached_tokens == 0
    assert ask(llm, PROMPTS[0], prompt_logprobs=1)[1] == 0
    end(llm)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kv_offloading_size": 0.0}, "kv_offloading_size"),
        ({"kv_offloading_dir_size": 1.0}, "kv_offloading_dir_size"),
        ({"kv_offloading_size": 1.0, "enable_prefix_caching": False}, "enable_prefix_caching"),
        ({"kv_offloading_size": 1e-9}, "holds no KV block"),
    ],
)
def test_what_cannot_be_is_refused(tiny_llama, options, named):
    with pytest.raises(ValueError, match=named):
        LLM.from_engine_args(engine_args(tiny_llama, **options)).shutdown()
