"""Programs that a Neuron config is compiled to: one per kind, batch and bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm.settings import buckets
from vllm.settings.vision_shapes import is_image_to_text, missing_vision_entries, tile_buckets, tokens_per_tile

VISION_ENCODER = "vision_encoder"


@dataclass(frozen=True, slots=True)
class Program:
    """kind: "context_encoding", "token_generation" or "vision_encoder". batch: rows, or tiles of images.

    tokens: of each row that are computed. context: the longest context of a row, 0 where it is the tokens themselves.
    """

    kind: str
    batch: int
    tokens: int
    context: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def programs_of(config: Any, hf_config: Mapping[str, Any]) -> list[Program]:
    """Every program of a `NeuronConfig`, in the order in which NxD Inference lists its buckets."""
    return [*_context_encoding(config), *_token_generation(config), *_vision_encoder(config, hf_config)]


def _vision_encoder(config: Any, hf_config: Mapping[str, Any]) -> list[Program]:
    if not is_image_to_text(hf_config) or missing_vision_entries(hf_config):
        return []
    tokens = tokens_per_tile(hf_config)
    return [Program(VISION_ENCODER, tiles, tokens, 0) for tiles in tile_buckets(hf_config, config)]


def _context_encoding(config: Any) -> list[Program]:
    kind, batch = "context_encoding", config.ctx_batch_size
    if config.is_chunked_prefill:
        chunk = config.chunked_prefill_config
        pairs = buckets.chunk_buckets(
            config.max_context_length,
            config.max_length,
            chunk.max_num_seqs,
            chunk.kernel_q_tile_size,
            chunk.kernel_kv_tile_size,
        )
        return [Program(kind, 1, tokens, tiles) for tokens, tiles in pairs]
    if config.is_prefix_caching:
        grid = buckets.prefix_prefill_buckets(
            config.max_context_length, config.context_encoding_buckets, config.prefix_buckets
        )
        return [Program(kind, batch, tokens, prefix) for tokens, prefix in grid]
    return [Program(kind, batch, bucket, 0) for bucket in config.context_buckets]


def _token_generation(config: Any) -> list[Program]:
    kind = "token_generation"
    width = max(1, config.speculation_length)
    batches = sorted({*(config.token_generation_batches or []), config.tkg_batch_size}, reverse=True)
    if config.is_prefix_caching:
        pairs = buckets.prefix_decode_buckets(config.max_length, config.token_generation_buckets)
        return [Program(kind, batch, width, context) for batch in batches for _, context in pairs]
    return [Program(kind, batch, width, bucket) for batch in batches for bucket in config.token_buckets]
