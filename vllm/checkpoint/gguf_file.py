"""Reads a GGUF file: metadata and tensors, every length checked against the file before it is believed.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian, versions 2 and 3: magic "GGUF",
uint32 version, uint64 tensor count, uint64 metadata count; the metadata (key, uint32 type, value); the tensor list
(name, uint32 number of dimensions, uint64 dimensions with the fastest first, uint32 GGML type, uint64 offset); padding
to `general.alignment` bytes; the data, where each offset is counted from. A string is a uint64 length and UTF-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm.checkpoint.config_checks import shown
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.kind import is_gguf, what_instead
from vllm.checkpoint.tensor import Bytes, Tensor, bytes_per_row

_VERSIONS = (2, 3)
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_TYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    12: "q4_k",
    13: "q5_k",
    14: "q6_k",
    30: "bf16",
}
_MAX_DIMENSIONS = 4
_MAX_VALUES = 2**48


@dataclass(frozen=True, slots=True)
class GgufFile:
    """metadata: Python scalars and strings; arrays as lists. tensors: by GGUF's own names, shapes in numpy's order.

    Of a file that was split, path is the first part's, and so is metadata; tensors are those of all parts.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> GgufFile:
    """Open a file. Raises CheckpointError for anything but a well-formed one."""
    try:
        if path.stat().st_size < 24:
            raise CheckpointError("it is too short for a header")
        cursor = _Cursor(np.memmap(path, dtype=np.uint8, mode="r"))
        num_tensors, num_entries = _read_counts(cursor)
        metadata = _read_metadata(cursor, num_entries)
        return GgufFile(path, metadata, _read_tensors(cursor, num_tensors, metadata))
    except CheckpointError as error:
        reason = what_instead(path) if not is_gguf(path) else None
        raise CheckpointError(f"{path} is not a usable GGUF file: {reason or error}") from None


def read_gguf_parts(parts: Sequence[Path]) -> GgufFile:
    """A model's file, or all parts of one that was split, in order. Raises CheckpointError for anything else."""
    files = [read_gguf(part) for part in parts]
    whole = files[0]
    tensors: dict[str, Tensor] = {}
    for number, file in enumerate(files):
        count, place = (file.metadata.get(key) or 0 for key in ("split.count", "split.no"))
        if (count, place) != (len(files), number) and not (len(files) == 1 and count in (0, 1)):
            raise CheckpointError(
                f"{file.path} is part {shown(place)} (counted from 0) of {shown(count)}, and was opened as part "
                f"{number} of {len(files)}: parts are found by their names, such as NAME-00001-of-00003.gguf"
            )
        if twice := tensors.keys() & file.tensors.keys():
            raise CheckpointError(f"tensor {min(twice)!r} is in several parts of {whole.path}")
        tensors |= file.tensors
    announced = whole.metadata.get("split.tensors.count")
    if len(files) > 1 and announced is not None and announced != len(tensors):
        raise CheckpointError(f"{whole.path} announces {announced} tensors, its parts hold {len(tensors)}")
    return GgufFile(whole.path, whole.metadata, tensors)


class _Cursor:
    """Walks the bytes of a file; a read past its end is an error."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, num_bytes: int) -> Bytes:
        if num_bytes > self.data.size - self.position:
            raise CheckpointError(
                f"at byte {self.position} it announces {num_bytes} more bytes of {self.data.size}; is it complete?"
            )
        self.position += num_bytes
        return self.data[self.position - num_bytes : self.position]

    def integer(self, dtype: str) -> int:
        return int(self.take(np.dtype(dtype).itemsize).view(dtype)[0])

    def string(self) -> str:
        text = self.take(self.integer("<u8")).tobytes()
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"the text before byte {self.position} is not UTF-8") from None

    def value(self, type_number: int) -> Any:
        if type_number == _STRING:
            return self.string()
        if type_number == _ARRAY:
            return self.array()
        dtype = _scalar_dtype(type_number)
        return self.take(dtype.itemsize).view(dtype)[0].item()

    def array(self) -> list[Any]:
        item_type, length = self.integer("<u4"), self.integer("<u8")
        if item_type == _STRING:
            return self.strings(length)
        dtype = _scalar_dtype(item_type)
        values: list[Any] = self.take(dtype.itemsize * length).view(dtype).tolist()
        return values

    def strings(self, count: int) -> list[str]:
        """As `count` calls of `string`, without their cost: vocabularies have hundreds of thousands."""
        if 8 * count > self.data.size - self.position:
            raise CheckpointError(f"at byte {self.position} it announces {count} strings; is it complete?")
        view, position, strings = self.data.data, self.position, []
        for _ in range(count):
            start = position + 8
            position = start + int.from_bytes(view[position:start], "little")
            if position > len(view):
                raise CheckpointError(f"the string at byte {start} ends past the file's end; is it complete?")
            strings.append(bytes(view[start:position]))
        self.position = position
        try:
            return [string.decode() for string in strings]
        except UnicodeDecodeError:
            raise CheckpointError(f"a string before byte {position} is not UTF-8") from None


def _scalar_dtype(type_number: int) -> np.dtype[Any]:
    if type_number not in _SCALARS:
        raise CheckpointError(f"metadata type {type_number} is unknown")
    return np.dtype(_SCALARS[type_number])


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    magic, version = cursor.take(4).tobytes(), cursor.integer("<u4")
    if magic != b"GGUF":
        raise CheckpointError(f"it begins with {magic!r}, not b'GGUF'")
    if version not in _VERSIONS:
        hint = "it is big-endian" if version & 0xFFFF == 0 else "convert it again with a current converter"
        raise CheckpointError(f"its version is {version}, known are {_VERSIONS}: {hint}")
    return cursor.integer("<u8"), cursor.integer("<u8")


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            raise CheckpointError(f"metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.integer("<u4"))
    return metadata


def _read_tensors(cursor: _Cursor, count: int, metadata: dict[str, Any]) -> dict[str, Tensor]:
    entries = [_read_tensor_entry(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment % 8:
        raise CheckpointError(f"general.alignment is {alignment!r}; expected a multiple of 8")
    body = cursor.data[-(-cursor.position // alignment) * alignment :]
    tensors: dict[str, Tensor] = {}
    end_of_last = 0
    for name, shape, format, offset in sorted(entries, key=lambda entry: entry[3]):
        num_bytes = _num_bytes(name, shape, format)
        if name in tensors:
            raise CheckpointError(f"tensor {name!r} occurs twice")
        if offset % alignment or offset < end_of_last:
            raise CheckpointError(f"tensor {name!r} at offset {offset} is misaligned or overlaps another")
        if offset + num_bytes > body.size:
            raise CheckpointError(
                f"tensor {name!r} ends {offset + num_bytes - body.size} bytes past the file's end; is it complete?"
            )
        tensors[name] = Tensor(name, shape, format, body[offset : offset + num_bytes])
        end_of_last = offset + num_bytes
    return tensors


def _read_tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int]:
    name, num_dimensions = cursor.string(), cursor.integer("<u4")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise CheckpointError(f"tensor {name!r} has {num_dimensions} dimensions")
    shape = tuple(cursor.integer("<u8") for _ in range(num_dimensions))[::-1]
    if not 0 < math.prod(shape) <= _MAX_VALUES:
        raise CheckpointError(f"tensor {name!r} has the impossible shape {shape}")
    return name, shape, _format_name(name, cursor.integer("<u4")), cursor.integer("<u8")


def _format_name(name: str, type_number: int) -> str:
    if type_number in _TYPES:
        return _TYPES[type_number]
    import gguf

    try:
        return gguf.GGMLQuantizationType(type_number).name.lower()
    except ValueError:
        raise CheckpointError(f"tensor {name!r} has GGML type {type_number}, which is unknown") from None


def _num_bytes(name: str, shape: tuple[int, ...], format: str) -> int:
    try:
        return math.prod(shape[:-1]) * bytes_per_row(format, shape[-1])
    except CheckpointError as error:
        raise CheckpointError(f"tensor {name!r}: {error}") from None
