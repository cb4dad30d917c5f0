"""The model that drafts are made for, in torch: any checkpoint of a Llama that this package reads, in float32."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from vllm.checkpoint import Checkpoint, open_checkpoint

_CONFIG_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias",
    "rope_theta", "bos_token_id", "pad_token_id",
)  # fmt: skip


def llama_config(checkpoint: Checkpoint, **changes: object) -> transformers.LlamaConfig:
    """The checkpoint's config in transformers' class, with changes."""
    config = {name: checkpoint.config[name] for name in _CONFIG_KEYS}
    ends = checkpoint.config["eos_token_id"]
    return transformers.LlamaConfig(**config, eos_token_id=ends[0] if ends else None, **changes)


def load_target(path: str | Path) -> transformers.LlamaForCausalLM:
    """Quantised weights are taken at their values, so that features are those of the file."""
    checkpoint = open_checkpoint(path)
    if checkpoint.config["model_type"] != "llama":
        raise ValueError(f"{path} is a {checkpoint.config['model_type']}; drafts are trained for Llama models")
    model = transformers.LlamaForCausalLM(llama_config(checkpoint)).eval()
    weights = {name: torch.from_numpy(checkpoint.get(name).float32()) for name in checkpoint.tensors()}
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.requires_grad_(False)
