"""From the start of a process to its first token, cold (nothing compiled) and warm (from artifacts).

    python benchmarks/benchmark_startup.py [--model M] [--cold 2] [--warm 5] [--save]

Ends in one JSON line. `of_limit` is the time to read the artifact's weights once from memory, over the warm start: what
no start can go below.
"""

from __future__ import annotations

import argparse
import statistics

from machine import best_of, finish, measure_limits
from options import engine_options, make_parser

from vllm.entrypoints.bench import startup
from vllm.entrypoints.llm import LLM


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cold", type=int, default=2, help="Rounds without artifacts.")
    parser.add_argument("--warm", type=int, default=5, help="Rounds with artifacts.")
    args = parser.parse_args()
    options = engine_options(args, 4, 512)
    before = measure_limits()
    report = startup.measure(bench_options(options, args))
    limits = best_of([before, measure_limits()])
    results = {name: round(statistics.median(times), 4) for name, times in report.items() if name.endswith("_times")}
    for name, seconds in results.items():
        print(f"{name.removesuffix('_times'):<24} {seconds:.3f} s")
    llm = LLM(**options)
    weights = llm.llm_engine.executor_stats()["memory"].get("weights", 0)
    of_limit = round(weights / limits["read_bytes"] / results["warm_startup_times"], 4)
    finish("startup", limits, {"model": options["model"], "median_s": results, "of_limit": of_limit}, args.save)


def bench_options(options: dict[str, object], args: argparse.Namespace) -> argparse.Namespace:
    """As the command line of `vllm bench startup` would give them."""
    rounds = {"num_iters_cold": args.cold, "num_iters_warmup": 1, "num_iters_warm": args.warm, "input_len": 16}
    return argparse.Namespace(**options, **rounds)


if __name__ == "__main__":
    main()
