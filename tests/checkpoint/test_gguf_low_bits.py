"""GGUF types without a kernel of their own: they become 8-bit codes, within what they themselves round away."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.checkpoint.gguf_files import write_gguf
from tests.e2e.test_eight_bits import PROMPT, expected_logprobs, logits_of, rewrite
from tests.tiny import make_checkpoint
from vllm.checkpoint import open_checkpoint
from vllm.targets.cpu.packing import _BITS_8
from vllm.targets.cpu.quantize import GROUP, quantize_rows

_HALVES = {
    **dict.fromkeys(("iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs", "q5_0"), (0,)),
    **dict.fromkeys(("q5_1", "q5_k"), (0, 2)),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q6_k": (208,),
    "tq1_0": (52,),
    "tq2_0": (64,),
}
"""Where a block keeps its scales in half precision; random bytes there would make no sane number."""


def random_values(format: str) -> np.ndarray:
    """float32 [64, 1024] of random blocks, some of which are zero if their scales were no numbers."""
    rng = np.random.default_rng(0)
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format.upper()]]
    blocks = rng.integers(0, 256, (64, 1024 // values, size), dtype=np.uint8)
    for at in _HALVES.get(format, ()):
        scales = rng.uniform(0.002, 0.02, blocks.shape[:2]).astype("<f2")
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    if format == "mxfp4":
        blocks[..., 0] = rng.integers(116, 124, blocks.shape[:2])
    with np.errstate(invalid="ignore"):
        decoded = gguf.quants.dequantize(blocks.reshape(64, -1), gguf.GGMLQuantizationType[format.upper()])
    return np.nan_to_num(decoded, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


@pytest.mark.parametrize("format", sorted(_BITS_8 - {"q8_k"}))
def test_rounding_to_eight_bits_is_small_beside_the_formats_own(format: str) -> None:  # M5
    """A format of 6 bits rounds by about 2 % of what it stores, one of 4 by 7 %, one of 2 by 30 %."""
    values = random_values(format)
    codes = quantize_rows(values, "int8_group")
    decoded = (codes.values.astype(np.float32) - 128) * np.repeat(codes.planes[0].astype(np.float32), GROUP, axis=1)
    error = np.sqrt(np.square(decoded - values).mean() / np.square(values).mean())
    assert error < 0.006


def test_a_model_of_four_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:  # M5
    """It gives what its values give, and a line says what it takes in memory."""
    source = make_checkpoint(tmp_path / "source")
    decoded = write_gguf(tmp_path / "m.gguf", source, "MXFP4")
    assert open_checkpoint(tmp_path / "m.gguf").get("model.layers.0.mlp.up_proj.weight").format == "mxfp4"
    values = rewrite(source, tmp_path / "values", {name: torch.from_numpy(value) for name, value in decoded.items()})
    with caplog.at_level("INFO", "vllm"):
        near = logits_of(tmp_path / "m.gguf")
    assert np.abs(near - expected_logprobs(values)).mean() < 0.2
    assert len(near) == len(PROMPT) - 1
    assert "weights take more memory than room in their files: mxfp4 from 4.2 to 8.5 bits per value" in caplog.text
