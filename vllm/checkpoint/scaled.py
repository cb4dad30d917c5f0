"""Tensors that a checkpoint keeps in 8 bits beside their scales: value = code * scale.

Public FP8 and INT8 checkpoints store a matrix `X.weight` as F8_E4M3 or I8, and its scales beside it as

    X.weight_scale        one for the tensor, or one a row ([rows] or [rows, 1])
    X.weight_scale_inv    the same, or one for each block: of `quantization_config.weight_block_size`, else 128 x 128
    X.scale               what NxD Inference writes: as weight_scale

A scale multiplies, whatever its name says. Scales of activations (`input_scale`) are not read: nothing here rounds
inputs to 8-bit floating point, so they have nothing to scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.tensor import Floats, Tensor

_FORMATS = ("f8e4m3", "i8")
_SUFFIXES = ("weight_scale", "weight_scale_inv", "scale")
_DEFAULT_BLOCK = (128, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledTensor(Tensor):
    """`scale`: float32 [row groups, k blocks]; each holds for `row_block` rows and `k_block` neighbours in a row.

    `raw` gives the codes, `float32` and `float32_rows` the values.
    """

    scale: Floats
    row_block: int
    k_block: int

    def row_scales(self, start: int, stop: int) -> Floats:
        """float32 [stop - start, k blocks]: those of rows start..stop-1."""
        rows: Floats = self.scale[np.arange(start, stop) // self.row_block]
        return rows

    def float32_rows(self, start: int, stop: int) -> Floats:
        codes = Tensor.float32_rows(self, start, stop)
        scales = np.repeat(self.row_scales(start, stop), self.k_block, axis=1)[:, : self.row_length]
        scaled: Floats = codes * scales
        return scaled


def with_scales(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`tensors`, those that have scales beside them as `ScaledTensor`. config: the checkpoint's config.json."""
    return {name: _with_scale(name, tensor, tensors, config) for name, tensor in tensors.items()}


def _with_scale(name: str, tensor: Tensor, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    stem, _, last = name.rpartition(".")
    if last != "weight" or len(tensor.shape) != 2 or tensor.format not in _FORMATS:
        return tensor
    found = next((tensors[f"{stem}.{suffix}"] for suffix in _SUFFIXES if f"{stem}.{suffix}" in tensors), None)
    if found is None:
        if tensor.format == "i8":
            known = ", ".join(f"{stem}.{suffix}" for suffix in _SUFFIXES)
            raise CheckpointError(f"{name} holds 8-bit integers, and none of {known} says what they stand for")
        return tensor
    row_block, k_block = _blocks(tensor, found, config)
    scale = found.float32().reshape(-(-tensor.shape[0] // row_block), -1)
    if not np.isfinite(scale).all():
        raise CheckpointError(f"{found.name} holds scales that are not finite")
    return ScaledTensor(
        tensor.name, tensor.shape, tensor.format, tensor.data, scale=scale, row_block=row_block, k_block=k_block
    )


def _blocks(tensor: Tensor, scale: Tensor, config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and neighbours in a row that a scale holds for."""
    rows, width = tensor.shape
    if scale.shape in ((), (1,), (1, 1)):
        return rows, width
    if scale.shape in ((rows,), (rows, 1)):
        return 1, width
    block = (config.get("quantization_config") or {}).get("weight_block_size") or _DEFAULT_BLOCK
    row_block, k_block = int(block[0]), int(block[1])
    if row_block < 1 or k_block < 1:
        raise CheckpointError(f"quantization_config.weight_block_size is {block}, expected two positive integers")
    if scale.shape != (-(-rows // row_block), -(-width // k_block)):
        raise CheckpointError(
            f"{scale.name} has shape {scale.shape}, which fits {tensor.name} of shape {tensor.shape} neither by "
            f"tensor, by row, nor in blocks of {row_block} x {k_block}"
        )
    return row_block, k_block
