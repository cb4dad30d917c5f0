"""What the library returns, in every mode that is read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm.targets.neuronx.outputs import accepted_tokens, last_logits, sampled_tokens


@pytest.mark.parametrize("tokens", [torch.tensor([3, 4], dtype=torch.int32), torch.tensor([[3], [4]])])
def test_tokens_are_found_where_either_attribute_has_them(tokens):
    for output in (
        SimpleNamespace(logits=None, hidden_states=tokens),
        SimpleNamespace(logits=None, hidden_states=[], tokens=tokens),
        SimpleNamespace(logits=torch.zeros(2, 1, 9), hidden_states=[], tokens=[tokens]),
    ):
        found = sampled_tokens(output, 2)
        assert found.dtype == np.int32 and found.tolist() == [3, 4]


def test_missing_rows_are_an_error():
    with pytest.raises(RuntimeError, match="1 tokens for 2 rows"):
        sampled_tokens(SimpleNamespace(hidden_states=torch.tensor([3])), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_the_last_columns_without_the_vocabularys_padding(dtype):
    values = torch.arange(24).reshape(2, 2, 6).to(dtype)
    found = last_logits(SimpleNamespace(hidden_states=values, logits=None), 2, 5)
    assert found.dtype == np.float32 and found.tolist() == values[:, -1, :5].float().tolist()


def test_a_vocabulary_that_is_too_small_is_an_error_of_the_call():
    with pytest.raises(RuntimeError, match=r"\(1, 300\) for 1 rows of 320"):
        last_logits(SimpleNamespace(hidden_states=torch.zeros(1, 1, 300)), 1, 320)


@pytest.mark.parametrize("padding", [0, -1])
def test_accepted_tokens_are_counted_by_position_and_not_by_padding(padding):
    accepted = torch.tensor([[7, 0, padding, padding], [5, 6, 0, 9], [padding] * 4])
    next_positions = torch.tensor([[12], [24], [30]])
    output = SimpleNamespace(fused_outputs=[accepted, accepted[:, :1], None, next_positions])
    tokens, num_new = accepted_tokens(output, np.asarray([10, 20, 30], np.int32), np.full(3, 4, np.int32))
    assert num_new.tolist() == [2, 4, 0]
    assert tokens[0, :2].tolist() == [7, 0] and tokens[1].tolist() == [5, 6, 0, 9]


def test_more_than_was_drafted_is_never_counted():
    output = SimpleNamespace(fused_outputs=[torch.ones(1, 3, dtype=torch.int32), torch.tensor([[99]])])
    position = np.asarray([10], np.int32)
    assert accepted_tokens(output, position, np.asarray([9], np.int32))[1].tolist() == [3]
    assert accepted_tokens(output, position, np.asarray([2], np.int32))[1].tolist() == [2]
