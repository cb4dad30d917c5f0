"""Tensors that nothing reads: those with a meaning refuse the checkpoint, harmless ones pass, others are told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoint.test_forms import edit, load
from tests.tiny import make_checkpoint
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.unread import check_unread
from vllm.targets.cpu.models import build_graph

LAYER = "model.layers.1"
ONES = np.ones(4, np.float32)

MEANINGFUL = [
    f"{LAYER}.self_attn.q_proj.bias",
    f"{LAYER}.mlp.down_proj.bias",
    f"{LAYER}.self_attn.q_norm.weight",
    f"{LAYER}.post_feedforward_layernorm.weight",
    f"{LAYER}.mlp.up_proj.weight_zero_point",
    f"{LAYER}.mlp.up_proj.g_idx",
    f"{LAYER}.mlp.up_proj.weight_scale",
    f"{LAYER}.mlp.up_proj.pre_quant_scale",
    f"{LAYER}.mlp.up_proj.SCB",
    f"{LAYER}.mlp.experts.0.up_proj.weight",
    f"{LAYER}.self_attn.q_proj.lora_A.weight",
    f"{LAYER}.self_attn.sinks",
    "lm_head.bias",
    "model.norm.bias",
    "model.embed_norm.weight",
    "blk.0.attn_sinks.weight",
    "rope_factors_long.weight",
    "output_norm.bias",
]
HARMLESS = [
    f"{LAYER}.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    f"{LAYER}.self_attn.rotary_emb.cos_cached",
    f"{LAYER}.self_attn.k_scale",
    f"{LAYER}.self_attn.attn.v_scale",
    f"{LAYER}.self_attn.k_proj.output_scale",
    f"{LAYER}.mlp.up_proj.input_scale",
    f"{LAYER}.mlp.up_proj.input_zero_point",
    f"{LAYER}.self_attn.masked_bias",
    "t2d",
]
UNKNOWN = [
    "score.weight",
    "score.bias",
    "v_head.summary.weight",
    "medusa_head.0.linear.bias",
    "vision_tower.layers.0.norm1.weight",
    "visual.blocks.0.attn.qkv.bias",
    "multi_modal_projector.linear_1.bias",
    "model.layers.7.mlp.up_proj.weight",
    "something.else.weight",
]


@pytest.fixture
def directory(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def check(directory: Path, **extra: np.ndarray) -> None:
    file = directory / "model.safetensors"
    save_file({**load_file(file), **extra}, file)
    checkpoint = open_checkpoint(directory)
    weights = build_graph(checkpoint.config).weights.values()
    check_unread(checkpoint, {name for weight in weights for name in weight.sources})


@pytest.mark.parametrize("name", MEANINGFUL)
def test_tensors_of_a_meaning(name: str, directory: Path) -> None:  # M3
    with pytest.raises(CheckpointError, match=f"holds the tensor {name}, which this model's config has no use for"):
        check(directory, **{name: ONES})


def test_all_are_told_at_once_and_none_twice(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match=f"holds {len(MEANINGFUL)} tensors such as "):
        check(directory, **dict.fromkeys([*MEANINGFUL, *HARMLESS, *UNKNOWN], ONES))
    assert not caplog.records


def test_harmless_and_unknown_ones(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(directory, **dict.fromkeys([*HARMLESS, *UNKNOWN], ONES))
    (record,) = caplog.records
    assert f"holds {len(UNKNOWN)} tensors such as medusa_head.0.linear.bias, " in record.message
    assert "which are not read" in record.message


def test_what_is_added_and_zero_changes_nothing(directory: Path) -> None:
    """Some writers store biases and zero points of symmetric codes all the same."""
    names = [name for name in MEANINGFUL if name.endswith(("bias", "zero_point"))]
    check(directory, **dict.fromkeys(names, np.zeros(4, np.float32)))


def test_masks_that_are_called_biases(directory: Path) -> None:
    check(directory, **{f"{LAYER}.attn.bias": np.ones((1, 1, 4, 4), np.float32), f"{LAYER}.m.bias": ONES.astype(bool)})


def test_a_load_refuses(tmp_path: Path) -> None:  # M3
    directory = make_checkpoint(tmp_path, attention_bias=True)
    edit(directory, attention_bias=False)
    with pytest.raises(CheckpointError, match=r"holds 8 tensors such as .*k_proj\.bias"):
        load(directory)


def test_drafts_are_looked_at(tiny_llama: Path, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, attention_bias=True)
    edit(directory, attention_bias=False)
    speculation = {"model": str(directory), "num_speculative_tokens": 2, "method": "draft_model"}
    with pytest.raises(CheckpointError, match=rf"{directory} holds 8 tensors such as"):
        load(tiny_llama, speculative_config=speculation)
