"""The building blocks of a decoder: each method emits the ops of one block into a `Graph`.

A model file calls them in order and is nothing but the architecture. The residual stream is the buffer "hidden"; every
block reads it through a norm and adds to it. Buffers that do not outlive a block are shared by all layers.

A further kind of block (a mixture of experts, say) is a further method here, and a further op in `graph.py`.
"""

from __future__ import annotations

from typing import Any

from vllm.neuron.cpu.graph import Attr, Buffer, Graph, Op, Rows, Weight
from vllm.neuron.cpu.rope import rope_parameters, rotary_dim

_EMBEDDING = "model.embed_tokens.weight"


class Decoder:
    """Emits a pre-norm decoder. config: as `vllm.checkpoint.config` describes; max_len: as in `rope_parameters`."""

    def __init__(self, config: dict[str, Any], max_len: int | None = None) -> None:
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

    def embed(self) -> None:
        """Token ids to the residual stream."""
        shape = (self.graph.vocab_size, self.hidden_size)
        self.graph.weights["embed"] = Weight("embed", "embedding", shape, (_EMBEDDING,))
        self._op("embed", (), self._buffer("hidden", self.hidden_size), "embed", scale=1.0)

    def attention(
        self, layer: int, *, qkv_bias: bool = False, output_bias: bool = False, qk_norm: bool = False, window: int = 0
    ) -> None:
        """hidden += attention(norm(hidden)), over the last `window` positions (0: all)."""
        source, name = f"model.layers.{layer}.self_attn", f"layers.{layer}"
        heads: dict[str, Attr] = {
            "layer": layer,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
        }
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim

        normed = self._norm(f"{name}.input_norm", f"model.layers.{layer}.input_layernorm")
        sources = [f"{source}.{projection}" for projection in ("q_proj", "k_proj", "v_proj")]
        qkv = self._buffer("qkv", q_size + 2 * kv_size)
        self._linear(f"{name}.qkv", normed, qkv, sources, bias=qkv_bias)

        norms = [
            self._vector(f"{name}.{n}", f"{source}.{n}.weight", self.head_dim) for n in ("q_norm", "k_norm") if qk_norm
        ]
        rotation = {"rotary_dim": self.rotary_dim, "attention_factor": self.attention_factor, "eps": self.eps}
        self._op("rope_kv", (qkv,), qkv, "inv_freq", *norms, **heads, **rotation)

        attended = self._buffer("attended", q_size)
        self._op("attention", (qkv,), attended, **heads, scale=self.head_dim**-0.5, window=window)
        self._linear(f"{name}.o", attended, "hidden", [f"{source}.o_proj"], bias=output_bias, accumulate=True)

    def gated_mlp(self, layer: int, *, bias: bool = False) -> None:
        """hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))."""
        source, name = f"model.layers.{layer}.mlp", f"layers.{layer}"
        normed = self._norm(f"{name}.mlp_norm", f"model.layers.{layer}.post_attention_layernorm")
        gate_up = self._buffer("gate_up", 2 * self.inner_size)
        self._linear(f"{name}.gate_up", normed, gate_up, [f"{source}.gate_proj", f"{source}.up_proj"], bias=bias)
        inner = self._buffer("inner", self.inner_size)
        self._op("silu_mul", (gate_up,), inner)
        self._linear(f"{name}.down", inner, "hidden", [f"{source}.down_proj"], bias=bias, accumulate=True)

    def head(self) -> Graph:
        """Logits of the selected positions, sampled. The finished graph."""
        selected = self._buffer("selected", self.hidden_size, "samples")
        self._op("select", ("hidden",), selected)
        normed = self._norm(
            "final_norm", "model.norm", selected, self._buffer("final_normed", self.hidden_size, "samples")
        )
        logits = self._buffer("logits", self.graph.vocab_size, "samples")
        source = _EMBEDDING if self.tied else "lm_head.weight"
        shape = (self.graph.vocab_size, self.hidden_size)
        self.graph.weights["lm_head"] = Weight("lm_head", "linear", shape, (source,))
        self._op("linear", (normed,), logits, "lm_head", accumulate=False)
        self._op("sample", (logits,), logits)
        return self.graph

    def _norm(self, name: str, source: str, x: str = "hidden", y: str = "") -> str:
        y = y or self._buffer("normed", self.hidden_size)
        self._op("rms_norm", (x,), y, self._vector(name, f"{source}.weight", self.hidden_size), eps=self.eps)
        return y

    def _linear(
        self, name: str, x: str, y: str, sources: list[str], *, bias: bool = False, accumulate: bool = False
    ) -> None:
        """y = or += x W^T (+ bias), the matrices of `sources` stacked."""
        shape = (self.graph.buffers[y].width, self.graph.buffers[x].width)
        weights = [name]
        self.graph.weights[name] = Weight(name, "linear", shape, tuple(f"{source}.weight" for source in sources))
        if bias:
            weights.append(self._vector(f"{name}.bias", [f"{source}.bias" for source in sources], shape[0]))
        self._op("linear", (x,), y, *weights, accumulate=accumulate)

    def _vector(self, name: str, sources: str | list[str], size: int) -> str:
        names = (sources,) if isinstance(sources, str) else tuple(sources)
        self.graph.weights[name] = Weight(name, "vector", (size,), names)
        return name

    def _buffer(self, name: str, width: int, rows: Rows = "tokens") -> str:
        self.graph.buffers.setdefault(name, Buffer(name, rows, width))
        return name

    def _op(self, kind: str, inputs: tuple[str, ...], output: str, *weights: str, **attrs: Attr) -> None:
        self.graph.ops.append(Op(kind, inputs, output, weights, attrs))


def window_of(config: dict[str, Any], layer: int) -> int:
    """How many positions a layer looks back over, itself included; 0: all."""
    return int(config["sliding_window"]) if config["layer_types"][layer] == "sliding_attention" else 0
