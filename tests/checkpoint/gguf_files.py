"""Writes GGUF files from tiny Hugging Face checkpoints as llama.cpp's converter does, by the gguf package's writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.hf import rope_of

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def permuted(value: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of q or k in the order for rotating neighbours."""
    return value.reshape(num_heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def write_gguf(
    path: Path, source: Path, format: str = "F32", *, metadata: dict[str, Any] | None = None, rope_factors: Any = None
) -> dict[str, np.ndarray]:
    """Convert the checkpoint in `source`; matrices in `format`. Returns what each tensor decodes to, by its HF name."""
    config = json.loads((source / "config.json").read_text())
    architecture = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(path, architecture)
    write_config(writer, config)
    for key, value in (metadata or {}).items():
        add_value(writer, key, value)

    decoded = {}
    kind = gguf.GGMLQuantizationType[format]
    for name, value in load_file(source / "model.safetensors").items():
        is_matrix = value.ndim > 1
        stored = gguf.quants.quantize(value, kind) if is_matrix else value
        decoded[name] = gguf.quants.dequantize(stored, kind) if is_matrix else value
        if architecture == "llama" and (projection := name.split(".")[-2]) in heads:
            stored = permuted(stored, heads[projection])
        writer.add_tensor(gguf_name(name), stored, raw_dtype=kind if is_matrix else None)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, np.float32))
    finish(writer)
    return decoded


def write_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope_of(config)["rope_theta"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(head_dim)
    if head_dim != config["hidden_size"] // config["num_attention_heads"]:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders.get(type(value), writer.add_array)(key, value)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
