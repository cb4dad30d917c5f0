"""Packs steps by hand, and runs prompts through a `ReferenceProgram`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm.targets.cpu.reference import ReferenceProgram
from vllm.targets.cpu.step import Step


def make_step(
    rows: Sequence[tuple[Sequence[int], int]],
    block_table: np.ndarray,
    block_size: int,
    selected: Sequence[Sequence[int]] | None = None,
) -> Step:
    """rows: (new tokens, position of the first). selected: token offsets by row; default: all of them."""
    lengths = [len(tokens) for tokens, _ in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = [np.arange(start, start + len(tokens)) for tokens, start in rows]
    slots = [block_table[row][p // block_size] * block_size + p % block_size for row, p in enumerate(positions)]
    chosen = selected if selected is not None else [range(length) for length in lengths]
    picks = [(starts[row] + offset, row) for row, offsets in enumerate(chosen) for offset in offsets]
    return Step(
        token_ids=np.concatenate([np.asarray(tokens, np.int32) for tokens, _ in rows]),
        positions=np.concatenate(positions).astype(np.int32),
        slots=np.concatenate(slots).astype(np.int32),
        row_start=starts,
        context_len=np.asarray([start + len(tokens) for tokens, start in rows], np.int32),
        block_table=np.ascontiguousarray(block_table, np.int32),
        selected=np.asarray([index for index, _ in picks], np.int32),
        selected_row=np.asarray([row for _, row in picks], np.int32),
        given_token=np.full(len(picks), -1, np.int32),
    )


def greedy(program: ReferenceProgram, prompt: Sequence[int], num_tokens: int, block_table: np.ndarray) -> list[int]:
    """Continue one prompt with its most likely tokens."""
    logits = program.run(make_step([(prompt, 0)], block_table, program.block_size, [[len(prompt) - 1]]))
    tokens = [int(logits[0].argmax())]
    while len(tokens) < num_tokens:
        position = len(prompt) + len(tokens) - 1
        logits = program.run(make_step([([tokens[-1]], position)], block_table, program.block_size))
        tokens.append(int(logits[0].argmax()))
    return tokens
