"""Weights in kernel order: `pack` streams a checkpoint, weight by weight, into one file that the native core maps.

Every matrix lies in tiles of 32 outputs, the last one padded with zeros; docs/cpu_core.md draws the formats:

    f32, bf16     [k / (1, 2)][32][1, 2]
    int8          float32 scale[32]; codes [k / 4][32][4]                one scale an output
    int8_group    float16 scale[k / 32][32]; codes [k / 4][32][4]
    q4            float16 scale[k / 32][32]; nibbles [k / 8][32][4]      value = scale * (code - 8)
    q4_min        float16 scale[k / 32][32], minimum[k / 32][32]; nibbles [k / 8][32][4]
    q4_k          float16 factors of scales [k / 256][32] and of minima; uint8 scale[k / 32][32], minimum[k / 32][32];
                  nibbles [k / 8][32][4]                               GGUF's Q4_K
    vector        float32, padded with zeros to whole tiles

8-bit codes count from 128. A byte of nibbles holds k in its low half and k + 4 in its high half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vllm.neuron.cpu.fusion import fused_weights
from vllm.neuron.cpu.graph import Graph, Weight
from vllm.neuron.cpu.quantize import Codes, Floats, codes_of_gguf, quantize_rows

LAYOUT_VERSION = 1
TILE = 32
GROUP = 32
ALIGNMENT = 4096
_CHUNK_VALUES = 1 << 22
_WRITE_BYTES = 32 << 20

Scheme = Literal["native", "f32", "bf16", "int8", "int8_tensor", "q4_min"]
"""What becomes of the matrices. native: quantised weights keep their form as far as there is a kernel for it, all
others become bf16. The rest: every matrix becomes that; int8_tensor is int8 with one scale a checkpoint tensor."""

Progress = Callable[[str, float], None]

_NATIVE = {"q4_0": "q4", "q4_1": "q4_min", "q8_0": "int8_group", "q4_k": "q4_k"}
_BITS_8 = {"q5_0", "q5_1", "q5_k", "q6_k", "q3_k", "q2_k", "q8_k", "iq4_nl", "iq4_xs"}


class Tensor(Protocol):
    """What is used here of `checkpoint.tensor.Tensor`."""

    shape: tuple[int, ...]
    format: str

    def raw(self) -> NDArray[np.uint8]: ...
    def float32(self) -> Floats: ...
    def float32_rows(self, start: int, stop: int) -> Floats: ...


class Checkpoint(Protocol):
    """What is used here of `checkpoint.checkpoint.Checkpoint`."""

    def get(self, name: str) -> Any: ...


def pack(
    graph: Graph, checkpoint: Checkpoint, scheme: Scheme, out_file: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the packed weights of `graph`; returns their index, which `ops.NativeModel` wants beside the file.

    The index: {"version", "scheme", "num_bytes", "weights": {name: {"format", "shape", "offset", "num_bytes"}}}.
    Weights made of the same tensors (tied embeddings) share their bytes. Raises ValueError for tensors whose shapes do
    not fit the graph.
    """
    interleaved = fused_weights(graph)
    entries: dict[str, dict[str, Any]] = {}
    written: dict[Any, dict[str, Any]] = {}
    sizes = [int(np.prod(weight.shape)) for weight in graph.weights.values()]
    done, total = 0, max(sum(sizes), 1)
    with out_file.open("wb", buffering=0) as raw:
        file = _Writer(raw)
        for (name, weight), size in zip(graph.weights.items(), sizes, strict=True):
            if progress is not None:
                progress(f"packing {name}", done / total)
            key = _identity(weight, name in interleaved)
            if key not in written:
                written[key] = _pack_weight(file, checkpoint, weight, scheme, name in interleaved)
            entries[name] = written[key]
            done += size
        file.align(ALIGNMENT)
        file.flush()
        num_bytes = file.position
    if progress is not None:
        progress("packed", 1.0)
    return {"version": LAYOUT_VERSION, "scheme": scheme, "num_bytes": num_bytes, "weights": entries}


class _Writer:
    """Writes in large aligned pieces: the page cache then holds the file in huge pages, which are faster to read."""

    def __init__(self, raw: RawIOBase) -> None:
        self._raw = raw
        self._buffer = np.empty(_WRITE_BYTES, np.uint8)
        self._used = 0
        self.position = 0

    def write(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.position += data.size
        while data.size:
            count = min(data.size, _WRITE_BYTES - self._used)
            self._buffer[self._used : self._used + count] = data[:count]
            self._used += count
            data = data[count:]
            if self._used == _WRITE_BYTES:
                self.flush()

    def align(self, alignment: int) -> None:
        self.write(np.zeros(-self.position % alignment, np.uint8))

    def flush(self) -> None:
        rest = self._buffer[: self._used]
        while rest.size:
            rest = rest[self._raw.write(rest.data) or 0 :]
        self._used = 0


def _identity(weight: Weight, interleaved: bool) -> Any:
    kind = "vector" if weight.kind == "vector" else "matrix"
    return (kind, weight.sources, weight.value, weight.rows, weight.columns, interleaved)


def _pack_weight(
    file: _Writer, checkpoint: Checkpoint, weight: Weight, scheme: Scheme, interleaved: bool
) -> dict[str, Any]:
    alignment = 64 if weight.kind == "vector" else ALIGNMENT
    file.align(alignment)
    offset = file.position
    tensors = [checkpoint.get(source) for source in weight.sources]
    _check_shapes(weight, tensors)
    if weight.kind == "vector":
        format = "vector"
        file.write(_padded_vector(weight, tensors))
    else:
        format = _choose_format(scheme, tensors, cut=weight.columns is not None)
        for piece in _tiles(weight, tensors, format, scheme, interleaved):
            file.write(piece)
    return {"format": format, "shape": list(weight.shape), "offset": offset, "num_bytes": file.position - offset}


def _check_shapes(weight: Weight, tensors: list[Tensor]) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    rest = {shape[1:] for shape in shapes} if tensors else {weight.shape[1:]}
    stacked = (
        sum(shape[0] for shape in shapes) if tensors else len(weight.value),
        *(next(iter(rest)) if len(rest) == 1 else ("?",)),
    )
    if _taken(weight, stacked) != tuple(weight.shape):
        raise ValueError(
            f"weight {weight.name!r} must be {tuple(weight.shape)}, the checkpoint has {shapes} in {weight.sources}"
        )


def _taken(weight: Weight, stacked: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shape that is left of the stacked sources; theirs if rows or columns are wanted that they lack."""
    num_rows, *widths = stacked
    if weight.rows:
        num_rows = len(weight.rows) if max(weight.rows) < num_rows else num_rows
    if weight.columns and widths != ["?"]:
        start, stop = weight.columns
        widths = [stop - start if stop <= widths[0] else widths[0]]
    return num_rows, *widths


def _padded_vector(weight: Weight, tensors: list[Tensor]) -> Floats:
    values = (
        np.concatenate([tensor.float32().reshape(-1) for tensor in tensors])
        if tensors
        else np.asarray(weight.value, np.float32)
    )
    return np.pad(values.astype("<f4"), (0, -len(values) % TILE))


def _choose_format(scheme: Scheme, tensors: list[Tensor], cut: bool) -> str:
    """The one format of a matrix stacked of these tensors; `cut`: of some of their columns, which are rounded anew."""
    if scheme != "native":
        return "int8" if scheme == "int8_tensor" else scheme
    formats = {tensor.format for tensor in tensors}
    if not cut and len(formats) == 1 and next(iter(formats)) in _NATIVE:
        return _NATIVE[next(iter(formats))]
    quantised = formats & (_NATIVE.keys() | _BITS_8)
    return "int8_group" if quantised and quantised == formats else "bf16"


def _tiles(
    weight: Weight, tensors: list[Tensor], format: str, scheme: Scheme, interleaved: bool
) -> Iterator[NDArray[Any]]:
    """The packed bytes, some tiles at a time."""
    num_rows, width = weight.shape
    tensor_scales = _tensor_scales(tensors) if scheme == "int8_tensor" else None
    tiles_at_once = max(_CHUNK_VALUES // (width * TILE), 1)
    order = _row_order(num_rows, interleaved)
    if weight.rows:
        order = np.where(order < 0, -1, np.asarray(weight.rows)[order])
    for start in range(0, len(order), tiles_at_once * TILE):
        rows = _Rows(tensors, order[start : start + tiles_at_once * TILE], width, weight.columns)
        if format in ("f32", "bf16"):
            yield _float_tiles(rows.floats(), format)
        else:
            yield _code_tiles(rows.codes(format, tensor_scales), format)


def _row_order(num_rows: int, interleaved: bool) -> NDArray[np.int64]:
    """Rows of the stacked tensors in packed order, -1 for padding. Interleaved: tiles of gate and up in turn."""
    if interleaved:
        return np.arange(num_rows).reshape(2, -1, TILE).transpose(1, 0, 2).reshape(-1)
    return np.pad(np.arange(num_rows), (0, -num_rows % TILE), constant_values=-1)


def _tensor_scales(tensors: list[Tensor]) -> list[float]:
    """Per-tensor symmetric int8: the scale of each tensor."""
    scales = []
    for tensor in tensors:
        num_rows, step = tensor.shape[0], max(_CHUNK_VALUES // tensor.shape[1], 1)
        extremes = (
            np.abs(tensor.float32_rows(i, min(i + step, num_rows))).max(initial=0.0) for i in range(0, num_rows, step)
        )
        scales.append(float(max(extremes)) / 127)
    return scales


class _Rows:
    """Some rows of the stacked tensors, in packed order, and of those `columns` if given; padding rows are zero."""

    def __init__(
        self, tensors: list[Tensor], order: NDArray[np.int64], width: int, columns: tuple[int, int] | None = None
    ) -> None:
        self.order, self.width, self.columns = order, width, columns
        starts = np.cumsum([0, *(tensor.shape[0] for tensor in tensors)])
        self.parts: list[tuple[Tensor, NDArray[np.intp], NDArray[np.int64]]] = []
        for tensor, start, stop in zip(tensors, starts, starts[1:], strict=False):
            here = np.flatnonzero((order >= start) & (order < stop))
            if here.size:
                self.parts.append((tensor, here, order[here] - start))
        self.tensors = tensors

    def floats(self) -> Floats:
        rows = np.zeros((len(self.order), self.width), np.float32)
        taken = slice(*self.columns) if self.columns else slice(None)
        for tensor, here, there in self.parts:
            first, last = int(there.min()), int(there.max()) + 1
            rows[here] = tensor.float32_rows(first, last)[there - first, taken]
        return rows

    def codes(self, format: str, tensor_scales: list[float] | None) -> Codes:
        if not self.columns and all(_NATIVE.get(tensor.format) == format for tensor, _, _ in self.parts):
            parts = [(here, codes_of_gguf(tensor.raw()[there], tensor.format)) for tensor, here, there in self.parts]
            return Codes.scatter(parts, len(self.order))
        row_scales = None
        if tensor_scales is not None:
            row_scales = np.zeros(len(self.order), np.float32)
            for tensor, here, _ in self.parts:
                row_scales[here] = tensor_scales[self.tensors.index(tensor)]
        return quantize_rows(self.floats(), format, row_scales)


def _float_tiles(rows: Floats, format: str) -> NDArray[Any]:
    num_rows, width = rows.shape
    if format == "f32":
        return rows.astype("<f4").reshape(-1, TILE, width).transpose(0, 2, 1)
    rows = np.pad(rows, ((0, 0), (0, width % 2)))
    return to_bf16(rows).reshape(num_rows // TILE, TILE, -1, 2).transpose(0, 2, 1, 3)


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype("<u2")


def _code_tiles(codes: Codes, format: str) -> NDArray[np.uint8]:
    """Per tile: scales, minima, then codes, as bytes."""
    num_tiles = len(codes.values) // TILE
    parts = [_planes(plane, num_tiles) for plane in codes.planes]
    values: NDArray[np.uint8] = codes.values.reshape(num_tiles, TILE, -1, 4).transpose(0, 2, 1, 3)
    if format in ("q4", "q4_min", "q4_k"):
        values = values[:, 0::2] | values[:, 1::2] << np.uint8(4)
    parts.append(values.reshape(num_tiles, -1))
    return np.concatenate(parts, axis=1)


def _planes(values: NDArray[Any], num_tiles: int) -> NDArray[np.uint8]:
    """[rows, groups] -> bytes [tiles, groups * 32 of them]."""
    planes = np.ascontiguousarray(values.reshape(num_tiles, TILE, -1).transpose(0, 2, 1))
    return planes.view(np.uint8).reshape(num_tiles, -1)
