"""Log-probabilities of raw logits: log-softmax before masks, bias, penalties and temperature.

The softmax runs in float64; what is reported is float32. Among equal logits the lower id comes first.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from vllm.sample.arrays import NO_LOGPROBS, Array, FloatArray, IntArray, LogprobRows, SamplingInput


def logprob_rows(logits: FloatArray, tokens: IntArray, sampling: SamplingInput) -> LogprobRows | None:
    """Log-probabilities of the sampled tokens and of what each row asked for; None if no row asked."""
    if (sampling.num_logprobs < 0).all():
        return None
    named = [sampling.logprob_ids[start:stop] for start, stop in pairwise(sampling.logprob_ids_offsets)]
    return token_logprobs(logits, tokens, sampling.num_logprobs, named)


def token_logprobs(
    logits: FloatArray, token_ids: IntArray, num_logprobs: IntArray, named: list[IntArray] | None = None
) -> LogprobRows:
    """Log-probabilities at N positions.

    logits: float32 [N, vocab]; token_ids: int32 [N], the token to report at each; num_logprobs: int32 [N], how many of
    the most likely to report besides (-1: nothing at all, the row stays empty); named: further ids for each position.
    A row that is reported and whose logits are not all finite has the count NO_LOGPROBS.
    """
    num_rows, vocab_size = logits.shape
    named = named or [np.empty(0, np.int32)] * num_rows
    num_top = np.minimum(num_logprobs, vocab_size)
    count = np.where(num_top < 0, 0, num_top + [len(ids) for ids in named]).astype(np.int32)
    width = int(count.max(initial=0))
    rows = LogprobRows(
        token_id=token_ids.astype(np.int32),
        logprob=np.zeros(num_rows, np.float32),
        rank=np.zeros(num_rows, np.int32),
        count=count,
        top_ids=np.zeros((num_rows, width), np.int32),
        top_logprobs=np.zeros((num_rows, width), np.float32),
    )
    finite = np.isfinite(logits).all(axis=1)
    rows.count[(num_top >= 0) & ~finite] = NO_LOGPROBS
    for i in np.flatnonzero((num_top >= 0) & finite):
        row, token_id = logits[i], token_ids[i]
        reported = np.concatenate([most_likely(row, int(num_top[i])), named[i]])
        normaliser = _log_sum_exp(row)
        rows.logprob[i] = float(row[token_id]) - normaliser
        rows.rank[i] = 1 + np.count_nonzero(row > row[token_id])
        rows.top_ids[i, : count[i]] = reported
        rows.top_logprobs[i, : count[i]] = row[reported].astype(np.float64) - normaliser
    return rows


def most_likely(logits: FloatArray, count: int) -> Array:
    """Ids of the `count` greatest logits of float32 [vocab], best first, the lower id first among equals."""
    if not count:
        return np.empty(0, np.intp)
    least = np.partition(logits, logits.size - count)[logits.size - count]
    ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def _log_sum_exp(logits: FloatArray) -> float:
    greatest = float(logits.max())
    return greatest + math.log(np.exp(logits - np.float64(greatest)).sum())
