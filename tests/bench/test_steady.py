"""Rows that are kept busy: what is counted, and that engines side by side generate what they do alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from steady import SteadyRun, run_side_by_side

from vllm import LLM, SamplingParams

ROWS, REQUESTS, LENGTH = 3, 9, 12
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


@pytest.fixture
def engines(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LLM]]:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    options = {"model": str(tiny_llama), "device": "null", "max_model_len": 64, "max_num_seqs": 4}
    drafting = {"method": "ngram", "num_speculative_tokens": 3}
    both = [LLM(**options), LLM(**options, speculative_config=drafting)]
    yield both
    for engine in both:
        engine.llm_engine.shutdown()


def test_rows_stay_busy_until_nothing_waits(engines: list[LLM]) -> None:
    run = SteadyRun(engines[0], PROMPTS, ROWS, REQUESTS, LENGTH, "a")
    while not run.is_over:
        run.step()
    rate = run.finish()
    assert [len(text) for text in rate.texts] == [4, 8] + [LENGTH] * (REQUESTS - 2)
    assert rate.tokens == rate.row_steps, "without drafts a step brings a row one token"
    assert rate.row_steps % ROWS == 0, "steps in which a row began are not counted, nor those after one fell idle"
    assert 0 < rate.tokens < sum(map(len, rate.texts))
    assert rate.tokens_per_s > 0


def test_engines_side_by_side_generate_what_each_does_alone(engines: list[LLM]) -> None:
    runs = [SteadyRun(engine, PROMPTS, ROWS, REQUESTS, LENGTH, "b") for engine in engines]
    plain, drafting = run_side_by_side(runs, slice_seconds=0.001)
    assert plain.texts == drafting.texts
    params = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True)
    alone = engines[0].generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params)
    assert plain.texts[ROWS : 2 * ROWS] == [list(output.outputs[0].token_ids) for output in alone]
