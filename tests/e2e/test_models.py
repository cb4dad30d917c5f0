"""Graphs against HF transformers: logits at float32, for every config switch that changes the arithmetic.

The checkpoints are tiny and random, made from transformers' own configs, so the oracle needs no download. Norm weights
and biases are random too: with the usual ones and zeros, a forgotten one would not show.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.e2e.steps import greedy, make_step
from tests.hf import IS_OLD, load_model, rope_settings
from tests.tiny import CONFIGS, VOCAB_SIZE, make_checkpoint
from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.config_checks import LAYER_TYPES
from vllm.checkpoint.tied import with_output_matrix
from vllm.targets.cpu.models import build_graph, supported_architectures
from vllm.targets.cpu.packing import lay_out
from vllm.targets.cpu.reference import ReferenceProgram, load_weights

TOLERANCE = 1e-4


def rope(kind: str, **settings: object) -> dict[str, object]:
    return dict(rope_settings({"rope_type": kind, "rope_theta": 1000.0, **settings}))


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
NEWER_FAMILIES: list[tuple[str, str, dict[str, object]]] = [
    ("ministral", "window", {"sliding_window": 6, "head_dim": 16}),
    ("ministral", "window on one layer", {"sliding_window": 6, "head_dim": 16, "layer_types": list(LAYER_TYPES)}),
    ("seed_oss", "plain", {"head_dim": 16}),
    ("seed_oss", "biases", {"head_dim": 24, "attention_out_bias": True, "mlp_bias": True}),
    ("seed_oss", "no bias", {"head_dim": 32, "attention_bias": False}),
    ("cwm", "window by default on the second layer", {"sliding_window": 6, "head_dim": 16}),
    ("cwm", "mlp bias", {"sliding_window": 8, "head_dim": 32, "mlp_bias": True, **rope("default")}),
]
CASES: list[tuple[str, str, dict[str, object]]] = [
    ("llama", "untied", {}),
    ("llama", "tied", {"tie_word_embeddings": True}),
    ("llama", "attention bias", {"attention_bias": True}),
    ("llama", "mlp bias", {"mlp_bias": True}),
    ("llama", "multi-head", {"num_key_value_heads": 4}),
    ("llama", "multi-query", {"num_key_value_heads": 1}),
    ("llama", "three queries a group", {"hidden_size": 96, "num_attention_heads": 6}),
    ("llama", "large heads", {"head_dim": 48}),
    ("llama", "rms_norm_eps", {"rms_norm_eps": 0.05}),
    ("llama", "rope theta", rope("default")),
    ("llama", "rope linear", rope("linear", factor=4.0)),
    ("llama", "rope llama3", rope("llama3", **LLAMA3)),
    ("llama", "rope yarn", rope("yarn", **YARN)),
    ("llama", "rope yarn mscale", rope("yarn", **YARN, mscale=0.8, mscale_all_dim=0.5)),
    ("llama", "rope yarn betas", rope("yarn", **YARN, beta_fast=16, beta_slow=2, attention_factor=1.3, truncate=False)),
    ("llama", "rope dynamic", rope("dynamic", factor=2.0)),
    ("mistral", "no window", {"sliding_window": None}),
    ("mistral", "window", {"sliding_window": 8}),
    ("mistral", "window and head size", {"sliding_window": 5, "head_dim": 32}),
    ("qwen2", "untied", {}),
    ("qwen2", "tied", {"tie_word_embeddings": True}),
    ("qwen2", "window", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    ("qwen2", "rope yarn", rope("yarn", **YARN)),
    ("qwen3", "untied", {}),
    ("qwen3", "tied", {"tie_word_embeddings": True}),
    ("qwen3", "attention bias", {"attention_bias": True}),
    ("qwen3", "head size 16", {"head_dim": 16}),
    ("qwen3", "window", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}),
    *(case for case in NEWER_FAMILIES if case[0] in CONFIGS),
]
if IS_OLD:
    CASES = [case for case in CASES if "yarn" not in case[1] and case[:2] != ("qwen2", "window")]


def load_reference(directory: Path, num_blocks: int = 8, block_size: int = 64, **rounding: str) -> ReferenceProgram:
    checkpoint = open_checkpoint(directory)
    graph = build_graph(checkpoint.config)
    return ReferenceProgram(graph, load_weights(graph, checkpoint), num_blocks, block_size, **rounding)


def hf_logits(directory: Path, token_ids: list[int]) -> np.ndarray:
    model = load_model(directory, torch.float32)
    with torch.inference_mode():
        return model.eval()(torch.tensor([token_ids])).logits[0].numpy()


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, count).tolist()


@pytest.mark.parametrize(
    ("family", "switch", "overrides"), CASES, ids=[f"{family}-{name}" for family, name, _ in CASES]
)
def test_logits_equal_transformers(family: str, switch: str, overrides: dict[str, object], tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, family, **overrides)
    tokens = random_tokens(40)
    expected = hf_logits(directory, tokens)

    whole = load_reference(directory).run(make_step([(tokens, 0)], np.array([[3]]), 64))
    np.testing.assert_allclose(whole, expected, atol=TOLERANCE, rtol=TOLERANCE)

    blocks = np.random.default_rng(1).permutation(12)[None]
    program = load_reference(directory, num_blocks=12, block_size=4)
    pieces = [(0, 17), (17, 18), (18, 33), *((at, at + 1) for at in range(33, 40))]
    chunked = np.concatenate(
        [program.run(make_step([(tokens[start:stop], start)], blocks, 4)) for start, stop in pieces]
    )
    np.testing.assert_allclose(chunked, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_every_switch_changes_the_logits(tmp_path: Path) -> None:
    """Otherwise the cases above could pass without the switch being read."""
    tokens = random_tokens(40)
    seen: dict[str, str] = {}
    for number, (family, switch, overrides) in enumerate(CASES):
        logits = hf_logits(make_checkpoint(tmp_path / str(number), family, **overrides), tokens)
        fingerprint = f"{family} {np.round(logits, 3).tobytes()!r}"
        name = f"{family} {switch}"
        if switch not in ("rope dynamic", "rope theta", "no window"):
            assert fingerprint not in seen, f"{name} has the logits of {seen.get(fingerprint)}"
        seen[fingerprint] = name


def test_rows_do_not_see_each_other(tiny_llama: Path) -> None:
    """Three rows at different places of their sequences, in one step, over scattered blocks."""
    sequences = [random_tokens(length, seed=length) for length in (11, 23, 30)]
    expected = [hf_logits(tiny_llama, tokens) for tokens in sequences]
    table = np.random.default_rng(2).permutation(24).reshape(3, 8)
    program = load_reference(tiny_llama, num_blocks=24, block_size=4)

    program.run(make_step([(sequences[0][:10], 0), (sequences[1][:5], 0)], table, 4))
    step = make_step([(sequences[0][10:], 10), (sequences[1][5:], 5), (sequences[2], 0)], table, 4)
    logits = np.split(program.run(step), step.row_start[1:-1])

    for row, first in enumerate((10, 5, 0)):
        np.testing.assert_allclose(logits[row], expected[row][first:], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_greedy_tokens_equal_transformers(family: str, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, family, seed=7)
    prompt = random_tokens(9)
    model = load_model(directory, torch.float32)
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)[0]
    assert greedy(load_reference(directory), prompt, 24, np.array([[1]])) == generated[len(prompt) :].tolist()


def test_shards_and_bfloat16(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "whole", "qwen2")
    model = load_model(directory, torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2

    tokens = random_tokens(20)
    logits = load_reference(tmp_path / "sharded").run(make_step([(tokens, 0)], np.array([[0]]), 64))
    expected = hf_logits(tmp_path / "sharded", tokens)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_bfloat16_rounding_is_close_and_not_equal(tiny_llama: Path) -> None:
    tokens = random_tokens(20)
    step = make_step([(tokens, 0)], np.array([[0]]), 64)
    exact = load_reference(tiny_llama).run(step)
    rounding = {"weight_dtype": "bfloat16", "activation_dtype": "bfloat16", "kv_dtype": "bfloat16"}
    for name, dtype in rounding.items():
        rounded = load_reference(tiny_llama, **{name: dtype}).run(step)
        assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


def test_unsupported_architecture_lists_the_supported() -> None:
    with pytest.raises(ValueError, match=r"Llama4ForCausalLM.*supported: CwmForCausalLM, LlamaForCausalLM") as error:
        build_graph({"architectures": ["Llama4ForCausalLM"]})
    assert all(name in str(error.value) for name in supported_architectures())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: 'silu'"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "type 'spiral' is not supported; supported: default, linear"),
        ({"rope_scaling": {"rope_type": "linear"}}, "type 'linear' needs 'factor'"),
    ],
)
def test_unsupported_settings_are_refused(change: dict[str, object], message: str, tiny_llama: Path) -> None:
    config = {**open_checkpoint(tiny_llama).config, **change}
    with pytest.raises(ValueError, match=message):
        build_graph(config)


def test_weight_of_wrong_shape_is_named(tiny_llama: Path) -> None:
    checkpoint = open_checkpoint(tiny_llama)
    graph = build_graph({**checkpoint.config, "intermediate_size": 96})
    with pytest.raises(
        ValueError, match=r"mlp\.gate_proj.*has shape \(256, 64\), the model's config makes it \(192, 64\)"
    ):
        load_weights(graph, checkpoint)


def test_layers_that_are_not_there_are_refused_in_linear_time(tiny_llama: Path) -> None:
    """M13: with the square of the layers, 3,000 took 40 seconds of a processor."""
    checkpoint = open_checkpoint(tiny_llama)
    config = {**checkpoint.config, "num_hidden_layers": 3000, "layer_types": ["full_attention"] * 3000}
    started = time.process_time()
    with pytest.raises(ValueError, match=r"has no tensor 'model\.layers\.2\."):
        lay_out(build_graph(config), checkpoint, "native")
    assert time.process_time() - started < 12


@pytest.mark.parametrize("said", [False, None])
def test_qwen2_has_its_biases_whatever_the_config_says(said: bool | None, tmp_path: Path) -> None:  # M3
    directory = make_checkpoint(tmp_path, "qwen2")
    change_config(directory, attention_bias=said)
    tokens = random_tokens(20)
    logits = load_reference(directory).run(make_step([(tokens, 0)], np.array([[0]]), 64))
    np.testing.assert_allclose(logits, hf_logits(directory, tokens), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.skipif(IS_OLD, reason="transformers 4 ties whatever the files hold")
def test_an_output_matrix_that_differs_from_the_embedding_is_used(tmp_path: Path) -> None:
    """A config that ties them notwithstanding, as in transformers."""
    directory = make_checkpoint(tmp_path)
    change_config(directory, tie_word_embeddings=True)
    checkpoint = open_checkpoint(directory)
    config = with_output_matrix(checkpoint.config, checkpoint)
    assert config["tie_word_embeddings"] is False
    tokens = random_tokens(20)
    graph = build_graph(config)
    logits = ReferenceProgram(graph, load_weights(graph, checkpoint), 1, 64).run(
        make_step([(tokens, 0)], np.array([[0]]), 64)
    )
    np.testing.assert_allclose(logits, hf_logits(directory, tokens), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["LLaMAForCausalLM", "YiForCausalLM"])
def test_older_names_of_architectures(architecture: str, tiny_llama: Path, tmp_path: Path) -> None:  # M12
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    change_config(directory, architectures=[architecture])
    tokens = random_tokens(20)
    logits = load_reference(directory).run(make_step([(tokens, 0)], np.array([[0]]), 64))
    np.testing.assert_allclose(logits, hf_logits(tiny_llama, tokens), atol=TOLERANCE, rtol=TOLERANCE)


def change_config(directory: Path, **entries: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
