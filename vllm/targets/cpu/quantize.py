"""Matrices as 8- and 4-bit codes with scales: out of a checkpoint's own codes as they are, or rounded from floats.

Codes of a matrix [rows, k], in the integer formats k padded to whole groups of 32:
    int8, int8_group   uint8, value = scale * (code - 128)
    q4                 0..15, value = scale * (code - 8)
    q4_min, q4_k       0..15, value = scale * code + minimum
    f8, f8_block       8-bit floating point (OCP e4m3: no infinities, one NaN, up to 448), value = scale * e4m3(code)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.checkpoint.scaled import ScaledTensor

GROUP = 32
F8_GROUP = 128
LARGEST_CODE = {"int8": 127.0, "f8": 448.0}
"""The greatest size of a code where an output has one scale."""
Floats = NDArray[np.float32]


@dataclass(slots=True)
class Codes:
    """values: uint8 [rows, padded k]. planes: what scales them, each [rows, entries], in packed order:

    int8, f8: (float32 scale [rows, 1]); f8_block: (float32 scale, a 128 k each); int8_group, q4: (float16 scale);
    q4_min: (float16 scale, float16 minimum);
    q4_k: (float16 factor of scales, float16 factor of minima, a 256 k each; uint8 scale, uint8 minimum, a group each).
    """

    values: NDArray[np.uint8]
    planes: tuple[NDArray[Any], ...]

    @staticmethod
    def scatter(parts: list[tuple[NDArray[np.intp], Codes]], num_rows: int) -> Codes:
        """Codes of `num_rows` rows, of which each part gives those at its indices; the others are zero."""

        def gather(arrays: list[NDArray[Any]]) -> NDArray[Any]:
            whole = np.zeros((num_rows, *arrays[0].shape[1:]), arrays[0].dtype)
            for (here, _), array in zip(parts, arrays, strict=True):
                whole[here] = array
            return whole

        planes = zip(*(part.planes for _, part in parts), strict=True)
        return Codes(gather([part.values for _, part in parts]), tuple(gather(list(plane)) for plane in planes))


def codes_of_gguf(rows: NDArray[np.uint8], format: str) -> Codes:
    """Blocks of q4_0, q4_1, q8_0 or q4_k (ggml's structures) as codes, without a change of value."""
    if format == "q4_k":
        return _codes_of_q4_k(rows)
    header = {"q4_0": 2, "q4_1": 4, "q8_0": 2}[format]
    block_bytes = header + (GROUP if format == "q8_0" else GROUP // 2)
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, block_bytes)
    halves = np.ascontiguousarray(blocks[..., :header]).view("<f2")
    body = blocks[..., header:]
    if format == "q8_0":
        values = body ^ np.uint8(0x80)
    else:
        values = np.concatenate([body & np.uint8(15), body >> np.uint8(4)], axis=-1)
    planes = tuple(np.ascontiguousarray(halves[..., i]) for i in range(header // 2))
    return Codes(values.reshape(len(rows), -1), planes)


def _codes_of_q4_k(rows: NDArray[np.uint8]) -> Codes:
    """Blocks of 256: halves d, dmin; 12 bytes of 8 six-bit scales and minima; 4 times 32 bytes, two groups in each.

    value = d * scale * code - dmin * minimum; the sign goes into the packed factor of minima.
    """
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, 144)
    halves = np.ascontiguousarray(blocks[..., :4]).view("<f2")
    low, high, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    six, four, two = np.uint8(63), np.uint8(15), np.uint8(6)
    scale = np.concatenate([low & six, (rest & four) | (low >> two) << np.uint8(4)], axis=-1)
    minimum = np.concatenate([high & six, (rest >> np.uint8(4)) | (high >> two) << np.uint8(4)], axis=-1)
    body = blocks[..., 16:].reshape(len(rows), -1, 4, GROUP)
    values = np.stack([body & four, body >> np.uint8(4)], axis=3)
    planes = (halves[..., 0], -halves[..., 1], scale.reshape(len(rows), -1), minimum.reshape(len(rows), -1))
    return Codes(values.reshape(len(rows), -1), tuple(np.ascontiguousarray(plane) for plane in planes))


def native_format(tensor: ScaledTensor) -> str | None:
    """The packed format that takes a scaled tensor's codes and scales as they are; None: there is none."""
    one_scale = tensor.scale.shape[1] == 1
    if tensor.zero_point is not None or tensor.format == "f8e5m2":
        return None
    if tensor.format == "i8":
        return "int8" if one_scale else "int8_group" if _fits_groups(tensor) else None
    return "f8" if one_scale else "f8_block" if tensor.k_block == F8_GROUP else None


def _fits_groups(tensor: ScaledTensor) -> bool:
    """Whether each scale holds for whole groups of 32, and is itself to 11 bits when in half precision."""
    with np.errstate(over="ignore"):
        halves = tensor.scale.astype(np.float16).astype(np.float32)
    return tensor.k_block % GROUP == 0 and bool((np.abs(halves - tensor.scale) <= np.abs(tensor.scale) / 2**11).all())


def codes_of_scaled(tensor: ScaledTensor, rows: NDArray[np.int64]) -> Codes:
    """Those rows of a scaled tensor that has a `native_format`. Raises ValueError where a value is not a number."""
    codes, scales = tensor.raw()[rows], tensor.scale[rows // tensor.row_block]
    if tensor.format == "i8":
        codes = codes ^ np.uint8(0x80)
        if tensor.scale.shape[1] == 1:
            return Codes(_padded(codes, 128), (scales,))
        codes = _padded(codes, 128)
        groups = np.repeat(scales, tensor.k_block // GROUP, axis=1)[:, : codes.shape[1] // GROUP]
        return Codes(codes, (groups.astype(np.float16),))
    if ((codes & 0x7F) == 0x7F).any():
        raise ValueError(f"{tensor.name} holds values that are not numbers (NaN)")
    return Codes(codes, (scales,))


def to_f8e4m3(values: Floats) -> NDArray[np.uint8]:
    """Rounded to nearest, ties to even; what is beyond 448 becomes 448."""
    size = np.minimum(np.abs(values, dtype=np.float32), np.float32(448))
    bits = size.view(np.uint32)
    normal = (bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    # The last bit of 2^14 + size is worth 2^-9, as that of numbers below 2^-6 is here.
    small = (size + np.float32(2**14)).view(np.uint32) & np.uint32(15)
    codes = np.where(size < 2.0**-6, small, normal - np.uint32(120 << 3)).astype(np.uint8)
    return codes | np.signbit(values).astype(np.uint8) << np.uint8(7)


def quantize_rows(rows: Floats, format: str, row_scales: Floats | None = None) -> Codes:
    """Round float32 [rows, k]; each output's (int8, f8) or group's scale is the least that reaches its extremes."""
    if format in LARGEST_CODE:
        return _quantize_outputs(rows, format, row_scales)
    rows = _padded(rows)
    groups = rows.reshape(len(rows), -1, GROUP)
    if format == "q4_min":
        minimum = groups.min(axis=2).astype(np.float16)
        scale = ((groups.max(axis=2) - minimum.astype(np.float32)) / 15).astype(np.float16)
        values = _round(groups - minimum.astype(np.float32)[..., None], scale.astype(np.float32)[..., None], 0, 0, 15)
        return Codes(values.reshape(len(rows), -1), (scale, minimum))
    if format == "q4":
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
        scale = (extreme / -8).astype(np.float16)
        values = _round(groups, scale.astype(np.float32)[..., None], 8, 0, 15)
        return Codes(values.reshape(len(rows), -1), (scale,))
    scale = (np.abs(groups).max(axis=2) / 127).astype(np.float16)
    values = _round(groups, scale.astype(np.float32)[..., None], 128, 1, 255)
    return Codes(values.reshape(len(rows), -1), (scale,))


def _quantize_outputs(rows: Floats, format: str, scales: Floats | None) -> Codes:
    """One scale an output: int8 and f8."""
    if scales is None:
        scales = np.abs(rows).max(axis=1) / np.float32(LARGEST_CODE[format])
    scales = scales.astype("<f4")[:, None]
    if format == "f8":
        return Codes(to_f8e4m3(rows * _inverse(scales)), (scales,))
    return Codes(_round(_padded(rows), scales, 128, 1, 255), (scales,))


def _padded(rows: NDArray[Any], value: int = 0) -> NDArray[Any]:
    """Whole groups of k."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP)), constant_values=value)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, 0 for 0."""
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)


def _round(values: Floats, scale: Floats, zero: int, lowest: int, highest: int) -> NDArray[np.uint8]:
    inverse = _inverse(scale)
    codes: NDArray[np.uint8] = np.clip(np.rint(values * inverse) + zero, lowest, highest).astype(np.uint8)
    return codes
