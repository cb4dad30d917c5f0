"""A `Graph` run in torch, op by op as `graph.py` defines them: the oracle of the native kernels.

Arithmetic is float32. Weights and the inputs of `linear` can be rounded to bfloat16 first, the KV cache to whatever it
can be kept as, so that what a kernel rounds can be rounded here too and only the order of sums differs. Rows are not
independent to the last bit: torch chooses how to sum by shape.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vllm.targets.cpu.graph import ABSENT, Graph, Op, Weight
from vllm.targets.cpu.packing import Checkpoint as Tensors
from vllm.targets.cpu.step import Step

Rounding = Literal["float32", "bfloat16"]
KvRounding = Literal["float32", "bfloat16", "fp8", "int8"]
Floats = NDArray[np.float32]


def load_weights(graph: Graph, checkpoint: Tensors) -> dict[str, Floats]:
    """The graph's weights by name, sources stacked, float32. Tied weights are one array."""
    by_identity: dict[object, Floats] = {}
    weights: dict[str, Floats] = {}
    for name, weight in graph.weights.items():
        identity = (weight.sources, weight.rows, weight.columns) if weight.sources else name
        if identity not in by_identity:
            by_identity[identity] = _load(weight, checkpoint)
        weights[name] = by_identity[identity]
    return weights


def _load(weight: Weight, checkpoint: Tensors) -> Floats:
    if not weight.sources:
        return np.asarray(weight.value, np.float32)
    value = np.concatenate([checkpoint.get(source).float32() for source in weight.sources])
    value = value[list(weight.rows)] if weight.rows else value
    value = value[:, slice(*weight.columns)] if weight.columns else value
    if value.shape != weight.shape:
        raise ValueError(
            f"{' + '.join(weight.sources)} has shape {value.shape}, the model's config makes it {weight.shape}"
        )
    return value


class ReferenceProgram:
    """A loaded graph with its KV cache: K and V of every layer, [num_blocks * block_size, num_kv_heads, head_dim].

    hidden_cache: float32 [num_blocks * block_size, width], of the target and its draft together, where they have one.
    """

    def __init__(
        self,
        graph: Graph,
        weights: dict[str, Floats],
        num_blocks: int,
        block_size: int,
        *,
        weight_dtype: Rounding = "float32",
        activation_dtype: Rounding = "float32",
        kv_dtype: KvRounding = "float32",
        hidden_cache: torch.Tensor | None = None,
    ) -> None:
        self.graph = graph
        self.hidden_cache = hidden_cache
        self.block_size = block_size
        self.activation_dtype = activation_dtype
        self.kv_dtype = kv_dtype
        self.weights = {name: self._prepare(graph.weights[name], weights[name], weight_dtype) for name in graph.weights}
        shape = (graph.num_layers, num_blocks * block_size, graph.num_kv_heads, graph.head_dim)
        self.k_cache, self.v_cache = torch.zeros(shape), torch.zeros(shape)
        self.buffers: dict[str, torch.Tensor] = {}

    @staticmethod
    def _prepare(weight: Weight, value: Floats, dtype: Rounding) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(value, np.float32))
        return tensor if weight.kind == "vector" else _rounded(tensor, dtype)

    @torch.inference_mode()
    def run(self, step: Step) -> Floats:
        """Logits, float32 [selected, vocab]. Writes K and V of the step's tokens. `buffers` keeps every op's output."""
        self.buffers = {}
        for op in self.graph.ops:
            getattr(self, f"_{op.kind}")(op, SimpleNamespace(**op.attrs), step)
        logits: Floats = self.buffers[self.graph.ops[-1].output].numpy()
        return logits

    def _weight(self, op: Op, index: int) -> torch.Tensor | None:
        return self.weights[op.weights[index]] if index < len(op.weights) else None

    def _embed(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        table = self.weights[op.weights[0]]
        self.buffers[op.output] = table[torch.from_numpy(step.token_ids).long()] * attrs.scale

    def _rms_norm(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        self.buffers[op.output] = _rms_norm(self.buffers[op.inputs[0]], self.weights[op.weights[0]], attrs.eps)

    def _linear(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        x = _rounded(self.buffers[op.inputs[0]], self.activation_dtype)
        product = F.linear(x, self.weights[op.weights[0]], self._weight(op, 1))
        self.buffers[op.output] = self.buffers[op.output] + product if attrs.accumulate else product

    def _rope_kv(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        q, k, v = self._heads(op, attrs)
        if len(op.weights) > 1:
            q = _rms_norm(q, self.weights[op.weights[1]], attrs.eps)
            k = _rms_norm(k, self.weights[op.weights[2]], attrs.eps)
        angles = torch.from_numpy(step.positions).float()[:, None, None] * self.weights[op.weights[0]]
        cos, sin = angles.cos() * attrs.attention_factor, angles.sin() * attrs.attention_factor
        q, k = _rotate(q, cos, sin, attrs.rotary_dim), _rotate(k, cos, sin, attrs.rotary_dim)
        slots = torch.from_numpy(step.slots).long()
        self.k_cache[attrs.layer, slots] = _rounded_kv(k, self.kv_dtype)
        self.v_cache[attrs.layer, slots] = _rounded_kv(v, self.kv_dtype)
        self.buffers[op.output] = torch.cat([part.flatten(1) for part in (q, k, v)], dim=1)

    def _attention(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        q = self._heads(op, attrs)[0]
        output = torch.zeros(q.shape)
        for row in range(step.num_rows):
            tokens = slice(int(step.row_start[row]), int(step.row_start[row + 1]))
            if tokens.start < tokens.stop:
                positions = torch.from_numpy(step.positions[tokens])
                output[tokens] = self._attend(attrs, q[tokens], positions, self._row_slots(step, row))
        self.buffers[op.output] = output.flatten(1)

    def _attend(
        self, attrs: SimpleNamespace, q: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """One row: q [tokens, heads, head_dim] over the keys in `slots`, which are in position order."""
        group = attrs.num_heads // attrs.num_kv_heads
        k = self.k_cache[attrs.layer, slots].repeat_interleave(group, dim=1)
        v = self.v_cache[attrs.layer, slots].repeat_interleave(group, dim=1)
        distance = positions[:, None] - torch.arange(len(slots))
        hidden = distance < 0
        if attrs.window > 0:
            hidden |= distance >= attrs.window
        scores = q.transpose(0, 1) @ k.permute(1, 2, 0) * attrs.scale
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        attended: torch.Tensor = weights @ v.transpose(0, 1)
        return attended.transpose(0, 1)

    def _silu_mul(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        gate, up = self.buffers[op.inputs[0]].chunk(2, dim=1)
        self.buffers[op.output] = F.silu(gate) * up

    def _keep(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        assert self.hidden_cache is not None
        tokens = step.selected if attrs.drafted else np.arange(step.num_tokens)
        self.hidden_cache[torch.from_numpy(step.slots[tokens]).long()] = self.buffers[op.inputs[0]][tokens]

    def _recall(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        assert self.hidden_cache is not None
        row = np.repeat(np.arange(step.num_rows), np.diff(step.row_start))
        before = np.maximum(step.positions - 1, 0)
        slots = step.block_table[row, before // self.block_size] * self.block_size + before % self.block_size
        recalled = self.hidden_cache[torch.from_numpy(slots).long()]
        recalled[torch.from_numpy(step.positions) == 0] = 0.0
        self.buffers[op.output] = recalled

    def _expand(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        x = self.buffers[op.inputs[0]]
        y = torch.full((len(x), self.graph.vocab_size), ABSENT)
        y[:, self.weights[op.weights[0]].long()] = x
        self.buffers[op.output] = y

    def _select(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        self.buffers[op.output] = self.buffers[op.inputs[0]][torch.from_numpy(step.selected).long()]

    def _sample(self, op: Op, attrs: SimpleNamespace, step: Step) -> None:
        self.buffers[op.output] = self.buffers[op.inputs[0]]

    def _heads(self, op: Op, attrs: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v of the op's input, each [tokens, heads, head_dim]."""
        x = self.buffers[op.inputs[0]]
        heads = x.reshape(len(x), -1, attrs.head_dim)
        end_of_q, end_of_k = attrs.num_heads, attrs.num_heads + attrs.num_kv_heads
        return heads[:, :end_of_q], heads[:, end_of_q:end_of_k], heads[:, end_of_k:]

    def _row_slots(self, step: Step, row: int) -> torch.Tensor:
        positions = np.arange(step.context_len[row])
        blocks = step.block_table[row, positions // self.block_size]
        return torch.from_numpy(blocks.astype(np.int64) * self.block_size + positions % self.block_size)


def _rounded(x: torch.Tensor, dtype: Rounding) -> torch.Tensor:
    return x if dtype == "float32" else x.to(torch.bfloat16).float()


def _rounded_kv(x: torch.Tensor, dtype: KvRounding) -> torch.Tensor:
    """x: [tokens, heads, head_dim]. fp8: e4m3, saturating; int8: with a scale a token and head."""
    if dtype == "fp8":
        return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    if dtype == "int8":
        size = x.abs().amax(dim=-1, keepdim=True)
        inverse = torch.where(size > 0, 127 / size, 0)
        return (x * inverse).round() * (size / 127)
    return _rounded(x, dtype)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """The first `rotary_dim` dimensions of each head, whose halves are the pairs' first and second parts."""
    half = rotary_dim // 2
    first, second, rest = x[..., :half], x[..., half:rotary_dim], x[..., rotary_dim:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
