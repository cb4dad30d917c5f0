"""Image-to-text models in the library's terms: Llama 4.

The library runs two models: a vision encoder over tiles of images, and the decoder, into whose embeddings the encoder's
output is written where the prompt has its placeholders. So there are two Neuron configs, `text_neuron_config`, which is
that of any other model, and `vision_neuron_config`; and a prompt's call has `pixel_values` and `vision_mask` beside its
tokens. What the library does with them, and what follows here:

- The vision encoder is compiled for numbers of tiles (see `vision_shapes`). Its ranks are the decoder's.
- Embeddings are padded to the first bucket that holds the prompt. Where the prompt's program has another bucket, they
  are silently replaced by zeros: that is so where a prompt fills a bucket that is not the last (`unusable_lengths`).
- Padding is written at the bucket's last position, over a prompt that reaches it. The last bucket is therefore a whole
  sequence long, which no prompt is.
- Pixels that sum to 0 are held to be no image: `pixels_of` sees to it that those of an image never do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import gcd
from typing import Any

import numpy as np

from vllm.config import VllmConfig
from vllm.core.contract import ImageLimits, PromptImages
from vllm.device.model_input import FloatArray, Kind, ModelInput
from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.vision_shapes import (
    is_image_to_text,
    missing_vision_entries,
    tile_buckets,
    tokens_per_tile,
    vision_degree,
)
from vllm.targets.neuronx.versions import KEYS_SINCE, OLDEST, Version

PARTS = ("text_model/", "vision_model/")
"""Directories of an artifact that hold programs and weights."""
_PLACEHOLDER_ID = 200092
"""Of <|patch|>, where a config does not say: transformers' default."""
_NUDGE = 2.0**-6
"""Two of the 256 steps of one colour of one pixel."""

_EXCLUDED = {
    "is_prefix_caching": "image-to-text models have no prefix caching in the library",
    "chunked_prefill_config": "image-to-text models have no chunked prefill in the library",
    "is_block_kv_layout": "image-to-text models have no block KV in the library",
    "enable_fused_speculation": "image-to-text models do not speculate in the library",
    "lora_config": "image-to-text models have no adapters in the library",
}


def check_images(hf_config: Mapping[str, Any], neuron: NeuronConfig, faults: Faults) -> None:
    """What an image-to-text model cannot be combined with; and that other models have no vision encoder."""
    if not is_image_to_text(hf_config):
        if neuron.vision_neuron_config is not None:
            why = "the model has no vision encoder"
            faults.add("vision_neuron_config", neuron.vision_neuron_config.changed(), why, "Leave it out")
        return
    if missing := missing_vision_entries(hf_config):
        why = f"its vision_config does not say {', '.join(missing)}"
        faults.add("config.json", "vision_config", why, "Use the model's own config.json")
        return
    for name, why in _EXCLUDED.items():
        if value := getattr(neuron, name):
            faults.add(name, value if isinstance(value, bool) else "set", why, "Leave it out")
    if neuron.max_context_length != neuron.seq_len:
        why = "the library writes over the last position of the last bucket, which a prompt of that length would have"
        faults.add("max_context_length", neuron.max_context_length, why, "Leave it out")
    _check_vision(hf_config, neuron, faults)


def _check_vision(hf_config: Mapping[str, Any], neuron: NeuronConfig, faults: Faults) -> None:
    heads, degree = int(hf_config["vision_config"]["num_attention_heads"]), vision_degree(hf_config, neuron)
    if neuron.tp_degree % degree or heads % degree:
        why = f"must divide tp_degree={neuron.tp_degree} and the vision encoder's {heads} heads"
        faults.add("vision_neuron_config.tp_degree", degree, why, f"Use {gcd(heads, neuron.tp_degree)}")
        return
    sharers = neuron.tp_degree // degree
    uneven = [count for count in tile_buckets(hf_config, neuron) if count % sharers]
    if uneven:
        why = f"{sharers} groups of {degree} ranks share the tiles evenly"
        faults.add("vision_neuron_config.buckets", uneven, why, f"Use multiples of {sharers}")


def vision_entries(config: VllmConfig, text: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Keyword arguments of the vision encoder's NeuronConfig, given those of the decoder's (`text`)."""
    neuron, hf_config = config.neuron_config, config.model_config.hf_config
    shared = ("torch_dtype", "logical_nc_config", "save_sharded_checkpoint", "skip_sharding", "start_rank_id")
    asked = neuron.vision_neuron_config.changed() if neuron.vision_neuron_config else {}
    return {
        "batch_size": 1,
        "seq_len": neuron.seq_len,
        **{name: text[name] for name in shared if name in text},
        **{name: value for name, value in asked.items() if version >= KEYS_SINCE.get(name, OLDEST)},
        "tp_degree": vision_degree(hf_config, neuron),
        "world_size": neuron.world_size,
        "local_ranks_size": neuron.local_ranks_size,
        "enable_bucketing": True,
        "buckets": tile_buckets(hf_config, neuron),
    }


# Requests.


def image_limits(config: VllmConfig) -> ImageLimits | None:
    """What the door needs to know of images; None where the model takes none."""
    neuron, hf_config = config.neuron_config, config.model_config.hf_config
    if not is_image_to_text(hf_config):
        return None
    return ImageLimits(
        placeholder_id=int(hf_config.get("image_token_index", _PLACEHOLDER_ID)),
        tokens_per_tile=tokens_per_tile(hf_config),
        max_tiles=tile_buckets(hf_config, neuron)[-1],
        unusable_lengths=tuple(unusable_lengths(neuron)),
    )


def unusable_lengths(neuron: NeuronConfig) -> list[int]:
    """Lengths of prompts with which the library would lose their images: those of all buckets but the last."""
    return neuron.context_buckets[:-1]


def wrong_images(given: ModelInput, limits: ImageLimits | None) -> Iterator[tuple[Any, str]]:
    """Rows that cannot run with the images they bring, and why."""
    if given.images is None or given.kind is not Kind.PREFILL:
        return
    has = np.asarray([images is not None for images in given.images])
    if limits is None:
        yield has, "the model takes no images"
        return
    tiles = np.asarray([images.shape[0] if images else 0 for images in given.images])
    placeholders = (given.input_ids == limits.placeholder_id).sum(1)
    reason = f"its placeholders are not {limits.tokens_per_tile} for each tile of its images"
    yield has & (placeholders != tiles * limits.tokens_per_tile), reason
    yield has & (tiles > limits.max_tiles), f"its images have more than {limits.max_tiles} tiles"
    reason = "a prompt of {row.length} tokens fills a bucket, and the library would lose its images"
    yield has & np.isin(given.full_context_lens, limits.unusable_lengths), reason


def image_arguments(model_input: ModelInput, row: int, ids: Any, limits: ImageLimits | None) -> dict[str, Any]:
    """`pixel_values` and `vision_mask` of a prompt's call, whose (padded) tokens are `ids`, int32 [1, S]."""
    images = model_input.images[row] if model_input.images is not None else None
    if images is None or limits is None:
        return {}
    return {"pixel_values": pixels_of(images), "vision_mask": (ids == limits.placeholder_id)[..., None]}


def pixels_of(images: PromptImages) -> FloatArray:
    """float32 [tiles, channels, height, width]. One value is moved a little if the library's sum of all would be 0."""
    import torch

    pixels = np.frombuffer(images.pixels, np.float32).reshape(images.shape).copy()
    while torch.from_numpy(pixels).sum() == 0:
        pixels.flat[0] += _NUDGE
    return pixels
