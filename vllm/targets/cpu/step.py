"""One forward of the `cpu` target, packed: the real tokens of all rows side by side, no padding.

Made from a `ModelInput` by `build_step`; taken by `reference.ReferenceProgram` and by the native executor alike.
T tokens, R rows, S selected positions; row r's tokens are token_ids[row_start[r] : row_start[r + 1]], at consecutive
positions that end at context_len[r] - 1. All arrays are C-contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm.device.model_input import IntArray, ModelInput


@dataclass(slots=True)
class Step:
    """token_ids, positions, slots: int32 [T]; slot = block_id * block_size + offset, where the token's K and V go. A
        token whose KV is there already has its slot too: what is written is the same to the last bit.

    row_start: int32 [R + 1], ascending from 0 to T; a row may have no tokens.
    context_len: int32 [R], tokens of the row after this step.
    block_table: int32 [R, W], the row's KV blocks in position order; entries past its context are not read.
    selected: int32 [S], indices into the T tokens whose logits are wanted: first, in row order, the last token of every
        row that samples; then, row by row, the positions whose prompt log-probabilities are wanted.
    selected_row: int32 [S], the row each of them belongs to.
    given_token: int32 [S], -1 where a token is sampled, else the prompt's next token, which is only scored.
    """

    token_ids: IntArray
    positions: IntArray
    slots: IntArray
    row_start: IntArray
    context_len: IntArray
    block_table: IntArray
    selected: IntArray
    selected_row: IntArray
    given_token: IntArray

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_rows(self) -> int:
        return int(self.context_len.shape[0])

    @property
    def num_selected(self) -> int:
        return int(self.selected.shape[0])

    @property
    def num_samples(self) -> int:
        """How many of `selected`, from the first on, sample a token."""
        return int(np.count_nonzero(self.given_token < 0))


def build_step(model_input: ModelInput, block_size: int) -> Step:
    """Pack a padded forward. block_size: of the KV cache, in tokens."""
    num_tokens = model_input.num_tokens
    real = np.arange(model_input.input_ids.shape[1]) < num_tokens[:, None]
    row_start = np.concatenate([[0], np.cumsum(num_tokens)])
    row = np.repeat(np.arange(len(num_tokens)), num_tokens)

    positions = model_input.position_ids[real]

    sampling_rows = np.flatnonzero(model_input.samples)
    last_tokens = row_start[sampling_rows + 1] - 1
    scored = model_input.num_prompt_logprobs[row] >= 0
    scored[last_tokens] = False
    scored_tokens = np.flatnonzero(scored)
    selected = np.concatenate([last_tokens, scored_tokens])

    return Step(
        token_ids=_int32(model_input.input_ids[real]),
        positions=_int32(positions),
        slots=_int32(model_input.block_table[row, positions // block_size] * block_size + positions % block_size),
        row_start=_int32(row_start),
        context_len=_int32(model_input.full_context_lens),
        block_table=_int32(model_input.block_table),
        selected=_int32(selected),
        selected_row=_int32(row[selected]),
        given_token=_int32(
            np.concatenate([np.full(len(last_tokens), -1), model_input.next_token_ids[real][scored_tokens]])
        ),
    )


def _int32(values: np.ndarray) -> IntArray:
    return np.ascontiguousarray(values, dtype=np.int32)
