"""The op set of the `cpu` target, and the `Graph` that a model file emits.

A graph is the straight-line forward of one model over T tokens (the tokens of all rows of a step, packed, no padding).
It says what is computed; `plan.py` says where buffers lie, `packing.py` in which form weights do, `ops.py` runs the
result natively, `reference.py` runs the same graph in torch.

Buffers are two-dimensional: `tokens` buffers have T rows, `samples` buffers one row a position whose logits are wanted.
Every row's arithmetic is in a fixed order that depends on nothing outside the row (attention: on the row's own KV).

Ops (x: input, y: output, W: weight; all sums in float32; `dim` is the width of x):

    embed        y[t] = W[token[t]] * scale                                attrs: scale
    rms_norm     y = x / sqrt(mean(x^2) + eps) * W                         attrs: eps
    linear       y = x W^T (+ bias); `accumulate`: y += x W^T (+ bias)     weights: W [, bias]  attrs: accumulate
    rope_kv      x = [q | k | v], heads side by side. Normalises q and k per head (RMS, where weights q_norm and k_norm
                 are given), rotates q in place and k ("neox" halves; angle[t, i] = position[t] * inv_freq[i]; cos and
                 sin times attention_factor), writes k and v to the KV cache of `layer` at slot[t].
                 weights: inv_freq [, q_norm, k_norm]
                 attrs: layer, num_heads, num_kv_heads, head_dim, rotary_dim, attention_factor, eps
    attention    y[t] = softmax(q[t] K^T * scale) V over positions 0..position[t] of the row's KV (the last `window`
                 of them if window > 0), grouped queries; x = [q | k | v]
                 attrs: layer, num_heads, num_kv_heads, head_dim, scale, window
    silu_mul     x = [gate | up]; y = gate * sigmoid(gate) * up
    keep         hidden_cache[slot[t]] = x[t]; `drafted`: only of tokens whose logits are wanted, for their next draft
                 attrs: drafted
    recall       y[t] = hidden_cache[slot of position[t] - 1 of t's row], zeros where position[t] = 0
    select       y = the rows of x whose logits are wanted                 tokens -> samples
    expand       y[s, ids[i]] = x[s, i], ABSENT everywhere else; ids ascend     weights: ids
    sample       x = logits [samples, vocab]; sampling and log-probabilities as SamplingInput says

The residual stream and all norms are float32. `linear` rounds x to what W's packing wants (bfloat16, int8 per row, or
not at all) by itself: that choice belongs to the packing, not to the model.

The hidden cache is one float32 row a KV slot, shared by a target and its EAGLE draft: the target keeps what it knows of
a token there, the draft recalls it with the token after (`models/eagle.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Attr = int | float | str | bool
Rows = Literal["tokens", "samples"]

ABSENT = -1e20
"""The logit of a token that cannot be drafted: below all others, and finite still when a temperature has divided it."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """float32 [rows, width]."""

    name: str
    rows: Rows
    width: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the program and where it comes from.

    kind: "linear" [out, in] (sources are stacked along out), "embedding" [vocab, dim] (shared with a linear of the same
        sources when tied), or "vector" (sources concatenated; float32).
    sources: checkpoint tensor names; empty: `value` holds a vector computed from the config.
    rows: of the stacked sources, those that are taken, in this order; empty: all. columns: likewise a range of them.
    """

    name: str
    kind: Literal["linear", "embedding", "vector"]
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    value: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    columns: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Op:
    kind: str
    inputs: tuple[str, ...]
    output: str
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, Attr] = field(default_factory=dict)


@dataclass(slots=True)
class Graph:
    """Ops in execution order; a buffer is defined by the op that first writes it.

    KV shape of every layer: K and V each [blocks, block_size, num_kv_heads, head_dim].
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    buffers: dict[str, Buffer] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    @property
    def shape(self) -> dict[str, int]:
        """Of its KV and of its output, as `ops.NativeModel` takes it."""
        return {
            "num_layers": self.num_layers,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
        }
