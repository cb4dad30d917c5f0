"""The sampling rules once more, a token at a time and with the whole vocabulary sorted; and arrays to try them on."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vllm.sample.arrays import BadWords, SamplingInput
from vllm.sample.table import COLUMNS

MASK64 = 2**64 - 1
F = np.float32


@dataclass
class RowSpec:
    """One row's parameters in plain form. history: prompt and output; bias: (id, value) pairs; allowed: None is all."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    prompt: list[int] = field(default_factory=lambda: [0])
    output: list[int] = field(default_factory=list)
    bias: list[tuple[int, float]] = field(default_factory=list)
    allowed: set[int] | None = None
    num_logprobs: int = -1
    logprob_ids: list[int] = field(default_factory=list)
    bad_words: list[list[int]] = field(default_factory=list)


def arrays(specs: list[RowSpec], vocab_size: int) -> SamplingInput:
    """Rows lie in the history in reverse order, with rubbish behind each row's tokens."""
    lines = list(range(len(specs)))[::-1]
    history = np.full((len(specs), 64), vocab_size - 1, np.int32)
    masks, mask_index = [], []
    for line, spec in zip(lines, specs, strict=True):
        tokens = spec.prompt + spec.output
        history[line, : len(tokens)] = tokens
        mask_index.append(-1 if spec.allowed is None else len(masks))
        if spec.allowed is not None:
            bits = sum(1 << token for token in spec.allowed)
            masks.append([(bits >> (32 * word)) & 0xFFFFFFFF for word in range((vocab_size + 31) // 32)])

    def column(name: str, dtype: str | type) -> np.ndarray:
        return np.array([getattr(spec, name) for spec in specs], dtype)

    def offsets(name: str) -> np.ndarray:
        return np.cumsum([0] + [len(getattr(spec, name)) for spec in specs]).astype(np.int32)

    bias = [entry for spec in specs for entry in spec.bias]
    return SamplingInput(
        columns={name: column(name, row.column) for name, row in COLUMNS.items()},
        position=np.array([len(spec.prompt) + len(spec.output) for spec in specs], np.int32),
        history=history,
        history_line=np.array(lines, np.int32),
        num_prompt_tokens=np.array([len(spec.prompt) for spec in specs], np.int32),
        bias_offsets=offsets("bias"),
        bias_ids=np.array([token for token, _ in bias], np.int32),
        bias_values=np.array([value for _, value in bias], np.float32),
        mask_index=np.array(mask_index, np.int32),
        masks=np.array(masks, np.uint32).reshape(len(masks), (vocab_size + 31) // 32),
        num_logprobs=column("num_logprobs", np.int32),
        logprob_ids_offsets=offsets("logprob_ids"),
        logprob_ids=np.array([token for spec in specs for token in spec.logprob_ids], np.int32),
        bad_words=bad_words(specs),
    )


def bad_words(specs: list[RowSpec]) -> BadWords:
    words = [word for spec in specs for word in spec.bad_words]
    return BadWords(
        np.cumsum([0] + [len(spec.bad_words) for spec in specs]).astype(np.int32),
        np.cumsum([0] + [len(word) for word in words]).astype(np.int32),
        np.array([token for word in words for token in word], np.int32),
    )


def splitmix64(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def uniform(seed: int, position: int) -> float:
    return (splitmix64((splitmix64(seed) + position * 0x9E3779B97F4A7C15) & MASK64) >> 40) / 2**24


def processed(logits: np.ndarray, spec: RowSpec) -> list[np.float32]:
    """Mask, bias, bad words, penalties."""
    values = [F(logit) for logit in logits]
    if spec.allowed is not None:
        values = [value if token in spec.allowed else F(-np.inf) for token, value in enumerate(values)]
    for token, bias in spec.bias:
        if token < len(values):
            values[token] = F(values[token] + F(bias))
    for *others, token in spec.bad_words:
        if others == spec.output[len(spec.output) - len(others) :] and token < len(values):
            values[token] = F(-np.inf)
    for token in set(spec.prompt + spec.output):
        penalty = F(spec.repetition_penalty)
        values[token] = F(values[token] / penalty) if values[token] > 0 else F(values[token] * penalty)
    for token, count in Counter(spec.output).items():
        values[token] = F(values[token] - F(F(spec.frequency_penalty) * F(count)))
        values[token] = F(values[token] - F(spec.presence_penalty))
    return values


def sample(logits: np.ndarray, spec: RowSpec, default_top_k: int) -> int:
    values = processed(logits, spec)
    if spec.temperature == 0:
        return max(range(len(values)), key=lambda token: (values[token], -token))
    values = [F(value / F(spec.temperature)) for value in values]
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if not np.isfinite(values[order[0]]):
        return order[0]
    order = order[: spec.top_k or default_top_k or len(order)]
    weights = np.exp(np.array([values[token] - values[order[0]] for token in order], np.float32))
    kept = [weight for i, weight in enumerate(weights) if i == 0 or not weight < F(spec.min_p)]
    sums = running_sums(kept)
    if spec.top_p < 1:
        wanted = F(F(spec.top_p) * sums[-1])
        sums = sums[: next(i for i, total in enumerate(sums) if total >= wanted) + 1]
    threshold = F(F(uniform(spec.seed, len(spec.prompt) + len(spec.output))) * sums[-1])
    return order[next(i for i, total in enumerate(sums) if total > threshold)]


def running_sums(weights: list[np.float32]) -> list[np.float32]:
    sums, total = [], F(0)
    for weight in weights:
        total = F(total + weight)
        sums.append(total)
    return sums


def random_row(rng: random.Random, vocab_size: int) -> RowSpec:
    """Parameters of all kinds, each switched off as often as not."""

    def maybe(value: object, off: object) -> object:
        return value if rng.random() < 0.4 else off

    def tokens(most: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(rng.randint(0, most))]

    biased = sorted(set(tokens(4)))
    output = tokens(8)
    return RowSpec(
        temperature=maybe(rng.choice([0.01, 0.3, 1.0, 2.0]), rng.choice([0.0, 0.8])),
        top_k=maybe(rng.choice([1, 2, 7, vocab_size, vocab_size + 9]), 0),
        top_p=maybe(rng.choice([1e-6, 0.1, 0.5, 0.9, 0.999]), 1.0),
        min_p=maybe(rng.choice([0.001, 0.1, 0.5, 1.0]), 0.0),
        repetition_penalty=maybe(rng.choice([0.5, 1.1, 3.0]), 1.0),
        presence_penalty=maybe(rng.choice([-1.5, 0.4, 2.0]), 0.0),
        frequency_penalty=maybe(rng.choice([-0.3, 0.7]), 0.0),
        seed=rng.randrange(2**64),
        prompt=[0, *tokens(6)],
        output=output,
        bad_words=maybe(
            [[*output[-n:], rng.randrange(vocab_size + 1)] for n in (1, 2)] + [[vocab_size - 1], [0, 1]], []
        ),
        bias=maybe([(token, rng.choice([-np.inf, -3.0, 5.0])) for token in [*biased, vocab_size]], []),
        allowed=maybe({rng.randrange(vocab_size), *tokens(vocab_size)}, None),
    )


def random_logits(rng: random.Random, num_rows: int, vocab_size: int) -> np.ndarray:
    """Rows of different spread; some of them full of ties."""
    generator = np.random.default_rng(rng.randrange(2**32))
    logits = generator.normal(size=(num_rows, vocab_size)) * generator.choice([0.3, 2, 12], size=(num_rows, 1))
    ties = generator.random((num_rows, 1)) < 0.4
    return np.where(ties, np.round(logits * 2) / 2, logits).astype(np.float32)
