"""Linear layers of every weight format against numpy on the weights as packed, and row independence to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.models import SUPPORTED, FakeCheckpoint, bf16, make_step, matrix_graph, native
from vllm.checkpoint.tensor import Tensor
from vllm.targets.cpu.quantize import Codes, codes_of_gguf, quantize_rows

GGUF_FORMATS = ["q4_0", "q4_1", "q8_0"]
NATIVE = {"q4_0": "q4", "q4_1": "q4_min", "q8_0": "int8_group"}


def e4m3(codes: np.ndarray) -> np.ndarray:
    """8-bit floats as torch reads them, in float64."""
    return np.asarray(torch.from_numpy(np.ascontiguousarray(codes)).view(torch.float8_e4m3fn).double().numpy())


def decode(codes: Codes, format: str, width: int) -> np.ndarray:
    """What the codes stand for, in float64."""
    if format.startswith("f8"):
        scales = np.repeat(codes.planes[0].astype(np.float64), 128 if format == "f8_block" else width, axis=1)
        return np.asarray(e4m3(codes.values)[:, :width] * scales[:, :width])
    values = codes.values.astype(np.float64)
    zero = {"int8": 128, "int8_group": 128, "q4": 8, "q4_min": 0}[format]
    planes = [np.repeat(plane.astype(np.float64), values.shape[1] // plane.shape[1], axis=1) for plane in codes.planes]
    decoded = (values - zero) * planes[0] + (planes[1] if len(planes) > 1 else 0)
    return np.asarray(decoded[:, :width])


def packed_values(checkpoint: FakeCheckpoint, name: str, scheme: str) -> np.ndarray:
    """The matrix as the kernel sees it."""
    tensor = checkpoint.get(name)
    values = tensor.float32()
    if scheme == "native":
        format = NATIVE[tensor.format]
        return decode(codes_of_gguf(tensor.raw(), tensor.format), format, values.shape[1])
    if scheme == "f32":
        return values.astype(np.float64)
    if scheme == "bf16":
        return bf16(values).astype(np.float64)
    row_scales = None
    format = scheme.removesuffix("_tensor")
    if format != scheme:
        row_scales = np.full(len(values), np.abs(values).max() / {"int8": 127, "f8": 448}[format], np.float32)
    return decode(quantize_rows(values, format, row_scales), format, values.shape[1])


def rounded_input(x: np.ndarray, scheme: str) -> np.ndarray:
    """The input as the kernel sees it."""
    if scheme == "f32" or scheme.startswith("f8"):
        return x.astype(np.float64)
    if scheme == "bf16":
        return bf16(x).astype(np.float64)
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    size = np.abs(groups).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), size, out=np.zeros_like(size), where=size > 0)
    rounded = np.rint(groups * inverse).astype(np.float64) * (size / np.float32(127)).astype(np.float64)
    return rounded.reshape(len(x), -1)[:, : x.shape[1]]


def make_checkpoint(seed: int, vocab: int, width: int, num_out: int, format: str = "f32") -> FakeCheckpoint:
    rng = np.random.default_rng(seed)
    checkpoint = FakeCheckpoint()
    checkpoint.add("table", rng.normal(size=(vocab, width)), format)
    checkpoint.add("W", rng.normal(size=(num_out, width)), format)
    checkpoint.add("b", rng.normal(size=num_out))
    return checkpoint


def q4_k_blocks(rng: np.random.Generator, rows: int, width: int) -> Tensor:
    """Random blocks of Q4_K: any scales, minima and nibbles; factors of ordinary size."""
    blocks = rng.integers(0, 256, (rows, width // 256, 144), dtype=np.uint8)
    halves = rng.uniform(0.001, 0.01, (rows, width // 256, 2)).astype("<f2")
    blocks[..., :4] = halves.view(np.uint8)
    return Tensor("", (rows, width), "q4_k", blocks.reshape(-1))


def test_q4_k(tmp_path: Path, isa: str) -> None:
    rng = np.random.default_rng(4)
    checkpoint = FakeCheckpoint()
    checkpoint.tensors = {"table": q4_k_blocks(rng, 20, 512), "W": q4_k_blocks(rng, 70, 512)}
    table = checkpoint.get("table").float32()
    model, program = native(tmp_path, matrix_graph(table, 70), checkpoint, "native", isa=isa)
    y = model.run(program, make_step([(list(range(20)), 0, [0])], 64), want_logits=True).logits
    expected = rounded_input(table, "native") @ checkpoint.get("W").float32().astype(np.float64).T
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


SHAPES = [(64, 96), (32, 64), (160, 100), (33, 32)]
CASES = [
    (scheme, shape)
    for scheme in ("f32", "bf16", "int8", "int8_tensor", "f8", "f8_tensor", "q4_min", *GGUF_FORMATS)
    for shape in SHAPES
    if scheme not in GGUF_FORMATS or shape[0] % 32 == 0
]


@pytest.mark.parametrize(("scheme", "shape"), CASES, ids=str)
def test_against_numpy(tmp_path: Path, isa: str, scheme: str, shape: tuple[int, int]) -> None:
    width, num_out = shape
    format = scheme if scheme in GGUF_FORMATS else "f32"
    scheme = "native" if format != "f32" else scheme
    checkpoint = make_checkpoint(1, 40, width, num_out, format)
    table = packed_values(checkpoint, "table", scheme).astype(np.float32)
    graph = matrix_graph(table, num_out, bias=True, accumulate=True)
    model, program = native(tmp_path, graph, checkpoint, scheme, isa=isa)
    tokens = list(range(37))
    y = model.run(program, make_step([(tokens, 0, [0])], 64), want_logits=True).logits
    x = rounded_input(table[tokens], scheme)
    product = x @ packed_values(checkpoint, "W", scheme).T
    expected = 2 * product + checkpoint.get("b").float32()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@settings(max_examples=25)
@given(data=st.data())
def test_rows_do_not_depend_on_neighbours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any rows in any order, on any number of threads: each result is the one the row has alone."""
    isa = data.draw(st.sampled_from(SUPPORTED))
    scheme = data.draw(st.sampled_from(["f32", "bf16", "int8", "f8", "q4_min", *GGUF_FORMATS]))
    format = scheme if scheme in GGUF_FORMATS else "f32"
    scheme = "native" if format != "f32" else scheme
    width = 32 * data.draw(st.integers(1, 5)) if format != "f32" else data.draw(st.integers(1, 130))
    num_out = data.draw(st.integers(1, 130))
    checkpoint = make_checkpoint(data.draw(st.integers(0, 9)), 16, width, num_out, format)
    table = np.zeros((16, width), np.float32)
    graph = matrix_graph(table, num_out, bias=True)
    path = tmp_path_factory.mktemp("rows")
    one, program = native(path, graph, checkpoint, scheme, isa=isa, num_threads=1)
    alone = [one.run(program, make_step([([token], 0, [0])], 64), want_logits=True).logits[0] for token in range(16)]
    tokens = data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=40))
    many, program = native(path, graph, checkpoint, scheme, isa=isa, num_threads=data.draw(st.integers(1, 4)))
    together = many.run(program, make_step([(tokens, 0, [0])], 64), want_logits=True).logits
    for token, result in zip(tokens, together, strict=True):
        np.testing.assert_array_equal(result, alone[token])
