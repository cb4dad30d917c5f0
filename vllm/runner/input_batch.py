"""The rows resident on the device: who holds which line, and all that is known of it, as arrays by line.

A line is a row's place for life: the KV line with contiguous KV (where it is the request's only block), a leased number
with block KV. The arrays are filled once when a request arrives and gathered by line for each forward.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from vllm.core.contract import CachedRequest, NewRequest, PromptImages
from vllm.core.work import CorePooling
from vllm.device.model_input import IntArray, SamplingInput
from vllm.sample import tensors
from vllm.sample.arrays import default_columns
from vllm.sample.core_sampling import CoreSampling
from vllm.sample.table import COLUMN_DEFAULTS


@dataclass(slots=True)
class Row:
    """One request on the device.

    num_tokens: how many of its tokens are known; num_computed: of how many the KV is in the cache; num_cached: how many
    of those, from the first on, lie in blocks that others may read too; mask: allowed tokens, uint32 words; images:
    those of the prompt, until it is computed.
    """

    req_id: str
    line: int
    sampling: CoreSampling
    block_ids: list[int]
    num_prompt_tokens: int
    num_tokens: int
    lora_id: int
    has_bias: bool
    num_computed: int = 0
    num_cached: int = 0
    mask: np.ndarray | None = field(default=None, repr=False)
    images: PromptImages | None = field(default=None, repr=False)


class InputBatch:
    """Leases lines to requests and keeps their tokens and sampling parameters.

    num_lines: rows of the compiled decode program. max_len: longest sequence plus drafts, in tokens.
    contiguous: the line of a request is its block id.
    """

    def __init__(self, num_lines: int, max_len: int, vocab_size: int, *, contiguous: bool, default_top_k: int) -> None:
        self.vocab_size = vocab_size
        self.contiguous = contiguous
        self.default_top_k = default_top_k
        self.rows: dict[str, Row] = {}
        self._free_lines = list(range(num_lines))
        self._lines_in_use: set[int] = set()
        self.tokens: IntArray = np.zeros((num_lines, max_len), np.int32)
        self.num_tokens = np.zeros(num_lines, np.int32)
        self.num_prompt_tokens = np.zeros(num_lines, np.int32)
        self.columns = default_columns(num_lines)
        self.num_logprobs = np.full(num_lines, -1, np.int32)
        self.num_prompt_logprobs = np.full(num_lines, -1, np.int32)
        self.device_sampling_params = np.ones((num_lines, 3), np.float32)

    def add(self, request: NewRequest) -> Row:
        """Take in a request. Raises ValueError for a request that is already here or a line that is taken.

        After any other failure the request is here, half-filled, and is to be removed.
        """
        if request.req_id in self.rows:
            raise ValueError(f"request {request.req_id!r} is already on the device")
        sampling, prompt = request.work, request.prompt_token_ids
        if isinstance(sampling, CorePooling):
            raise ValueError("no vector is made of a prompt on this target: it generates text")
        if len(prompt) > self.tokens.shape[1]:
            raise ValueError(f"prompt of {len(prompt)} tokens exceeds the {self.tokens.shape[1]} a row can hold")
        row = Row(
            req_id=request.req_id,
            line=self._lease(request.block_ids),
            sampling=sampling,
            block_ids=list(request.block_ids),
            num_prompt_tokens=len(prompt),
            num_tokens=len(prompt),
            lora_id=request.lora_id,
            has_bias=tensors.has_bias(sampling),
            images=request.images,
        )
        self.rows[request.req_id] = row
        row.mask = tensors.allowed_mask(sampling, self.vocab_size)
        self.tokens[row.line, : len(prompt)] = prompt
        self._write_line(row)
        return row

    def update(self, request: CachedRequest) -> Row:
        """Take in what changed. Raises KeyError for a request that is not here."""
        row = self.rows[request.req_id]
        row.block_ids.extend(request.new_block_ids)
        return row

    def append(self, row: Row, token_ids: list[int]) -> None:
        """Add sampled tokens to a row's known tokens; what lies beyond the row's room is not kept."""
        kept = token_ids[: self.tokens.shape[1] - row.num_tokens]
        self.tokens[row.line, row.num_tokens : row.num_tokens + len(kept)] = kept
        row.num_tokens += len(kept)
        self.num_tokens[row.line] = row.num_tokens

    def remove(self, req_id: str) -> None:
        """Free a request's line. A request that never got one is no fault."""
        row = self.rows.pop(req_id, None)
        if row is None:
            return
        self._lines_in_use.discard(row.line)
        if not self.contiguous:
            heapq.heappush(self._free_lines, row.line)

    def live_lines(self) -> IntArray:
        """Lines whose KV is in use, ascending."""
        return np.asarray(sorted(row.line for row in self.rows.values() if row.num_computed), np.int32)

    def sampling_input(
        self, rows: list[Row], lines: IntArray, grammar_masks: dict[str, bytes], num_drafts: IntArray | None = None
    ) -> SamplingInput:
        """What sampling needs for these rows; `lines` are theirs, in the same order.

        num_drafts: int32 [rows], how many entries each has beyond its first, at the positions that follow.
        """
        ahead = np.zeros(len(rows), np.int32)
        if num_drafts is not None and num_drafts.any():
            index = np.repeat(np.arange(len(rows)), num_drafts + 1)
            ahead = (np.arange(len(index)) - (np.cumsum(num_drafts + 1) - num_drafts - 1)[index]).astype(np.int32)
            rows, lines = [rows[i] for i in index.tolist()], lines[index]
        mask_index, masks = self._masks(rows, grammar_masks)
        bias_offsets, bias_ids, bias_values = self._bias(rows, ahead)
        logprob_offsets, logprob_ids = self._logprob_ids(rows)
        return SamplingInput(
            columns={name: values[lines] for name, values in self.columns.items()},
            position=self.num_tokens[lines] + ahead,
            history=self.tokens,
            history_line=lines,
            num_prompt_tokens=self.num_prompt_tokens[lines],
            bias_offsets=bias_offsets,
            bias_ids=bias_ids,
            bias_values=bias_values,
            mask_index=mask_index,
            masks=masks,
            num_logprobs=self.num_logprobs[lines],
            logprob_ids_offsets=logprob_offsets,
            logprob_ids=logprob_ids,
            bad_words=tensors.bad_words_of([row.sampling for row in rows]),
        )

    def _lease(self, block_ids: list[int]) -> int:
        line = block_ids[0] if self.contiguous else heapq.heappop(self._free_lines)
        if line in self._lines_in_use:
            raise ValueError(f"line {line} is already held by another request")
        self._lines_in_use.add(line)
        return line

    def _write_line(self, row: Row) -> None:
        line, sampling = row.line, row.sampling
        self.num_tokens[line] = row.num_tokens
        self.num_prompt_tokens[line] = row.num_prompt_tokens
        values = COLUMN_DEFAULTS | sampling.columns
        for name, column in self.columns.items():
            column[line] = values[name]
        self.num_logprobs[line] = _count(sampling.logprobs, self.vocab_size)
        self.num_prompt_logprobs[line] = _count(sampling.prompt_logprobs, self.vocab_size)
        temperature, top_k = values["temperature"], values["top_k"] or self.default_top_k
        self.device_sampling_params[line] = (top_k, values["top_p"], temperature) if temperature else (1, 1, 1)

    def _masks(self, rows: list[Row], grammar_masks: dict[str, bytes]) -> tuple[IntArray, np.ndarray]:
        index = np.full(len(rows), -1, np.int32)
        masks: list[np.ndarray] = []
        for i, row in enumerate(rows):
            mask = row.mask
            if row.req_id in grammar_masks:
                grammar = np.frombuffer(grammar_masks[row.req_id], "<u4")
                mask = grammar if mask is None else mask & grammar
            if mask is not None:
                index[i] = len(masks)
                masks.append(mask)
        words = (self.vocab_size + 31) // 32
        return index, np.stack(masks) if masks else np.empty((0, words), np.uint32)

    def _bias(self, rows: list[Row], ahead: IntArray) -> tuple[IntArray, IntArray, np.ndarray]:
        offsets = np.zeros(len(rows) + 1, np.int32)
        ids: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for i, row in enumerate(rows):
            offsets[i + 1] = offsets[i]
            if row.has_bias:
                num_output = row.num_tokens + int(ahead[i]) - row.num_prompt_tokens
                row_ids, row_values = tensors.bias_for(row.sampling, num_output)
                offsets[i + 1] += len(row_ids)
                ids.append(row_ids)
                values.append(row_values)
        if not ids:
            return offsets, np.empty(0, np.int32), np.empty(0, np.float32)
        return offsets, np.concatenate(ids), np.concatenate(values)

    def _logprob_ids(self, rows: list[Row]) -> tuple[IntArray, IntArray]:
        offsets = np.zeros(len(rows) + 1, np.int32)
        ids: list[int] = []
        for i, row in enumerate(rows):
            ids.extend(row.sampling.logprob_token_ids)
            offsets[i + 1] = len(ids)
        return offsets, np.asarray(ids, np.int32)


def _count(wanted: int | None, vocab_size: int) -> int:
    if wanted is None:
        return -1
    return vocab_size if wanted < 0 else wanted
