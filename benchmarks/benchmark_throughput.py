"""Decode of 1 to 32 sequences and prefill of one prompt, held against the machine's limits in the same run.

    python benchmarks/benchmark_throughput.py [--model M] [--batches 1 4 8 16 32] [--save]

Ends in one JSON line. `of_limit` is the share of what weights over read bandwidth and products over dot-product peak
allow, whichever is slower; a disturbed case is one during which the machine could not give its best.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from engine_runs import Job, run_batch
from machine import Limits, Roofline, best_of, finish, is_disturbed, measure_limits
from options import engine_options, make_parser

from vllm import LLM


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="Numbers of sequences.")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefill-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5, help="Of each case; the median of undisturbed ones counts.")
    args = parser.parse_args()
    job = Job(args.input_len, args.output_len, args.batches, args.prefill_len, args.repeats)
    llm = LLM(**engine_options(args, max(job.batches), job.longest))
    run_batch(llm, 1, 16, 2, 0)

    def decode(batch: int, seed: int) -> float:
        return run_batch(llm, batch, job.prompt_len, job.output_len, seed).decode_rate

    def prefill(_: int, seed: int) -> float:
        return job.prefill_len / run_batch(llm, 1, job.prefill_len, 1, seed).prefill

    cases = [*(("decode", batch, batch, decode) for batch in job.batches), ("prefill", 1, job.prefill_len, prefill)]
    runs = [(kind, batch, width, measure(rate, batch, job.repeats)) for kind, batch, width, rate in cases]
    best = best_of(probe for *_, measured in runs for _, probes in measured for probe in probes)
    stats = llm.llm_engine.executor_stats()
    roofline = Roofline.of_artifact(stats["artifact"]) if stats["target"] == "cpu" else None
    results = []
    for kind, batch, width, measured in runs:
        result = {"case": kind, "sequences": batch, "tokens_a_step": width, **summary(measured, best)}
        if roofline is not None:
            result["of_limit"] = round(result["tokens_per_s"] / roofline.tokens_per_second(width, best), 3)
        print(result)
        results.append(result)
    finish(
        "throughput", best, {"model": llm.model_config.model, "memory": stats["memory"], "results": results}, args.save
    )


def measure(rate: Callable[[int, int], float], batch: int, repeats: int) -> list[tuple[float, tuple[Limits, Limits]]]:
    """Each repeat's rate, and the limits before and after it."""
    measured = []
    before = measure_limits()
    for seed in range(repeats):
        value = rate(batch, seed)
        after = measure_limits()
        measured.append((value, (before, after)))
        before = after
    return measured


def summary(measured: list[tuple[float, tuple[Limits, Limits]]], best: Limits) -> dict[str, Any]:
    """The median of undisturbed repeats; of all where there is none."""
    quiet = [rate for rate, probes in measured if not is_disturbed(probes, best)]
    counted = quiet or [rate for rate, _ in measured]
    return {"tokens_per_s": round(statistics.median(counted), 1), "repeats": len(measured), "undisturbed": len(quiet)}


if __name__ == "__main__":
    main()
