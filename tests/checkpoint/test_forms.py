"""Quantised forms: those that are not read are refused by their names, before anything is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vllm import LLM
from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.forms import quant_method, unsupported_form


def group(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


COMPRESSED = {"quant_method": "compressed-tensors"}
INT8 = group(num_bits=8, type="int", symmetric=True, strategy="channel")
FP8 = group(num_bits=8, type="float", strategy="tensor")
INT4 = group(num_bits=4, type="int", group_size=128, strategy="group")

UNREAD = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, r"GPTQ \(4 bits, groups of 1"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, r"AWQ \(4 bits, groups of 128\)"),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes .nf4"),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"bitsandbytes \(8 bits\)"),
    "w4a16": (COMPRESSED | INT4 | {"format": "pack-quantized"}, r"compressed-tensors pack-quantized \(4 bits, g"),
    "nvfp4": (COMPRESSED | {"format": "nvfp4-pack-quantized"}, "compressed-tensors nvfp4-pack-quantized"),
    "mixed": ({**COMPRESSED, "format": "mixed-precision", "config_groups": {"a": {"format": "pack-quantized"}}}, "p"),
    "2:4": (COMPRESSED | {"format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
    "rotated": (COMPRESSED | INT8 | {"transform_config": {"config_groups": {"u": {}}}}, "with transforms"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt NVFP4"),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    "mxfp4": ({"quant_method": "mxfp4"}, "MXFP4"),
    "bitnet": ({"quant_method": "bitnet"}, "BitNet"),
    "auto-round": ({"quant_method": "intel/auto-round", "bits": 4}, r"AutoRound \(4 bits\)"),
    "mlx": ({"group_size": 64, "bits": 4}, r"MLX \(4 bits, groups of 64\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_forms_that_are_not_read(name: str) -> None:  # M6
    import re

    settings, expected = UNREAD[name]
    said = unsupported_form({"quantization_config": settings})
    assert said is not None
    assert re.search(expected, said), said


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        COMPRESSED | INT8 | {"format": "int-quantized"},
        COMPRESSED
        | FP8
        | {"format": "float-quantized", "sparsity_config": {"format": "dense"}, "transform_config": {}},
        {"quant_method": "of_tomorrow"},
    ],
)
def test_forms_that_are_read_or_that_tensors_decide(settings: dict[str, Any]) -> None:
    assert unsupported_form({"quantization_config": settings}) is None


@pytest.fixture
def directory(tiny_llama: Path, tmp_path: Path) -> Path:
    """With a matrix as GPTQ stores it."""
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    stem = "model.layers.0.self_attn.q_proj"
    del tensors[f"{stem}.weight"]
    tensors |= {f"{stem}.qweight": np.zeros((8, 64), np.int32), f"{stem}.qzeros": np.zeros((1, 8), np.int32)}
    save_file(tensors, directory / "model.safetensors")
    return directory


def edit(directory: Path, name: str = "config.json", **entries: Any) -> None:
    file = directory / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | entries))


def load(directory: Path, **options: Any) -> None:
    LLM(str(directory), device="cpu", max_model_len=64, max_num_seqs=1, **options).shutdown()


@pytest.mark.parametrize(
    ("file", "entries", "name"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"GPTQ \(4 bits\)"),
        ("config.json", {"quantization": {"group_size": 64, "bits": 4}}, r"MLX \(4 bits"),
        ("quantize_config.json", {"bits": 4, "group_size": 32}, r"GPTQ \(4 bits, groups of 32\)"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 64}, r"AWQ \(4 bits, groups of 64\)"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "ModelOpt NVFP4"),
    ],
)
def test_a_load_says_what_it_is_and_what_works(  # M6
    file: str, entries: dict[str, Any], name: str, directory: Path
) -> None:
    edit(directory, file, **entries)
    with pytest.raises(ValueError, match=rf"quantised by {name}.*It reads FP8 and int8 .*a GGUF file such as Q4_K_M"):
        load(directory)


def test_a_draft_is_looked_at_too(tiny_llama: Path, directory: Path) -> None:
    edit(directory, quantization_config={"quant_method": "awq", "bits": 4})
    speculation = {"model": str(directory), "num_speculative_tokens": 2, "method": "draft_model"}
    with pytest.raises(ValueError, match=r"speculative_config: its weights are quantised by AWQ \(4 bits\)"):
        load(tiny_llama, speculative_config=speculation)


def test_a_note_left_over_is_not_believed(tiny_llama: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    edit(directory, "quantize_config.json", bits=4, group_size=128)
    assert quant_method(open_checkpoint(directory).config) is None


def test_an_unknown_method_is_named_where_a_tensor_is_missing(directory: Path) -> None:
    edit(directory, quantization_config={"quant_method": "of_tomorrow"})
    with pytest.raises(ValueError, match=r"has no tensor .*q_proj\.weight'.* quantised by 'of_tomorrow'"):
        load(directory)


class TestTrueStatements:  # M12
    def test_a_form_that_the_file_has(self, tiny_llama: Path, tmp_path: Path) -> None:
        directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
        edit(directory, quantization_config=COMPRESSED | INT8 | {"format": "int-quantized"})
        load(directory, quantization="compressed-tensors")
        with pytest.raises(ValueError, match="quantization='fp8': the checkpoint is compressed-tensors"):
            load(directory, quantization="fp8")

    def test_a_type_that_the_file_has(self, tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
        edit(directory, dtype="float16")
        with caplog.at_level("INFO", "vllm"):
            load(directory, dtype="half")
        assert "is what the checkpoint is stored in; the cpu target computes in bfloat16" in caplog.text
        with pytest.raises(ValueError, match="dtype='float16': the cpu target does not compute in it"):
            load(tiny_llama, dtype="half")
