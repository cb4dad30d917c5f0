"""What drafts on the `cpu` target, and how it runs beside its target.

A draft is a model over the target's KV blocks and block tables, so prefix caching, chunked prefill and the scheduler
know nothing of it. It reads lazily: only a step that drafts for a row makes it read what it lacks of that row, be it a
prompt, or tokens that were sampled while nothing was drafted (`NativeSpeculator.filled` says which slots it has read).
Prompts are read in pieces of the program's size; until then the row decodes without drafts.

What graph drafts, and what it wants of its target's, is `draft_pair.py`'s. A draft ends in `sample` over the target's
vocabulary.
"""

from __future__ import annotations

import numpy as np

from vllm.config import VllmConfig
from vllm.device.model_input import IntArray, ModelInput, ModelOutput
from vllm.targets.cpu.draft_pair import keeps_drafts
from vllm.targets.cpu.ops import NativeModel, NativeSpeculator

CATCH_UP_TOKENS = 256
"""Most tokens that a draft reads at once."""


def draft_program_shape(config: VllmConfig) -> tuple[int, int]:
    """Most tokens that a draft reads at once, and most rows that it drafts for."""
    rows = config.program_config.num_rows
    return max(2 * rows, min(CATCH_UP_TOKENS, rows * config.model_config.max_len)), rows


class Drafter:
    """Runs the steps of a target that may draft. draft, program: the draft model and its program, if one drafts."""

    def __init__(
        self, config: VllmConfig, target: NativeModel, draft: NativeModel | None = None, program: int = 0
    ) -> None:
        speculation, cache = config.speculative_config, config.cache_config
        if speculation is None:
            raise ValueError("the config asks for no speculation")
        self._speculator = NativeSpeculator(
            target,
            draft=draft,
            draft_program=program,
            shortest=speculation.prompt_lookup_min,
            longest=speculation.prompt_lookup_max,
            keeps_drafts=keeps_drafts(speculation.method),
            num_slots=cache.num_blocks * (cache.block_size or config.model_config.max_len),
            max_rows=config.program_config.num_rows,
            max_drafts=speculation.num_speculative_tokens,
        )

    def note_written(self, slots: IntArray) -> None:
        """The target wrote these slots in a step that did not draft."""
        if self._speculator.filled is not None:
            self._speculator.filled[slots] = 0

    def run(self, program: int, model_input: ModelInput) -> ModelOutput:
        """A VERIFY on the target's `program`."""
        result = self._speculator.run(
            program,
            np.ascontiguousarray(model_input.full_context_lens, np.int32),
            model_input.block_table,
            model_input.num_drafts,
            model_input.sampling,
        )
        num_entries = result.num_drafted + 1
        return ModelOutput(
            tokens=result.tokens,
            num_new=result.num_new,
            logprobs=result.logprobs,
            first_logprobs=np.cumsum(num_entries, dtype=np.int32) - num_entries,
            num_drafted=result.num_drafted,
            num_caught_up=result.num_caught_up,
        )
