"""Tensors that a checkpoint keeps in 8 bits beside their scales: value = (code - zero point) * scale.

Public FP8 and INT8 checkpoints store a matrix `X.weight` as F8_E4M3, F8_E5M2 or I8, and beside it

    X.weight_scale        one scale for the tensor, or one for each row ([rows] or [rows, 1]), or one for each group of
                          neighbours in a row ([rows, groups])
    X.weight_scale_inv    the same, or one for each block: of `quantization_config.weight_block_size`, else 128 x 128
    X.scale               what NxD Inference writes: as weight_scale
    X.weight_zero_point   integers, one beside each scale; absent, or all zero, where codes are symmetric

A scale multiplies, whatever its name says. F8_E8M0 scales are powers of two. Scales of activations (`input_scale`) are
not read: nothing here rounds inputs to 8-bit floating point, so they have nothing to scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.forms import settings_of
from vllm.checkpoint.tensor import Floats, Tensor

_FORMATS = ("f8e4m3", "f8e5m2", "i8")
_SUFFIXES = ("weight_scale", "weight_scale_inv", "scale")
_SCALE_FORMATS = ("f64", "f32", "f16", "bf16", "f8e8m0")
_ZERO_POINT = "weight_zero_point"
_INTEGERS = ("i8", "u8", "i16", "i32", "i64")
_DEFAULT_BLOCK = (128, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledTensor(Tensor):
    """`scale`: float32 [row groups, k blocks]; each holds for `row_block` rows and `k_block` neighbours in a row.

    zero_point: float32 of the same shape, None where all are 0. `raw` gives the codes, `float32` and `float32_rows` the
    values.
    """

    scale: Floats
    row_block: int
    k_block: int
    zero_point: Floats | None = None

    def float32_rows(self, start: int, stop: int) -> Floats:
        codes = Tensor.float32_rows(self, start, stop)
        if self.zero_point is not None:
            codes = codes - self._spread(self.zero_point, start, stop)
        scaled: Floats = codes * self._spread(self.scale, start, stop)
        return scaled

    def _spread(self, values: Floats, start: int, stop: int) -> Floats:
        """`scale` or `zero_point` for rows start..stop-1: one for each value, or for each row where a row has one."""
        rows: Floats = values[np.arange(start, stop) // self.row_block]
        if rows.shape[1] == 1:
            return rows
        spread: Floats = np.repeat(rows, self.k_block, axis=1)[:, : self.row_length]
        return spread


def with_scale(tensor: Tensor, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """`tensor`, as `ScaledTensor` if scales lie beside it. config: the checkpoint's.

    Raises CheckpointError for scales or zero points that do not fit it.
    """
    stem, _, last = tensor.name.rpartition(".")
    if last != "weight" or len(tensor.shape) != 2 or tensor.format not in _FORMATS or not tensor.num_bytes:
        return tensor
    found = _scale_of(stem, tensors)
    if found is None:
        if tensor.format == "i8":
            known = ", ".join(f"{stem}.{suffix}" for suffix in _SUFFIXES)
            raise CheckpointError(f"{tensor.name} holds 8-bit integers, and none of {known} says what they stand for")
        return tensor
    if found.format not in _SCALE_FORMATS:
        raise CheckpointError(f"{found.name} holds scales as {found.format}; known: {', '.join(_SCALE_FORMATS)}")
    row_block, k_block = _blocks(tensor, found, config)
    shape = (-(-tensor.shape[0] // row_block), -(-tensor.shape[1] // k_block))
    scale = found.float32().reshape(shape)
    if not np.isfinite(scale).all():
        raise CheckpointError(f"{found.name} holds scales that are not finite")
    return ScaledTensor(
        tensor.name,
        tensor.shape,
        tensor.format,
        tensor.data,
        scale=scale,
        row_block=row_block,
        k_block=k_block,
        zero_point=_zero_point(tensors.get(f"{stem}.{_ZERO_POINT}"), found, shape),
    )


def sidecars(name: str, tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that are read together with the matrix `name`: its scale, and its zero point."""
    stem, _, last = name.rpartition(".")
    is_scaled = last == "weight" and name in tensors and tensors[name].format in _FORMATS
    scale = _scale_of(stem, tensors) if is_scaled else None
    if scale is None:
        return []
    return [scale.name, *([zero] if (zero := f"{stem}.{_ZERO_POINT}") in tensors else [])]


def _scale_of(stem: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    return next((tensors[f"{stem}.{suffix}"] for suffix in _SUFFIXES if f"{stem}.{suffix}" in tensors), None)


def _zero_point(found: Tensor | None, scale: Tensor, shape: tuple[int, int]) -> Floats | None:
    if found is None:
        return None
    if found.format not in _INTEGERS or found.shape != scale.shape:
        raise CheckpointError(
            f"{found.name} is {found.format} of shape {found.shape}; expected integers of the shape {scale.shape}, as "
            "its scale has"
        )
    values = found.float32().reshape(shape)
    return values if values.any() else None


def _blocks(tensor: Tensor, scale: Tensor, config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and neighbours in a row that a scale holds for."""
    rows, width = tensor.shape
    shape = scale.shape[::2] if len(scale.shape) == 4 and scale.shape[1::2] == (1, 1) else scale.shape
    if shape in ((), (1,), (1, 1)):
        return rows, width
    if shape in ((rows,), (rows, 1)):
        return 1, width
    row_block, k_block = _block_size(config)
    if shape == (-(-rows // row_block), -(-width // k_block)):
        return row_block, k_block
    if len(shape) == 2 and shape[0] == rows and shape[1] and width % shape[1] == 0:
        return 1, width // shape[1]
    raise CheckpointError(
        f"{scale.name} has shape {scale.shape}, which fits {tensor.name} of shape {tensor.shape} neither by "
        f"tensor, by row, by group, nor in blocks of {row_block} x {k_block}"
    )


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    given = settings_of(config).get("weight_block_size")
    if not given:
        return _DEFAULT_BLOCK
    if not isinstance(given, list) or len(given) != 2 or not all(type(size) is int and size > 0 for size in given):
        raise CheckpointError(f"quantization_config.weight_block_size is {given!r}, expected two positive integers")
    return given[0], given[1]
