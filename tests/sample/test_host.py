"""The host sampler: token for token against the naive rules, and its distribution against torch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sample import oracle
from tests.sample.oracle import RowSpec, arrays, random_logits, random_row
from vllm.sample import host
from vllm.sample.arrays import NO_TOKEN

NUM_DRAWS = 4000


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), vocab_size=st.sampled_from([1, 2, 31, 32, 33, 150]), num_rows=st.integers(1, 6))
def test_tokens_equal_the_naive_rules(seed: int, vocab_size: int, num_rows: int) -> None:
    rng = random.Random(seed)
    specs = [random_row(rng, vocab_size) for _ in range(num_rows)]
    logits = random_logits(rng, num_rows, vocab_size)
    default_top_k = rng.choice([0, 1, 20, 256])
    before = logits.copy()
    tokens = host.sample(logits, arrays(specs, vocab_size), default_top_k)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [oracle.sample(row, spec, default_top_k) for row, spec in zip(logits, specs, strict=True)]
    assert np.array_equal(logits, before)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_a_row_does_not_depend_on_its_neighbours(seed: int) -> None:
    rng = random.Random(seed)
    specs = [random_row(rng, 50) for _ in range(7)]
    logits = random_logits(rng, 7, 50)
    together = host.sample(logits, arrays(specs, 50), 20)
    order = rng.sample(range(7), 7)
    shuffled = host.sample(logits[order], arrays([specs[i] for i in order], 50), 20)
    alone = [host.sample(logits[i : i + 1], arrays([specs[i]], 50), 20)[0] for i in range(7)]
    assert together.tolist() == alone
    assert shuffled.tolist() == together[order].tolist()


def test_rows_that_do_not_sample_get_nothing() -> None:
    logits = random_logits(random.Random(0), 3, 20)
    specs = [RowSpec(), RowSpec(temperature=1.0, seed=3), RowSpec(frequency_penalty=1.0)]
    everyone = host.sample(logits, arrays(specs, 20), 0)
    for row in range(3):
        wanted = np.arange(3) == row
        tokens = host.sample(logits, arrays(specs, 20), 0, wanted)
        assert tokens.tolist() == np.where(wanted, everyone, 0).tolist()


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = np.array([[1, 3, 2, 3, 3]], np.float32)
    assert host.sample(logits, arrays([RowSpec()], 5), 0).tolist() == [1]
    assert host.sample(logits, arrays([RowSpec(allowed={2, 3, 4})], 5), 0).tolist() == [3]
    assert host.sample(logits, arrays([RowSpec(top_k=1, temperature=1.0)], 5), 0).tolist() == [1]
    assert host.sample(logits, arrays([RowSpec(bias=[(1, -np.inf), (3, -1.0)])], 5), 0).tolist() == [4]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("spec", "token"), [({"allowed": set()}, 0), ({"bias": [(2, np.inf)]}, 2), ({"allowed": {3}, "bias": []}, 3)]
)
def test_extremes_leave_one_choice(temperature: float, spec: dict, token: int) -> None:
    logits = np.zeros((1, 5), np.float32)
    assert host.sample(logits, arrays([RowSpec(temperature=temperature, **spec)], 5), 0).tolist() == [token]


def test_default_top_k_stands_in_for_a_disabled_one_only() -> None:
    logits = np.zeros((200, 10), np.float32)
    disabled = arrays([RowSpec(temperature=1.0, seed=seed) for seed in range(200)], 10)
    explicit = arrays([RowSpec(temperature=1.0, seed=seed, top_k=4) for seed in range(200)], 10)
    assert set(host.sample(logits, disabled, 2).tolist()) == {0, 1}
    assert set(host.sample(logits, disabled, 0).tolist()) == set(range(10))
    assert set(host.sample(logits, explicit, 2).tolist()) == {0, 1, 2, 3}


def test_top_p_ends_where_it_is_reached_exactly() -> None:
    sampling = arrays([RowSpec(temperature=1.0, seed=seed, top_p=0.5) for seed in range(200)], 4)
    assert set(host.sample(np.zeros((200, 4), np.float32), sampling, 0).tolist()) == {0, 1}


LAST = np.float32(1 - 2.0**-24)


@pytest.mark.parametrize(("u", "token"), [(0.0, 0), (0.25, 1), (0.2499999, 0), (0.5, 2), (0.75, 3), (LAST, 3)])
def test_the_draw_takes_the_first_that_exceeds(u: float, token: int) -> None:
    assert host._draw(np.zeros(4, np.float32), 4, np.float32(1), np.float32(0), np.float32(u)) == token


@pytest.mark.parametrize("depth", [8.0, 12.0, 16.0, 16.5, 17.0, 17.9, 18.1, 30.0])
@pytest.mark.parametrize("u", [0.3, 0.9, LAST])
def test_a_long_tail_counts_as_float32_counts_it(depth: float, u: float) -> None:
    """Leaving negligible candidates out changes nothing, and no others are left out."""
    scaled = np.full(40_000, -depth, np.float32)
    scaled[123] = 0.0
    order = [123, *(token for token in range(len(scaled)) if token != 123)]
    sums = np.array(oracle.running_sums(list(np.exp(scaled[order]))))
    expected = order[np.flatnonzero(sums > np.float32(u) * sums[-1])[0]]
    assert host._draw(scaled, len(scaled), np.float32(1), np.float32(0), np.float32(u)) == expected


def torch_probabilities(logits: np.ndarray, spec: RowSpec, default_top_k: int = 0) -> torch.Tensor:
    """What is drawn from, by masking a sorted distribution in torch."""
    scaled = torch.from_numpy(logits).double() / spec.temperature
    top_k = spec.top_k or default_top_k
    if top_k:
        scaled[scaled < scaled.topk(min(top_k, len(scaled))).values[-1]] = -torch.inf
    probabilities = scaled.softmax(-1)
    probabilities[probabilities < spec.min_p * probabilities.max()] = 0
    probabilities /= probabilities.sum()
    ordered, ids = probabilities.sort(descending=True)
    ordered[ordered.cumsum(-1) - ordered >= spec.top_p] = 0
    return torch.zeros_like(probabilities).scatter(0, ids, ordered / ordered.sum())


@pytest.mark.parametrize(
    "spec",
    [
        RowSpec(temperature=1.0),
        RowSpec(temperature=0.5),
        RowSpec(temperature=2.0),
        RowSpec(temperature=1.0, top_k=5),
        RowSpec(temperature=1.0, top_p=0.7),
        RowSpec(temperature=1.0, min_p=0.2),
        RowSpec(temperature=0.7, top_k=8, top_p=0.9, min_p=0.05),
    ],
    ids=lambda spec: f"t{spec.temperature}-k{spec.top_k}-p{spec.top_p}-m{spec.min_p}",
)
def test_distribution(spec: RowSpec) -> None:
    """Chi-square over many (seed, position) pairs; nothing outside the support is ever drawn."""
    logits = np.random.default_rng(3).normal(size=12).astype(np.float32)
    expected = torch_probabilities(logits, spec).numpy() * NUM_DRAWS
    sampling = arrays([spec] * NUM_DRAWS, 12)
    sampling.columns["seed"] = np.arange(NUM_DRAWS, dtype=np.uint64) // 10
    sampling.position = np.arange(NUM_DRAWS, dtype=np.int32) % 10
    tokens = host.sample(np.tile(logits, (NUM_DRAWS, 1)), sampling, 0)
    observed = np.bincount(tokens, minlength=12)
    assert not observed[expected == 0].any()
    likely = expected > 0
    statistic = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    degrees = likely.sum() - 1
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)


def test_penalties_against_torch() -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(1, 30)).astype(np.float32)
    prompt, output = [1, 2, 2, 9], [2, 5, 5, 5, 8]
    spec = RowSpec(
        prompt=prompt, output=output, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.25, seed=1
    )
    expected = torch.from_numpy(logits[0]).clone()
    seen = torch.zeros(30, dtype=torch.bool)
    seen[prompt + output] = True
    expected = torch.where(seen, torch.where(expected > 0, expected / 1.3, expected * 1.3), expected)
    counts = torch.bincount(torch.tensor(output), minlength=30)
    expected = expected - 0.25 * counts - 0.4 * (counts > 0)
    result = host.process_logits(logits[0], arrays([spec], 30), 0)
    torch.testing.assert_close(torch.from_numpy(result), expected)


def test_forbidden_tokens_stay_forbidden_under_penalties() -> None:
    spec = RowSpec(bias=[(4, -np.inf)], output=[4], repetition_penalty=0.1, frequency_penalty=-2.0, temperature=1.0)
    logits = np.zeros((1, 5), np.float32)
    assert host.process_logits(logits[0], arrays([spec], 5), 0)[4] == -np.inf
    draws = arrays([spec] * 300, 5)
    draws.columns["seed"] = np.arange(300, dtype=np.uint64)
    assert 4 not in host.sample(np.zeros((300, 5), np.float32), draws, 0)


def test_the_generator_is_the_published_one() -> None:
    assert int(host.splitmix64(0)) == 0xE220A8397B1DCDAF
    states = [0, 1, 2**63, 2**64 - 1]
    assert host.splitmix64(np.array(states, np.uint64)).tolist() == [oracle.splitmix64(state) for state in states]


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**31 - 1))
def test_uniform(seed: int, position: int) -> None:
    draw = host.uniform(np.uint64(seed), np.int32(position))
    assert draw.dtype == np.float32
    assert float(draw) == oracle.uniform(seed, position)
    assert 0 <= draw < 1


def test_uniform_is_even_over_seeds_and_over_positions() -> None:
    index = np.arange(20_000)
    for draws in (host.uniform(index, 7), host.uniform(7, index), host.uniform(index // 100, index % 100)):
        observed = np.bincount((draws * 50).astype(int), minlength=50)
        assert ((observed - 400) ** 2 / 400).sum() < 49 + 4 * np.sqrt(98)


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, True),
        ({"top_k": 5, "top_p": 0.5, "min_p": 0.5, "seed": 9}, True),
        ({"repetition_penalty": 1.0, "prompt": [1, 2], "output": [3]}, True),
        ({"temperature": 0.5}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": -0.1}, False),
        ({"bias": [(1, 2.0)]}, False),
        ({"allowed": {1}}, False),
        ({"num_logprobs": 0}, False),
    ],
)
def test_plain_greedy(change: dict, plain: bool) -> None:
    assert host.is_plain_greedy(arrays([RowSpec(), RowSpec(**change)], 20)) is plain


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token(bad: float, temperature: float) -> None:  # M4
    logits = np.tile(np.arange(5, dtype=np.float32), (3, 1))
    logits[1, 2] = logits[2, 0] = bad
    tokens = host.sample(
        logits, arrays([RowSpec(temperature=temperature, top_k=1)] * 3, 5), 0, np.array([True, True, False])
    )
    assert tokens.tolist() == [4, NO_TOKEN, 0]
