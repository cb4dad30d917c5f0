"""Qwen 2 and 2.5: Llama with biases on q, k and v, and a window on the upper layers."""

from __future__ import annotations

from typing import Any

from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.layers import Decoder, window_of

ARCHITECTURES = ("Qwen2ForCausalLM",)


def build(config: dict[str, Any], max_len: int | None = None) -> Graph:
    decoder = Decoder(config, max_len)
    decoder.embed()
    for layer in range(config["num_hidden_layers"]):
        decoder.attention(layer, qkv_bias=config["attention_bias"], window=window_of(config, layer))
        decoder.gated_mlp(layer)
    return decoder.head()
