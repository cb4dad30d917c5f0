"""Weights in kernel order: `pack` streams a checkpoint, weight by weight, into one file that the native core maps.

Every matrix lies in tiles of 32 outputs, the last one padded with zeros; docs/cpu_core.md draws the formats:

    f32, bf16     [k / (1, 2)][32][1, 2]
    int8          float32 scale[32]; codes [k / 4][32][4]                one scale an output
    int8_group    float16 scale[k / 32][32]; codes [k / 4][32][4]
    q4            float16 scale[k / 32][32]; nibbles [k / 8][32][4]      value = scale * (code - 8)
    q4_min        float16 scale[k / 32][32], minimum[k / 32][32]; nibbles [k / 8][32][4]
    q4_k          float16 factors of scales [k / 256][32] and of minima; uint8 scale[k / 32][32], minimum[k / 32][32];
                  nibbles [k / 8][32][4]                               GGUF's Q4_K
    f8            float32 scale[32]; codes [k][32]                       8-bit floating point, one scale an output
    f8_block      float32 scale[k / 128][32]; codes [k][32]
    vector        float32, padded with zeros to whole tiles

8-bit integers count from 128. A byte of nibbles holds k in its low half and k + 4 in its high half.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vllm.checkpoint.scaled import ScaledTensor
from vllm.targets.cpu.fusion import fused_weights
from vllm.targets.cpu.graph import Graph, Weight
from vllm.targets.cpu.quantize import (
    F8_GROUP,
    LARGEST_CODE,
    Codes,
    Floats,
    codes_of_gguf,
    codes_of_scaled,
    native_format,
    quantize_rows,
)
from vllm.targets.cpu.threads import choose_cpus

LAYOUT_VERSION = 1
TILE = 32
GROUP = 32
ALIGNMENT = 4096
_CHUNK_VALUES = 1 << 18
"""Values that are worked on at once: few enough to stay in the second-level cache."""
_WRITE_BYTES = 32 << 20

Scheme = Literal["native", "f32", "bf16", "int8", "int8_tensor", "f8", "f8_tensor", "q4_min"]
"""What becomes of the matrices. native: quantised weights keep their form as far as there is a kernel for it, all
others become bf16. The rest: every matrix becomes that; with _tensor, one scale holds for a checkpoint's tensor."""

_ONE_SCALE: dict[str, str] = {"int8_tensor": "int8", "f8_tensor": "f8"}

Progress = Callable[[str, float], None]
Piece = Callable[[], NDArray[Any]]
"""Makes some packed bytes; runs on any thread."""

_NATIVE = {"q4_0": "q4", "q4_1": "q4_min", "q8_0": "int8_group", "q4_k": "q4_k"}
_BITS_8 = {
    *("q5_0", "q5_1", "q5_k", "q6_k", "q3_k", "q2_k", "q8_k", "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs"),
    *("iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq1_0", "tq2_0", "mxfp4", "nvfp4"),
}
"""Formats without a kernel of their own whose values become 8-bit codes with a scale for each 32: fewer bits than that
make a grid so coarse that rounding to those codes is small beside it."""


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
    """Write the packed weights of `graph`; returns their index (`lay_out`), which `ops.NativeModel` wants beside them.

    Raises ValueError for tensors whose shapes do not fit the graph, or whose values cannot be packed.
    """
    index = lay_out(graph, checkpoint, scheme)
    interleaved = fused_weights(graph)
    total = max(index["num_bytes"], 1)
    threads = len(choose_cpus())
    with out_file.open("wb", buffering=0) as raw, ThreadPoolExecutor(threads) as pool:
        file = _Writer(raw)
        for name, weight in graph.weights.items():
            entry = index["weights"][name]
            if entry["offset"] < file.position:
                continue
            if progress is not None:
                progress(f"packing {name}", file.position / total)
            file.fill(entry["offset"])
            jobs = _pieces(weight, checkpoint, entry["format"], scheme, name in interleaved)
            for piece in _in_order(jobs, pool, 2 * threads):
                file.write(piece)
            if file.position != entry["offset"] + entry["num_bytes"]:
                raise AssertionError(f"{name} was packed to {file.position}, not as laid out: {entry}")
        file.fill(index["num_bytes"])
        file.flush()
    if progress is not None:
        progress("packed", 1.0)
    return index


def _in_order(jobs: Iterator[Piece], pool: ThreadPoolExecutor, ahead: int) -> Iterator[NDArray[Any]]:
    """What the jobs give, in their order; at most `ahead` of them are begun before they are wanted."""
    begun: deque[Future[NDArray[Any]]] = deque()
    for job in jobs:
        begun.append(pool.submit(job))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def lay_out(graph: Graph, checkpoint: Checkpoint, scheme: Scheme) -> dict[str, Any]:
    """What `pack` writes and where, from the tensors' shapes and formats alone; no weight is read.

    {"version", "scheme", "num_bytes", "weights": {name: {"format", "shape", "offset", "num_bytes"}}}, weights in the
    file's order. Those made of the same tensors (tied embeddings) share their bytes.
    """
    interleaved = fused_weights(graph)
    placed: dict[Any, dict[str, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    for name, weight in graph.weights.items():
        key = _identity(weight, name in interleaved)
        if key not in placed:
            tensors = [checkpoint.get(source) for source in weight.sources]
            _check_shapes(weight, tensors)
            cut = weight.columns is not None
            format = "vector" if weight.kind == "vector" else _choose_format(scheme, tensors, cut)
            alignment = 64 if format == "vector" else ALIGNMENT
            offset, num_bytes = -(-end // alignment) * alignment, _num_bytes(format, weight.shape)
            placed[key] = {"format": format, "shape": list(weight.shape), "offset": offset, "num_bytes": num_bytes}
            end = offset + num_bytes
        entries[name] = placed[key]
    num_bytes = -(-end // ALIGNMENT) * ALIGNMENT
    return {"version": LAYOUT_VERSION, "scheme": scheme, "num_bytes": num_bytes, "weights": entries}


def _num_bytes(format: str, shape: tuple[int, ...]) -> int:
    num_tiles = -(-shape[0] // TILE)
    if format == "vector":
        return num_tiles * TILE * 4
    width = shape[1]
    groups = -(-width // GROUP)
    row_bytes = {
        "f32": 4 * width,
        "bf16": 2 * (width + width % 2),
        "int8": 4 + groups * GROUP,
        "int8_group": groups * (2 + GROUP),
        "q4": groups * (2 + GROUP // 2),
        "q4_min": groups * (4 + GROUP // 2),
        "q4_k": 4 * -(-width // 256) + groups * (2 + GROUP // 2),
        "f8": 4 + width,
        "f8_block": 4 * -(-width // F8_GROUP) + width,
    }[format]
    return num_tiles * TILE * row_bytes


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

    def fill(self, position: int) -> None:
        """Zeros up to `position`."""
        self.write(np.zeros(position - self.position, np.uint8))

    def flush(self) -> None:
        rest = self._buffer[: self._used]
        while rest.size:
            rest = rest[self._raw.write(rest.data) or 0 :]
        self._used = 0


def _identity(weight: Weight, interleaved: bool) -> Any:
    kind = "vector" if weight.kind == "vector" else "matrix"
    return (kind, weight.sources, weight.value, weight.rows, weight.columns, interleaved)


def _pieces(weight: Weight, checkpoint: Checkpoint, format: str, scheme: Scheme, interleaved: bool) -> Iterator[Piece]:
    """The packed bytes of a weight, some of them a job."""
    tensors = [checkpoint.get(source) for source in weight.sources]
    if format == "vector":
        yield partial(_padded_vector, weight, tensors)
    else:
        yield from _tiles(weight, tensors, format, scheme, interleaved)


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
        return _ONE_SCALE.get(scheme, scheme)
    natives = {None if cut else _native_format(tensor) for tensor in tensors}
    if len(natives) == 1 and (native := next(iter(natives))) is not None:
        return native
    formats = {tensor.format for tensor in tensors}
    quantised = formats & (_NATIVE.keys() | _BITS_8)
    return "int8_group" if quantised and quantised == formats else "bf16"


def _native_format(tensor: Tensor) -> str | None:
    return native_format(tensor) if isinstance(tensor, ScaledTensor) else _NATIVE.get(tensor.format)


def _tiles(weight: Weight, tensors: list[Tensor], format: str, scheme: Scheme, interleaved: bool) -> Iterator[Piece]:
    """The packed bytes of a matrix, some tiles at a time."""
    num_rows, width = weight.shape
    tensor_scales = _tensor_scales(tensors, format) if scheme in _ONE_SCALE else None
    tiles_at_once = max(_CHUNK_VALUES // (width * TILE), 1)
    order = _row_order(num_rows, interleaved)
    if weight.rows:
        order = np.where(order < 0, -1, np.asarray(weight.rows)[order])
    for start in range(0, len(order), tiles_at_once * TILE):
        rows = _Rows(tensors, order[start : start + tiles_at_once * TILE], width, weight.columns)
        yield partial(_packed, rows, format, tensor_scales)


def _packed(rows: _Rows, format: str, tensor_scales: list[float] | None) -> NDArray[Any]:
    if format == "f32":
        return rows.floats().astype("<f4").reshape(-1, TILE, rows.width).transpose(0, 2, 1)
    if format == "bf16":
        return _pair_tiles(rows.halves())
    return _code_tiles(rows.codes(format, tensor_scales), format)


def _row_order(num_rows: int, interleaved: bool) -> NDArray[np.int64]:
    """Rows of the stacked tensors in packed order, -1 for padding. Interleaved: tiles of gate and up in turn."""
    if interleaved:
        return np.arange(num_rows).reshape(2, -1, TILE).transpose(1, 0, 2).reshape(-1)
    return np.pad(np.arange(num_rows), (0, -num_rows % TILE), constant_values=-1)


def _tensor_scales(tensors: list[Tensor], format: str) -> list[float]:
    """Per-tensor symmetric: the scale of each tensor."""
    scales = []
    for tensor in tensors:
        num_rows, step = tensor.shape[0], max(_CHUNK_VALUES // tensor.shape[1], 1)
        extremes = (
            np.abs(tensor.float32_rows(i, min(i + step, num_rows))).max(initial=0.0) for i in range(0, num_rows, step)
        )
        scales.append(float(max(extremes)) / LARGEST_CODE[format])
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

    def halves(self) -> NDArray[np.uint16]:
        """As bfloat16; what is stored as such is taken as it is."""
        if self.columns or any(tensor.format != "bf16" for tensor, _, _ in self.parts):
            return to_bf16(self.floats())
        rows = np.zeros((len(self.order), self.width), np.uint16)
        for tensor, here, there in self.parts:
            rows[here] = tensor.raw()[there].view("<u2")
        return rows

    def codes(self, format: str, tensor_scales: list[float] | None) -> Codes:
        native = tensor_scales is None and not self.columns
        if native and all(_native_format(tensor) == format for tensor, _, _ in self.parts):
            parts = [(here, _native_codes(tensor, there)) for tensor, here, there in self.parts]
            return Codes.scatter(parts, len(self.order))
        row_scales = None
        if tensor_scales is not None:
            row_scales = np.zeros(len(self.order), np.float32)
            for tensor, here, _ in self.parts:
                row_scales[here] = tensor_scales[self.tensors.index(tensor)]
        return quantize_rows(self.floats(), format, row_scales)


def _native_codes(tensor: Tensor, rows: NDArray[np.int64]) -> Codes:
    if isinstance(tensor, ScaledTensor):
        return codes_of_scaled(tensor, rows)
    return codes_of_gguf(tensor.raw()[rows], tensor.format)


def _pair_tiles(rows: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Pairs of k in 32 bits, as which they are moved."""
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = np.ascontiguousarray(rows).view(np.uint32).reshape(len(rows) // TILE, TILE, -1)
    return pairs.transpose(0, 2, 1)


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """Rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype("<u2")


def _code_tiles(codes: Codes, format: str) -> NDArray[np.uint8]:
    """Per tile: scales, minima, then codes, as bytes."""
    num_tiles = len(codes.values) // TILE
    parts = [_planes(plane, num_tiles) for plane in codes.planes]
    if format in ("f8", "f8_block"):
        parts.append(codes.values.reshape(num_tiles, TILE, -1).transpose(0, 2, 1).reshape(num_tiles, -1))
        return np.concatenate(parts, axis=1)
    fours = np.ascontiguousarray(codes.values).view(np.uint32).reshape(num_tiles, TILE, -1)
    if format in ("q4", "q4_min", "q4_k"):
        fours = fours[:, :, 0::2] | fours[:, :, 1::2] << np.uint32(4)
    parts.append(np.ascontiguousarray(fours.transpose(0, 2, 1)).view(np.uint8).reshape(num_tiles, -1))
    return np.concatenate(parts, axis=1)


def _planes(values: NDArray[Any], num_tiles: int) -> NDArray[np.uint8]:
    """[rows, groups] -> bytes [tiles, groups * 32 of them]."""
    planes = np.ascontiguousarray(values.reshape(num_tiles, TILE, -1).transpose(0, 2, 1))
    return planes.view(np.uint8).reshape(num_tiles, -1)
