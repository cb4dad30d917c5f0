"""A checkpoint held against its graphs: tensors that none reads, weights that do not fit, weights that grow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vllm.checkpoint import Checkpoint, CheckpointError
from vllm.checkpoint.scaled import ScaledTensor
from vllm.checkpoint.tensor import Tensor
from vllm.checkpoint.unread import check_unread
from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.packing import Checkpoint as Tensors

_WORTH_TELLING = 1.1
"""Packed bytes for each stored one."""


class Source(Tensors, Protocol):
    """Tensors of one checkpoint or of two. path: for errors."""

    path: Path

    def locate(self, name: str) -> tuple[Checkpoint, str]: ...


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """Whatever a graph or its packing finds wrong with a checkpoint becomes a CheckpointError that names it."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, CheckpointError) and str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from None


def check_all_read(parts: Iterable[tuple[Graph, Source]]) -> None:
    """Raises CheckpointError if a checkpoint holds tensors of a meaning that no graph reads; warns of unknown ones."""
    read: dict[int, tuple[Checkpoint, set[str]]] = {}
    for graph, source in parts:
        for weight in graph.weights.values():
            for name in weight.sources:
                owner, own_name = source.locate(name)
                read.setdefault(id(owner), (owner, set()))[1].add(own_name)
    for checkpoint, names in read.values():
        check_unread(checkpoint, names)


def growth(graph: Graph, source: Tensors, index: Mapping[str, Any]) -> str:
    """Weights that take more memory than room in their files, such as "iq2_xxs from 2.1 to 8.5 bits"; "" for none.

    index: what `packing.lay_out` returns.
    """
    stored: dict[str, list[float]] = {}
    packed: dict[str, list[float]] = {}
    for name, weight in graph.weights.items():
        if weight.kind == "vector" or weight.columns or weight.rows:
            continue
        tensors: list[Tensor] = [source.get(each) for each in weight.sources]
        bits = 8 * index["weights"][name]["num_bytes"] / math.prod(weight.shape)
        for tensor in tensors:
            kind = _kind(tensor)
            stored.setdefault(kind, []).append(8 * tensor.num_bytes / math.prod(tensor.shape))
            packed.setdefault(kind, []).append(bits)
    grown = [
        f"{kind} from {min(stored[kind]):.1f} to {max(packed[kind]):.1f} bits"
        for kind in sorted(stored)
        if max(packed[kind]) > _WORTH_TELLING * min(stored[kind])
    ]
    return ", ".join(grown)


def _kind(tensor: Tensor) -> str:
    has_zeros = isinstance(tensor, ScaledTensor) and tensor.zero_point is not None
    return f"{tensor.format} with zero points" if has_zeros else tensor.format
