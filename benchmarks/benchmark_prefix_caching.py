"""What prefix caching and chunked prefill bring, and what they cost where they bring nothing.

    python benchmarks/benchmark_prefix_caching.py --model MODEL [--rounds 5] [--json FILE]

Three engines are loaded side by side and take turns, round by round, so that a change of the machine's speed meets all
of them: `plain` (contiguous KV, whole prompts), `prefix` (prefix caching) and `mixed` (prefix caching and chunked
prefill). Figures are medians over the rounds, with the smallest and largest.

    recipe    50 prompts of 5 prefixes, one at a time: the token hit rate, beside what arithmetic says (67.5 %)
    first     milliseconds to the first token of a prompt of which 90 % are cached
    no hits   milliseconds to the first token of prompts nobody has seen
    decode    tokens a second of a full batch, without prompts to compute
    flood     4 running streams while prompts arrive one after the other, until a stream or the flood ends: 99th
              percentile of the time between two tokens of a stream, and all tokens (prompts and outputs) a second
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm import EngineArgs, SamplingParams
from vllm.engine.llm_engine import LLMEngine

ENGINES: dict[str, dict[str, Any]] = {
    "plain": {"enable_prefix_caching": False, "enable_chunked_prefill": False},
    "prefix": {"enable_prefix_caching": True, "enable_chunked_prefill": False},
    "mixed": {"enable_prefix_caching": True, "enable_chunked_prefill": True},
}
_ids = itertools.count()


def add(engine: LLMEngine, prompt: list[int], max_tokens: int) -> str:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    return engine.add_request(f"r{next(_ids)}", {"prompt_token_ids": prompt}, params)


def run(engine: LLMEngine) -> list[Any]:
    outputs: list[Any] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def seconds_to_first_token(engine: LLMEngine, prompt: list[int]) -> float:
    start = time.perf_counter()
    add(engine, prompt, 1)
    run(engine)
    return time.perf_counter() - start


class Prompts:
    """Prompts that share nothing unless told to."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self.vocab_size, self.rng = vocab_size, random.Random(seed)

    def __call__(self, length: int) -> list[int]:
        return [self.rng.randrange(3, self.vocab_size) for _ in range(length)]


def measure_recipe(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> float:
    """Cached share of all prompt tokens. Scaled so that prefix and suffix together are `prompt_len`."""
    prefix_len = args.prompt_len * 3 // 4 // 32 * 32
    prefixes = [new(prefix_len) for _ in range(5)]
    cached = total = 0
    for i in range(50):
        prompt = prefixes[i % 5] + new(args.prompt_len // 4)
        add(engine, prompt, 4)
        cached += run(engine)[-1].num_cached_tokens or 0
        total += len(prompt)
    return cached / total


def measure_first(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> float:
    trunk = new(args.prompt_len * 9 // 10)
    seconds_to_first_token(engine, trunk)
    return 1e3 * seconds_to_first_token(engine, trunk + new(args.prompt_len - len(trunk)))


def measure_no_hits(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> float:
    return 1e3 * statistics.median(seconds_to_first_token(engine, new(args.prompt_len)) for _ in range(3))


def measure_decode(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> float:
    for _ in range(args.max_num_seqs):
        add(engine, new(8), args.output_len)
    for _ in range(args.max_num_seqs):
        engine.step()
    start = time.perf_counter()
    num_tokens = sum(1 for _ in run(engine))
    return num_tokens / (time.perf_counter() - start)


def measure_flood(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of the 99th percentile, and tokens a second."""
    streams = {add(engine, new(8), args.output_len) for _ in range(4)}
    for _ in range(4):
        engine.step()
    gaps: list[float] = []
    last = dict.fromkeys(streams, time.perf_counter())
    start, num_tokens, ended = time.perf_counter(), 0, set[str]()
    add(engine, new(args.prompt_len), 1)
    num_prompts = 1
    while not ended & streams and num_prompts <= args.flood_prompts:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            num_tokens += 1
            if output.request_id in streams:
                gaps.append(now - last[output.request_id])
                last[output.request_id] = now
            else:
                num_tokens += args.prompt_len
                add(engine, new(args.prompt_len), 1)
                num_prompts += 1
            if output.finished:
                ended.add(output.request_id)
    seconds = time.perf_counter() - start
    run(engine)
    return 1e3 * statistics.quantiles(gaps, n=100, method="inclusive")[-1], num_tokens / seconds


MEASURES: dict[str, Callable[[LLMEngine, Prompts, argparse.Namespace], Any]] = {
    "first, 90 % cached (ms)": measure_first,
    "first, no hits (ms)": measure_no_hits,
    "decode (tokens/s)": measure_decode,
    "flood (p99 ms, tokens/s)": measure_flood,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default=None)
    parser.add_argument("--prompt-len", type=int, default=1000)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-num-batched-tokens", type=int, default=None, help="Budget of the mixed engine's steps.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flood-prompts", type=int, default=8)
    parser.add_argument("--json", default=None, help="Write all figures to this file.")
    args = parser.parse_args()

    common = {
        "model": args.model,
        "device": args.device,
        "max_num_seqs": args.max_num_seqs,
        "max_model_len": args.prompt_len + args.output_len + 32,
        "disable_log_stats": True,
    }
    budget = {"mixed": {"max_num_batched_tokens": args.max_num_batched_tokens}}
    engines = {
        name: LLMEngine.from_engine_args(EngineArgs(**common, **options, **budget.get(name, {})))
        for name, options in ENGINES.items()
    }
    figures: dict[str, dict[str, list[Any]]] = {what: {name: [] for name in engines} for what in MEASURES}
    new = Prompts(engines["plain"].model_config.vocab_size)
    for engine in engines.values():
        seconds_to_first_token(engine, new(args.prompt_len))
    for _ in range(args.rounds):
        for what, measure in MEASURES.items():
            for name, engine in engines.items():
                figures[what][name].append(measure(engine, new, args))
    rates = {name: measure_recipe(engines[name], new, args) for name in ("prefix", "mixed")}

    prefix_len = args.prompt_len * 3 // 4 // 32 * 32
    expected = 45 * prefix_len / (50 * (prefix_len + args.prompt_len // 4))
    print(f"recipe: hit rate {rates}, arithmetic says {expected:.4f}")
    for what, by_engine in figures.items():
        for name, values in by_engine.items():
            columns = zip(*(value if isinstance(value, tuple) else (value,) for value in values), strict=True)
            shown = (f"{statistics.median(c):9.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns)
            print(f"{what:28} {name:7} {'   '.join(shown)}")
    if args.json:
        result = {"options": vars(args), "hit_rate": rates, "expected": expected, "figures": figures}
        Path(args.json).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
