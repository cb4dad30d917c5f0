"""8-bit floating point against torch's: rounding to it, reading every code, and matrices that come with scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.models import FakeCheckpoint, bf16, make_step, matrix_graph, native
from tests.kernels.test_linear import e4m3
from vllm.checkpoint.scaled import ScaledTensor
from vllm.targets.cpu.quantize import to_f8e4m3

FINITE = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
FLOATS = st.floats(width=32, allow_nan=False)


def scaled(rng: np.random.Generator, rows: int, width: int, row_block: int, k_block: int) -> ScaledTensor:
    """Codes without NaN, and a scale for each block."""
    codes = rng.choice(FINITE, (rows, width))
    scale = rng.uniform(0.001, 0.1, (-(-rows // row_block), -(-width // k_block))).astype(np.float32)
    return ScaledTensor(
        "W", (rows, width), "f8e4m3", codes.reshape(-1), scale=scale, row_block=row_block, k_block=k_block
    )


@given(st.lists(FLOATS | st.floats(-500, 500, width=32) | st.floats(-(2.0**-5), 2.0**-5, width=32), min_size=1))
def test_rounding_is_torchs(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    np.testing.assert_array_equal(to_f8e4m3(array), expected.numpy())


def test_every_code_is_read_exactly(tmp_path: Path, isa: str) -> None:
    checkpoint = FakeCheckpoint()
    checkpoint.add("table", np.eye(3, 40))
    codes = np.zeros((len(FINITE), 40), np.uint8)
    codes[:, 1] = FINITE
    checkpoint.tensors["W"] = ScaledTensor(
        "W", codes.shape, "f8e4m3", codes.reshape(-1), scale=np.ones((1, 1), np.float32), row_block=254, k_block=40
    )
    graph = matrix_graph(np.zeros((3, 40)), len(FINITE))
    model, program = native(tmp_path, graph, checkpoint, "native", isa=isa)
    for rows in ([1], [1] * 40):
        y = model.run(program, make_step([(rows, 0, [0])], 64), want_logits=True).logits
        np.testing.assert_array_equal(y, np.broadcast_to(e4m3(FINITE), y.shape))


SCALES = [(70, 300), (1, 300), (128, 128), (32, 128), (128, 64)]
"""By tensor, by row, in blocks, in blocks of fewer rows; and in blocks that no packed format takes as they are."""


@pytest.mark.parametrize(("row_block", "k_block"), SCALES)
@pytest.mark.parametrize("rows", [1, 2, 3, 64])
def test_scales_of_a_checkpoint(tmp_path: Path, isa: str, row_block: int, k_block: int, rows: int) -> None:
    rng = np.random.default_rng(5)
    checkpoint = FakeCheckpoint()
    checkpoint.add("table", rng.normal(size=(64, 300)))
    checkpoint.tensors["W"] = tensor = scaled(rng, 70, 300, row_block, k_block)
    model, program = native(tmp_path, matrix_graph(np.zeros((64, 300)), 70), checkpoint, "native", isa=isa)
    y = model.run(program, make_step([(list(range(rows)), 0, [0])], 64), want_logits=True).logits
    scales = np.repeat(np.repeat(tensor.scale, row_block, axis=0)[:70], k_block, axis=1)[:, :300]
    weights = e4m3(tensor.raw()) * scales
    tolerance = 1e-5 if k_block != 64 else 1e-2
    expected = bf16(checkpoint.get("table").float32()).astype(np.float64)[:rows] @ weights.T
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@settings(max_examples=20)
@given(rows=st.lists(st.integers(0, 15), min_size=1, max_size=64), k_block=st.sampled_from([128, 300]))
def test_a_row_among_others(tmp_path_factory: pytest.TempPathFactory, rows: list[int], k_block: int) -> None:
    """Few rows are computed in registers, many from a panel: to the same bits."""
    rng = np.random.default_rng(6)
    checkpoint = FakeCheckpoint()
    checkpoint.add("table", rng.normal(size=(16, 300)))
    checkpoint.tensors["W"] = scaled(rng, 45, 300, 128, k_block)
    path = tmp_path_factory.mktemp("rows")
    model, program = native(path, matrix_graph(np.zeros((16, 300)), 45), checkpoint, "native")
    together = model.run(program, make_step([(rows, 0, [0])], 64), want_logits=True).logits
    for token, result in zip(rows, together, strict=True):
        alone = model.run(program, make_step([([token], 0, [0])], 64), want_logits=True).logits[0]
        np.testing.assert_array_equal(result, alone)


def test_a_weight_that_is_not_a_number(tmp_path: Path) -> None:
    checkpoint = FakeCheckpoint()
    checkpoint.add("table", np.zeros((4, 40)))
    codes = np.zeros((8, 40), np.uint8)
    codes[3, 7] = 0xFF
    checkpoint.tensors["W"] = ScaledTensor(
        "W", codes.shape, "f8e4m3", codes.reshape(-1), scale=np.ones((1, 1), np.float32), row_block=8, k_block=40
    )
    with pytest.raises(ValueError, match="W holds values that are not numbers"):
        native(tmp_path, matrix_graph(np.zeros((4, 40)), 8), checkpoint, "native")
