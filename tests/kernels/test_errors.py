"""Malformed steps, programs and files: a clear error before anything is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.models import FakeCheckpoint, int32, make_step, matrix_graph, native
from vllm.targets.cpu.ops import NativeModel
from vllm.targets.cpu.packing import pack
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.threads import choose_cpus


@pytest.fixture(scope="module")
def checkpoint() -> FakeCheckpoint:
    checkpoint = FakeCheckpoint()
    rng = np.random.default_rng(0)
    checkpoint.add("table", rng.normal(size=(10, 32)))
    checkpoint.add("W", rng.normal(size=(8, 32)))
    return checkpoint


GRAPH = matrix_graph(np.zeros((10, 32)), 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": int32([1, 10, 3])}, "token id 10 is out of range"),
        ({"token_ids": int32([1, -1, 3])}, "token id -1 is out of range"),
        ({"slots": int32([0, 256, 2])}, "slot 256 is out of range"),
        ({"block_table": int32([[4]])}, "block id 4 is out of range"),
        ({"positions": int32([0, 2, 3])}, "consecutive"),
        ({"context_len": int32([70])}, "consecutive"),
        ({"row_start": int32([0, 2])}, "row_start"),
        ({"selected": int32([3])}, "selected position 3 is out of range"),
        ({"selected_row": int32([1])}, "selected_row"),
        ({"given_token": int32([10])}, "num_prompt_logprobs"),
        ({"positions": int32([0, 1])}, "positions has 2 entries, expected 3"),
    ],
    ids=str,
)
def test_malformed_steps(tmp_path: Path, checkpoint: FakeCheckpoint, change: dict[str, Any], message: str) -> None:
    model, program = native(tmp_path, GRAPH, checkpoint, "f32")
    step = make_step([([1, 2, 3], 0, [0])], 64)
    with pytest.raises(ValueError, match=message):
        model.run(program, dataclasses.replace(step, **change))
    assert model.run(program, step, want_logits=True).logits.shape == (3, 8)


def test_a_context_beyond_the_block_table(tmp_path: Path, checkpoint: FakeCheckpoint) -> None:
    model, program = native(tmp_path, GRAPH, checkpoint, "f32", block_size=2)
    with pytest.raises(ValueError, match="needs 2 blocks, its block table holds 1"):
        step = dataclasses.replace(make_step([([1, 2, 3], 0, [0, 1])], 2), block_table=int32([[0]]))
        model.run(program, step)
    with pytest.raises(ValueError, match="not a multiple of 16"):
        model.run(program, make_step([([1, 2, 3], 0, [0, 1])], 2))


def test_too_many_tokens_and_wrong_types(tmp_path: Path, checkpoint: FakeCheckpoint) -> None:
    model, program = native(tmp_path, GRAPH, checkpoint, "f32", max_tokens=2)
    with pytest.raises(ValueError, match="3 tokens does not fit a program for 1 to 2"):
        model.run(program, make_step([([1, 2, 3], 0, [0])], 64))
    step = make_step([([1, 2], 0, [0])], 64)
    with pytest.raises(TypeError):
        model.run(program, dataclasses.replace(step, slots=step.slots.astype(np.int64)))
    with pytest.raises(ValueError, match="no program 7"):
        model.run(7, step)


def test_weights_that_do_not_fit(tmp_path: Path, checkpoint: FakeCheckpoint) -> None:
    with pytest.raises(ValueError, match=r"weight 'W' must be \(9, 32\)"):
        native(tmp_path, matrix_graph(np.zeros((10, 32)), 9), checkpoint, "f32")


def test_files_that_do_not_fit(tmp_path: Path, checkpoint: FakeCheckpoint) -> None:
    path = tmp_path / "weights"
    index = pack(GRAPH, checkpoint, "bf16", path)
    shape: dict[str, Any] = {
        "num_layers": 0,
        "num_kv_heads": 1,
        "head_dim": 2,
        "vocab_size": 10,
        "num_blocks": 1,
        "block_size": 16,
        "max_context": 16,
    }
    with pytest.raises(ValueError, match="layout version 0"):
        NativeModel(path, {**index, "version": 0}, **shape)
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'; known: auto, avx512_bf16"):
        NativeModel(path, index, isa="sse9", **shape)
    model = NativeModel(path, index, **shape)
    spec = plan(GRAPH, 4, 4)
    spec["ops"][0]["kind"] = "enbed"
    with pytest.raises(ValueError, match="unknown op 'enbed'"):
        model.add_program(spec)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="compile the model again"):
        NativeModel(path, index, **shape)


def test_tied_weights_are_stored_once(tmp_path: Path, checkpoint: FakeCheckpoint) -> None:
    graph = matrix_graph(np.zeros((10, 32)), 10)
    tied = dataclasses.replace(graph.weights["W"], sources=("table",), shape=(10, 32))
    graph.weights["W"] = tied
    index = pack(graph, checkpoint, "f32", tmp_path / "weights")
    assert index["weights"]["table"] == index["weights"]["W"]
    assert index["num_bytes"] == 4096


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    allowed = sorted(os.sched_getaffinity(0))
    assert set(choose_cpus()) <= set(allowed)
    assert choose_cpus(1) == allowed[:1]
    assert choose_cpus(len(allowed) + 1) == [-1] * (len(allowed) + 1)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", str(allowed[-1]))
    assert choose_cpus() == allowed[-1:]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert set(choose_cpus()) == {-1}
    for wrong in ("x", "3-1", "0,0", "9999"):
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", wrong)
        with pytest.raises(ValueError, match="VLLM_CPU_OMP_THREADS_BIND"):
            choose_cpus()
    with pytest.raises(ValueError, match="at least one thread"):
        choose_cpus(0)


def test_the_instruction_set_can_be_forced(
    tmp_path: Path, checkpoint: FakeCheckpoint, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_ISA", isa)
    assert native(tmp_path, GRAPH, checkpoint, "f32")[0].isa == isa
