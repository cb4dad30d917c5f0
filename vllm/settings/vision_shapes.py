"""Shapes of an image-to-text model's vision encoder, from its config and the Neuron config: Llama 4's.

The encoder runs over tiles of images and is compiled for numbers of tiles. Its degree of tensor parallelism divides its
own heads; the ranks beyond share the tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

MOST_TILES = 88
"""Most tiles of a prompt: NxD Inference's VISION_MAX_NUM_CHUNKS."""
TILE_LADDER = (8, 28, MOST_TILES)
"""Numbers of tiles that the encoder is compiled for, as far as a sequence holds them."""


def is_image_to_text(hf_config: Mapping[str, Any]) -> bool:
    """Whether the library runs the model as a decoder with a vision encoder."""
    return hf_config.get("model_type") == "llama4"


def tokens_per_tile(hf_config: Mapping[str, Any]) -> int:
    """Placeholders of one tile: its patches, as many of them together as pixel shuffling joins."""
    vision = hf_config["vision_config"]
    joined = round(1 / vision["pixel_shuffle_ratio"] ** 2)
    return int((vision["image_size"] // vision["patch_size"]) ** 2 // joined)


def missing_vision_entries(hf_config: Mapping[str, Any]) -> list[str]:
    """What the config of an image-to-text model does not say of its vision encoder."""
    vision = hf_config.get("vision_config") or {}
    needed = ("num_attention_heads", "image_size", "patch_size", "pixel_shuffle_ratio")
    return [name for name in needed if not vision.get(name)]


def vision_degree(hf_config: Mapping[str, Any], neuron: Any) -> int:
    """Tensor-parallel degree of the vision encoder: what was asked for, else the largest that its heads allow."""
    asked = neuron.vision_neuron_config.tp_degree if neuron.vision_neuron_config else None
    return asked or gcd(int(hf_config["vision_config"]["num_attention_heads"]), neuron.tp_degree)


def tile_buckets(hf_config: Mapping[str, Any], neuron: Any) -> list[int]:
    """Numbers of tiles that the vision encoder is compiled for: as asked, else a ladder up to what a sequence holds."""
    if neuron.vision_neuron_config is not None and neuron.vision_neuron_config.buckets is not None:
        return sorted(neuron.vision_neuron_config.buckets)
    sharers = max(neuron.tp_degree // vision_degree(hf_config, neuron), 1)
    most = min(MOST_TILES, max(neuron.max_context_length // tokens_per_tile(hf_config), 1))
    ladder = {-(-count // sharers) * sharers for count in (*TILE_LADDER, most) if count <= most}
    return sorted(ladder)
