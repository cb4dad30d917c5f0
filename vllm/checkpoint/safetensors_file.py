"""Reads a safetensors file: a header checked as a stranger's, and tensors mapped where they lie.

The format (https://huggingface.co/docs/safetensors): a little-endian uint64 length, that many bytes of JSON object,
then data. The object maps a tensor's name to its dtype, shape and data_offsets [begin, end), counted from the end of
the header; tensors fill the data without gaps or overlaps. `__metadata__` maps strings to strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.kind import what_instead
from vllm.checkpoint.tensor import Tensor, bytes_per_row

_FORMATS = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "f8e4m3",
    "F8_E5M2": "f8e5m2",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U8": "u8",
    "BOOL": "bool",
    "F8_E8M0": "f8e8m0",
    "U16": "u16",
    "U32": "u32",
    "U64": "u64",
}
_MAX_HEADER_BYTES = 100_000_000
_MAX_VALUES = 2**48


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, lazily. Raises CheckpointError for anything but a well-formed file."""
    try:
        return _read(path)
    except CheckpointError as error:
        reason = what_instead(path) or str(error)
        raise CheckpointError(f"{path} is not a usable safetensors file: {reason}") from None


def read_shards(files: Sequence[Path], owners: Mapping[str, str]) -> dict[str, Tensor]:
    """Every tensor of several files. owners: the name of the file that a tensor is read from, where several have it.

    Raises CheckpointError for a tensor of several files that no owner decides.
    """
    tensors: dict[str, Tensor] = {}
    elsewhere: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for file in files:
        for name, tensor in read_safetensors(file).items():
            if owners.get(name, file.name) != file.name:
                elsewhere[name] = tensor
            elif name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is in several files of {file.parent}, {origin[name]} and {file.name}, and no "
                    "index says which is meant; leave one of them out"
                )
            else:
                tensors[name], origin[name] = tensor, file.name
    return {**elsewhere, **tensors}


def _read(path: Path) -> dict[str, Tensor]:
    file_bytes = path.stat().st_size
    if file_bytes < 8:
        raise CheckpointError(f"it has {file_bytes} bytes, too few for a header")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    header_bytes = int(data[:8].view("<u8")[0])
    if header_bytes > min(file_bytes - 8, _MAX_HEADER_BYTES):
        raise CheckpointError(f"its header would have {header_bytes} bytes, the file has {file_bytes}; is it complete?")
    header = _parse_header(bytes(data[8 : 8 + header_bytes]))
    body = data[8 + header_bytes :]
    tensors = {name: _tensor(name, entry, body) for name, entry in header.items() if name != "__metadata__"}
    _check_layout(header, body.size)
    return tensors


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a JSON object")
    return header


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries


def _tensor(name: str, entry: Any, body: np.ndarray) -> Tensor:
    format, shape, (begin, end) = _check_entry(name, entry)
    if not 0 <= begin <= end <= body.size:
        raise CheckpointError(
            f"tensor {name!r} lies at bytes {begin} to {end} of {body.size} bytes of data; is the file complete?"
        )
    row_length = shape[-1] if shape else 1
    expected = math.prod(shape[:-1]) * bytes_per_row(format, row_length)
    if end - begin != expected:
        raise CheckpointError(f"tensor {name!r} takes {end - begin} bytes, its shape {shape} takes {expected}")
    return Tensor(name, shape, format, body[begin:end])


def _check_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _FORMATS:
        raise CheckpointError(f"tensor {name!r} has dtype {dtype!r}; known: {', '.join(_FORMATS)}")
    if not _is_int_list(shape) or min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) > _MAX_VALUES:
        raise CheckpointError(f"tensor {name!r} has the impossible shape {shape!r}")
    if not _is_int_list(offsets) or len(offsets) != 2:
        raise CheckpointError(f"tensor {name!r} has data_offsets {offsets!r}; expected two integers")
    return _FORMATS[dtype], tuple(shape), (offsets[0], offsets[1])


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_layout(header: dict[str, Any], body_bytes: int) -> None:
    spans = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    position = 0
    for begin, end, name in spans:
        if begin != position:
            kind = "overlaps another tensor" if begin < position else "leaves a gap before it"
            raise CheckpointError(f"tensor {name!r} at byte {begin} {kind} (expected byte {position})")
        position = end
    if position != body_bytes:
        raise CheckpointError(f"it has {body_bytes} bytes of data, its tensors take {position}; is the file complete?")
