"""One tensor of a checkpoint, still in the file's own format: mapped, not read, until it is asked for.

A tensor is seen as rows: its last dimension is one row, all others count rows; a vector is one row. Quantised formats
pack a row into blocks of a fixed number of values, so every row starts on a block and has the same number of bytes.

Formats are named in lower case. Plain ones, little-endian: f64 f32 f16 bf16 f8e4m3 f8e5m2 f8e8m0 i64 i32 i16 i8
u64 u32 u16 u8 bool.
Block formats are GGML's, by GGML's names (q4_0 q4_1 q5_0 q5_1 q8_0 q2_k ... q6_k, iq4_nl, ...); their layouts are
those of ggml's `block_*` structures, and `gguf.quants` is what decodes them here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.checkpoint.errors import CheckpointError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PLAIN_DTYPES: dict[str, str] = {
    "f64": "<f8",
    "f32": "<f4",
    "f16": "<f2",
    "bf16": "<u2",
    "f8e4m3": "u1",
    "f8e5m2": "u1",
    "i64": "<i8",
    "i32": "<i4",
    "i16": "<i2",
    "i8": "i1",
    "u8": "u1",
    "u16": "<u2",
    "u32": "<u4",
    "u64": "<u8",
    "f8e8m0": "u1",
    "bool": "?",
}
BLOCKS: dict[str, tuple[int, int]] = {
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
"""(values, bytes) of a block of the common block formats; for the others the gguf package is asked."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """`data`: uint8, flat, exactly the tensor's bytes. `row_order`: result row i is stored row row_order[i]."""

    name: str
    shape: tuple[int, ...]
    format: str
    data: Bytes
    row_order: NDArray[np.int64] | None = None

    @property
    def row_length(self) -> int:
        """Values in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        return int(self.data.size)

    def raw(self) -> Bytes:
        """The bytes, uint8 [num_rows, bytes_per_row]: a view of the file unless rows are reordered."""
        rows = self._rows()
        return rows if self.row_order is None else rows[self.row_order]

    def float32(self) -> Floats:
        """All values, in `shape`."""
        return self.float32_rows(0, self.num_rows).reshape(self.shape)

    def float32_rows(self, start: int, stop: int) -> Floats:
        """The values of rows start..stop-1, float32 [stop - start, row_length]."""
        rows = self._rows()
        wanted = rows[start:stop] if self.row_order is None else rows[self.row_order[start:stop]]
        return decode_rows(wanted, self.format, self.row_length)

    def _rows(self) -> Bytes:
        return self.data.reshape(self.num_rows, bytes_per_row(self.format, self.row_length))


def decode_rows(rows: Bytes, format: str, row_length: int) -> Floats:
    """float32 [rows, row_length] from bytes [rows, bytes_per_row]."""
    if format in PLAIN_DTYPES:
        values = np.ascontiguousarray(rows).view(PLAIN_DTYPES[format])
        return _plain_values(values, format)
    if not rows.size:
        return np.empty((len(rows), row_length), np.float32)
    import gguf

    try:
        values = gguf.quants.dequantize(np.ascontiguousarray(rows), gguf.GGMLQuantizationType[format.upper()])
    except NotImplementedError:
        raise CheckpointError(
            f"weights in format {format} cannot be decoded; quantise the model to q4_k or q8_0"
        ) from None
    return np.asarray(values, dtype=np.float32).reshape(len(rows), row_length)


def _plain_values(values: NDArray[Any], format: str) -> Floats:
    if format == "bf16":
        widened: NDArray[np.uint32] = np.left_shift(values, 16, dtype=np.uint32)
        return widened.view(np.float32)
    if format == "f8e8m0":
        powers: Floats = np.ldexp(np.float32(1), values.astype(np.int32) - 127)
        return np.where(values == 0xFF, np.float32(np.nan), powers)
    if format.startswith("f8"):
        decoded: Floats = _float8_values(format)[values]
        return decoded
    return values.astype(np.float32)


def bytes_per_row(format: str, row_length: int) -> int:
    """Bytes of a row of `row_length` values. Raises CheckpointError if they do not fill whole blocks."""
    block_length, block_bytes = block_size(format)
    if row_length % block_length:
        raise CheckpointError(f"rows of {row_length} values do not fill whole {format} blocks of {block_length}")
    return row_length // block_length * block_bytes


def block_size(format: str) -> tuple[int, int]:
    """(values, bytes) of the smallest unit of a format."""
    if format in PLAIN_DTYPES:
        return 1, np.dtype(PLAIN_DTYPES[format]).itemsize
    if format in BLOCKS:
        return BLOCKS[format]
    import gguf

    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format.upper()]]
    return int(values), int(size)


@lru_cache
def _float8_values(format: str) -> Floats:
    """The value of each of the 256 codes (OCP 8-bit floating point: e4m3 without infinities, and e5m2)."""
    code = np.arange(256)
    mantissa_bits, bias = (3, 7) if format == "f8e4m3" else (2, 15)
    exponent = (code & 0x7F) >> mantissa_bits
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if format == "f8e4m3":
        magnitude[(code & 0x7F) == 0x7F] = np.nan
    else:
        magnitude[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32)
