"""Speculation on a whole engine side: whatever drafts, and however much of it is right, users see the same."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.neuron.driver import load, resolved_config
from tests.neuron.mini_engine import MiniEngine, Result, random_request, variant
from vllm.config import SpeculativeConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.targets.ngram import find_match, propose

MAX_LEN = 48


def speculating(config: VllmConfig, method: str, num_drafts: int, **options: Any) -> VllmConfig:
    """A resolved config, with drafts."""
    speculation = SpeculativeConfig(
        method=method,
        num_speculative_tokens=num_drafts,
        model="draft",
        prompt_lookup_min=1,
        prompt_lookup_max=3,
        **{"adaptive": False, **options},
    )
    rows = config.scheduler_config.max_num_seqs or 1
    scheduler = dataclasses.replace(
        config.scheduler_config,
        num_lookahead_tokens=num_drafts,
        max_num_batched_tokens=max(config.scheduler_config.max_num_batched_tokens or 0, rows * (1 + num_drafts)),
    )
    return config.replace(speculative_config=speculation, scheduler_config=scheduler)


@pytest.fixture(scope="module")
def config(tiny_llama):
    return resolved_config(tiny_llama, "null", max_model_len=MAX_LEN)


def run_all(engine: MiniEngine, requests: list[tuple[Any, ...]], rng: random.Random) -> list[Result]:
    """The requests, arriving between steps; some leave early, which must not touch the others."""
    ids = []
    for prompt, params, salt in requests:
        ids.append(engine.add(prompt, params, salt=salt))
        for _ in range(rng.randrange(3)):
            engine.step()
        if rng.random() < 0.2:
            engine.abort(ids[-1])
    engine.run()
    engine.check_clean()
    return [engine.results[req_id] for req_id in ids]


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32),
    method=st.sampled_from(["ngram", "draft_model"]),
    num_drafts=st.integers(1, 6),
    block_size=st.sampled_from([None, 4, 8]),
    prefix_caching=st.booleans(),
    step_tokens=st.sampled_from([0, 5, 30]),
    adaptive=st.booleans(),
)
def test_drafts_change_nothing_that_a_user_sees(
    config, tmp_path_factory, seed, method, num_drafts, block_size, prefix_caching, step_tokens, adaptive
) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng, MAX_LEN) for _ in range(8)]
    plain = variant(config)
    layout = variant(
        config, block_size=block_size, prefix_caching=prefix_caching and block_size is not None, step_tokens=step_tokens
    )
    drafting = speculating(layout, method, num_drafts, adaptive=adaptive)
    directory = tmp_path_factory.mktemp("null")
    solo = MiniEngine(plain, load(plain, directory))
    expected = [solo.generate(prompt, params) for prompt, params, _ in requests]
    results = run_all(MiniEngine(drafting, load(drafting, directory)), requests, rng)
    for result, alone in zip(results, expected, strict=True):
        count = len(result.token_ids)
        assert result.token_ids == alone.token_ids[:count]
        assert result.logprobs == alone.logprobs[:count]
        if result.finish_reason != "abort":
            assert (result.finish_reason, result.prompt_logprobs) == (alone.finish_reason, alone.prompt_logprobs)
            assert count == len(alone.token_ids)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 20, 100])
def test_no_output_is_longer_than_asked_for_or_than_the_context(config, tmp_path, max_tokens) -> None:
    drafting = speculating(variant(config), "draft_model", 5)
    engine = MiniEngine(drafting, load(drafting, tmp_path))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    result = engine.generate(list(range(5, 15)), params)
    assert len(result.token_ids) == min(max_tokens, MAX_LEN - 10)
    assert result.finish_reason == "length"
    assert engine.num_steps < max(2 + max_tokens, 3)


def test_a_stop_token_inside_an_accepted_run_ends_there(config, tmp_path) -> None:
    plain = variant(config)
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logprobs=1)
    text = MiniEngine(plain, load(plain, tmp_path)).generate([5, 6, 7], params).token_ids
    drafting = speculating(plain, "draft_model", 5)
    for stop in text[1:12]:
        params = SamplingParams(temperature=0.0, max_tokens=30, stop_token_ids=[stop], ignore_eos=True, logprobs=1)
        result = MiniEngine(drafting, load(drafting, tmp_path)).generate([5, 6, 7], params)
        assert result.token_ids == text[: text.index(stop) + 1]
        assert len(result.logprobs) == len(result.token_ids)
        assert result.finish_reason == "stop"


def test_drafts_are_counted(config, tmp_path) -> None:
    drafting = speculating(variant(config), "draft_model", 3)
    engine = MiniEngine(drafting, load(drafting, tmp_path))
    engine.generate([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))
    stats = engine.scheduler.stats()
    assert stats.spec_num_accepted_tokens == sum(stats.spec_num_accepted_by_position)
    assert 0 < stats.spec_num_accepted_tokens < stats.spec_num_draft_tokens <= 3 * stats.spec_num_drafts
    tokens_by_drafting = stats.spec_num_accepted_tokens + stats.spec_num_drafts
    assert engine.num_steps - stats.spec_num_drafts <= 40 - tokens_by_drafting + 1


def test_a_text_that_repeats_is_drafted_out_of_itself(config, tmp_path) -> None:
    """A prompt, three steps of four drafts, one of three, and the step that tells the device of the end."""
    drafting = speculating(variant(config), "ngram", 4)
    engine = MiniEngine(drafting, load(drafting, tmp_path))
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, allowed_token_ids=[9])
    result = engine.generate([9, 9, 9, 9], params)
    assert result.token_ids == [9] * 20
    assert engine.num_steps == 1 + 3 + 1 + 1
    assert engine.scheduler.stats().spec_num_accepted_by_position == (4, 4, 4, 3)


def brute_force(tokens: list[int], shortest: int, longest: int) -> int:
    """The definition, tried length by length from the longest on."""
    for length in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 2, length - 2, -1):
            if length < len(tokens) and tokens[end - length + 1 : end + 1] == tokens[-length:]:
                return end + 1
    return -1


@settings(max_examples=300)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    shortest=st.integers(1, 3),
    further=st.integers(0, 3),
    count=st.integers(0, 9),
)
def test_lookup_finds_the_longest_and_then_the_latest_match(tokens, shortest, further, count) -> None:
    array, longest = np.asarray(tokens, np.int32), shortest + further
    start = find_match(array, shortest, longest)
    assert start == brute_force(tokens, shortest, longest)
    proposed = propose(array, shortest, longest, count)
    text = list(tokens)
    for draft in proposed:
        assert draft == text[start + len(text) - len(tokens)]
        text.append(draft)
    assert len(proposed) == (count if start >= 0 else 0)


@settings(max_examples=300)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=0, max_size=60),
    shortest=st.integers(1, 3),
    further=st.integers(0, 3),
    count=st.integers(0, 9),
)
def test_the_native_lookup_is_the_same(tokens, shortest, further, count) -> None:
    from vllm.targets.cpu.ops import propose_ngram

    room = np.asarray([*tokens, *[-1] * 9], np.int32)
    found = propose_ngram(room, len(tokens), shortest, shortest + further, count)
    expected = propose(np.asarray(tokens, np.int32), shortest, shortest + further, count)
    assert room[len(tokens) : len(tokens) + found].tolist() == expected
