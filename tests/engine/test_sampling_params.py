"""`SamplingParams`: ranges, normal form, and what survives the way through msgpack."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import (
    BeamSearchParams,
    GuidedDecodingParams,
    RequestOutputKind,
    SamplingType,
    StructuredOutputsParams,
)


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"n": 16385}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"repetition_penalty": 1e7}, "repetition_penalty"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.01}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2.0}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"], "detokenize": False}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"logprobs": -2}, "logprobs"),
        ({"prompt_logprobs": 1.0}, "prompt_logprobs"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"output_kind": 1}, "output_kind"),
    ],
)
def test_values_out_of_range_are_refused_by_name(fields, parameter):
    with pytest.raises(VLLMValidationError, match=parameter) as caught:
        SamplingParams(**fields)
    assert caught.value.parameter == parameter
    assert isinstance(caught.value, ValueError)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)


def test_normal_form():
    params = SamplingParams(
        stop="end", stop_token_ids=(3, 3, np.int64(4)), seed=-1, top_k=-1, logprobs=True, logit_bias={np.int32(5): 1}
    )
    assert params.stop == ["end"]
    assert params.stop_token_ids == [3, 4]
    assert params.seed is None
    assert params.top_k == 0
    assert params.logprobs == 1
    assert params.logit_bias == {5: 1.0}
    assert type(params.stop_token_ids[1]) is int


def test_greedy_resets_what_has_no_meaning():
    params = SamplingParams(temperature=0, top_p=0.5, top_k=7, min_p=0.3)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.0, 1.0, 0, 0.0)
    assert params.sampling_type is SamplingType.GREEDY
    assert SamplingParams(seed=3).sampling_type is SamplingType.RANDOM_SEED
    assert SamplingParams().sampling_type is SamplingType.RANDOM


def test_tiny_temperatures_are_raised():
    assert SamplingParams(temperature=1e-6).temperature == 0.01


def test_from_optional_takes_none_for_the_default_and_clamps_bias():
    params = SamplingParams.from_optional(n=None, temperature=None, max_tokens=None, logit_bias={"7": 200, 8: -200})
    assert params.n == 1
    assert params.temperature == 1.0
    assert params.max_tokens is None
    assert params.logit_bias == {7: 100.0, 8: -100.0}
    with pytest.raises(VLLMValidationError, match="'x' is no token id"):
        SamplingParams.from_optional(logit_bias={"x": 1})


def test_clones_share_no_list():
    params = SamplingParams(stop=["a"], bad_words=["b"], logit_bias={1: 2.0})
    twin = params.clone()
    assert twin == params
    twin.stop.append("c")
    twin.logit_bias[2] = 1.0
    assert params.stop == ["a"]
    assert params.logit_bias == {1: 2.0}


def test_msgpack_round_trip():
    params = SamplingParams(
        temperature=0.7,
        stop=["a"],
        logit_bias={1: -2.5},
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=StructuredOutputsParams(choice=["a", "b"]),
        seed=2**63 + 5,
    )
    params._eos_token_ids = [1, 2]
    packed = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(packed, type=SamplingParams) == params


def test_eos_tokens_come_from_all_sources_and_ignore_eos_drops_them():
    params = SamplingParams(stop_token_ids=[9])
    params.update_from_generation_config({"eos_token_id": [2, 3]}, 2)
    assert params._eos_token_ids == [2, 3]
    assert params.all_stop_token_ids == {9, 2, 3}
    ignoring = SamplingParams(ignore_eos=True)
    ignoring.update_from_generation_config({"eos_token_id": 2}, 3)
    assert ignoring.all_stop_token_ids == set()


def test_repr_names_what_users_set():
    assert repr(SamplingParams(top_p=0.9)).startswith("SamplingParams(n=1, presence_penalty=0.0,")
    assert "top_p=0.9" in repr(SamplingParams(top_p=0.9))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "must use one kind"),
        ({"json": "{}", "regex": "a"}, "only use one kind"),
        ({"choice": []}, "non-empty"),
        ({"grammar": " "}, "empty"),
        ({"json_object": False}, "only be true"),
        ({"regex": "a\0b"}, "NUL"),
        ({"regex": 5}, "must be a text"),
    ],
)
def test_structured_outputs_are_checked(fields, message):
    with pytest.raises(VLLMValidationError, match=message):
        StructuredOutputsParams(**fields)


def test_schemas_have_a_greatest_depth():
    def nested(depth: int) -> dict:
        return {"properties": nested(depth - 1)} if depth > 1 else {}

    assert StructuredOutputsParams(json=nested(64)).kinds == ["json"]
    with pytest.raises(VLLMValidationError, match="64 levels"):
        StructuredOutputsParams(json=nested(65))


def test_guided_decoding_is_the_older_name():
    params = SamplingParams(guided_decoding=GuidedDecodingParams(regex="a+"))
    assert params.structured_outputs == StructuredOutputsParams(regex="a+")
    assert params.guided_decoding is None


def test_beam_search_params():
    assert BeamSearchParams(beam_width=4, max_tokens=8).length_penalty == 1.0
    with pytest.raises(VLLMValidationError, match="beam_width"):
        BeamSearchParams(beam_width=0, max_tokens=8)
    for penalty in (1e308, -1e308, float("nan"), float("inf")):
        with pytest.raises(VLLMValidationError, match="length_penalty must be between -32 and 32"):
            BeamSearchParams(beam_width=1, max_tokens=8, length_penalty=penalty)
