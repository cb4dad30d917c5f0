"""Speculation on the cpu target: bit for bit what comes without it, and in the right distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.test_models_through_the_engine import assert_greedy
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams

NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 1, "adaptive": False}
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


def engine(model: Path, speculation: dict[str, Any] | None = None, **options: Any) -> LLM:
    settings = {"device": "cpu", "max_model_len": 128, "max_num_seqs": 4, "dtype": "float32", "seed": 0, **options}
    return LLM(model=str(model), speculative_config=speculation, **settings)


def drafted_by(model: Path, num_drafts: int = 4) -> dict[str, Any]:
    return {"model": str(model), "num_speculative_tokens": num_drafts, "adaptive": False}


def generate(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[Any]:
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(given, params, use_tqdm=False)
    return [(output.prompt_logprobs, [_told(each) for each in output.outputs]) for output in outputs]


def _told(output: Any) -> tuple[Any, ...]:
    return list(output.token_ids), output.text, output.logprobs, output.finish_reason, output.stop_reason


def accepted(llm: LLM) -> tuple[float, float]:
    """Drafted and accepted tokens so far."""
    values = {metric.name: metric.value for metric in llm.get_metrics() if metric.name.startswith("vllm:spec_decode")}
    return values["vllm:spec_decode_num_draft_tokens"], values["vllm:spec_decode_num_accepted_tokens"]


def prompt(seed: int, length: int) -> list[int]:
    """Random tokens, the second half a repetition of the first."""
    half = np.random.default_rng(seed).integers(3, 320, (length + 1) // 2).tolist()
    return (half + half)[:length]


PARAMETERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy with logprobs": {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
    "plain draws": {"temperature": 1.0, "seed": 1},
    "hot": {"temperature": 1.8, "seed": 2, "top_p": 0.9, "logprobs": 0},
    "cut": {"temperature": 0.7, "seed": 3, "top_k": 5, "min_p": 0.1},
    "penalties": {
        "temperature": 0.8,
        "seed": 4,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.4,
        "logprobs": 2,
    },
    "penalised greedy": {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 1.0},
    "mask": {"temperature": 1.0, "seed": 5, "allowed_token_ids": [7, 8, 9, 10, 11, 12]},
    "bias": {"temperature": 1.0, "seed": 6, "logit_bias": {40: 8.0, 41: 8.0, 2: 6.0}},
    "min tokens": {"temperature": 1.0, "seed": 7, "min_tokens": 9, "stop_token_ids": list(range(60, 180))},
    "bad words": {"temperature": 0.0, "bad_words": ["e", "th", "ing", "a"]},
    "several": {"temperature": 1.0, "seed": 8, "n": 3},
    "stop strings": {"temperature": 1.0, "seed": 9, "stop": ["a", "e", "t"]},
    "named logprobs": {"temperature": 0.0, "logprobs": 1, "logprob_token_ids": [5, 6]},
    "few tokens": {"temperature": 0.0, "max_tokens": 2},
}


def all_parameters() -> list[SamplingParams]:
    return [SamplingParams(**{"max_tokens": 24, "ignore_eos": True, **fields}) for fields in PARAMETERS.values()]


@pytest.fixture(scope="module")
def half_right(tiny_llama, tmp_path_factory) -> Path:
    """A draft of the tiny model that agrees now and then: its weights with noise."""
    import torch
    from safetensors.torch import load_file, save_file

    directory = make_checkpoint(tmp_path_factory.mktemp("draft"))
    weights = load_file(tiny_llama / "model.safetensors")
    torch.manual_seed(1)
    noisy = {name: value * (1 + 0.1 * torch.randn_like(value)) for name, value in weights.items()}
    save_file(noisy, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def expected(tiny_llama) -> list[Any]:
    params = all_parameters()
    return generate(engine(tiny_llama), [prompt(i, 6 + 3 * i) for i in range(len(params))], params)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": True, "enable_chunked_prefill": False, "block_size": 16},
        {"enable_prefix_caching": True, "enable_chunked_prefill": True, "max_num_batched_tokens": 26},
        {"max_num_seqs": 1},
    ],
    ids=["contiguous", "prefixes", "mixed", "one row"],
)
@pytest.mark.parametrize("method", ["ngram", "draft", "itself"])
def test_nothing_that_a_user_sees_depends_on_drafts(tiny_llama, half_right, expected, method, options) -> None:
    """Every parameter, several rows at once, all of a request's outputs and log-probabilities."""
    speculation = {"ngram": NGRAM, "draft": drafted_by(half_right), "itself": drafted_by(tiny_llama)}[method]
    llm, params = engine(tiny_llama, speculation, **options), all_parameters()
    prompts = [prompt(i, 6 + 3 * i) for i in range(len(params))]
    for _ in range(2):
        for name, told, alone in zip(PARAMETERS, generate(llm, prompts, params), expected, strict=True):
            assert told == alone, name
    drafted, right = accepted(llm)
    assert drafted > 100
    if method == "itself":
        assert right > 0.95 * drafted
    if method == "draft":
        assert 0.02 * drafted < right < 0.9 * drafted


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_every_architecture(family: str, tmp_path: Path) -> None:
    """Against transformers, with a draft of another shape and with lookup."""
    model = make_checkpoint(tmp_path / "model", family)
    draft = make_checkpoint(tmp_path / "draft", family, num_hidden_layers=1, hidden_size=32, intermediate_size=64)
    prompts = [prompt(seed, length) for seed, length in ((1, 5), (2, 40))]
    params = [SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)] * 2
    plain = generate(engine(model), prompts, params)
    for speculation in (NGRAM, drafted_by(draft, 3), drafted_by(model, 5)):
        told = generate(engine(model, speculation), prompts, params)
        assert told == plain
        for given, (_, [(tokens, *_)]) in zip(prompts, told, strict=True):
            assert_greedy(model, given, tokens)


def test_sampled_tokens_have_the_targets_distribution(tiny_llama, half_right) -> None:
    """The second and third token, over many seeds, against what the target says of each: a G-test."""
    from tests.e2e.test_models import hf_logits

    start, allowed, count = prompt(3, 9), [20, 21, 22, 23], 1500
    llm = engine(tiny_llama, drafted_by(half_right, 3), max_num_seqs=16)
    params = [
        SamplingParams(temperature=1.5, seed=seed, max_tokens=3, allowed_token_ids=allowed, ignore_eos=True)
        for seed in range(count)
    ]
    tokens = np.array([told[0][0] for _, told in generate(llm, [start] * count, params)])
    drafted, right = accepted(llm)
    assert 0.2 * drafted < right < 0.95 * drafted
    for place in (1, 2):
        observed: dict[tuple[int, ...], np.ndarray] = {}
        for row in tokens:
            counts = observed.setdefault(tuple(row[:place]), np.zeros(len(allowed)))
            counts[allowed.index(row[place])] += 1
        statistic = degrees = 0.0
        for before, counts in observed.items():
            logits = hf_logits(tiny_llama, [*start, *map(int, before)])[-1][allowed] / 1.5
            likely = np.exp(logits - logits.max())
            wanted = likely / likely.sum() * counts.sum()
            seen = counts > 0
            statistic += 2 * float((counts[seen] * np.log(counts[seen] / wanted[seen])).sum())
            degrees += len(allowed) - 1
        assert statistic < degrees + 5.5 * np.sqrt(2 * degrees) + 10, (place, statistic, degrees)


def test_a_prompt_longer_than_a_draft_reads_at_once_is_caught_up_in_pieces(tiny_llama, half_right, monkeypatch) -> None:
    from vllm.targets.cpu import drafts

    monkeypatch.setattr(drafts, "CATCH_UP_TOKENS", 16)
    prompts = [prompt(seed, length) for seed, length in ((1, 90), (2, 5), (3, 33))]
    params = [SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)] * 3
    plain = generate(engine(tiny_llama), prompts, params)
    llm = engine(tiny_llama, drafted_by(tiny_llama, 3), max_num_seqs=3)
    assert generate(llm, prompts, params) == plain
    drafted, right = accepted(llm)
    assert right == drafted > 0


def test_a_bad_word_may_end_inside_accepted_drafts(tiny_llama) -> None:
    """Two tokens that plain decoding would write: the second is forbidden behind the first, drafted or not."""
    plain, drafting = engine(tiny_llama), engine(tiny_llama, drafted_by(tiny_llama))
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    tokenizer, free = plain.get_tokenizer(), generate(plain, [prompt(1, 12)], [params])[0][1][0][0]
    for place in range(2, 20):
        word = tokenizer.decode(free[place : place + 2])
        if tokenizer.encode(word, add_special_tokens=False) == free[place : place + 2]:
            break
    else:
        raise AssertionError("no two tokens of the text are a word")
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, bad_words=[word], logprobs=1)
    expected, told = (generate(llm, [prompt(1, 12)], [params])[0] for llm in (plain, drafting))
    assert told == expected
    written = expected[1][0][0]
    assert written != free
    assert all(written[i : i + 2] != free[place : place + 2] for i in range(23))
    assert accepted(drafting)[1] > 10


def test_structured_outputs_run_beside_rows_with_drafts(tiny_llama, half_right) -> None:
    choice = {"temperature": 0.0, "max_tokens": 12, "structured_outputs": {"choice": ["yes", "no"]}}
    params = [SamplingParams(**choice), SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)]
    prompts = [prompt(1, 8), prompt(2, 8)]
    plain = generate(engine(tiny_llama), prompts, params)
    assert generate(engine(tiny_llama, drafted_by(half_right)), prompts, params) == plain
    assert plain[0][1][0][1] in ("yes", "no")


def test_a_draft_with_other_tokens_is_refused(tiny_llama, tmp_path) -> None:
    with pytest.raises(ValueError, match="it has 321 tokens, its target 320"):
        engine(tiny_llama, drafted_by(make_checkpoint(tmp_path / "larger", vocab_size=321)))
    other = make_checkpoint(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"!": 3', '"!": 4').replace('"\\"": 4', '"\\"": 3'))
    with pytest.raises(ValueError, match="another tokenizer than its target: 2 tokens differ"):
        engine(tiny_llama, drafted_by(other))
