"""Beam search against what it looks for: all continuations, enumerated."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.engines import engine_args, greedy
from tests.tiny import make_checkpoint
from vllm import LLM
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.text.beam_search import search_async
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    llm = LLM.from_engine_args(engine_args(tiny_llama, max_logprobs=-1, max_num_seqs=8))
    yield llm
    llm.shutdown()


def log_probabilities(llm: LLM, prompts: list[list[int]]) -> list[dict[int, float]]:
    outputs = llm.generate(prompts, greedy(1, logprobs=-1), use_tqdm=False)
    return [{i: entry.logprob for i, entry in output.outputs[0].logprobs[0].items()} for output in outputs]


def search(llm: LLM, prompts: list[list[int]], params: BeamSearchParams, **options: Any) -> list[Any]:
    given: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [output.sequences for output in llm.beam_search(given, params, **options)]


def test_finds_the_best_of_all(llm: LLM) -> None:
    """Two tokens: all pairs of the vocabulary are enumerated."""
    prompt = [5, 6, 7]
    (first,) = log_probabilities(llm, [prompt])
    second = log_probabilities(llm, [[*prompt, token_id] for token_id in first])
    pairs = {(a, b): first[a] + more[b] for a, more in zip(first, second, strict=True) for b in more}
    best = sorted(pairs, key=pairs.__getitem__, reverse=True)[:4]
    (beams,) = search(llm, [prompt], BeamSearchParams(beam_width=100, max_tokens=2, ignore_eos=True))
    assert [tuple(beam.tokens[3:]) for beam in beams[:4]] == best
    assert [beam.cum_logprob for beam in beams[:4]] == pytest.approx([pairs[pair] for pair in best], abs=1e-4)
    assert len(beams) == 100 and all(len(beam.logprobs) == 2 for beam in beams)


def test_width_of_one_is_greedy(llm: LLM) -> None:
    prompts = [[1, 2, 3], [9, 8], [4] * 20]
    found = search(llm, prompts, BeamSearchParams(1, 6, ignore_eos=True), concurrency_limit=2)
    plain = llm.generate(prompts, greedy(6), use_tqdm=False)
    for prompt, (beam,), output in zip(prompts, found, plain, strict=True):
        assert beam.tokens == prompt + output.outputs[0].token_ids
        assert beam.text == llm.get_tokenizer().decode(beam.tokens, skip_special_tokens=True)
        assert beam.finish_reason == "length"


def test_eos_and_the_length_penalty(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    (likely,) = log_probabilities(llm, [[5, 6, 7]])
    eos = max(likely, key=likely.__getitem__)
    monkeypatch.setattr(llm.llm_engine.input_processor, "eos_token_ids", [eos])
    best = search(llm, [[5, 6, 7]], BeamSearchParams(3, 5, length_penalty=0.0))[0][0]
    assert best.tokens == [5, 6, 7, eos] and len(best.logprobs) == 1
    assert best.finish_reason == "stop" and best.cum_logprob == pytest.approx(likely[eos])
    assert len(search(llm, [[5, 6, 7]], BeamSearchParams(3, 5, length_penalty=9.0))[0][0].tokens) == 8


def test_more_beams_than_log_probabilities_may_be_reported(tiny_llama: Path) -> None:  # A8
    llm = LLM.from_engine_args(engine_args(tiny_llama))
    assert llm.model_config.max_logprobs == 20
    (beams,) = search(llm, [[5, 6, 7]], BeamSearchParams(16, 4, ignore_eos=True))
    assert len(beams) == 16 and all(len(beam.logprobs[0]) == 32 for beam in beams)
    with pytest.raises(VLLMValidationError, match="logprobs=32"):
        llm.generate([[5]], greedy(1, logprobs=32), use_tqdm=False)
    with pytest.raises(VLLMValidationError, match="beam_width=129 is more than the 128 beams"):
        search(llm, [[5]], BeamSearchParams(129, 4))
    llm.shutdown()


def test_more_beams_than_tokens(tmp_path: Path) -> None:  # A8
    llm = LLM.from_engine_args(engine_args(make_checkpoint(tmp_path, vocab_size=40, eos_token_id=2)))
    (beams,) = search(llm, [[5]], BeamSearchParams(50, 2, ignore_eos=True))
    assert len(beams) == 50
    llm.shutdown()


def test_ends_where_the_context_does(llm: LLM) -> None:
    limit = llm.model_config.max_len
    (beams,) = search(llm, [[3] * (limit - 2)], BeamSearchParams(2, 50, ignore_eos=True))
    assert {len(beam.tokens) for beam in beams} == {limit}


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ([], BeamSearchParams(2, 4)),
        ([999999], BeamSearchParams(2, 4)),
        ([1], BeamSearchParams(2000, 4)),
        ([1], BeamSearchParams(2, 4, structured_outputs=StructuredOutputsParams(regex="a"))),
    ],
)
def test_refusals(llm: LLM, prompt: list[int], params: BeamSearchParams) -> None:
    with pytest.raises(VLLMValidationError):
        search(llm, [prompt], params)
    assert not llm.llm_engine.has_unfinished_requests()


async def test_async_search_equals_the_plain_one(llm: LLM, tiny_llama: Path) -> None:
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))
    params = BeamSearchParams(3, 6, include_stop_str_in_output=True)
    prompts: list[Any] = [{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [8]}]
    eos = engine.input_processor.eos_token_ids
    try:
        work = [search_async(engine, prompt, params, f"r{i}", eos) for i, prompt in enumerate(prompts)]
        for prompt, output, plain in zip(
            prompts, await asyncio.gather(*work), llm.beam_search(prompts, params), strict=True
        ):
            found = [prompt["prompt_token_ids"] + completion.token_ids for completion in output.outputs]
            assert found == [beam.tokens for beam in plain.sequences]
        lost = asyncio.create_task(search_async(engine, prompts[0], BeamSearchParams(3, 60), "gone", eos))
        while not engine.output_processor.num_unfinished:
            await asyncio.sleep(0)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        assert engine.output_processor.num_unfinished == 0
    finally:
        engine.shutdown()
