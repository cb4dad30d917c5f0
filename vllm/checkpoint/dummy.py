"""Weights made up from a config (load_format "dummy"): the right names and shapes, for timing and tests."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from vllm.checkpoint.config import Config
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.tensor import Floats, Tensor

_SCALE = 0.02


@dataclass(frozen=True, slots=True)
class DummyTensor(Tensor):
    """Values are drawn when they are read, each row from its own seed: the same whenever and however it is read."""

    def raw(self) -> np.ndarray:
        return self.float32_rows(0, self.num_rows).view(np.uint8)

    def float32_rows(self, start: int, stop: int) -> Floats:
        if len(self.shape) == 1:
            return np.full((stop - start, self.row_length), float(self.name.endswith("norm.weight")), np.float32)
        name_seed = zlib.crc32(self.name.encode())
        rows = [
            np.random.default_rng([name_seed, row]).standard_normal(self.row_length, np.float32)
            for row in range(start, stop)
        ]
        return np.stack(rows) * np.float32(_SCALE) if rows else np.empty((0, self.row_length), np.float32)


def dummy_tensors(config: Config) -> dict[str, Tensor]:
    """One for every weight of a dense decoder of the families in `config.FAMILIES`."""
    shapes = _shapes(config)
    return {name: DummyTensor(name, shape, "f32", np.empty(0, np.uint8)) for name, shape in shapes.items()}


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    try:
        hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        head_dim, qkv_bias = config["head_dim"], config["attention_bias"]
        q_rows, kv_rows = head_dim * config["num_attention_heads"], head_dim * config["num_key_value_heads"]
        output_bias, mlp_bias = config["attention_output_bias"], config["mlp_bias"]
    except KeyError as error:
        raise CheckpointError(
            f"load_format dummy cannot invent a {config.get('model_type')!r} model: no {error}"
        ) from None
    linears = {
        "self_attn.q_proj": (q_rows, hidden, qkv_bias),
        "self_attn.k_proj": (kv_rows, hidden, qkv_bias),
        "self_attn.v_proj": (kv_rows, hidden, qkv_bias),
        "self_attn.o_proj": (hidden, q_rows, output_bias),
        "mlp.gate_proj": (inner, hidden, mlp_bias),
        "mlp.up_proj": (inner, hidden, mlp_bias),
        "mlp.down_proj": (hidden, inner, mlp_bias),
    }
    vectors = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config["model_type"] == "qwen3":
        vectors |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        shapes |= {f"{prefix}{name}.weight": (size,) for name, size in vectors.items()}
    return shapes
