"""`ModelInput` -> the keyword arguments of the library's `forward`.

A call is one prompt, or the decode of every live row; with chunked prefill (`chunks`) it is all rows of a step. Over
contiguous KV rows go in ascending by KV line, everything that belongs to a row with them; over block KV their order is
free. `Call.rows` brings results back.

The library samples at the greatest position of a prompt, and pads with position 1: it would take the padding of a
prompt of one token for the prompt, and may take that of two. Both are padded here to the largest bucket, where it adds
nothing, with position 0; and one token is repeated, so that whichever of the equal positions is taken gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm.device.model_input import FloatArray, IntArray, Kind, ModelInput
from vllm.targets.neuronx.chunks import chunk_arguments
from vllm.targets.neuronx.input_checks import Limits, check_batch, row_faults
from vllm.targets.neuronx.vision import image_arguments

SHORT_PROMPT = 2
"""Prompts up to this length are padded here."""


@dataclass(frozen=True, slots=True)
class Call:
    """One forward of the library: keyword arguments as numpy arrays, and which rows of the ModelInput they hold."""

    arguments: dict[str, Any]
    rows: IntArray


def build_calls(model_input: ModelInput, limits: Limits) -> Iterator[Call]:
    """Raises ValueError for an input that the programs would compute wrongly."""
    if faults := row_faults(model_input, limits):
        raise ValueError("; ".join(faults.values()))
    check_batch(model_input, limits)
    if limits.chunk:
        rows = np.arange(model_input.num_rows, dtype=np.int32)
        yield Call(chunk_arguments(model_input, _sampling(model_input, rows, limits), limits.num_lines), rows)
    elif limits.block_size:
        yield from _over_blocks(model_input, limits)
    elif model_input.kind is Kind.PREFILL:
        for row in np.argsort(model_input.seq_ids, kind="stable"):
            yield _prefill(model_input, int(row), limits)
    else:
        yield _decode(model_input, limits)


def _prefill(model_input: ModelInput, row: int, limits: Limits) -> Call:
    length = int(model_input.num_tokens[row])
    width = limits.max_context_length if length <= SHORT_PROMPT else length
    ids, positions = np.full((1, width), model_input.input_ids[row, 0]), np.zeros((1, width), np.int32)
    ids[0, :length] = model_input.input_ids[row, :length]
    positions[0, :length] = np.arange(length, dtype=np.int32)
    rows = np.asarray([row], np.int32)
    arguments = {"input_ids": ids, "position_ids": positions, **_by_row(model_input, rows, limits)}
    return Call({**arguments, **image_arguments(model_input, row, ids, limits.images)}, rows)


def _decode(model_input: ModelInput, limits: Limits) -> Call:
    rows = np.argsort(model_input.seq_ids, kind="stable").astype(np.int32)
    ids, positions = model_input.input_ids[rows, :1], model_input.position_ids[rows, :1]
    return Call({"input_ids": ids, "position_ids": positions, **_by_row(model_input, rows, limits)}, rows)


# Prefix caching.


def _over_blocks(model_input: ModelInput, limits: Limits) -> Iterator[Call]:
    """Calls over block KV. A prompt goes whole, with the number of its tokens that are cached; the library cuts it."""
    if model_input.kind is Kind.DECODE:
        yield _decode_over_blocks(model_input, np.arange(model_input.num_rows, dtype=np.int32), limits)
        return
    for row in range(model_input.num_rows):
        yield _prefill_over_blocks(model_input, row, limits)


def _prefill_over_blocks(model_input: ModelInput, row: int, limits: Limits) -> Call:
    rows = np.asarray([row], np.int32)
    length, computed = int(model_input.full_context_lens[row]), int(model_input.computed_context_lens[row])
    if length == 1:
        return _decode_over_blocks(model_input, rows, limits)
    ids = model_input.input_ids[row, :length]
    if computed:
        ids = model_input.sampling.history[model_input.sampling.history_line[row], :length]
    slots = np.full((1, limits.max_length), -1, np.int32)
    slots[0, : length - computed] = model_input.slot_mapping[row, : length - computed]
    arguments = {
        "input_ids": ids[None],
        "position_ids": np.arange(length, dtype=np.int32)[None],
        "slot_mapping": slots,
        **_blocks_by_row(model_input, rows),
        **_by_row(model_input, rows, limits),
    }
    return Call(arguments, rows)


def _decode_over_blocks(model_input: ModelInput, rows: IntArray, limits: Limits) -> Call:
    arguments = {
        "input_ids": model_input.input_ids[rows, :1],
        "position_ids": model_input.position_ids[rows, :1],
        "slot_mapping": model_input.slot_mapping[rows, :1],
        **_blocks_by_row(model_input, rows),
        **_by_row(model_input, rows, limits),
    }
    return Call(arguments, rows)


def _blocks_by_row(model_input: ModelInput, rows: IntArray) -> dict[str, Any]:
    return {
        "block_table": model_input.block_table[rows],
        "full_context_lens": model_input.full_context_lens[rows, None],
        "computed_context_lens": model_input.computed_context_lens[rows, None],
    }


# What both layouts share.


def _by_row(model_input: ModelInput, rows: IntArray, limits: Limits) -> dict[str, Any]:
    """What belongs to rows, in the order of `rows`."""
    arguments: dict[str, Any] = {"seq_ids": model_input.seq_ids[rows]}
    arguments["sampling_params"] = _sampling(model_input, rows, limits)
    if limits.adapter_slot is not None:
        arguments["adapter_ids"] = model_input.adapter_ids[rows] + limits.adapter_slot
    return arguments


def _sampling(model_input: ModelInput, rows: IntArray, limits: Limits) -> FloatArray:
    given = model_input.sampling_params[rows]
    return sampling_rows(given, limits) if limits.global_topk else np.ones_like(given)


def sampling_rows(given: FloatArray, limits: Limits) -> FloatArray:
    """float32 [B, 3]: top_k, top_p, temperature as every version of the library takes and means them.

    A disabled top_k is global_topk: -1 and 0 would make all candidates equally likely. Greedy is (1, 1, 1).
    """
    rows = given.astype(np.float32)
    top_k, _, temperature = rows.T
    disabled = (top_k <= 0) | (top_k >= limits.vocab_size)
    rows[disabled, 0] = limits.global_topk
    rows[temperature <= 0] = 1
    return rows
