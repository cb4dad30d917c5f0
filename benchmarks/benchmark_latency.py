"""Seconds from prompts to last tokens, of a batch of one and of larger ones, as `vllm bench latency` measures them.

    python benchmarks/benchmark_latency.py [--model M] [--batches 1 8] [--save]

Ends in one JSON line. `of_limit` is what the machine's limits allow over what it took: prefill and every decode step.
"""

from __future__ import annotations

import statistics
import time

from engine_runs import run_batch
from machine import Limits, Roofline, best_of, finish, measure_limits
from options import engine_options, make_parser

from vllm import LLM


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="Numbers of sequences.")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    llm = LLM(**engine_options(args, max(args.batches), args.input_len + args.output_len))
    run_batch(llm, 1, 16, 2, 0)
    probes = [measure_limits()]
    seconds: dict[int, list[float]] = {}
    for batch in args.batches:
        seconds[batch] = [timed(llm, batch, args.input_len, args.output_len, seed) for seed in range(args.repeats)]
        probes.append(measure_limits())
    limits = best_of(probes)
    stats = llm.llm_engine.executor_stats()
    results = []
    for batch, times in seconds.items():
        result = {
            "sequences": batch,
            "median_s": round(statistics.median(times), 4),
            "best_s": round(min(times), 4),
            "worst_s": round(max(times), 4),
        }
        if stats["target"] == "cpu":
            least = least_seconds(
                Roofline.of_artifact(stats["artifact"]), batch, args.input_len, args.output_len, limits
            )
            result["of_limit"] = round(least / result["median_s"], 3)
        print(result)
        results.append(result)
    finish(
        "latency",
        limits,
        {
            "model": llm.model_config.model,
            "input_len": args.input_len,
            "output_len": args.output_len,
            "repeats": args.repeats,
            "results": results,
        },
        args.save,
    )


def timed(llm: LLM, batch: int, input_len: int, output_len: int, seed: int) -> float:
    start = time.perf_counter()
    run_batch(llm, batch, input_len, output_len, seed)
    return time.perf_counter() - start


def least_seconds(roofline: Roofline, batch: int, input_len: int, output_len: int, limits: Limits) -> float:
    """What the limits allow: prompts one after the other, then every step of decode for all."""
    prefill = batch * input_len / roofline.tokens_per_second(input_len, limits)
    return prefill + batch * (output_len - 1) / roofline.tokens_per_second(batch, limits)


if __name__ == "__main__":
    main()
