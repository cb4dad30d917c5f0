"""safetensors files: equal to the safetensors package on good files, and no more lenient than it on bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.checkpoint import CheckpointError
from vllm.checkpoint.safetensors_file import read_safetensors

DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3",
    torch.float8_e5m2: "f8e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
def test_values_equal_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    if dtype.itemsize == 1:
        values = torch.arange(256, dtype=torch.uint8).view(8, 32)
        values = values > 100 if dtype == torch.bool else values.view(dtype)
    else:
        values = torch.randn(8, 32).mul(100).to(dtype)
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"matrix": values, "vector": values[3].clone(), "scalar": values[0, 5].clone()}, path)

    tensors = read_safetensors(path)
    expected = values.float().numpy()
    matrix = tensors["matrix"]
    assert (matrix.format, matrix.shape) == (DTYPES[dtype], (8, 32))
    np.testing.assert_array_equal(matrix.float32(), expected)
    np.testing.assert_array_equal(matrix.float32_rows(2, 5), expected[2:5])
    np.testing.assert_array_equal(tensors["vector"].float32(), expected[3])
    np.testing.assert_array_equal(tensors["scalar"].float32(), expected[0, 5])
    assert matrix.raw().tobytes() == values.view(torch.uint8).numpy().tobytes()
    assert not matrix.raw().flags.owndata


def test_empty_and_deep_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = {"none": torch.zeros(0, 4), "deep": torch.randn(2, 3, 4)}
    safetensors.torch.save_file(values, path, metadata={"format": "pt"})
    tensors = read_safetensors(path)
    assert tensors["none"].float32().shape == (0, 4)
    assert tensors["deep"].num_rows == 6
    np.testing.assert_array_equal(tensors["deep"].float32(), values["deep"].numpy())


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: object, num_bytes: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 12, [3])}, "bytes 0 to 12 of 8"),
        ({"a": entry(0, 4, [1])}, "8 bytes of data, its tensors take 4"),
        ({"a": entry(0, 8, [3])}, r"takes 8 bytes, its shape \(3,\) takes 12"),
        ({"a": entry(-4, 4, [2])}, "bytes -4 to 4"),
        ({"a": entry(8, 0, [2])}, "bytes 8 to 0"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}, "'b' at byte 4 overlaps"),
        ({"a": entry(0, 2, [2], "U8"), "b": entry(4, 8, [1])}, "'b' at byte 4 leaves a gap"),
        ({"a": entry(0, 8, [-2])}, "impossible shape"),
        ({"a": entry(0, 8, [2**40, 2**40])}, "impossible shape"),
        ({"a": entry(0, 8, [2.0])}, "impossible shape"),  # type: ignore[list-item]
        ({"a": entry(0, 8, [2], "F31")}, "dtype 'F31'; known: F64, F32"),
        ({"a": {"dtype": "F32"}}, "lacks dtype, shape or data_offsets"),
        ({"a": 7}, "lacks dtype, shape or data_offsets"),
        ([1], "not a JSON object"),
        (b"{", "not JSON"),
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_bad_headers(header: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as error:
        read_safetensors(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x08", (2**63).to_bytes(8, "little"), (100).to_bytes(8, "little") + b"{}"])
def test_short_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"too few for a header|header would have|is empty"):
        read_safetensors(path)


@settings(max_examples=500)
@given(data=st.data())
def test_broken_files_are_refused_as_the_package_refuses_them(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(2, 0)}
    content = bytearray(safetensors.torch.save(tensors))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 40))] = data.draw(
            st.sampled_from(b'0123456789:,{}[]"-. aF\xff\x00')
        )
    content = content[: data.draw(st.integers(len(content) - 8, len(content)))]
    path = tmp_path_factory.getbasetemp() / "broken.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        ours = {name: tensor.float32() for name, tensor in read_safetensors(path).items()}
    except CheckpointError:
        return
    with safetensors.safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(ours)
        for name, value in ours.items():
            np.testing.assert_array_equal(theirs.get_tensor(name).float().numpy(), value)
