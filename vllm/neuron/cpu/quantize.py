"""Matrices as small integers with scales: out of GGUF blocks as they are, or rounded from floats.

Codes of a matrix [rows, k], k padded to whole groups of 32:
    int8, int8_group   uint8, value = scale * (code - 128)
    q4                 0..15, value = scale * (code - 8)
    q4_min             0..15, value = scale * code + minimum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = 32
Floats = NDArray[np.float32]
_ZERO = {"int8": 128, "int8_group": 128, "q4": 8, "q4_min": 0}


@dataclass(slots=True)
class Codes:
    """values: uint8 [rows, padded k]; scale: float32 [rows, 1] (int8) or float16 [rows, groups]; minimum: as scale."""

    values: NDArray[np.uint8]
    scale: NDArray[Any]
    minimum: NDArray[np.float16] | None = None

    @staticmethod
    def scatter(parts: list[tuple[NDArray[np.intp], Codes]], num_rows: int, width: int, format: str) -> Codes:
        """Codes of `num_rows` rows, of which each part gives those at its indices; the others are zero."""
        groups = -(-width // GROUP)
        codes = Codes(
            np.full((num_rows, groups * GROUP), _ZERO[format], np.uint8),
            np.zeros((num_rows, groups), np.float16),
            np.zeros((num_rows, groups), np.float16) if format == "q4_min" else None,
        )
        for here, part in parts:
            codes.values[here], codes.scale[here] = part.values, part.scale
            if codes.minimum is not None:
                codes.minimum[here] = part.minimum
        return codes


def codes_of_gguf(rows: NDArray[np.uint8], format: str) -> Codes:
    """Blocks of q4_0, q4_1 or q8_0 as codes: halves d [, m], then 16 bytes of nibbles or 32 bytes (ggml)."""
    header = {"q4_0": 2, "q4_1": 4, "q8_0": 2}[format]
    block_bytes = header + (GROUP if format == "q8_0" else GROUP // 2)
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, block_bytes)
    halves = np.ascontiguousarray(blocks[..., :header]).view("<f2")
    body = blocks[..., header:]
    if format == "q8_0":
        values = body ^ np.uint8(0x80)
    else:
        values = np.concatenate([body & np.uint8(15), body >> np.uint8(4)], axis=-1)
    minimum = np.ascontiguousarray(halves[..., 1]) if format == "q4_1" else None
    return Codes(values.reshape(len(rows), -1), np.ascontiguousarray(halves[..., 0]), minimum)


def quantize_rows(rows: Floats, format: str, row_scales: Floats | None = None) -> Codes:
    """Round float32 [rows, k]; each output's (int8) or group's scale is the least that reaches its extremes."""
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP)))
    if format == "int8":
        scale = np.abs(rows).max(axis=1) / np.float32(127) if row_scales is None else row_scales
        return Codes(_round(rows, scale[:, None], 128, 1, 255), scale.astype("<f4")[:, None])
    groups = rows.reshape(len(rows), -1, GROUP)
    if format == "q4_min":
        minimum = groups.min(axis=2).astype(np.float16)
        scale = ((groups.max(axis=2) - minimum.astype(np.float32)) / 15).astype(np.float16)
        values = _round(groups - minimum.astype(np.float32)[..., None], scale.astype(np.float32)[..., None], 0, 0, 15)
        return Codes(values.reshape(len(rows), -1), scale, minimum)
    if format == "q4":
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
        scale = (extreme / -8).astype(np.float16)
        values = _round(groups, scale.astype(np.float32)[..., None], 8, 0, 15)
        return Codes(values.reshape(len(rows), -1), scale)
    scale = (np.abs(groups).max(axis=2) / 127).astype(np.float16)
    values = _round(groups, scale.astype(np.float32)[..., None], 128, 1, 255)
    return Codes(values.reshape(len(rows), -1), scale)


def _round(values: Floats, scale: Floats, zero: int, lowest: int, highest: int) -> NDArray[np.uint8]:
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
    codes: NDArray[np.uint8] = np.clip(np.rint(values * inverse) + zero, lowest, highest).astype(np.uint8)
    return codes
