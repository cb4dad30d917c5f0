"""Whole decoders against the torch reference, and exact repeatability of everything that a step may vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.models import SUPPORTED, make_step, native
from tests.tiny import VOCAB_SIZE, make_checkpoint
from vllm.checkpoint import Checkpoint, open_checkpoint
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.ops import NativeModel
from vllm.targets.cpu.reference import ReferenceProgram, load_weights
from vllm.targets.cpu.step import Step

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96},
    "mistral": {"sliding_window": 21, "num_attention_heads": 4, "num_key_value_heads": 4},
    "qwen2": {"tie_word_embeddings": True, "intermediate_size": 96},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 48},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("families")
    return {name: open_checkpoint(make_checkpoint(root / name, name, **FAMILIES[name])) for name in FAMILIES}


def steps(block_size: int) -> list[Step]:
    """Two prompts at once, a decode of both, and a chunk beside a decode; blocks out of order."""
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, VOCAB_SIZE, 33).tolist(), rng.integers(0, VOCAB_SIZE, 50).tolist()
    a, b = ([2, 0, 3], [5, 4, 1]) if block_size < 64 else ([1], [0])
    return [
        make_step([(first, 0, a), (second[:20], 0, b)], block_size, "all"),
        make_step([([7], 33, a), ([second[20]], 20, b)], block_size, "all"),
        make_step([([9], 34, a), (second[21:], 21, b)], block_size, "all"),
    ]


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16", "f8", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_against_torch(
    tmp_path: Path, isa: str, family: str, kv_dtype: str, checkpoints: dict[str, Checkpoint]
) -> None:
    checkpoint = checkpoints[family]
    graph = build_graph(checkpoint.config)
    block_size = 32
    rounding = {"f32": "float32", "bf16": "bfloat16", "f8": "fp8", "int8": "int8"}
    reference = ReferenceProgram(graph, load_weights(graph, checkpoint), 6, block_size, kv_dtype=rounding[kv_dtype])
    model, program = native(
        tmp_path, graph, checkpoint, "f32", isa=isa, num_blocks=6, block_size=block_size, kv_dtype=kv_dtype
    )
    for step in steps(block_size):
        logits = model.run(program, step, want_logits=True).logits
        expected = reference.run(step)
        tolerance = 1e-5 if kv_dtype == "f32" else 2e-2
        assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


def test_bf16_and_4_bits_stay_near(tmp_path: Path, isa: str, checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["llama"]
    graph = build_graph(checkpoint.config)
    reference = ReferenceProgram(graph, load_weights(graph, checkpoint), 6, 32)
    step = steps(32)[0]
    expected = reference.run(step)
    for scheme, most in (("bf16", 0.03), ("int8", 0.1), ("f8", 0.2), ("q4_min", 0.6)):
        model, program = native(tmp_path, graph, checkpoint, scheme, isa=isa, num_blocks=6, block_size=32)
        logits = model.run(program, step, want_logits=True).logits
        assert np.abs(logits - expected).mean() < most * np.abs(expected).mean()


SEQUENCES = [[(31 * i + 17 * s) % VOCAB_SIZE for i in range(length)] for s, length in enumerate((1, 2, 15, 16, 17, 40))]


def alone(model: NativeModel, program: int, tokens: list[int]) -> np.ndarray:
    """Logits of every position of a sequence that is computed at once, by itself, in one block."""
    return model.run(program, make_step([(tokens, 0, [0])], 64, "all"), want_logits=True).logits


@settings(max_examples=30)
@given(
    isa=st.sampled_from(SUPPORTED),
    family=st.sampled_from(["llama", "mistral", "qwen3"]),
    types=st.sampled_from(
        [("f32", "f32"), ("bf16", "bf16"), ("int8", "bf16"), ("q4_min", "bf16"), ("f8", "f8"), ("f32", "int8")]
    ),
    block_size=st.sampled_from([16, 32, 64, 100]),
    num_threads=st.integers(1, 3),
    max_samples=st.sampled_from([1, 5, 64]),
    seed=st.integers(0, 2**32),
)
def test_results_do_not_depend_on_company(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoints: dict[str, Checkpoint],
    isa: str,
    family: str,
    types: tuple[str, str],
    block_size: int,
    num_threads: int,
    max_samples: int,
    seed: int,
) -> None:
    """Any batch, chunks, blocks, block size and threads: every position's logits are equal to the last bit."""
    scheme, kv_dtype = types
    checkpoint = checkpoints[family]
    graph = build_graph(checkpoint.config)
    path = tmp_path_factory.mktemp("company")
    common: dict[str, Any] = {"isa": isa, "kv_dtype": kv_dtype}
    single, program = native(path, graph, checkpoint, scheme, num_threads=1, num_blocks=1, **common)
    expected = [alone(single, program, sequence) for sequence in SEQUENCES]

    per_row = 1 if block_size == 100 else -(-40 // block_size)
    num_blocks = per_row * len(SEQUENCES)
    common |= {"num_threads": num_threads, "max_samples": max_samples}
    model, program = native(path, graph, checkpoint, scheme, block_size=block_size, num_blocks=num_blocks, **common)
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(num_blocks).tolist()
    done = [0] * len(SEQUENCES)
    while done != [len(sequence) for sequence in SEQUENCES]:
        rows, places = [], []
        for i in rng.permutation(len(SEQUENCES)):
            room = 64 - sum(len(row[0]) for row in rows)
            start, count = done[i], int(rng.integers(0, min(len(SEQUENCES[i]) - done[i], room) + 1))
            if count:
                rows.append((SEQUENCES[i][start : start + count], start, blocks[per_row * i : per_row * (i + 1)]))
                places.append((i, start, count))
                done[i] += count
        if not rows:
            continue
        logits = model.run(program, make_step(rows, block_size, "all"), want_logits=True).logits
        at = 0
        for i, start, count in places:
            np.testing.assert_array_equal(logits[at : at + count], expected[i][start : start + count])
            at += count


def test_many_rows_in_several_slices_on_threads(tmp_path: Path, isa: str, checkpoints: dict[str, Checkpoint]) -> None:
    """Tiles of many rows go to whichever thread is free, again for each slice of the selected positions."""
    checkpoint = checkpoints["llama"]
    graph = build_graph(checkpoint.config)
    tokens = [31 * i % VOCAB_SIZE for i in range(120)]
    step = make_step([(tokens, 0, [0])], 128, "all")
    shape: dict[str, Any] = {"isa": isa, "max_tokens": 128, "num_blocks": 1, "block_size": 128}
    one, program = native(tmp_path, graph, checkpoint, "bf16", num_threads=1, max_samples=128, **shape)
    expected = one.run(program, step, want_logits=True).logits
    many, program = native(tmp_path, graph, checkpoint, "bf16", num_threads=3, max_samples=40, **shape)
    for _ in range(3):
        np.testing.assert_array_equal(many.run(program, step, want_logits=True).logits, expected)
