"""Llama 2 and 3, TinyLlama, SmolLM2, Yi, and what differs from them in their config alone.

Mistral has a window on all layers, Ministral and CWM on some; Seed-OSS has biases.
"""

from __future__ import annotations

from typing import Any

from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.layers import Decoder, window_of

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MinistralForCausalLM",
    "SeedOssForCausalLM",
    "CwmForCausalLM",
)


def build(config: dict[str, Any], max_len: int | None = None) -> Graph:
    decoder = Decoder(config, max_len)
    decoder.embed()
    for layer in range(config["num_hidden_layers"]):
        decoder.attention(
            layer,
            qkv_bias=config["attention_bias"],
            output_bias=config["attention_output_bias"],
            window=window_of(config, layer),
        )
        decoder.gated_mlp(layer, bias=config["mlp_bias"])
    return decoder.head()
