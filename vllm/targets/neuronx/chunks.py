"""Chunked prefill in the library's terms, which its versions to 0.7 have: pieces of prompts and decodes in one call.

The tokens of all rows lie side by side, in one row of the library's. Where every row has one token the library runs its
token generation program instead, by itself. Prefixes that the engine finds in its cache are nothing special: a row
brings how many of its tokens are computed, and its block table.

A slot of -1 means the last slot of the last block, for this layout has no sink: one block more is compiled than there
are (see `compiled_blocks`), and nobody's KV lies in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vllm.config import VllmConfig
from vllm.device.model_input import ModelInput
from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig


def chunk_arguments(given: ModelInput, adapted_sampling: Any, num_lines: int) -> dict[str, Any]:
    """Keyword arguments of a call with all rows of `given`, in their order.

    adapted_sampling: float32 [B, 3], as the library takes it; it goes out filled up to num_lines rows.
    """
    rows, columns = np.nonzero(np.arange(given.input_ids.shape[1]) < given.num_tokens[:, None])
    sampling = np.ones((num_lines, 3), np.float32)
    sampling[: given.num_rows] = adapted_sampling
    return {
        "input_ids": given.input_ids[rows, columns][None],
        "position_ids": given.position_ids[rows, columns][None],
        "seq_ids": np.zeros(1, np.int32),
        "sampling_params": sampling,
        "slot_mapping": given.slot_mapping[rows, columns],
        "block_table": given.block_table,
        "full_context_lens": given.full_context_lens,
        "computed_context_lens": given.computed_context_lens,
    }


def wrong_rows(given: ModelInput, chunk: int, max_length: int) -> Iterator[tuple[Any, str]]:
    """Rows that cannot run, and why, as `input_checks` has them."""
    total = int(given.num_tokens.sum())
    every = np.ones(given.num_rows, np.bool_)
    yield every & (total > chunk), f"a step of {total} tokens exceeds the {chunk} of a compiled chunk"
    reason = f"a token at position {{row.last}} cannot be computed: the last is {max_length - 1}"
    yield given.full_context_lens > max_length, reason


def chunk_tokens(config: VllmConfig) -> int:
    """Tokens of a call; 0 without chunked prefill."""
    if not config.neuron_config.is_chunked_prefill:
        return 0
    return config.scheduler_config.max_num_batched_tokens or config.model_config.max_len


def chunk_entries(config: VllmConfig) -> dict[str, Any]:
    """Entries of the library's NeuronConfig that differ. The engine finds prefixes: the library need not know."""
    neuron: NeuronConfig = config.neuron_config
    if not neuron.is_chunked_prefill:
        return {}
    return {
        "max_context_length": chunk_tokens(config),
        "is_prefix_caching": False,
        "pa_num_blocks": compiled_blocks(neuron),
    }


def compiled_blocks(neuron: NeuronConfig) -> int:
    return neuron.pa_num_blocks + (1 if neuron.is_chunked_prefill else 0)


def check_chunks(config: VllmConfig, neuron: NeuronConfig, faults: Faults) -> None:
    """What would fail when the library compiles or runs."""
    chunked, length = neuron.chunked_prefill_config, neuron.max_length
    if chunked is None:
        return
    tokens = config.scheduler_config.max_num_batched_tokens
    if tokens is not None and tokens > length:
        why = f"a compiled chunk is at most max_model_len={length} tokens"
        faults.add("max_num_batched_tokens", tokens, why, f"Use {length} or less", involves=["max_model_len"])
    if not chunked.tkg_model_enabled:
        why = "every decode would then run the program for chunks"
        faults.add("chunked_prefill_config.tkg_model_enabled", False, why, "Leave it out")
    if chunked.max_num_seqs != neuron.batch_size:
        why, fix = f"max_num_seqs is {neuron.batch_size}", "Leave it out"
        faults.add("chunked_prefill_config.max_num_seqs", chunked.max_num_seqs, why, fix)
    if neuron.context_encoding_buckets is not None:
        why = "chunks have buckets of their own, multiples of kernel_q_tile_size"
        faults.add("context_encoding_buckets", neuron.context_encoding_buckets, why, "Leave it out")
    if odd := [bucket for bucket in neuron.token_buckets if bucket % neuron.pa_block_size]:
        why = f"{odd[0]} is no multiple of block_size={neuron.pa_block_size}, which block tables are cut by"
        faults.add("token_generation_buckets", neuron.token_buckets, why, "Use multiples, or another max_model_len")
