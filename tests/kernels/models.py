"""Small graphs, weights and steps for the native core, and a model of them on any instruction set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vllm.checkpoint.tensor import Tensor
from vllm.targets.cpu.graph import Buffer, Graph, Op, Weight
from vllm.targets.cpu.ops import NativeModel, ThreadPool, known_isas, supported_isas
from vllm.targets.cpu.packing import pack, to_bf16
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.step import Step

ISAS = known_isas()
SUPPORTED = supported_isas()
SCHEMES = ["f32", "bf16", "int8", "int8_tensor", "q4_min"]


@dataclass
class FakeCheckpoint:
    """Tensors by name."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str) -> Tensor:
        return self.tensors[name]

    def add(self, name: str, values: np.ndarray, format: str = "f32") -> None:
        """Store values as float32, or as GGUF blocks made from them."""
        if format == "f32":
            data = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1)
        else:
            import gguf

            kind = gguf.GGMLQuantizationType[format.upper()]
            blocks = gguf.quants.quantize(values.astype(np.float32), kind)
            data = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
        self.tensors[name] = Tensor(name, values.shape, format, data)


def matrix_graph(table: np.ndarray, num_out: int, *, bias: bool = False, accumulate: bool = False) -> Graph:
    """embed, then one linear: y[t] (+)= W table[token t] (+ b). Tensors: table, W, b."""
    vocab, width = table.shape
    graph = Graph(0, 1, 2, vocab)
    graph.weights = {
        "table": Weight("table", "embedding", (vocab, width), ("table",)),
        "W": Weight("W", "linear", (num_out, width), ("W",)),
    }
    graph.buffers = {"x": Buffer("x", "tokens", width), "y": Buffer("y", "tokens", num_out)}
    weights = ("W",)
    if bias:
        graph.weights["b"] = Weight("b", "vector", (num_out,), ("b",))
        weights = ("W", "b")
    graph.ops = [Op("embed", (), "x", ("table",), {"scale": 1.0})]
    if accumulate:
        graph.ops.append(Op("linear", ("x",), "y", ("W",), {"accumulate": False}))
    graph.ops.append(Op("linear", ("x",), "y", weights, {"accumulate": accumulate}))
    return graph


def native(
    tmp_path: Path,
    graph: Graph,
    checkpoint: Any,
    scheme: str,
    *,
    isa: str | None = None,
    max_tokens: int = 64,
    max_samples: int = 8,
    num_blocks: int = 4,
    block_size: int = 64,
    kv_dtype: str = "f32",
    num_threads: int | None = 2,
    default_top_k: int = 0,
) -> tuple[NativeModel, int]:
    """A model with one program, and its handle."""
    path = tmp_path / f"{scheme}.bin"
    index = pack(graph, checkpoint, scheme, path)
    model = NativeModel(
        path,
        index,
        **graph.shape,
        num_blocks=num_blocks,
        block_size=block_size,
        max_context=num_blocks * block_size,
        kv_dtype=kv_dtype,
        pool=ThreadPool(num_threads),
        isa=isa,
    )
    return model, model.add_program(plan(graph, max_tokens, max_samples, default_top_k))


def int32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.int32)


def make_step(
    rows: list[tuple[list[int], int, list[int]]], block_size: int, select: str = "last", given: int | None = None
) -> Step:
    """A step of rows (token ids, tokens computed before, blocks). select: "last" token of each row, or "all"."""
    tokens, positions, slots, starts, selected, selected_row = [], [], [], [0], [], []
    for index, (ids, computed, blocks) in enumerate(rows):
        for offset, token in enumerate(ids):
            position = computed + offset
            tokens.append(token)
            positions.append(position)
            slots.append(blocks[position // block_size] * block_size + position % block_size)
            if select == "all" or offset == len(ids) - 1:
                selected.append(len(tokens) - 1)
                selected_row.append(index)
        starts.append(len(tokens))
    width = max(len(blocks) for _, _, blocks in rows)
    table = np.zeros((len(rows), width), np.int32)
    for index, (_, _, blocks) in enumerate(rows):
        table[index, : len(blocks)] = blocks
    return Step(
        token_ids=int32(tokens),
        positions=int32(positions),
        slots=int32(slots),
        row_start=int32(starts),
        context_len=int32([computed + len(ids) for ids, computed, _ in rows]),
        block_table=table,
        selected=int32(selected),
        selected_row=int32(selected_row),
        given_token=int32([-1 if given is None else given] * len(selected)),
    )


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to bfloat16."""
    return (to_bf16(values).astype(np.uint32) << 16).view(np.float32)
