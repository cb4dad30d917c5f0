"""What the compiled programs would compute wrongly, found before they run.

A decode runs all live rows in one call, and a row that fails on the device cannot be told from its neighbours nor be
run again without them. So what can be at fault in a row is looked at here, row by row: `row_faults`. What is at fault
in the batch as a whole can only be a mistake of the engine: `check_batch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm.core.contract import ImageLimits
from vllm.device.model_input import Kind, ModelInput
from vllm.targets.neuronx.chunks import wrong_rows
from vllm.targets.neuronx.vision import wrong_images


@dataclass(frozen=True, slots=True)
class Limits:
    """What the compiled programs take. global_topk: 0 where the host samples. block_size: 0 with contiguous KV.

    max_length: positions of the KV cache of a row, 0 to max_length - 1.
    chunk: tokens of all rows in a call of chunked prefill; 0 without it.
    speculation_length: tokens that a decode of fused speculation checks; 0 without it.
    adapter_slot: LoRA slot of a request without an adapter, those of adapters 1, 2, ... following it; -1: there is no
        such slot; None: the programs have no adapters at all.
    """

    num_lines: int
    max_length: int
    max_context_length: int
    vocab_size: int
    global_topk: int
    masks_absent_lines: bool
    adapter_slot: int | None = None
    block_size: int = 0
    num_blocks: int = 0
    chunk: int = 0
    speculation_length: int = 0
    images: ImageLimits | None = None


def row_faults(model_input: ModelInput, limits: Limits) -> dict[int, str]:
    """Rows by index that cannot run, and why. The others can, if these are left out."""
    faults: dict[int, str] = {}
    for check in _CHECKS:
        for wrong, reason in check(model_input, limits):
            for row in np.flatnonzero(wrong).tolist():
                faults.setdefault(row, reason.format(row=_Row(model_input, row)))
    return faults


def check_batch(model_input: ModelInput, limits: Limits) -> None:
    """Raises ValueError for lines that are not distinct, or a decode that would overwrite a live one."""
    lines = model_input.seq_ids
    if lines.size == 0 or np.unique(lines).size != lines.size:
        raise ValueError(f"KV lines {lines.tolist()} are not distinct")
    if limits.block_size or model_input.kind is Kind.PREFILL:
        return
    if model_input.live_seq_ids is None or limits.masks_absent_lines:
        return
    absent = sorted(set(model_input.live_seq_ids.tolist()) - set(lines.tolist()))
    if absent:
        raise ValueError(f"a decode without the live KV lines {absent} would overwrite them")


Wrong = tuple[Any, str]
"""Which rows are at fault (bool [B]), and a reason in which `{row.x}` stands for what row x holds (see `_Row`)."""


class _Row:
    """What a reason may say of a row."""

    def __init__(self, given: ModelInput, row: int) -> None:
        self.line = int(given.seq_ids[row])
        self.position = int(given.position_ids[row, 0])
        self.length = int(given.full_context_lens[row])
        self.last = self.length - 1
        self.sampling = tuple(given.sampling_params[row].tolist())


def _wrong_lines(given: ModelInput, limits: Limits) -> Iterator[Wrong]:
    lines = given.seq_ids
    reason = f"KV line {{row.line}} is not one of the {limits.num_lines} KV lines that were compiled"
    yield (lines < 0) | (lines >= limits.num_lines), reason


def _wrong_shapes(given: ModelInput, limits: Limits) -> Iterator[Wrong]:
    every = np.ones(given.num_rows, np.bool_)
    if limits.chunk:
        yield from wrong_rows(given, limits.chunk, limits.max_length)
        return
    if given.kind is Kind.DECODE or (given.kind is Kind.VERIFY and limits.speculation_length):
        positions, last = given.position_ids[:, 0], limits.max_length - 1
        reason = f"a token at position {{row.position}} cannot be decoded: 0 is the prompt's, the last is {last}"
        yield (positions < 1) | (positions > last), reason
        return
    if given.kind is Kind.VERIFY:
        yield every, "the programs were compiled without speculation"
    if not limits.block_size:
        yield every & (given.kind is Kind.CHUNK), "prompts are computed whole: a piece of one needs block KV"
        yield given.computed_context_lens > 0, "a prompt whose beginning is computed already needs prefix caching"
    yield ~given.samples, "prompts are computed to their end: pieces need chunked prefill"
    reason = f"a prompt of {{row.length}} tokens exceeds the longest compiled, {limits.max_context_length}"
    yield given.full_context_lens > limits.max_context_length, reason


def _wrong_tokens(given: ModelInput, limits: Limits) -> Iterator[Wrong]:
    tokens = given.input_ids
    yield ((tokens < 0) | (tokens >= limits.vocab_size)).any(1), f"tokens must be from 0 to {limits.vocab_size - 1}"


def _wrong_blocks(given: ModelInput, limits: Limits) -> Iterator[Wrong]:
    if limits.block_size:
        blocks = given.block_table
        reason = f"KV blocks are not all of the {limits.num_blocks} that were compiled"
        yield ((blocks < 0) | (blocks >= limits.num_blocks)).any(1), reason


def _wrong_adapters(given: ModelInput, limits: Limits) -> Iterator[Wrong]:
    if limits.adapter_slot is None:
        yield given.adapter_ids != 0, "the programs were compiled without LoRA adapters"
    else:
        reason = "without an adapter the library would use the first one"
        yield given.adapter_ids + limits.adapter_slot < 0, reason


def _wrong_sampling(given: ModelInput, limits: Limits) -> Iterator[Wrong]:
    """Rows that the library would refuse together with their whole batch."""
    if not limits.global_topk:
        return
    top_k, top_p, temperature = given.sampling_params.T
    explicit = (top_k > 0) & (top_k < limits.vocab_size)
    wrong = explicit & ((top_k > limits.global_topk) | (top_k != np.floor(top_k)))
    wrong |= ~((top_p > 0) & (top_p <= 1)) | ~np.isfinite(top_k)
    reason = "(top_k, top_p, temperature) = {row.sampling} cannot be sampled on the device"
    yield ((temperature > 0) & wrong) | ~np.isfinite(temperature), reason


def _wrong_images(given: ModelInput, limits: Limits) -> Iterator[Wrong]:
    yield from wrong_images(given, limits.images)


_CHECKS = (
    _wrong_lines,
    _wrong_shapes,
    _wrong_tokens,
    _wrong_blocks,
    _wrong_adapters,
    _wrong_sampling,
    _wrong_images,
)
