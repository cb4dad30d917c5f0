"""The prefix cache as users see it: counts in results, usage and metrics; salts; a reset."""

from __future__ import annotations

import pytest

from tests.engine.engines import engine_args, greedy
from vllm import LLM, SamplingParams

OPTIONS = {"enable_prefix_caching": True, "block_size": 8, "disable_log_stats": False}
PROMPT = [*range(5, 38)]


@pytest.fixture(params=[False, True], ids=["whole", "chunked"])
def llm(tiny_llama, request):
    llm = LLM.from_engine_args(engine_args(tiny_llama, enable_chunked_prefill=request.param, **OPTIONS))
    yield llm
    assert llm.llm_engine.engine_core.call("check_integrity")
    llm.shutdown()


def cached(llm: LLM, *prompts: object, **fields: object) -> list[int]:
    outputs = llm.generate(list(prompts), greedy(4, **fields), use_tqdm=False)
    return [output.num_cached_tokens for output in outputs]


def counter(llm: LLM, name: str, **labels: str) -> float:
    return sum(
        metric.value
        for metric in llm.llm_engine.get_metrics()
        if metric.name == name and labels.items() <= metric.labels.items()
    )


def test_results_say_what_was_found(llm):
    prompt = {"prompt_token_ids": PROMPT}
    assert cached(llm, prompt) == [0]
    assert cached(llm, prompt) == [32]
    assert cached(llm, {"prompt_token_ids": PROMPT[:32]}) == [31]
    assert cached(llm, {"prompt_token_ids": [*PROMPT[:20], 3]}) == [16]
    params = SamplingParams(n=3, seed=1, max_tokens=2, ignore_eos=True)
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert output.num_cached_tokens == 32
    assert cached(llm, prompt, prompt_logprobs=1) == [0]


def test_the_text_is_the_same_found_or_not(llm, tiny_llama):
    plain = LLM.from_engine_args(engine_args(tiny_llama, enable_prefix_caching=False, enable_chunked_prefill=False))
    (expected,) = plain.generate([{"prompt_token_ids": PROMPT}], greedy(9, logprobs=2), use_tqdm=False)
    plain.shutdown()
    for _ in range(2):
        (output,) = llm.generate([{"prompt_token_ids": PROMPT}], greedy(9, logprobs=2), use_tqdm=False)
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        assert output.outputs[0].logprobs == expected.outputs[0].logprobs


def test_prompts_of_one_call_share(llm):
    prompts = [{"prompt_token_ids": [*PROMPT[:24], 40 + i]} for i in range(6)]
    assert cached(llm, *prompts) == [0, 24, 24, 24, 24, 24]


def test_salts_share_nothing(llm):
    def salted(salt):
        return {"prompt_token_ids": PROMPT, "cache_salt": salt}

    assert cached(llm, salted("a"), {"prompt_token_ids": PROMPT}, salted("b")) == [0, 0, 0]
    assert cached(llm, salted("a"), {"prompt_token_ids": PROMPT}, salted("b"), salted("c")) == [32, 32, 32, 0]


def test_after_a_stop_string_all_that_was_computed_is_found(llm):
    (whole,) = llm.generate([{"prompt_token_ids": PROMPT}], greedy(20, logprobs=0), use_tqdm=False)
    text = whole.outputs[0].text
    llm.reset_prefix_cache()
    (short,) = llm.generate([{"prompt_token_ids": PROMPT}], greedy(20, stop=[text[8:12]]), use_tqdm=False)
    assert short.outputs[0].finish_reason == "stop"
    computed = len(PROMPT) + len(short.outputs[0].token_ids) - 1
    (after,) = cached(llm, {"prompt_token_ids": [*PROMPT, *whole.outputs[0].token_ids]})
    assert after == computed // 8 * 8


def test_a_reset_forgets(llm):
    prompt = {"prompt_token_ids": PROMPT}
    cached(llm, prompt)
    assert llm.reset_prefix_cache()
    assert cached(llm, prompt) == [0]
    assert cached(llm, prompt) == [32]


def test_metrics_count_tokens(llm):
    for prompt in ([PROMPT, PROMPT[:9]], [PROMPT]):
        cached(llm, *({"prompt_token_ids": ids} for ids in prompt))
    assert counter(llm, "vllm:prefix_cache_queries") == 33 + 9 + 33
    assert counter(llm, "vllm:prefix_cache_hits") == 8 + 32
    assert counter(llm, "vllm:prompt_tokens_by_source", source="local_cache_hit") == 8 + 32
    assert counter(llm, "vllm:prompt_tokens_by_source", source="local_compute") == 33 + 1 + 1
