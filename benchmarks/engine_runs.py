"""Prefill and decode of an engine, timed apart: step by step through the engine's own loop.

Works with every engine that has vLLM's `LLM` class, and imports nothing else, so that it can run in a peer's
environment too.

python engine_runs.py JOB      (JOB: JSON with `engine`: arguments of LLM, and the fields of `Job`)

prints one JSON line: tokens a second of decode by number of sequences, and of prefill. "first token" is printed before,
as soon as there is one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """Lengths in tokens; batches: numbers of sequences to decode; repeats: of each, the median counts.

    prefill_len: of the prompt whose prefill is timed; 0 for none.
    """

    prompt_len: int = 128
    output_len: int = 128
    batches: list[int] = field(default_factory=lambda: [1, 4, 8, 16, 32])
    prefill_len: int = 512
    repeats: int = 3

    @property
    def longest(self) -> int:
        return max(self.prompt_len + self.output_len, self.prefill_len + 1)


@dataclass(frozen=True)
class BatchTimes:
    """prefill: seconds to the step after which every sequence has its first token. decode: from there to the last.

    decoded: tokens generated in the latter. A sequence that decodes while others are still in prefill counts with what
    is left of it. steps: in how many steps, of all sequences together. tokens: all that was generated, in order.
    """

    prefill: float
    decode: float
    decoded: int
    steps: int
    tokens: list[list[int]]

    @property
    def decode_rate(self) -> float:
        return self.decoded / self.decode if self.decode else 0.0


def run_batch(llm: Any, batch: int, prompt_len: int, output_len: int, seed: int) -> BatchTimes:
    """Generate exactly output_len tokens for each of `batch` different prompts, greedily."""
    return run_prompts(llm, [_prompt(prompt_len, seed * batch + i) for i in range(batch)], output_len, str(seed))


def run_prompts(llm: Any, prompts: list[list[int]], output_len: int, name: str, temperature: float = 0.0) -> BatchTimes:
    """Generate exactly output_len tokens for each prompt. name: of the run, unlike that of any other under way."""
    engine = llm.llm_engine
    params = sampling_params(output_len, temperature)
    start = time.perf_counter()
    generated: dict[str, list[int]] = {f"{name}-{i}": [] for i in range(len(prompts))}
    for req_id, prompt in zip(generated, prompts, strict=True):
        engine.add_request(req_id, {"prompt_token_ids": prompt}, params)
    first, missing, steps = start, len(prompts) * output_len, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            generated[output.request_id] += output.outputs[0].token_ids
            steps += first != start
        if first == start and all(generated.values()):
            first = time.perf_counter()
            missing -= sum(len(tokens) for tokens in generated.values())
    end = time.perf_counter()
    lengths = sorted(len(tokens) for tokens in generated.values())
    if set(lengths) != {output_len}:
        raise RuntimeError(f"asked for {output_len} tokens each, got {lengths}")
    return BatchTimes(first - start, end - first, missing, steps, list(generated.values()))


def sampling_params(output_len: int, temperature: float) -> Any:
    """Every step tells what it brought, so that each sequence's progress is seen."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(temperature=temperature, seed=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
    params.output_kind = RequestOutputKind.DELTA
    return params


def _prompt(length: int, number: int) -> list[int]:
    """Ids of ordinary tokens, another prompt for each number."""
    return [100 + (31 * number + i) % 197 for i in range(length)]


def decode_rates(llm: Any, job: Job) -> dict[str, float]:
    """Tokens a second of decode by number of sequences."""
    return {
        str(batch): statistics.median(
            run_batch(llm, batch, job.prompt_len, job.output_len, seed).decode_rate for seed in range(job.repeats)
        )
        for batch in job.batches
    }


def prefill_rate(llm: Any, job: Job) -> float:
    """Tokens a second of one prompt's prefill."""
    times = [run_batch(llm, 1, job.prefill_len, 1, seed).prefill for seed in range(max(job.repeats, 3))]
    return job.prefill_len / statistics.median(times)


def main(words: list[str]) -> None:
    given = json.loads(words[0])
    engine = given.pop("engine")
    job = Job(**{name: value for name, value in given.items() if name in {f.name for f in dataclasses.fields(Job)}})
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    llm = LLM(**engine)
    run_batch(llm, 1, 16, 1, 0)
    print("first token", flush=True)
    rates: dict[str, Any] = {"decode": decode_rates(llm, job)}
    if job.prefill_len:
        rates["prefill"] = prefill_rate(llm, job)
    print(json.dumps(rates), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
