"""`ModelInput`s by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm.device.model_input import Kind, ModelInput
from vllm.runner.input_batch import InputBatch

GREEDY = (1.0, 1.0, 1.0)


def _sampling(num_rows: int) -> Any:
    batch = InputBatch(num_rows, 8, 320, contiguous=True, default_top_k=0)
    return batch.sampling_input([], np.zeros(0, np.int32), {})


def model_input(kind: Kind, rows: list[list[int]], lines: list[int], computed: list[int], **fields: Any) -> ModelInput:
    """Rows of token ids; row i starts at position computed[i] and lies in line lines[i]."""
    width = max(len(row) for row in rows)
    ids, positions = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        positions[i, : len(row)] = np.arange(len(row)) + computed[i]
    num_tokens = np.asarray([len(row) for row in rows], np.int32)
    values: dict[str, Any] = {
        "kind": kind,
        "bucket": 64,
        "input_ids": ids,
        "position_ids": positions,
        "seq_ids": np.asarray(lines, np.int32),
        "num_tokens": num_tokens,
        "full_context_lens": num_tokens + np.asarray(computed, np.int32),
        "computed_context_lens": np.asarray(computed, np.int32),
        "block_table": np.asarray(lines, np.int32)[:, None],
        "slot_mapping": np.full_like(ids, -1),
        "adapter_ids": np.zeros(len(rows), np.int32),
        "samples": np.ones(len(rows), np.bool_),
        "sampling_params": np.asarray([GREEDY] * len(rows), np.float32),
        "sampling": _sampling(len(rows)),
        "num_prompt_logprobs": np.full(len(rows), -1, np.int32),
        "next_token_ids": np.zeros_like(ids),
        "num_drafts": np.zeros(len(rows), np.int32),
    }
    return ModelInput(**{**values, **fields})


def prefill(rows: list[list[int]], lines: list[int], **fields: Any) -> ModelInput:
    return model_input(Kind.PREFILL, rows, lines, [0] * len(rows), **fields)


def decode(tokens: list[int], lines: list[int], positions: list[int], **fields: Any) -> ModelInput:
    return model_input(Kind.DECODE, [[token] for token in tokens], lines, positions, **fields)


__all__ = ["GREEDY", "decode", "model_input", "prefill"]
