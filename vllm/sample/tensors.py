"""One request's sampling parameters, and the tokens it has, as the arrays that samplers take. Pure functions.

Bias entries are (ids int32, values float32), each id once; -inf forbids a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.sample.arrays import BadWords, FloatArray, IntArray
from vllm.sample.core_sampling import CoreSampling

_NO_BIAS = (np.empty(0, np.int32), np.empty(0, np.float32))


def has_bias(params: CoreSampling) -> bool:
    """Whether `bias_for` can give anything for these parameters."""
    return bool(params.logit_bias or params.min_tokens)


def bias_for(params: CoreSampling, num_output: int) -> tuple[IntArray, FloatArray]:
    """Bias of the token behind num_output others: logit_bias, and stop tokens while those are fewer than min_tokens."""
    bias = dict(params.logit_bias)
    if num_output < params.min_tokens:
        bias.update(_forbidden(params.eos_token_ids))
        bias.update(_forbidden(params.stop_token_ids))
    if not bias:
        return _NO_BIAS
    ids = np.fromiter((int(token_id) for token_id in bias), np.int32, len(bias))
    return ids, np.fromiter(bias.values(), np.float32, len(bias))


def bad_words_of(rows: Sequence[CoreSampling]) -> BadWords | None:
    """The bad words of a batch; None if no row has any."""
    if not any(params.bad_words for params in rows):
        return None
    words = [[word for word in params.bad_words if word] for params in rows]
    flat = [word for row in words for word in row]
    return BadWords(
        np.cumsum([0, *(len(row) for row in words)], dtype=np.int32),
        np.cumsum([0, *(len(word) for word in flat)], dtype=np.int32),
        np.asarray([token_id for word in flat for token_id in word], np.int32),
    )


def banned_tokens(bad_words: list[list[int]], prompt_len: int, token_ids: Sequence[int] | NDArray[Any]) -> list[int]:
    """The last token of every bad word whose other tokens are what the output ends with."""
    longest = max(len(word) for word in bad_words)
    end = [int(token_id) for token_id in token_ids[max(prompt_len, len(token_ids) - longest + 1) :]]
    return [word[-1] for word in bad_words if word and _ends_with(end, word[:-1])]


def allowed_mask(params: CoreSampling, vocab_size: int) -> NDArray[np.uint32] | None:
    """uint32 [ceil(vocab / 32)]: the bits of allowed_token_ids; None if all tokens are allowed."""
    if params.allowed_token_ids is None:
        return None
    return token_mask(params.allowed_token_ids, vocab_size)


def token_mask(token_ids: Iterable[int], vocab_size: int) -> NDArray[np.uint32]:
    """uint32 [ceil(vocab / 32)]: token t is bit t % 32 of word t // 32. Raises ValueError for a token beyond it."""
    ids = np.fromiter(token_ids, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise ValueError(f"token id {wrong} is out of the vocabulary of {vocab_size} tokens")
    mask = np.zeros((vocab_size + 31) // 32, np.uint32)
    np.bitwise_or.at(mask, ids // 32, np.left_shift(np.uint32(1), (ids % 32).astype(np.uint32)))
    return mask


def _forbidden(token_ids: Iterable[int]) -> dict[int, float]:
    return dict.fromkeys(token_ids, -np.inf)


def _ends_with(tokens: list[int], ending: list[int]) -> bool:
    return not ending or tokens[-len(ending) :] == ending
