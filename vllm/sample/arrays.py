"""The arrays that sampling takes and gives, as duck types: whatever has these attributes will do.

`SamplingArrays` is what is read here of `neuron.model_input.SamplingInput`, where shapes and meanings are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
Array = NDArray[Any]


class SamplingArrays(Protocol):
    """One entry a row; bias and further ids in compressed rows."""

    temperature: FloatArray
    top_k: IntArray
    top_p: FloatArray
    min_p: FloatArray
    repetition_penalty: FloatArray
    presence_penalty: FloatArray
    frequency_penalty: FloatArray
    seed: NDArray[np.uint64]
    position: IntArray
    history: IntArray
    history_line: IntArray
    num_prompt_tokens: IntArray
    bias_offsets: IntArray
    bias_ids: IntArray
    bias_values: FloatArray
    mask_index: IntArray
    masks: NDArray[np.uint32]
    num_logprobs: IntArray
    logprob_ids_offsets: IntArray
    logprob_ids: IntArray


@dataclass(slots=True)
class LogprobRows:
    """Log-probabilities of N positions, padded to the widest: count[i] entries are valid in row i.

    token_id, logprob, rank: [N], the sampled or given token. top_ids int32, top_logprobs float32: [N, K], best first,
    then the ids that were asked for by name.
    """

    token_id: IntArray
    logprob: FloatArray
    rank: IntArray
    count: IntArray
    top_ids: IntArray
    top_logprobs: FloatArray
