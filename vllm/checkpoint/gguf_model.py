"""A GGUF file as a Hugging Face checkpoint: tensor names, row order and config, in the spelling the models read.

Names and metadata keys are those of llama.cpp's converter. It stores the rows of q and k of the `llama` architecture in
another order, for a rotation of neighbouring pairs: within a head of d rows, stored row 2j + i is row i * d/2 + j. Rows
are put back when a tensor is read, quantised ones too, since quantisation blocks lie within a row.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from vllm.checkpoint.config import Config, normalise_config
from vllm.checkpoint.config_checks import shown
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.gguf_file import GgufFile
from vllm.checkpoint.tensor import Tensor
from vllm.sample.table import ROWS

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""general.architecture -> model_type."""

_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"
_NEEDED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
}
"""Entries of the config by their names, and their metadata keys under the architecture's prefix."""
_IDS = "tokenizer.ggml."
_SPECIAL_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_SAMPLING = {
    {"temperature": "temp", "repetition_penalty": "penalty_repeat"}.get(name, name): name
    for name, row in ROWS.items()
    if row.from_checkpoint
}
"""Sampling parameters by GGUF's names."""


def gguf_config(file: GgufFile) -> Config:
    """The config in normal form."""
    architecture = str(_need(file, "general.architecture"))
    if not architecture.isprintable():
        raise CheckpointError(f"{file.path}: general.architecture is {architecture!r}, which names no architecture")
    _check_kind(file, architecture)
    keys = _ArchitectureKeys(file, architecture)
    if architecture not in ARCHITECTURES or keys.get("expert_count"):
        # The target's registry refuses it by this name, and lists what it supports.
        name = f"{architecture} with experts" if architecture in ARCHITECTURES else architecture
        return normalise_config({"architectures": [f"{name} (GGUF)"], "model_type": architecture})
    config: Config = {
        "model_type": ARCHITECTURES[architecture],
        **{name: keys.need(key) for name, key in _NEEDED.items()},
        **{name: keys.get(key) for name, key in _OPTIONAL.items()},
        "vocab_size": _embedding(file).shape[0],
        "rope_scaling": _rope_scaling(file, keys),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "attention_output_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
        "torch_dtype": _DTYPES.get(_embedding(file).format),
        **{f"{name}_token_id": file.metadata.get(f"{_IDS}{key}_token_id") for name, key in _SPECIAL_IDS.items()},
    }
    if window := keys.get("attention.sliding_window"):
        config |= {"model_type": "mistral", "sliding_window": window} if architecture == "llama" else {}
    names = {name: f"{architecture}.{key}" for name, key in {**_NEEDED, **_OPTIONAL}.items()}
    names |= {"sliding_window": f"{architecture}.attention.sliding_window"}
    names |= {f"{name}_token_id": f"{_IDS}{key}_token_id" for name, key in _SPECIAL_IDS.items()}
    try:
        config = normalise_config(config, names)
        _set_partial_rotation(config, keys)
        return normalise_config(config, names)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def _check_kind(file: GgufFile, architecture: str) -> None:
    """Raises CheckpointError for a file that goes with a model, and is none itself."""
    kind = file.metadata.get("general.type")
    if kind in (None, "model") and architecture != "clip":
        if file.tensors:
            return
        said, fix = "a vocabulary without weights", "Pass the model's own GGUF file"
    elif kind == "adapter":
        said, fix = "an adapter (LoRA), not a model", "Merge it into its base (llama-export-lora), and pass the result"
    elif architecture == "clip" or kind == "mmproj":
        said, fix = "a projector of images, not a model", "Pass the model that it goes with"
    else:
        said, fix = f"of the type {shown(kind)}, not a model", "Pass the model that it goes with"
    raise CheckpointError(f"{file.path} is {said} (general.type {shown(kind)}). {fix}")


def gguf_generation_config(file: GgufFile) -> Config:
    """Default sampling parameters and the ids that end a turn."""
    metadata = file.metadata
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    sampling = {ours: metadata.get(f"general.sampling.{theirs}") for theirs, ours in _SAMPLING.items()}
    config = {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [end for i, end in enumerate(ends) if end is not None and end not in ends[:i]],
        **sampling,
    }
    return {key: value for key, value in config.items() if value is not None}


def gguf_tensors(file: GgufFile, config: Config) -> dict[str, Tensor]:
    """The tensors under their Hugging Face names, q and k with their rows in order. Unknown names stay as they are."""
    is_permuted = file.metadata.get("general.architecture") == "llama" and "num_attention_heads" in config
    tensors = {}
    for stored_name, tensor in file.tensors.items():
        if stored_name == _ROPE_FACTORS:
            continue
        name = hf_name(stored_name)
        for mark, heads in ((".attn_q.", "num_attention_heads"), (".attn_k.", "num_key_value_heads")):
            if is_permuted and mark in stored_name:
                tensor = _unpermuted(tensor, config[heads], file)
        tensors[name] = replace(tensor, name=name)
    return tensors


def hf_name(stored_name: str) -> str:
    """'blk.0.attn_q.weight' -> 'model.layers.0.self_attn.q_proj.weight'."""
    if match := _LAYER_TENSOR.fullmatch(stored_name):
        layer, module, kind = match.groups()
        return f"model.layers.{layer}.{_LAYER_NAMES[module]}.{kind}" if module in _LAYER_NAMES else stored_name
    module, _, kind = stored_name.rpartition(".")
    return f"{_TOP_NAMES[module]}.{kind}" if module in _TOP_NAMES else stored_name


def _unpermuted(tensor: Tensor, num_heads: int, file: GgufFile) -> Tensor:
    rows = tensor.shape[0]
    if rows % (2 * num_heads):
        why = f"tensor {tensor.name!r} has {rows} rows, which {num_heads} heads cannot share"
        raise CheckpointError(f"{file.path}: {why}")
    order = np.arange(rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)
    if len(tensor.shape) == 1:
        return replace(tensor, data=tensor.data.reshape(rows, -1)[order].reshape(-1))
    return replace(tensor, row_order=order)


class _ArchitectureKeys:
    """Metadata under the architecture's own prefix."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self.architecture = architecture

    def get(self, key: str) -> Any:
        """The value, or None. A list of one value a layer counts as that value if all layers agree."""
        value = self.file.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise CheckpointError(f"{self.file.path}: {key} differs between layers, which is not supported")
            return value[0]
        return value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.file.path}: metadata {self.architecture}.{key} is missing")
        return value


def _need(file: GgufFile, key: str) -> Any:
    if key not in file.metadata:
        raise CheckpointError(f"{file.path}: metadata {key} is missing")
    return file.metadata[key]


def _embedding(file: GgufFile) -> Tensor:
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: tensor token_embd.weight is missing; is this a model of another kind?")
    return file.tensors["token_embd.weight"]


def _rope_scaling(file: GgufFile, keys: _ArchitectureKeys) -> Config | None:
    if _ROPE_FACTORS in file.tensors:
        return {"rope_type": "factors", "factors": file.tensors[_ROPE_FACTORS].float32().tolist()}
    kind = keys.get("rope.scaling.type")
    factor = keys.get("rope.scaling.factor") or keys.get("rope.scale_linear")
    if kind in (None, "none") and factor in (None, 1.0):
        return None
    scaling = {
        "rope_type": kind or "linear",
        "factor": factor,
        "original_max_position_embeddings": keys.get("rope.scaling.original_context_length"),
        "attention_factor": keys.get("rope.scaling.attn_factor"),
        "beta_fast": keys.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": keys.get("rope.scaling.yarn_beta_slow"),
    }
    return None if kind == "none" else {key: value for key, value in scaling.items() if value is not None}


def _set_partial_rotation(config: Config, keys: _ArchitectureKeys) -> None:
    rotated, head_dim = keys.get("rope.dimension_count"), config["head_dim"]
    if isinstance(rotated, int) and 0 < rotated < head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
