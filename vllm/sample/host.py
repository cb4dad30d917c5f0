"""Sampling on the host, for targets that return logits. Also the definition that samplers on a device are held to.

A row's token is a function of its logits, its parameters, its own tokens and its seed alone. Logits that are not all
finite give `NO_TOKEN`. Of others, in order, in float32:

1. mask: tokens that are not allowed get -inf.
2. bias: added. -inf forbids. Then bad words: the last token of each whose others the output ends with gets -inf. Ids
   beyond the vocabulary have no effect.
3. penalties: repetition over prompt and output (a positive logit is divided by it, any other multiplied); then
   frequency * count, then presence, over the output only.
4. temperature 0: the greatest logit, the lowest id among equals. The same if no logit, or an infinite one, is left.
5. otherwise logits / temperature, candidates in order of (logit descending, id ascending), and of these
   - the first top_k (0: the default);
   - with weights exp(logit - greatest logit), those of at least min_p;
   - the smallest beginning whose sum is at least top_p times the sum of all that are left.
6. the draw: the first candidate at which the sum of weights exceeds u times the whole, u = uniform(seed, position).

Sums run in candidate order. The first weight is 1, so a weight below 2^-25 changes no sum and is never drawn:
candidates further than `NEGLIGIBLE` below the best are left out without any effect, and no vocabulary is sorted whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.sample.arrays import NO_TOKEN, FloatArray, IntArray, LogprobRows, SamplingInput
from vllm.sample.logprobs import logprob_rows, token_logprobs
from vllm.sample.table import COLUMN_DEFAULTS, COLUMNS, Effect
from vllm.sample.tensors import banned_tokens

__all__ = [
    "NEGLIGIBLE",
    "LogprobRows",
    "is_plain_greedy",
    "logprob_rows",
    "process_logits",
    "sample",
    "splitmix64",
    "token_logprobs",
    "uniform",
]

NEGLIGIBLE = np.float32(18.0)
"""exp(-18) < 2^-25."""

_LOGIT_COLUMNS = tuple(name for name, row in COLUMNS.items() if row.effect is Effect.LOGITS)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(state: Any) -> NDArray[np.uint64]:
    """The output of the splitmix64 generator for these states; any shape."""
    with np.errstate(over="ignore"):
        z = np.asarray(state, np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def uniform(seed: Any, position: Any) -> FloatArray:
    """float32 in [0, 1), a function of (seed, position) alone; any shape."""
    with np.errstate(over="ignore"):
        counter = splitmix64(seed) + np.asarray(position, np.uint64) * _GOLDEN
    bits = splitmix64(counter) >> np.uint64(40)
    return np.asarray(bits, np.float32) * np.float32(2.0**-24)


def is_plain_greedy(sampling: SamplingInput) -> bool:
    """Whether every row only wants the greatest logit: nothing changes logits, nothing reports them."""
    draws, reports = sampling.columns["temperature"] != 0, sampling.num_logprobs >= 0
    return not bool((draws | reports | _changes_logits(sampling)).any())


def sample(
    logits: FloatArray, sampling: SamplingInput, default_top_k: int, rows: NDArray[np.bool_] | None = None
) -> IntArray:
    """The next token of each row: int32 [B] from float32 [B, vocab]; 0 for rows that `rows` (bool [B]) leaves out.

    NO_TOKEN for a wanted row whose logits are not all finite. default_top_k: what a disabled top_k means; 0: the whole
    vocabulary. The logits are not changed.
    """
    tokens = np.zeros(len(logits), np.int32)
    wanted = np.ones(len(logits), np.bool_) if rows is None else rows
    finite = np.isfinite(logits).all(axis=1)
    tokens[wanted & ~finite] = NO_TOKEN
    wanted = wanted & finite
    changes = _changes_logits(sampling)
    columns = sampling.columns
    plain = wanted & (columns["temperature"] == 0) & ~changes
    if plain.any():
        tokens[plain] = (logits if plain.all() else logits[plain]).argmax(axis=1)
    draws = uniform(columns["seed"], sampling.position)
    for row in np.flatnonzero(wanted & ~plain).tolist():
        processed = process_logits(logits[row], sampling, row) if changes[row] else logits[row]
        temperature = columns["temperature"][row]
        if temperature == 0:
            tokens[row] = processed.argmax()
        else:
            top_k = int(columns["top_k"][row]) or default_top_k or processed.size
            top_p, min_p = columns["top_p"][row], columns["min_p"][row]
            tokens[row] = _draw(processed / temperature, top_k, top_p, min_p, draws[row])
    return tokens


def process_logits(logits: FloatArray, sampling: SamplingInput, row: int) -> FloatArray:
    """Steps 1 to 3 for one row: float32 [vocab] -> a changed copy."""
    logits = logits.copy()
    _apply_mask(logits, sampling, row)
    _apply_bias(logits, sampling, row)
    _forbid_bad_words(logits, sampling, row)
    _apply_penalties(logits, sampling, row)
    return logits


def _changes_logits(sampling: SamplingInput) -> NDArray[np.bool_]:
    """bool [B]: rows to which steps 1 to 3 apply."""
    changes = (sampling.mask_index >= 0) | (np.diff(sampling.bias_offsets) > 0)
    for name in _LOGIT_COLUMNS:
        changes |= sampling.columns[name] != COLUMN_DEFAULTS[name]
    if sampling.bad_words is not None:
        changes |= np.diff(sampling.bad_words.row_offsets) > 0
    return np.asarray(changes, np.bool_)


def _apply_mask(logits: FloatArray, sampling: SamplingInput, row: int) -> None:
    index = sampling.mask_index[row]
    if index >= 0:
        octets = sampling.masks[index].astype("<u4").view(np.uint8)
        allowed = np.unpackbits(octets, count=logits.size, bitorder="little")
        logits[allowed == 0] = -np.inf


def _apply_bias(logits: FloatArray, sampling: SamplingInput, row: int) -> None:
    entries = slice(sampling.bias_offsets[row], sampling.bias_offsets[row + 1])
    ids, values = sampling.bias_ids[entries], sampling.bias_values[entries]
    known = ids < logits.size
    np.add.at(logits, ids[known], values[known])


def _forbid_bad_words(logits: FloatArray, sampling: SamplingInput, row: int) -> None:
    words = sampling.bad_words
    if words is None:
        return
    offsets = words.word_offsets
    listed = [
        words.ids[offsets[word] : offsets[word + 1]].tolist()
        for word in range(words.row_offsets[row], words.row_offsets[row + 1])
    ]
    if listed:
        known = sampling.history[sampling.history_line[row], : sampling.position[row]]
        banned = banned_tokens(listed, int(sampling.num_prompt_tokens[row]), known)
        logits[[token_id for token_id in banned if token_id < logits.size]] = -np.inf


def _apply_penalties(logits: FloatArray, sampling: SamplingInput, row: int) -> None:
    known = sampling.history[sampling.history_line[row], : sampling.position[row]]
    repetition = sampling.columns["repetition_penalty"][row]
    if repetition != 1:
        ids = np.unique(known)
        values = logits[ids]
        logits[ids] = np.where(values > 0, values / repetition, values * repetition)
    frequency, presence = sampling.columns["frequency_penalty"][row], sampling.columns["presence_penalty"][row]
    if frequency == 0 and presence == 0:
        return
    ids, counts = np.unique(known[sampling.num_prompt_tokens[row] :], return_counts=True)
    logits[ids] -= frequency * counts.astype(np.float32)
    logits[ids] -= presence


def _draw(scaled: FloatArray, top_k: int, top_p: np.float32, min_p: np.float32, u: np.float32) -> int:
    """Steps 5 and 6 on float32 [vocab], already divided by the temperature."""
    best = scaled.max()
    if not np.isfinite(best):
        return int(scaled.argmax())
    ids = _candidates(scaled, best, top_k)
    weights = np.exp(scaled[ids] - best)
    if min_p > 0:
        weights = weights[: max(np.count_nonzero(weights >= min_p), 1)]
    sums = np.cumsum(weights, dtype=np.float32)
    if top_p < 1:
        sums = sums[: np.searchsorted(sums, top_p * sums[-1], side="left") + 1]
    chosen = np.searchsorted(sums, u * sums[-1], side="right")
    return int(ids[min(chosen, len(sums) - 1)])


def _candidates(scaled: FloatArray, best: np.float32, top_k: int) -> NDArray[np.intp]:
    """Ids of the top_k greatest logits that can matter, in order of (logit descending, id ascending)."""
    ids = np.flatnonzero(scaled >= best - NEGLIGIBLE)
    if top_k < ids.size:
        least = np.partition(scaled[ids], ids.size - top_k)[ids.size - top_k]
        ids = ids[scaled[ids] >= least]
    return ids[np.argsort(-scaled[ids], kind="stable")][:top_k]
