"""Packing a padded `ModelInput` into a `Step`."""

from __future__ import annotations

import numpy as np

from vllm.device.model_input import Kind, ModelInput
from vllm.targets.cpu.step import build_step


def model_input(**changes: object) -> ModelInput:
    """Rows of 3, 1 and 2 tokens; the first two sample, the first and last report prompt logprobs."""
    values = {
        "kind": Kind.CHUNK,
        "bucket": 4,
        "input_ids": [[5, 6, 7, 0], [8, 0, 0, 0], [9, 10, 0, 0]],
        "position_ids": [[0, 1, 2, 0], [20, 0, 0, 0], [4, 5, 0, 0]],
        "seq_ids": [0, 1, 2],
        "num_tokens": [3, 1, 2],
        "full_context_lens": [3, 21, 6],
        "computed_context_lens": [0, 20, 4],
        "block_table": [[2], [0], [1]],
        "slot_mapping": [[64, 65, 66, -1], [20, -1, -1, -1], [36, 37, -1, -1]],
        "adapter_ids": [0, 0, 0],
        "samples": [True, True, False],
        "sampling_params": np.ones((3, 3)),
        "sampling": None,
        "num_prompt_logprobs": [2, -1, 0],
        "next_token_ids": [[6, 7, 0, 0], [0, 0, 0, 0], [10, 11, 0, 0]],
        "num_drafts": [0, 0, 0],
        **changes,
    }
    arrays = {key: np.asarray(value) if isinstance(value, list) else value for key, value in values.items()}
    return ModelInput(**arrays)


def test_rows_are_packed_side_by_side() -> None:
    step = build_step(model_input(), 32)
    assert step.token_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert step.positions.tolist() == [0, 1, 2, 20, 4, 5]
    assert step.slots.tolist() == [64, 65, 66, 20, 36, 37]
    assert step.row_start.tolist() == [0, 3, 4, 6]
    assert step.context_len.tolist() == [3, 21, 6]
    assert (step.num_tokens, step.num_rows, step.num_selected, step.num_samples) == (6, 3, 5 + 1, 2)


def test_samples_come_first_then_scored_positions() -> None:
    """A sampling row's last token samples; its others, and all of a row that does not sample, are scored if asked."""
    step = build_step(model_input(), 32)
    assert step.selected.tolist() == [2, 3, 0, 1, 4, 5]
    assert step.selected_row.tolist() == [0, 1, 0, 0, 2, 2]
    assert step.given_token.tolist() == [-1, -1, 6, 7, 10, 11]


def test_rows_without_tokens_and_without_samples() -> None:
    changes = {"num_tokens": [0, 1, 2], "samples": [False, False, False], "num_prompt_logprobs": [-1, -1, -1]}
    step = build_step(model_input(**changes), 32)
    assert step.row_start.tolist() == [0, 0, 1, 3]
    assert step.token_ids.tolist() == [8, 9, 10]
    assert (step.num_selected, step.num_samples) == (0, 0)


def test_a_token_whose_kv_is_there_already_has_its_slot() -> None:
    step = build_step(model_input(slot_mapping=[[64, 65, -1, -1], [-1, -1, -1, -1], [36, 37, -1, -1]]), 32)
    assert step.slots.tolist() == [64, 65, 66, 20, 36, 37]


def test_arrays_are_what_native_code_takes() -> None:
    step = build_step(model_input(), 32)
    for name in step.__slots__:
        array = getattr(step, name)
        assert (array.dtype, array.flags.c_contiguous) == (np.int32, True), name
