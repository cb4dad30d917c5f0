"""EAGLE through the engine on `cpu`: the text is that without drafts, and each step accepts what the oracle says.

Random heads rarely guess right among all tokens, so runs of accepted drafts are had by allowing a few tokens only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_models import random_tokens
from tests.eagle import Oracle, make_eagle
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams

ALLOWED = [7, 40, 101]
CASES: dict[str, dict[str, Any]] = {
    "eagle": {},
    "eagle, NxDI's form": {"form": "nxdi", "input_norm": True},
    "eagle, some tokens": {"draft_vocab": 200, "bias": True},
    "eagle3": {"method": "eagle3"},
    "eagle3, some tokens": {"method": "eagle3", "draft_vocab": 200},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("target"), num_hidden_layers=6, tie_word_embeddings=False)


def make_llm(target: Path, draft: Path | None = None, method: str = "eagle", count: int = 3, **options: Any) -> LLM:
    settings = {"device": "cpu", "max_model_len": 128, "max_num_seqs": 4, "dtype": "float32", **options}
    speculation = {"method": method, "model": str(draft), "num_speculative_tokens": count, "adaptive": False}
    return LLM(str(target), skip_tokenizer_init=True, **settings, speculative_config=speculation if draft else None)


def run(llm: LLM, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[Any]:
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def texts(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def few_tokens(length: int, **more: Any) -> SamplingParams:
    return SamplingParams(
        temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False, allowed_token_ids=ALLOWED, **more
    )


@pytest.mark.parametrize("case", CASES)
def test_as_much_is_accepted_as_the_oracle_says(case: str, target: Path, tmp_path: Path) -> None:
    options = CASES[case]
    method = options.get("method", "eagle")
    draft = make_eagle(tmp_path / "eagle", target, **options)
    oracle = Oracle(target, draft, method)
    prompts = [random_tokens(length, seed=length) for length in (1, 17, 40)]
    outputs = run(make_llm(target, draft, method), prompts, few_tokens(24))
    num_accepted = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        text, steps = oracle.generate(prompt, 24, 3, ALLOWED)
        assert list(output.outputs[0].token_ids) == text
        metrics = output.outputs[0].spec_decode_metrics
        assert (metrics.num_drafts, metrics.num_draft_tokens, metrics.num_accepted_tokens) == (
            len(steps),
            sum(drafted for drafted, _ in steps),
            sum(accepted for _, accepted in steps),
        )
        num_accepted += metrics.num_accepted_tokens
    assert num_accepted > 6


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": True, "block_size": 16},
        {"enable_prefix_caching": True, "enable_chunked_prefill": True, "block_size": 16, "max_num_batched_tokens": 24},
        {"dtype": "bfloat16"},
    ],
    ids=["contiguous", "prefix caching", "chunked prefill", "bfloat16"],
)
def test_the_text_is_that_without_drafts(method: str, options: dict[str, Any], target: Path, tmp_path: Path) -> None:
    draft = make_eagle(tmp_path / "eagle", target, method)
    shared = random_tokens(40, seed=5)
    prompts = [shared + random_tokens(length, seed=length) for length in (3, 9, 20)] + [shared[:33]]
    params = [
        few_tokens(20, logprobs=2),
        SamplingParams(temperature=0.9, seed=3, max_tokens=20, ignore_eos=True, detokenize=False, top_p=0.9),
        SamplingParams(temperature=1.5, seed=4, max_tokens=20, min_tokens=5, detokenize=False, repetition_penalty=1.2),
        few_tokens(70),
    ]
    plain, speculative = make_llm(target, **options), make_llm(target, draft, method, **options)
    for _ in range(2):
        expected, outputs = run(plain, prompts, params), run(speculative, prompts, params)
        assert texts(outputs) == texts(expected)
        assert outputs[0].outputs[0].logprobs == expected[0].outputs[0].logprobs
    assert outputs[3].outputs[0].spec_decode_metrics.num_accepted_tokens > 0


def test_cached_prefixes_are_drafted_from_as_computed_ones(target: Path, tmp_path: Path) -> None:
    """A second request finds the pairs of its prefix, and its drafts are those of the first."""
    draft = make_eagle(tmp_path / "eagle", target)
    llm = make_llm(target, draft, enable_prefix_caching=True, block_size=16)
    prompt = random_tokens(50, seed=1)
    first, second = (run(llm, [prompt], few_tokens(24))[0] for _ in range(2))
    assert second.num_cached_tokens == 48
    assert second.outputs[0].spec_decode_metrics == first.outputs[0].spec_decode_metrics


def test_drafts_that_do_not_fit_are_refused_at_start(target: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", num_hidden_layers=6, hidden_size=96)
    with pytest.raises(Exception, match="hidden size 96, its target 64: an EAGLE draft fits no target but its own"):
        make_llm(target, make_eagle(tmp_path / "wide", other))
    with pytest.raises(Exception, match="leave enable_eagle_draft_input_norm out"):
        make_llm(
            target,
            make_eagle(tmp_path / "plain", target),
            override_neuron_config={"enable_eagle_draft_input_norm": True},
        )
    small = make_checkpoint(tmp_path / "small", num_hidden_layers=4)
    with pytest.raises(Exception, match="at least 6; it has 4"):
        make_llm(small, make_eagle(tmp_path / "three", small, "eagle3"), "eagle3")
