"""`vllm bench latency`: one batch of prompts through an engine in this process, several times over."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.bench.offline import add_output_args, parse_args, percentiles, sampling_params, write_report
from vllm.entrypoints.llm import LLM
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main(argv: list[str]) -> int:
    parser = FlexibleArgumentParser(prog="vllm bench latency", description=__doc__)
    parser.add_argument("--input-len", type=int, default=32, help="Tokens of a prompt.")
    parser.add_argument("--output-len", type=int, default=128, help="Tokens generated for each.")
    parser.add_argument("--batch-size", type=int, default=8, help="Prompts at once.")
    parser.add_argument("--num-iters-warmup", type=int, default=10, help="Rounds before the measured ones.")
    parser.add_argument("--num-iters", type=int, default=30, help="Rounds that are measured.")
    add_output_args(parser)
    args = parse_args(parser, argv)
    try:
        report = measure(args)
    except (ValueError, OSError, VLLMValidationError) as error:
        print(f"vllm bench latency: {error}", file=sys.stderr)
        return 1
    print(f"Avg latency: {report['avg_latency']} seconds")
    print(f"Std latency: {report['std_latency']} seconds")
    for percentage, seconds in report["percentiles"].items():
        print(f"{percentage}% percentile latency: {seconds} seconds")
    write_report(args, report)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report: seconds of each round, and what they come to."""
    if args.num_iters < 1 or args.batch_size < 1 or args.input_len < 1 or args.output_len < 1:
        raise ValueError("--num-iters, --batch-size, --input-len and --output-len must be at least 1")
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(args))
    params = sampling_params(args, args.output_len)
    rng = np.random.default_rng(args.seed or 0)
    ids = rng.integers(llm.model_config.vocab_size, size=(args.batch_size, args.input_len)).tolist()
    prompts = [TokensPrompt(prompt_token_ids=row) for row in ids]

    def seconds() -> float:
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - start

    for _ in tqdm(range(args.num_iters_warmup), desc="Warming up"):
        seconds()
    latencies = [seconds() for _ in tqdm(range(args.num_iters), desc="Measuring")]
    llm.shutdown()
    return {
        "avg_latency": float(np.mean(latencies)),
        "std_latency": float(np.std(latencies)),
        "latencies": latencies,
        "percentiles": percentiles(latencies),
    }
