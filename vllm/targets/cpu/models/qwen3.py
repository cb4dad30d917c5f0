"""Qwen 3, dense: heads of their own size, q and k normalised per head, no biases unless the config says so."""

from __future__ import annotations

from typing import Any

from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.layers import Decoder, window_of

ARCHITECTURES = ("Qwen3ForCausalLM",)


def build(config: dict[str, Any], max_len: int | None = None) -> Graph:
    decoder = Decoder(config, max_len)
    decoder.embed()
    for layer in range(config["num_hidden_layers"]):
        decoder.attention(
            layer,
            qkv_bias=config["attention_bias"],
            output_bias=config["attention_output_bias"],
            qk_norm=True,
            window=window_of(config, layer),
        )
        decoder.gated_mlp(layer)
    return decoder.head()
