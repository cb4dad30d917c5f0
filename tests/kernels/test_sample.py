"""Sampling and log-probabilities against vllm.sample, whose definition they implement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.kernels.models import FakeCheckpoint, int32, native
from vllm.device.model_input import SamplingInput
from vllm.sample import host
from vllm.sample.arrays import NO_LOGPROBS, NO_TOKEN, default_columns
from vllm.sample.table import COLUMNS
from vllm.targets.cpu.graph import Buffer, Graph, Op, Weight
from vllm.targets.cpu.ops import NativeModel, sampling_columns
from vllm.targets.cpu.step import Step

VOCAB = 1000
ROWS = 24


def logits_model(tmp_path: Path, table: np.ndarray, isa: str, default_top_k: int = 0) -> tuple[NativeModel, int]:
    """A program whose logits for token t are table[t]."""
    rows, vocab = table.shape
    graph = Graph(0, 1, 2, vocab)
    graph.weights = {"table": Weight("table", "embedding", (rows, vocab), ("table",))}
    graph.buffers = {"x": Buffer("x", "tokens", vocab), "y": Buffer("y", "samples", vocab)}
    graph.ops = [
        Op("embed", (), "x", ("table",), {"scale": 1.0}),
        Op("select", ("x",), "y"),
        Op("sample", ("y",), "y"),
    ]
    checkpoint = FakeCheckpoint()
    checkpoint.add("table", table)
    return native(tmp_path, graph, checkpoint, "f32", isa=isa, default_top_k=default_top_k)


def one_token_rows(given: np.ndarray) -> Step:
    """Row i is the single token i, selected; given: -1 to sample."""
    count = len(given)
    each = np.arange(count)
    order = np.argsort(given >= 0, kind="stable")
    return Step(
        token_ids=int32(each),
        positions=int32(np.zeros(count)),
        slots=int32(each * 64 % 256),
        row_start=int32(np.arange(count + 1)),
        context_len=int32(np.ones(count)),
        block_table=int32(each[:, None] % 4),
        selected=int32(order),
        selected_row=int32(order),
        given_token=int32(given[order]),
    )


def sampling_input(rng: np.random.Generator, rows: int, vocab: int, **fixed: object) -> SamplingInput:
    """Random parameters of every kind; `fixed` replaces some."""
    chance = rng.random(rows)
    bias_counts = rng.integers(0, 5, rows) * (rng.random(rows) < 0.5)
    named_counts = rng.integers(0, 3, rows)
    bias_ids = [rng.choice(vocab + 5, count, replace=False) for count in bias_counts]
    values = {
        "temperature": np.where(chance < 0.3, 0, rng.uniform(0.1, 2, rows)).astype(np.float32),
        "top_k": int32(rng.choice([0, 1, 5, 50, vocab + 1], rows)),
        "top_p": rng.choice([1, 0.9, 0.5, 0.01], rows).astype(np.float32),
        "min_p": rng.choice([0, 0.05, 1], rows).astype(np.float32),
        "repetition_penalty": rng.choice([1, 1.3, 0.8], rows).astype(np.float32),
        "presence_penalty": rng.choice([0, 0.7], rows).astype(np.float32),
        "frequency_penalty": rng.choice([0, -0.3, 0.4], rows).astype(np.float32),
        "seed": rng.integers(0, 2**64, rows, dtype=np.uint64),
        "position": int32(rng.integers(1, 40, rows)),
        "history": int32(rng.integers(0, vocab, (rows, 64)) % 50),
        "history_line": int32(rng.permutation(rows)),
        "num_prompt_tokens": int32(rng.integers(0, 20, rows)),
        "bias_offsets": int32([0, *np.cumsum(bias_counts)]),
        "bias_ids": int32(np.concatenate(bias_ids)),
        "bias_values": rng.choice([-np.inf, 3.0, -2.0], int(bias_counts.sum())).astype(np.float32),
        "mask_index": int32(rng.choice([-1, -1, 0, 1], rows)),
        "masks": rng.integers(0, 2**32, (2, (vocab + 31) // 32), dtype=np.uint32),
        "num_logprobs": int32(rng.choice([-1, 0, 5, vocab], rows)),
        "logprob_ids_offsets": int32([0, *np.cumsum(named_counts)]),
        "logprob_ids": int32(rng.integers(0, vocab, int(named_counts.sum()))),
    }
    values |= fixed
    columns = {name: values.pop(name) for name in COLUMNS}
    return SamplingInput(columns=columns, **values)  # type: ignore[arg-type]


def test_the_sampler_reads_every_column_of_the_table() -> None:
    assert sampling_columns() == {name: row.column for name, row in COLUMNS.items()}


def test_a_column_that_is_missing_is_named(tmp_path: Path, isa: str) -> None:
    rng = np.random.default_rng(0)
    sampling = sampling_input(rng, ROWS, VOCAB)
    del sampling.columns["min_p"]
    model, program = logits_model(tmp_path, random_logits(rng, ROWS, VOCAB), isa)
    with pytest.raises(ValueError, match=r"sampling\.columns lacks min_p"):
        model.run(program, one_token_rows(np.full(ROWS, -1)), sampling)


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    """Wide and narrow rows, with ties."""
    logits = rng.normal(size=(rows, vocab)) * rng.choice([0.5, 3, 20], (rows, 1))
    logits[::3] = np.round(logits[::3])
    return logits.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("default_top_k", [0, 256])
def test_tokens_and_logprobs(tmp_path: Path, isa: str, seed: int, default_top_k: int) -> None:
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, ROWS, VOCAB)
    sampling = sampling_input(rng, ROWS, VOCAB)
    model, program = logits_model(tmp_path, logits, isa, default_top_k)
    step = one_token_rows(np.full(ROWS, -1))
    output = model.run(program, step, sampling, want_logits=True)
    np.testing.assert_array_equal(output.logits, logits)
    expected = host.sample(logits, sampling, default_top_k)
    np.testing.assert_array_equal(output.tokens, expected)
    check_logprobs(output.logprobs, host.logprob_rows(logits, expected, sampling))


def check_logprobs(found: host.LogprobRows | None, expected: host.LogprobRows | None) -> None:
    assert found is not None and expected is not None
    np.testing.assert_array_equal(found.count, expected.count)
    for i in np.flatnonzero(expected.count >= 0):
        count = expected.count[i]
        np.testing.assert_array_equal(found.top_ids[i, :count], expected.top_ids[i, :count])
        np.testing.assert_allclose(
            found.top_logprobs[i, :count], expected.top_logprobs[i, :count], atol=2e-5, rtol=1e-5
        )
        if expected.rank[i] > 0:
            assert (found.token_id[i], found.rank[i]) == (expected.token_id[i], expected.rank[i])
            assert found.logprob[i] == pytest.approx(expected.logprob[i], abs=2e-5, rel=1e-5)


def test_given_tokens_are_scored(tmp_path: Path, isa: str) -> None:
    rng = np.random.default_rng(5)
    logits = random_logits(rng, ROWS, VOCAB)
    sampling = sampling_input(rng, ROWS, VOCAB, num_logprobs=int32(np.full(ROWS, -1)))
    given = np.where(np.arange(ROWS) % 3 == 0, -1, rng.integers(0, VOCAB, ROWS))
    step = one_token_rows(given)
    model, program = logits_model(tmp_path, logits, isa)
    output = model.run(program, step, sampling, num_prompt_logprobs=int32(np.full(ROWS, 4)))
    assert output.logprobs is None
    scored = np.flatnonzero(given >= 0)
    np.testing.assert_array_equal(output.tokens, host.sample(logits, sampling, 0)[given < 0])
    expected = host.token_logprobs(logits[scored], int32(given[scored]), int32(np.full(len(scored), 4)))
    check_logprobs(output.prompt_logprobs, expected)


def test_draws_follow_the_distribution(tmp_path: Path, isa: str) -> None:
    """Frequencies over many seeds against the softmax."""
    rng = np.random.default_rng(0)
    logits = np.tile(rng.normal(size=(1, 37)).astype(np.float32), (64, 1))
    model, program = logits_model(tmp_path, logits, isa)
    step = one_token_rows(np.full(64, -1))
    counts = np.zeros(37)
    for round_ in range(40):
        seeds = np.arange(64, dtype=np.uint64) + np.uint64(64 * round_)
        plain = {
            **default_columns(64),
            "seed": seeds,
            "mask_index": int32(np.full(64, -1)),
            "num_logprobs": int32(np.full(64, -1)),
            "bias_offsets": int32(np.zeros(65)),
            "bias_ids": int32([]),
            "bias_values": np.zeros(0, np.float32),
        }
        tokens = model.run(program, step, sampling_input(rng, 64, 37, **plain)).tokens
        counts += np.bincount(tokens, minlength=37)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum() * counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 80


def test_a_large_vocabulary(tmp_path: Path, isa: str) -> None:
    rng = np.random.default_rng(1)
    logits = random_logits(rng, 4, 150_001)
    sampling = sampling_input(
        rng, 4, 150_001, temperature=np.full(4, 0.8, np.float32), num_logprobs=int32([20, -1, 0, 3])
    )
    model, program = logits_model(tmp_path, logits, isa, 256)
    output = model.run(program, one_token_rows(np.full(4, -1)), sampling)
    np.testing.assert_array_equal(output.tokens, host.sample(logits, sampling, 256))
    check_logprobs(output.logprobs, host.logprob_rows(logits, output.tokens, sampling))


def test_forbidden_everywhere_still_gives_a_token(tmp_path: Path, isa: str) -> None:
    rng = np.random.default_rng(2)
    sampling = sampling_input(
        rng,
        2,
        VOCAB,
        temperature=np.array([0, 1], np.float32),
        mask_index=int32([0, 0]),
        masks=np.zeros((1, 32), np.uint32),
    )
    model, program = logits_model(tmp_path, random_logits(rng, 2, VOCAB), isa)
    tokens = model.run(program, one_token_rows(np.full(2, -1)), sampling).tokens
    assert ((tokens >= 0) & (tokens < VOCAB)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_told_apart(tmp_path: Path, isa: str, bad: float) -> None:  # M4
    """Sampled and scored rows, beside others that stay as they were."""
    rng = np.random.default_rng(5)
    logits = random_logits(rng, ROWS, VOCAB)
    damaged = rng.random(ROWS) < 0.5
    logits[damaged, rng.integers(0, VOCAB, ROWS)[damaged]] = bad
    sampling = sampling_input(rng, ROWS, VOCAB)
    given = np.where(np.arange(ROWS) % 3 == 0, 7, -1)
    model, program = logits_model(tmp_path, logits, isa)
    output = model.run(program, one_token_rows(given), sampling, num_prompt_logprobs=int32(np.where(given >= 0, 2, -1)))
    samples, scored = given < 0, given >= 0
    expected = host.sample(logits, sampling, 0)[samples]
    np.testing.assert_array_equal(expected == NO_TOKEN, damaged[samples])
    np.testing.assert_array_equal(output.tokens, expected)
    assert output.prompt_logprobs is not None and output.logprobs is not None
    np.testing.assert_array_equal(output.prompt_logprobs.count, np.where(damaged[scored], NO_LOGPROBS, 2))
    asked = sampling.num_logprobs[samples] >= 0
    np.testing.assert_array_equal((output.logprobs.count == NO_LOGPROBS)[asked], damaged[samples][asked])
