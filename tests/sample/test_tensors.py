"""Sampling parameters as arrays: bias, bad words, min_tokens, masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.sample import tensors
from vllm.sample.core_sampling import CoreSampling
from vllm.sampling_params import SamplingParams


def make_params(eos: list[int] | None = None, bad_words: list[list[int]] | None = None, **fields: object):
    return SamplingParams(temperature=0.0, **fields).for_core(eos or [], bad_words or [])


def bias(params: CoreSampling, prompt: list[int], output: list[int]) -> dict[int, float]:
    ids, values = tensors.bias_for(params, len(output))
    assert (ids.dtype, values.dtype) == (np.int32, np.float32)
    assert len(set(ids.tolist())) == len(ids)
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def test_no_bias() -> None:
    params = make_params(eos=[2])
    assert not tensors.has_bias(params)
    assert bias(params, [1], [2]) == {}


def test_logit_bias() -> None:
    params = make_params(logit_bias={3: 1.5, 7: -100.0})
    assert tensors.has_bias(params)
    assert bias(params, [1], []) == {3: 1.5, 7: -100.0}


def test_stop_tokens_are_suppressed_before_min_tokens() -> None:
    params = make_params(eos=[2, 5], min_tokens=2, stop_token_ids=[7], logit_bias={7: 100.0, 8: 1.0})
    assert tensors.has_bias(params)
    suppressed = {2: -np.inf, 5: -np.inf, 7: -np.inf, 8: 1.0}
    assert bias(params, [1, 1, 1], []) == suppressed
    assert bias(params, [1, 1, 1], [4]) == suppressed
    assert bias(params, [1, 1, 1], [4, 4]) == {7: 100.0, 8: 1.0}


@pytest.mark.parametrize(
    ("output", "banned"),
    [
        ([], {9}),
        ([1], {9, 2}),
        ([1, 2], {9, 3}),
        ([5, 1, 2], {9, 3}),
        ([2], {9}),
        ([1, 2, 3], {9}),
        ([1, 1], {9, 2}),
    ],
)
def test_bad_words(output: list[int], banned: set[int]) -> None:
    """Words of one token are always banned; of longer ones, the last token behind all the others."""
    assert set(tensors.banned_tokens([[9], [1, 2], [1, 2, 3]], 1, [7, *output])) == banned


def test_bad_words_look_at_the_output_only() -> None:
    assert tensors.banned_tokens([[1, 2]], 1, [1]) == []
    assert tensors.banned_tokens([[1, 2]], 1, [1, 1]) == [2]


def test_bad_words_of_a_batch() -> None:
    rows = [make_params(), make_params(bad_words=[[9], [1, 2]]), make_params(bad_words=[[3, 4, 5]])]
    words = tensors.bad_words_of(rows)
    assert (words.row_offsets.tolist(), words.word_offsets.tolist()) == ([0, 0, 2, 3], [0, 1, 3, 6])
    assert words.ids.tolist() == [9, 1, 2, 3, 4, 5]
    assert tensors.bad_words_of(rows[:1]) is None


@given(
    bad_words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5),
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    output=st.lists(st.integers(0, 3), max_size=6),
)
def test_a_token_is_banned_exactly_when_it_would_complete_a_bad_word(bad_words, prompt, output) -> None:
    expected = set()
    for token in range(4):
        text = [*output, token]
        if any(len(word) <= len(text) and text[-len(word) :] == word for word in bad_words):
            expected.add(token)
    assert set(tensors.banned_tokens(bad_words, len(prompt), prompt + output)) == expected


@given(vocab_size=st.integers(1, 130), data=st.data())
def test_mask_bits(vocab_size: int, data: st.DataObject) -> None:
    allowed = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=50))
    mask = tensors.allowed_mask(make_params(allowed_token_ids=allowed), vocab_size)
    assert (mask.dtype, mask.shape) == (np.uint32, (-(-vocab_size // 32),))
    bits = {token for token in range(32 * len(mask)) if int(mask[token // 32]) >> (token % 32) & 1}
    assert bits == set(allowed)


def test_no_mask_without_allowed_tokens() -> None:
    assert tensors.allowed_mask(make_params(), 10) is None


@pytest.mark.parametrize("token_id", [-1, 10, 99])
def test_a_token_beyond_the_vocabulary_is_named(token_id: int) -> None:
    with pytest.raises(ValueError, match=f"token id {token_id} is out of the vocabulary of 10"):
        tensors.token_mask([1, token_id], 10)
