"""The table of sampling parameters, and what is made of it."""

from __future__ import annotations

import msgspec
import pytest

from vllm.entrypoints.openai.protocol.completion import CompletionRequest
from vllm.sample.core_sampling import CoreSampling
from vllm.sample.table import COLUMN_DEFAULTS, ROWS, Runs, values_of
from vllm.sampling_params import ReasoningGate, SamplingParams

FIELDS = [row for row in ROWS.values() if row.is_field]


def test_rows_are_whole():
    for name, row in ROWS.items():
        assert row.advice if row.runs is Runs.NOWHERE else row.help, name
        assert row.kind != "other" or not row.is_field, name


@pytest.mark.parametrize("row", FIELDS, ids=lambda row: row.name)
def test_legal_values_pass_from_the_request_to_the_core(row):
    for value in values_of(row):
        request = CompletionRequest(prompt="a", **{row.name: value})
        params = request.build_sampling_params(16, {}, logprobs=None, prompt_logprobs=None)
        assert row.column == "" or params.for_core().columns.keys() <= COLUMN_DEFAULTS.keys()


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.column], ids=lambda row: row.name)
def test_a_column_crosses_to_the_core_where_it_is_not_the_default(row):
    value = next(value for value in values_of(row) if value not in (None, -1, row.default))
    sampling = SamplingParams(**{row.name: value}).for_core()
    assert sampling.columns == ({row.name: value} if value != COLUMN_DEFAULTS[row.name] else {})


def test_what_the_core_gets_crosses_the_wire_whole():
    params = SamplingParams(
        temperature=0.7,
        seed=2**63 + 5,
        logit_bias={1: -2.5},
        stop_token_ids=[9],
        allowed_token_ids=[1, 2],
        min_tokens=2,
        logprobs=-1,
    )
    params.reasoning_gate = ReasoningGate("</think>", open_id=4)
    sampling = params.for_core([2], [[4, 5]])
    packed = msgspec.msgpack.encode(sampling)
    assert msgspec.msgpack.decode(packed, type=CoreSampling) == sampling
    assert (sampling.eos_token_ids, sampling.bad_words) == ([2], [[4, 5]])
    assert sampling.columns == {"temperature": 0.7, "seed": 2**63 + 5}
    assert SamplingParams(ignore_eos=True).for_core([2]).eos_token_ids == []
    assert SamplingParams(seed=-3).for_core().columns["seed"] == 2**64 - 3
