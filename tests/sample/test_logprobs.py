"""Log-probabilities of raw logits, against torch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sample.oracle import RowSpec, arrays, random_logits
from vllm.sample import host
from vllm.sample.arrays import NO_LOGPROBS
from vllm.sample.logprobs import most_likely, token_logprobs


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), vocab_size=st.sampled_from([1, 2, 40, 129]))
def test_against_torch(seed: int, vocab_size: int) -> None:
    rng = random.Random(seed)
    logits = random_logits(rng, 4, vocab_size)
    token_ids = np.array([rng.randrange(vocab_size) for _ in range(4)], np.int32)
    num_logprobs = np.array([rng.choice([0, 1, 5, vocab_size]) for _ in range(4)], np.int32)
    expected = torch.from_numpy(logits).double().log_softmax(-1)
    rows = token_logprobs(logits, token_ids, num_logprobs)
    assert rows.token_id.tolist() == token_ids.tolist()
    for i in range(4):
        torch.testing.assert_close(float(rows.logprob[i]), float(expected[i, token_ids[i]]), rtol=1e-5, atol=1e-6)
        assert rows.rank[i] == 1 + int((logits[i] > logits[i, token_ids[i]]).sum())
        count = min(num_logprobs[i], vocab_size)
        order = sorted(range(vocab_size), key=lambda token: (-logits[i, token], token))[:count]
        assert rows.count[i] == count
        assert rows.top_ids[i, :count].tolist() == order
        np.testing.assert_allclose(rows.top_logprobs[i, :count], expected[i, order], rtol=1e-5, atol=1e-6)


def test_the_sampled_token_is_among_the_most_likely_with_the_same_value() -> None:
    logits = random_logits(random.Random(1), 1, 30)
    rows = token_logprobs(logits, most_likely(logits[0], 1).astype(np.int32), np.array([3], np.int32))
    assert rows.rank.tolist() == [1]
    assert rows.logprob[0] == rows.top_logprobs[0, 0]


def test_raw_logits_are_reported_whatever_is_sampled_from() -> None:
    logits = np.array([[1.0, 2.0, 3.0]], np.float32)
    sampling = arrays([RowSpec(allowed={0}, temperature=0.5, presence_penalty=2.0, num_logprobs=1)], 3)
    tokens = host.sample(logits, sampling, 0)
    rows = host.logprob_rows(logits, tokens, sampling)
    expected = torch.tensor([1.0, 2.0, 3.0]).log_softmax(-1)
    assert (tokens.tolist(), rows.rank.tolist(), rows.top_ids.tolist()) == ([0], [3], [[2]])
    np.testing.assert_allclose([rows.logprob[0], rows.top_logprobs[0, 0]], [expected[0], expected[2]], rtol=1e-6)


def test_rows_ask_for_different_things() -> None:
    logits = np.array([[1.0, 2.0, 3.0]] * 4, np.float32)
    specs = [
        RowSpec(num_logprobs=-1, logprob_ids=[0]),
        RowSpec(num_logprobs=0),
        RowSpec(num_logprobs=2),
        RowSpec(num_logprobs=1, logprob_ids=[0, 2]),
    ]
    rows = host.logprob_rows(logits, np.array([0, 1, 2, 0], np.int32), arrays(specs, 3))
    assert rows.count.tolist() == [0, 0, 2, 3]
    assert rows.top_ids.tolist() == [[0, 0, 0], [0, 0, 0], [2, 1, 0], [2, 0, 2]]
    assert rows.rank.tolist()[1:] == [2, 1, 3]
    assert rows.logprob[0] == 0.0


def test_nothing_is_made_when_nobody_asks() -> None:
    logits = np.zeros((2, 3), np.float32)
    assert host.logprob_rows(logits, np.zeros(2, np.int32), arrays([RowSpec(), RowSpec()], 3)) is None


def test_far_tokens_keep_their_distance() -> None:
    logits = np.array([[0.0, -1e4, -1e30]], np.float32)
    rows = token_logprobs(logits, np.array([1], np.int32), np.array([3], np.int32))
    assert rows.logprob.tolist() == [-1e4]
    assert rows.top_logprobs.tolist() == [[0.0, -1e4, float(np.float32(-1e30))]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_have_none(bad: float) -> None:  # M4
    logits = np.array([[0.0, 1.0, 2.0], [0.0, bad, 2.0], [bad, 1.0, 2.0]], np.float32)
    rows = token_logprobs(logits, np.array([1, 2, 2], np.int32), np.array([1, 1, -1], np.int32))
    assert rows.count.tolist() == [1, NO_LOGPROBS, 0]
    assert np.isfinite(rows.logprob).all() and np.isfinite(rows.top_logprobs).all()
