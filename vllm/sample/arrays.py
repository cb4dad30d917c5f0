"""The arrays that sampling takes and gives, on the host as on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vllm.sample.table import COLUMN_DEFAULTS, COLUMNS

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
Array = NDArray[Any]


NO_TOKEN = -1
"""What is sampled from logits that are not all finite: NaN or an infinity means damaged weights, or an overflow."""

NO_LOGPROBS = -1
"""`LogprobRows.count` of such logits."""


@dataclass(slots=True)
class BadWords:
    """Sequences of tokens that an output must not hold: compressed twice.

    Row i's words are those from row_offsets[i] to row_offsets[i + 1]; word w is ids[word_offsets[w] :
    word_offsets[w + 1]]. Its last token is forbidden where the row's output ends with all the others.
    """

    row_offsets: IntArray
    word_offsets: IntArray
    ids: IntArray


@dataclass(slots=True)
class SamplingInput:
    """What sampling needs beyond NxDI's (top_k, top_p, temperature), one entry a token that may be sampled.

    Without drafts that is one a row of ModelInput; a row with drafts has an entry for each and one for what follows.

    columns: by name, the values of the table's parameters that have a column, each of the row's type. The draw for the
        token at `position` depends on (seed, position) only.
    position: index of the token being sampled, i.e. the number of tokens the row already has.
    history: int32 [num_lines, max_model_len], the known tokens of every line; row i's are
        history[history_line[i], :position[i]], the first num_prompt_tokens[i] of them its prompt.
    bias_*: compressed rows: row i adds bias_values[j] to logits[bias_ids[j]] for bias_offsets[i] <= j <
        bias_offsets[i+1]; -inf forbids. Holds logit_bias and what min_tokens suppresses.
    masks: uint32 [num_masks, ceil(vocab/32)], bit set: allowed; mask_index[i] is row i's mask or -1.
    num_logprobs: how many most likely tokens to report; 0: the sampled one only; -1: none at all.
    logprob_ids: compressed rows as bias_ids: further tokens whose log-probability is reported.
    bad_words: None if no row has any.
    """

    columns: dict[str, Array]
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
    bad_words: BadWords | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Array:
            """A column by its parameter's name."""
            if name in COLUMNS:
                return self.columns[name]
            raise AttributeError(name)


def default_columns(count: int) -> dict[str, Array]:
    """Columns of `count` entries that ask for nothing."""
    return {name: np.full(count, COLUMN_DEFAULTS[name], row.column) for name, row in COLUMNS.items()}


@dataclass(slots=True)
class LogprobRows:
    """Log-probabilities of N positions, padded to the widest: count[i] entries are valid in row i.

    A count of NO_LOGPROBS: the logits of this position were not finite, and nothing else in the row means anything.
    token_id, logprob, rank: [N], the sampled or given token. top_ids int32, top_logprobs float32: [N, K], best first,
    then the ids that were asked for by name.
    """

    token_id: IntArray
    logprob: FloatArray
    rank: IntArray
    count: IntArray
    top_ids: IntArray
    top_logprobs: FloatArray

    def part(self, start: int, stop: int) -> LogprobRows:
        """Entries start to stop - 1."""
        return LogprobRows(
            self.token_id[start:stop],
            self.logprob[start:stop],
            self.rank[start:stop],
            self.count[start:stop],
            self.top_ids[start:stop],
            self.top_logprobs[start:stop],
        )
