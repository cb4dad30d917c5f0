"""Rope frequencies of well-known configs against transformers' own functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers

from tests.hf import IS_OLD, initial_frequencies, rope_settings
from vllm.checkpoint import normalise_config
from vllm.targets.cpu.rope import rope_parameters, rotary_dim

SIZES = {
    "vocab_size": 8,
    "hidden_size": 4096,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
}
LLAMA31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
KNOWN = {
    "llama 3.1": ("llama3", 131072, 500000.0, LLAMA31),
    "llama 3.2": ("llama3", 131072, 500000.0, LLAMA31 | {"factor": 32.0}),
    "qwen 2.5 yarn": ("yarn", 131072, 1e6, {"factor": 4.0, "original_max_position_embeddings": 32768}),
    "yarn without factor": ("yarn", 65536, 1e4, {"factor": None, "original_max_position_embeddings": 4096}),
    "yarn short": ("yarn", 65536, 1e4, {"factor": 0.5, "original_max_position_embeddings": 4096}),
    "linear": ("linear", 4096, 1e4, {"factor": 2.5}),
    "dynamic": ("dynamic", 4096, 1e4, {"factor": 2.0}),
}


def both(kind: str, max_len: int, theta: float, settings: dict[str, Any], length: int | None = None) -> tuple[Any, Any]:
    parameters = {"rope_type": kind, "rope_theta": theta, **settings}
    config = normalise_config(
        {"model_type": "llama", **SIZES, "max_position_embeddings": max_len, "rope_scaling": parameters}
    )
    theirs = transformers.LlamaConfig(**SIZES, max_position_embeddings=max_len, **rope_settings(parameters))
    inv_freq, factor = initial_frequencies(kind, theirs, length)
    return rope_parameters(config, length), (inv_freq.numpy(), factor)


@pytest.mark.parametrize("name", [name for name in KNOWN if not (IS_OLD and name == "yarn short")])
def test_frequencies_equal_transformers(name: str) -> None:
    (inv_freq, factor), (expected, expected_factor) = both(*KNOWN[name])
    np.testing.assert_allclose(inv_freq, expected, rtol=1e-6)
    assert factor == pytest.approx(expected_factor, rel=1e-9)


@pytest.mark.parametrize("length", [100, 4096, 4097, 12000])
def test_dynamic_scaling_is_that_of_the_longest_sequence(length: int) -> None:
    (inv_freq, _), (expected, _) = both("dynamic", 4096, 1e4, {"factor": 2.0}, length)
    np.testing.assert_allclose(inv_freq, expected, rtol=1e-6)


def test_partial_rotation() -> None:
    config = normalise_config({"model_type": "llama", **SIZES, "partial_rotary_factor": 0.25})
    assert rotary_dim(config) == 32
    assert len(rope_parameters(config)[0]) == 16


def test_factors_must_fit_the_head() -> None:
    config = normalise_config(
        {"model_type": "llama", **SIZES, "rope_scaling": {"rope_type": "factors", "factors": [1.0]}}
    )
    with pytest.raises(ValueError, match="1 rope factors for 64 frequencies"):
        rope_parameters(config)
