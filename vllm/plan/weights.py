"""Weights of a decoder: every tensor's shape from config.json, and what of it each core holds.

Shapes carry Hugging Face's names, whether a config or a file's header tells them, so one table of rules shards both.
On a core, with degree tp:

    embedding          hidden size split, up to a multiple of tp
    q, o               query heads padded to a multiple of tp (`HeadSharding`)
    k, v               KV heads split, replicated or converted (`HeadSharding`)
    MLP, experts       intermediate size split, up to a multiple of tp; experts also over moe_ep_degree
    lm_head            vocabulary split, up to a multiple of tp, aligned where lm_head_pad says; a copy of the embedding
                       where the two are tied, since the device holds both
    vision encoder     split evenly over its own degree: an estimate
    norms, router      on every core
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm.settings.parallel import HeadSharding
from vllm.settings.vision_shapes import is_image_to_text, missing_vision_entries, vision_degree
from vllm.sizes import DTYPE_BYTES

KINDS = ("embedding", "attention", "mlp", "experts", "router", "norms", "lm_head", "vision")
_QUANTISED_KINDS = ("attention", "mlp", "experts", "lm_head")
_SCALE_BYTES = 4
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class Weight:
    """`count` tensors of one shape. name: Hugging Face's, with * for the numbers of layers and experts."""

    name: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def values(self) -> int:
        return self.count * math.prod(self.shape)


def missing_entries(hf_config: Mapping[str, Any]) -> list[str]:
    """Entries of a config without which its weights cannot be counted."""
    missing = [name for name in _REQUIRED if not hf_config.get(name)]
    if not (hf_config.get("intermediate_size") or hf_config.get("moe_intermediate_size")):
        missing.append("intermediate_size")
    if is_image_to_text(hf_config):
        missing += [f"vision_config.{name}" for name in missing_vision_entries(hf_config)]
    return missing


def weights_of_config(hf_config: Mapping[str, Any]) -> list[Weight]:
    """Every tensor of the model that `hf_config` (flat, normal form) describes."""
    hidden, vocab = hf_config["hidden_size"], hf_config["vocab_size"]
    weights = [Weight("model.embed_tokens.weight", (vocab, hidden))]
    weights += _attention(hf_config)
    weights += _mlps(hf_config)
    weights += [
        Weight("model.layers.*.layernorm.weight", (hidden,), _norms_per_layer(hf_config) * _layers(hf_config)),
        Weight("model.norm.weight", (hidden,)),
    ]
    if not hf_config.get("tie_word_embeddings"):
        weights.append(Weight("lm_head.weight", (vocab, hidden)))
    return [*weights, *_vision(hf_config)]


def weights_of_header(shapes: Mapping[str, tuple[int, ...]]) -> list[Weight]:
    """The same from the names and shapes in a checkpoint's headers."""
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in shapes.items():
        key = (re.sub(r"\.\d+(?=\.)", ".*", name), tuple(shape))
        counts[key] = counts.get(key, 0) + 1
    return [Weight(name, shape, count) for (name, shape), count in counts.items()]


def _layers(hf_config: Mapping[str, Any]) -> int:
    return int(hf_config["num_hidden_layers"])


def _norms_per_layer(hf_config: Mapping[str, Any]) -> int:
    return 4 if str(hf_config.get("model_type", "")).startswith("gemma3") else 2


def _attention(hf_config: Mapping[str, Any]) -> Iterator[Weight]:
    heads = HeadSharding.from_hf_config(1, hf_config)
    if heads is None:
        return
    layers, hidden = _layers(hf_config), hf_config["hidden_size"]
    q, kv = heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim
    model_type = str(hf_config.get("model_type", ""))
    at = "model.layers.*.self_attn"
    qkv_bias = hf_config.get("attention_bias", model_type == "qwen2")
    output_bias = hf_config.get("attention_output_bias", qkv_bias)
    for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        yield Weight(f"{at}.{name}.weight", (size, hidden), layers)
        if qkv_bias:
            yield Weight(f"{at}.{name}.bias", (size,), layers)
    yield Weight(f"{at}.o_proj.weight", (hidden, q), layers)
    if output_bias:
        yield Weight(f"{at}.o_proj.bias", (hidden,), layers)
    if model_type.startswith(("qwen3", "gemma3")):
        yield Weight(f"{at}.qk_norm.weight", (heads.head_dim,), 2 * layers)
    if model_type == "gpt_oss":
        yield Weight(f"{at}.sinks", (heads.num_heads,), layers)


def num_experts(hf_config: Mapping[str, Any]) -> int:
    return int(hf_config.get("num_experts") or hf_config.get("num_local_experts") or 0)


def expert_size(hf_config: Mapping[str, Any]) -> int:
    return int(hf_config.get("moe_intermediate_size") or hf_config.get("intermediate_size") or 0)


def num_expert_layers(hf_config: Mapping[str, Any]) -> int:
    """Layers whose MLP is a mixture of experts."""
    layers = range(_layers(hf_config))
    if not num_experts(hf_config):
        return 0
    if hf_config.get("moe_layers"):
        return len(hf_config["moe_layers"])
    dense = set(hf_config.get("mlp_only_layers") or [])
    step = hf_config.get("interleave_moe_layer_step") or hf_config.get("decoder_sparse_step") or 1
    return sum((layer + 1) % step == 0 and layer not in dense for layer in layers)


def dense_size(hf_config: Mapping[str, Any]) -> int:
    """Width of an MLP that is no expert."""
    return int(hf_config.get("intermediate_size_mlp") or hf_config.get("intermediate_size") or 0)


def _gated_mlp(at: str, hidden: int, size: int, count: int) -> list[Weight]:
    return [
        Weight(f"{at}.gate_proj.weight", (size, hidden), count),
        Weight(f"{at}.up_proj.weight", (size, hidden), count),
        Weight(f"{at}.down_proj.weight", (hidden, size), count),
    ]


def _mlps(hf_config: Mapping[str, Any]) -> list[Weight]:
    hidden, sparse, experts = hf_config["hidden_size"], num_expert_layers(hf_config), num_experts(hf_config)
    dense = _layers(hf_config) - sparse
    weights: list[Weight] = []
    if dense:
        weights += _gated_mlp("model.layers.*.mlp", hidden, dense_size(hf_config), dense)
        if hf_config.get("mlp_bias"):
            size = dense_size(hf_config)
            weights.append(Weight("model.layers.*.mlp.gate_proj.bias", (size,), 2 * dense))
            weights.append(Weight("model.layers.*.mlp.down_proj.bias", (hidden,), dense))
    if sparse:
        size = expert_size(hf_config)
        weights += _gated_mlp("model.layers.*.mlp.experts.*", hidden, size, sparse * experts)
        weights.append(Weight("model.layers.*.mlp.router.weight", (experts, hidden), sparse))
        if hf_config.get("model_type") == "llama4":
            weights += _gated_mlp("model.layers.*.mlp.shared_expert", hidden, size, sparse)
        if hf_config.get("model_type") == "gpt_oss":
            weights.append(Weight("model.layers.*.mlp.router.bias", (experts,), sparse))
            weights.append(Weight("model.layers.*.mlp.experts.*.gate_proj.bias", (size,), 2 * sparse * experts))
            weights.append(Weight("model.layers.*.mlp.experts.*.down_proj.bias", (hidden,), sparse * experts))
    return weights


def _vision(hf_config: Mapping[str, Any]) -> list[Weight]:
    """Llama 4's image encoder, its adapter and projector; those of other models are not counted."""
    vision = hf_config.get("vision_config")
    if hf_config.get("model_type") != "llama4" or not isinstance(vision, Mapping):
        return []
    width, layers, inner = vision["hidden_size"], vision["num_hidden_layers"], vision["intermediate_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    adapted, output = vision["projector_input_dim"], vision["projector_output_dim"]
    at = "vision_model.layers.*"
    return [
        Weight("vision_model.patch_embedding.weight", (width, vision["num_channels"] * vision["patch_size"] ** 2)),
        Weight("vision_model.class_embedding", (width,)),
        Weight("vision_model.positional_embedding", (patches + 1, width)),
        Weight(f"{at}.attention.weight", (width, width), 4 * layers),
        Weight(f"{at}.attention.bias", (width,), 4 * layers),
        Weight(f"{at}.fc1.weight", (inner, width), layers),
        Weight(f"{at}.fc1.bias", (inner,), layers),
        Weight(f"{at}.fc2.weight", (width, inner), layers),
        Weight(f"{at}.fc2.bias", (width,), layers),
        Weight(f"{at}.layernorm", (width,), 4 * layers),
        Weight("vision_model.layernorm", (width,), 4),
        Weight("vision_adapter.fc1.weight", (adapted, inner)),
        Weight("vision_adapter.fc2.weight", (output, adapted)),
        Weight("multi_modal_projector.vision.weight", (hf_config["hidden_size"], vision["vision_output_dim"])),
    ]


# Sharding.


@dataclass(frozen=True, slots=True)
class Sharding:
    """What decides each core's share.

    expert_tp, expert_ep: cores an expert is split over, and groups of experts. vision: cores the image encoder is split
    over; groups of so many hold it again.
    """

    heads: HeadSharding
    expert_tp: int
    expert_ep: int
    lm_head_alignment: int = 1
    vision: int = 1

    @classmethod
    def of(cls, heads: HeadSharding, neuron_config: Any, hf_config: Mapping[str, Any]) -> Sharding:
        moe_tp, moe_ep = neuron_config.moe_tp_degree, neuron_config.moe_ep_degree
        if moe_tp * moe_ep == 1:
            moe_tp, moe_ep = neuron_config.tp_degree, neuron_config.ep_degree
        alignment = neuron_config.lm_head_pad_alignment_size * neuron_config.logical_nc_config
        vision = vision_degree(hf_config, neuron_config) if is_image_to_text(hf_config) else heads.degree
        return cls(heads, moe_tp, moe_ep, alignment if neuron_config.lm_head_pad else 1, vision)


def kind_of(name: str) -> str:
    """Which of `KINDS` a tensor belongs to."""
    for kind, pattern in _KIND_PATTERNS:
        if re.search(pattern, name):
            return kind
    return "norms"


_KIND_PATTERNS = (
    ("vision", r"vision|visual|multi_modal_projector"),
    ("embedding", r"embed_tokens|\bwte\b"),
    ("lm_head", r"lm_head"),
    ("router", r"router|mlp\.gate\.|block_sparse_moe\.gate\."),
    ("norms", r"norm"),
    ("experts", r"\.experts?\."),
    ("attention", r"attn|attention"),
    ("mlp", r"mlp|feed_forward|shared_expert|^fc\."),
)


def part_of(weight: Weight, sharding: Sharding) -> Weight:
    """What each core holds of `weight`: as many values, in the shape they have there."""
    kind, heads = kind_of(weight.name), sharding.heads
    tp = heads.degree
    if kind == "vision":
        return replace(weight, shape=(-(-weight.values // sharding.vision),), count=1)
    axis = None if kind in ("norms", "router") else _axis(weight.name, len(weight.shape))
    if axis is None:
        return weight
    size, count = weight.shape[axis], weight.count
    if kind == "lm_head":
        width = _up(-(-size // tp), sharding.lm_head_alignment)
    elif kind == "attention":
        width = _head_width(weight.name, heads)
    elif kind == "experts":
        width = _share(weight.name, size, sharding.expert_tp)
        count = -(-count // sharding.expert_ep)
    else:
        width = _share(weight.name, size, tp)
    return replace(weight, shape=(*weight.shape[:axis], width, *weight.shape[axis + 1 :]), count=count)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _share(name: str, size: int, degree: int) -> int:
    """One core's part of a split axis; gate and up that lie in one tensor are split each."""
    parts = 2 if "gate_up_proj" in name else 1
    return parts * -(-size // (parts * degree))


def _axis(name: str, dimensions: int) -> int | None:
    """The axis that is split; None for a tensor that every core holds."""
    is_bias = name.endswith("bias")
    if re.search(r"embed_tokens|\bwte\b", name):
        return 1
    if re.search(r"(o_proj|down_proj|\.w2)(\.|$|_bias)", name):
        return None if is_bias else (1 if dimensions > 1 else None)
    if re.search(r"gate_up_proj", name) and dimensions > 1:
        return dimensions - 1
    if re.search(r"q_proj|k_proj|v_proj|qkv|sinks|gate_proj|up_proj|\.w1|\.w3|lm_head|^fc\.", name, re.IGNORECASE):
        return 0
    return None


def _head_width(name: str, heads: HeadSharding) -> int:
    q, kv = heads.heads_per_rank * heads.head_dim, heads.kv_heads_per_rank * heads.head_dim
    if "sinks" in name:
        return heads.heads_per_rank
    if re.search(r"qkv", name, re.IGNORECASE):
        return q + 2 * kv
    return kv if re.search(r"k_proj|v_proj", name) else q


# Bytes.


def bytes_per_core(
    weights: list[Weight], sharding: Sharding, neuron_config: Any, hf_config: Mapping[str, Any]
) -> dict[str, int]:
    """Bytes on each core by kind, as stored on the device."""
    found = dict.fromkeys(KINDS, 0)
    for weight in on_device(weights, sharding, neuron_config, hf_config):
        kind = kind_of(weight.name)
        found[kind] += _bytes(part_of(weight, sharding), kind, neuron_config)
    return {kind: size for kind, size in found.items() if size}


def on_device(
    weights: list[Weight], sharding: Sharding, neuron_config: Any, hf_config: Mapping[str, Any]
) -> list[Weight]:
    """`weights`, with the head that tied embeddings get and the bias that masks a padded vocabulary."""
    vocab, hidden = hf_config["vocab_size"], hf_config["hidden_size"]
    extra = []
    if not any(kind_of(weight.name) == "lm_head" for weight in weights):
        extra.append(Weight("lm_head.weight", (vocab, hidden)))
    if neuron_config.lm_head_pad:
        extra.append(Weight("lm_head.bias", (vocab,)))
    return [*weights, *extra]


def _bytes(part: Weight, kind: str, neuron_config: Any) -> int:
    plain = DTYPE_BYTES[neuron_config.torch_dtype]
    kept = any(module in part.name for module in neuron_config.modules_to_not_convert or [])
    if not neuron_config.quantized or kind not in _QUANTISED_KINDS or len(part.shape) < 2 or kept:
        return part.values * plain
    # Inputs are the second axis, of [out, in] as of [experts, in, out].
    per_channel = "per_channel" in neuron_config.quantization_type
    scales = part.values // part.shape[1] if per_channel else part.count
    return part.values + scales * _SCALE_BYTES
