"""The tensors of one forward. Field names are NxD Inference's; arrays are numpy, so that no target has to import torch.

B rows, S columns of the chosen kind. Shapes are those of the work, not yet of the bucket: padding to the compiled shape
is the target's business (`neuronx`: the library does it; `cpu`: kernels skip it), `bucket` only names the program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vllm.core.contract import PromptImages
from vllm.sample.arrays import LogprobRows as LogprobRows
from vllm.sample.arrays import SamplingInput as SamplingInput

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


class Kind(str, Enum):
    """Which compiled program a forward runs."""

    PREFILL = "prefill"
    CHUNK = "chunk"
    DECODE = "decode"
    VERIFY = "verify"


@dataclass(slots=True)
class ModelInput:
    """One forward.

    input_ids, position_ids: int32 [B, S]; row i's real tokens are the first num_tokens[i], at consecutive positions
        from computed_context_lens[i]; the rest is 0.
    seq_ids: int32 [B], ascending with contiguous KV: the KV lines.
    sampling_params: float32 [B, 3]: top_k, top_p, temperature as NxDI wants them (greedy: 1, 1, 1).
    full_context_lens, computed_context_lens: int32 [B]: tokens of the row after and before this forward.
    block_table: int32 [B, max_blocks_per_seq]: KV blocks in position order, padded 0. Contiguous: [[line]].
    slot_mapping: int32 [B, S]: block_id * block_size + offset for each token; -1 for padding, and for a token whose KV
        is in the cache already, which is only computed again to sample from.
    adapter_ids: int32 [B], 0 without adapter.
    samples: bool [B]: rows that sample a token (their known tokens are all computed after this forward).
    num_drafts: int32 [B]: how many tokens the target may draft for each row and verify, in a VERIFY; the input is that
        of a DECODE. Slots of drafts follow from block_table. `sampling` has num_drafts[i] + 1 entries for row i, those
        of row 0 first; a draft is accepted exactly if it is what its entry samples. The target writes drafts into the
        row's history, behind its known tokens, where penalties and bad words find them.
    num_prompt_logprobs: int32 [B]: as SamplingInput.num_logprobs, for every input position but a sampling row's last:
        the log-probabilities of the token that follows it.
    next_token_ids: int32 [B, S]: the token that follows each input token in the prompt (for prompt logprobs), else 0.
    live_seq_ids: int32 [N]: rows of the device whose KV must outlive this forward, in it or not; None: not known.
    images: for each row what stands for the placeholders of its prompt, or None; None: no row has any.
    """

    kind: Kind
    bucket: int
    input_ids: IntArray
    position_ids: IntArray
    seq_ids: IntArray
    num_tokens: IntArray
    full_context_lens: IntArray
    computed_context_lens: IntArray
    block_table: IntArray
    slot_mapping: IntArray
    adapter_ids: IntArray
    samples: NDArray[np.bool_]
    sampling_params: FloatArray
    sampling: SamplingInput
    num_prompt_logprobs: IntArray
    next_token_ids: IntArray
    num_drafts: IntArray
    live_seq_ids: IntArray | None = None
    images: list[PromptImages | None] | None = None

    @property
    def num_rows(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def first_entries(self) -> IntArray:
        """int32 [B]: each row's first entry in `sampling`."""
        return np.asarray(np.cumsum(self.num_drafts + 1) - self.num_drafts - 1, np.int32)


@dataclass(slots=True)
class ModelOutput:
    """What a forward returns.

    tokens: int32 [B, T]; row i's new tokens are the first num_new[i] (0 where the row does not sample).
    logits: float32 [B, vocab] instead of tokens when the target does not sample; like logprobs meaningless where the
        row does not sample.
    logprobs: if any row asked: entries of each row's tokens, in order; those of rows that did not ask mean nothing.
    first_logprobs: int32 [B], the entry of each row's first token; None: as in `ModelInput.sampling`.
    num_drafted: int32 [B], how many drafts of each row were verified; None: none. num_caught_up: tokens that a draft
        model read beside each row's newest ones.
    prompt_logprobs: entries for row 0's positions, then row 1's, ...: num_tokens[i] - samples[i] for each that asked.
    """

    tokens: IntArray | None = None
    num_new: IntArray | None = None
    logits: FloatArray | None = None
    logprobs: LogprobRows | None = None
    first_logprobs: IntArray | None = None
    prompt_logprobs: LogprobRows | None = None
    num_drafted: IntArray | None = None
    num_caught_up: int = 0
    extra: dict[str, object] = field(default_factory=dict)
