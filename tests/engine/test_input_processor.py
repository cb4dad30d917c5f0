"""What a request is checked for, and what the core is given."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.engine.engines import engine_args
from vllm.core.contract import Capabilities
from vllm.engine.llm_engine import load_config_tokenizer
from vllm.engine.text.input_processor import InputProcessor, default_sampling_params, derive_seed
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sample.table import ROWS
from vllm.sampling_params import SamplingParams

VALUES = {
    "min_p": 0.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "seed": 3,
    "logit_bias": {5: 1.0},
    "allowed_token_ids": [5],
    "bad_words": ["a"],
    "min_tokens": 1,
    "logprobs": 0,
    "prompt_logprobs": 0,
    "logprob_token_ids": [5],
}
SAMPLING = frozenset(VALUES)
CAPABILITIES = Capabilities("null", SAMPLING, max_top_k=320, default_top_k=256, max_logprobs=320)


@pytest.fixture(scope="module")
def config(tiny_llama):
    return engine_args(tiny_llama).create_engine_config()


@pytest.fixture(scope="module")
def tokenizer(config):
    return load_config_tokenizer(config)


@pytest.fixture
def processor(config, tokenizer):
    return InputProcessor(config, CAPABILITIES, tokenizer)


def _process(processor, prompt="hello", params=None, **options):
    return processor.process("r", prompt, params or SamplingParams(), **options)


@pytest.mark.parametrize(
    "prompt",
    [
        [5, 6, 7],
        (5, 6, 7),
        np.array([5, 6, 7]),
        [np.int64(5), 6, 7],
        {"prompt_token_ids": [5, 6, 7]},
        {"prompt_token_ids": [5, 6, 7], "prompt": None, "multi_modal_data": None},
    ],
)
def test_forms_of_token_prompts(processor, prompt):
    request = _process(processor, prompt)
    assert request.prompt_token_ids == [5, 6, 7]
    assert all(type(token_id) is int for token_id in request.prompt_token_ids)
    assert request.prompt is None


def test_texts_are_tokenised_with_special_tokens_unless_told(processor, tokenizer):
    assert _process(processor, "hello").prompt_token_ids == tokenizer.encode("hello")
    request = _process(processor, {"prompt": "hello"}, tokenization_kwargs={"add_special_tokens": False})
    assert request.prompt_token_ids == tokenizer.encode("hello", add_special_tokens=False)
    assert request.prompt == "hello"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "cannot be empty"),
        ("", "cannot be empty"),
        ([320], "Token id 320 is out of vocabulary"),
        ([-1], "Token id -1 is out of vocabulary"),
        ([1.5], "list of integers"),
        ([True], "list of integers"),
        (["a"], "list of integers"),
        ([5] * 97, "length 97.*longer than the maximum model length of 96"),
        ([5] * 96, "length 96.*at least 1"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({}, "needs `prompt`"),
        ({"prompt": 5}, "must be a text"),
        ({"prompt_embeds": [1.0]}, "prompt_embeds is not supported"),
        ({"prompt": "x", "multi_modal_data": {"image": 1}}, "multi_modal_data is not supported"),
        ({"prompt": "x", "cache_salt": ""}, "cache_salt"),
        ({"prompt": "x", "cache_salt": "a" * 1025}, "cache_salt"),
        ({"prompt": "x", "cache_salt": "\ud800"}, "cache_salt"),
        (None, "NoneType"),
        (5, "int"),
    ],
)
def test_prompts_that_cannot_run_are_refused(processor, prompt, message):
    with pytest.raises(VLLMValidationError, match=message):
        _process(processor, prompt)


def test_the_longest_prompt_leaves_one_token(processor):
    request = _process(processor, [5] * 95, SamplingParams(max_tokens=None))
    assert request.params.max_tokens == 1


def test_max_tokens_fill_the_context_and_no_more(processor):
    assert _process(processor, [5] * 10, SamplingParams(max_tokens=None)).params.max_tokens == 86
    assert _process(processor, [5] * 10, SamplingParams(max_tokens=500)).params.max_tokens == 86
    assert _process(processor, [5] * 10, SamplingParams(max_tokens=5)).params.max_tokens == 5


def test_min_tokens_beyond_the_context_are_refused(processor):
    with pytest.raises(VLLMValidationError, match="min_tokens=90 is more than the 86"):
        _process(processor, [5] * 10, SamplingParams(max_tokens=None, min_tokens=90))


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"top_k": 321}, "top_k"),
        ({"stop_token_ids": [320]}, "stop_token_ids"),
        ({"allowed_token_ids": [1, -1]}, "allowed_token_ids"),
        ({"logprob_token_ids": [320]}, "logprob_token_ids"),
        ({"logit_bias": {320: 1.0}}, "logit_bias"),
        ({"stop": ["a"] * (ROWS["stop"].most + 1)}, "stop"),
        ({"stop": ["a" * (ROWS["stop"].longest + 1)]}, "stop"),
        ({"stop_token_ids": list(range(ROWS["stop_token_ids"].most + 1))}, "stop_token_ids"),
        ({"logprob_token_ids": list(range(ROWS["logprob_token_ids"].most + 1))}, "logprob_token_ids"),
        ({"logit_bias": dict.fromkeys(range(ROWS["logit_bias"].most + 1), 1.0)}, "logit_bias"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"bad_words": [f"w{i}" for i in range(128)]}, "bad_words"),
        ({"extra_args": {"a": 1}}, "extra_args"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"trace_decode_token_ids": True}, "trace_decode_token_ids"),
    ],
)
def test_parameters_beyond_the_limits_are_refused_by_name(processor, fields, parameter):
    with pytest.raises(VLLMValidationError, match=parameter) as caught:
        _process(processor, "hello", SamplingParams(**fields))
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"lora_request": LoRARequest("a", 1, "/x")}, "lora_request"),
        ({"priority": 3}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"tokenization_kwargs": {"padding": True}}, "padding"),
    ],
)
def test_options_that_would_be_ignored_are_refused(processor, options, parameter):
    with pytest.raises(VLLMValidationError) as caught:
        _process(processor, **options)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("name", sorted(VALUES))
def test_what_a_target_lacks_is_refused_by_name(config, tokenizer, name):
    lacking = InputProcessor(config, dataclasses.replace(CAPABILITIES, sampling=SAMPLING - {name}), tokenizer)
    with pytest.raises(
        VLLMValidationError, match=f"^{name} is not supported by this model on the null target"
    ) as caught:
        _process(lacking, "hello", SamplingParams(**{name: VALUES[name]}))
    assert caught.value.parameter == name
    _process(lacking, "hello", SamplingParams())


def test_all_logprobs_where_they_are_allowed(tiny_llama, tokenizer):
    config = engine_args(tiny_llama, max_logprobs=-1).create_engine_config()
    request = _process(InputProcessor(config, CAPABILITIES, tokenizer), "hello", SamplingParams(logprobs=-1))
    assert request.core_requests[0].work.logprobs == -1


def test_the_users_parameters_are_left_as_they_are(processor):
    params = SamplingParams(max_tokens=None, n=2, bad_words=["x"])
    before = repr(params)
    request = _process(processor, "hello", params)
    assert repr(params) == before
    assert request.params is not params


def test_eos_tokens_are_resolved(processor):
    assert _process(processor).core_requests[0].work.eos_token_ids == [2]
    ignoring = _process(processor, params=SamplingParams(ignore_eos=True)).core_requests[0].work
    assert ignoring.eos_token_ids == []


def test_bad_words_are_forbidden_bare_and_after_a_space(processor, tokenizer):
    words = _process(processor, params=SamplingParams(bad_words=["engine"])).core_requests[0].work
    bare = tokenizer.encode("engine", add_special_tokens=False)
    spaced = tokenizer.encode(" engine", add_special_tokens=False)
    expected = [bare, spaced] if len(bare) == len(spaced) and bare[0] != spaced[0] else [bare]
    assert words.bad_words == expected


def test_n_outputs_are_n_requests_of_the_core(processor):
    request = _process(processor, params=SamplingParams(n=3, seed=7, prompt_logprobs=1))
    assert [core.req_id for core in request.core_requests] == ["0_r", "1_r", "2_r"]
    children = [core.work for core in request.core_requests]
    assert [child.columns["seed"] for child in children] == [7, 8, 9]
    assert [child.prompt_logprobs for child in children] == [1, None, None]


def test_requests_without_a_seed_draw_differently_and_repeatably(config, tokenizer):
    seeds = []
    for _ in range(2):
        processor = InputProcessor(config, CAPABILITIES, tokenizer)
        requests = [_process(processor), _process(processor, params=SamplingParams(n=2))]
        seeds.append([core.work.columns["seed"] for request in requests for core in request.core_requests])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
    assert derive_seed(0, 0) != derive_seed(1, 0)


def test_truncation(processor):
    ids = list(range(5, 25))
    assert _process(processor, ids, SamplingParams(truncate_prompt_tokens=3)).prompt_token_ids == ids[-3:]
    options = {"truncate_prompt_tokens": 3, "truncation_side": "right"}
    assert _process(processor, ids, tokenization_kwargs=options).prompt_token_ids == ids[:3]
    long = [5] * 300
    assert len(_process(processor, long, SamplingParams(truncate_prompt_tokens=-1)).prompt_token_ids) == 95
    with pytest.raises(VLLMValidationError, match="truncation_side"):
        _process(processor, ids, tokenization_kwargs={**options, "truncation_side": "middle"})


def test_without_a_tokenizer_prompts_are_ids(config):
    bare = InputProcessor(config, CAPABILITIES, None)
    assert _process(bare, [5, 6]).prompt_token_ids == [5, 6]
    with pytest.raises(VLLMValidationError, match="prompt_token_ids"):
        _process(bare, "hello")
    with pytest.raises(VLLMValidationError, match="bad_words need a tokenizer"):
        _process(bare, [5], SamplingParams(bad_words=["a"]))


@pytest.mark.parametrize("request_id", ["", None, 5, "x" * 1025])
def test_request_ids_are_texts(processor, request_id):
    with pytest.raises(VLLMValidationError, match="request_id"):
        processor.process(request_id, "hello", SamplingParams())


def test_default_sampling_parameters_of_a_checkpoint():
    generation_config = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 7, "do_sample": True, "eos_token_id": 2}
    assert default_sampling_params(generation_config) == {"temperature": 0.6, "top_k": 20, "max_tokens": 7}
