"""The building blocks of a decoder: each method emits the ops of one block into a `Graph`.

A model file calls them in order and is nothing but the architecture. The residual stream is the buffer "hidden"; every
block reads it through a norm and adds to it. Buffers that do not outlive a block are shared by all layers.

A further kind of block (a mixture of experts, say) is a further method here, and a further op in `graph.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.targets.cpu.graph import Attr, Buffer, Graph, Op, Rows, Weight
from vllm.targets.cpu.rope import rope_parameters, rotary_dim

_EMBEDDING = "model.embed_tokens.weight"
RESIDUAL = "hidden"
"""The buffer of the residual stream."""


@dataclass(frozen=True, slots=True)
class LayerInput:
    """What a layer's attention reads: a buffer, through the norm of that name in the checkpoint, or as it is."""

    buffer: str = RESIDUAL
    norm: str | None = "input_layernorm"


class Decoder:
    """Emits a pre-norm decoder. config: as `vllm.checkpoint.config` describes; max_len: as in `rope_parameters`.

    source: what the checkpoint's names of layers and norms begin with.
    """

    def __init__(self, config: dict[str, Any], max_len: int | None = None, source: str = "model.") -> None:
        self.source = source
        if config["hidden_act"] != "silu":
            raise ValueError(f"hidden_act {config['hidden_act']!r} is not supported; supported: 'silu'")
        self.hidden_size: int = config["hidden_size"]
        self.inner_size: int = config["intermediate_size"]
        self.num_heads: int = config["num_attention_heads"]
        self.num_kv_heads: int = config["num_key_value_heads"]
        self.head_dim: int = config["head_dim"]
        self.eps: float = config["rms_norm_eps"]
        self.tied: bool = config["tie_word_embeddings"]
        self.graph = Graph(config["num_hidden_layers"], self.num_kv_heads, self.head_dim, config["vocab_size"])

        inv_freq, self.attention_factor = rope_parameters(config, max_len)
        self.rotary_dim = rotary_dim(config)
        self.graph.weights["inv_freq"] = Weight("inv_freq", "vector", (len(inv_freq),), value=tuple(inv_freq))

    def embed(self, buffer: str = RESIDUAL, source: str = _EMBEDDING) -> None:
        """Token ids to the residual stream, or to another buffer."""
        shape = (self.graph.vocab_size, self.hidden_size)
        self.graph.weights["embed"] = Weight("embed", "embedding", shape, (source,))
        self._op("embed", (), self._buffer(buffer, self.hidden_size), "embed", scale=1.0)

    def attention(
        self,
        layer: int,
        *,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
        window: int = 0,
        inputs: Sequence[LayerInput] = (LayerInput(),),
    ) -> None:
        """hidden += attention(inputs side by side), over the last `window` positions (0: all)."""
        source, name = f"{self.source}layers.{layer}.self_attn", f"layers.{layer}"
        heads: dict[str, Attr] = {
            "layer": layer,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
        }
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim

        sources = [f"{source}.{projection}" for projection in ("q_proj", "k_proj", "v_proj")]
        qkv = self._buffer("qkv", q_size + 2 * kv_size)
        for i, x in enumerate(inputs):
            read = x.buffer
            if x.norm is not None:
                read = self._norm(f"{name}.{x.norm}", f"{self.source}layers.{layer}.{x.norm}", x.buffer)
            part = i if len(inputs) > 1 else None
            self._linear(f"{name}.qkv", read, qkv, sources, bias=qkv_bias and i == 0, part=part)

        norms = [
            self._vector(f"{name}.{n}", f"{source}.{n}.weight", self.head_dim) for n in ("q_norm", "k_norm") if qk_norm
        ]
        rotation = {"rotary_dim": self.rotary_dim, "attention_factor": self.attention_factor, "eps": self.eps}
        self._op("rope_kv", (qkv,), qkv, "inv_freq", *norms, **heads, **rotation)

        attended = self._buffer("attended", q_size)
        self._op("attention", (qkv,), attended, **heads, scale=self.head_dim**-0.5, window=window)
        self._linear(f"{name}.o", attended, RESIDUAL, [f"{source}.o_proj"], bias=output_bias, accumulate=True)

    def gated_mlp(self, layer: int, *, bias: bool = False) -> None:
        """hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))."""
        source, name = f"{self.source}layers.{layer}.mlp", f"layers.{layer}"
        normed = self._norm(f"{name}.mlp_norm", f"{self.source}layers.{layer}.post_attention_layernorm")
        gate_up = self._buffer("gate_up", 2 * self.inner_size)
        self._linear(f"{name}.gate_up", normed, gate_up, [f"{source}.gate_proj", f"{source}.up_proj"], bias=bias)
        inner = self._buffer("inner", self.inner_size)
        self._op("silu_mul", (gate_up,), inner)
        self._linear(f"{name}.down", inner, RESIDUAL, [f"{source}.down_proj"], bias=bias, accumulate=True)

    def head(self, norm: str | None = "norm", source: str | None = None) -> Graph:
        """Logits of the selected positions, through a norm or as they are, sampled. The finished graph.

        source: the output matrix's name; None: the one that the config says.
        """
        read = self._buffer("selected", self.hidden_size, "samples")
        self._op("select", (RESIDUAL,), read)
        if norm is not None:
            normed = self._buffer("final_normed", self.hidden_size, "samples")
            read = self._norm("final_norm", f"{self.source}{norm}", read, normed)
        logits = self._buffer("logits", self.graph.vocab_size, "samples")
        source = source or (_EMBEDDING if self.tied else "lm_head.weight")
        shape = (self.graph.vocab_size, self.hidden_size)
        self.graph.weights["lm_head"] = Weight("lm_head", "linear", shape, (source,))
        self._op("linear", (read,), logits, "lm_head", accumulate=False)
        self._op("sample", (logits,), logits)
        return self.graph

    def _norm(self, name: str, source: str, x: str = RESIDUAL, y: str = "") -> str:
        y = y or self._buffer("normed", self.hidden_size)
        self._op("rms_norm", (x,), y, self._vector(name, f"{source}.weight", self.hidden_size), eps=self.eps)
        return y

    def _linear(
        self,
        name: str,
        x: str,
        y: str,
        sources: list[str],
        *,
        bias: bool = False,
        accumulate: bool = False,
        part: int | None = None,
    ) -> None:
        """y = or += x W^T (+ bias), the matrices of `sources` stacked.

        part: x is one of several inputs side by side, of one width; part 0 begins the sum, the others add to it.
        """
        columns = None
        width = self.graph.buffers[x].width
        if part is not None:
            name, columns = f"{name}.{part}", (part * width, (part + 1) * width)
        shape = (self.graph.buffers[y].width, width)
        weights = [name]
        matrices = tuple(f"{source}.weight" for source in sources)
        self.graph.weights[name] = Weight(name, "linear", shape, matrices, columns=columns)
        if bias:
            weights.append(self._vector(f"{name}.bias", [f"{source}.bias" for source in sources], shape[0]))
        self._op("linear", (x,), y, *weights, accumulate=accumulate or bool(part))

    def _vector(self, name: str, sources: str | list[str], size: int) -> str:
        names = (sources,) if isinstance(sources, str) else tuple(sources)
        self.graph.weights[name] = Weight(name, "vector", (size,), names)
        return name

    def _buffer(self, name: str, width: int, rows: Rows = "tokens") -> str:
        self.graph.buffers.setdefault(name, Buffer(name, rows, width))
        return name

    def _op(self, kind: str, inputs: tuple[str, ...], output: str, *weights: str, **attrs: Attr) -> None:
        self.graph.ops.append(Op(kind, inputs, output, weights, attrs))


LONGEST_WINDOW = 2**31 - 1
"""In positions. A program holds no longer one, and no context is longer: such a window hides nothing."""


def window_of(config: dict[str, Any], layer: int) -> int:
    """How many positions a layer looks back over, itself included; 0: all."""
    return (
        min(int(config["sliding_window"]), LONGEST_WINDOW) if config["layer_types"][layer] == "sliding_attention" else 0
    )
