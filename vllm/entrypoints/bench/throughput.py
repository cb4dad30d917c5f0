"""`vllm bench throughput`: many requests at once through an engine in this process."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.bench.datasets import SampleRequest, add_dataset_args, load_requests
from vllm.entrypoints.bench.offline import add_output_args, parse_args, sampling_params, write_report
from vllm.entrypoints.llm import LLM
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.outputs import RequestOutput
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main(argv: list[str]) -> int:
    parser = FlexibleArgumentParser(prog="vllm bench throughput", description=__doc__, conflict_handler="resolve")
    add_output_args(parser)
    parser.add_argument("--disable-tqdm", action="store_true", help="No progress bar.")
    add_dataset_args(parser)
    args = parse_args(parser, argv)
    try:
        report = measure(args)
    except (ValueError, OSError, VLLMValidationError) as error:
        print(f"vllm bench throughput: {error}", file=sys.stderr)
        return 1
    print(
        f"Throughput: {report['requests_per_second']:.2f} requests/s, "
        f"{report['tokens_per_second']:.2f} total tokens/s, "
        f"{report['output_tokens_per_second']:.2f} output tokens/s"
    )
    print(f"Total num prompt tokens: {report['total_prompt_tokens']}")
    print(f"Total num output tokens: {report['total_output_tokens']}")
    write_report(args, report)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    args.seed = args.seed or 0
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(args))
    requests = load_requests(args, llm.get_tokenizer())
    prompts = [TokensPrompt(prompt_token_ids=request.prompt_token_ids) for request in requests]
    params = [sampling_params(args, request.output_len) for request in requests]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=not args.disable_tqdm)
    seconds = time.perf_counter() - start
    llm.shutdown()
    return summarise(requests, outputs, seconds)


def summarise(requests: Sequence[SampleRequest], outputs: Sequence[RequestOutput], seconds: float) -> dict[str, Any]:
    """The report. Raises ValueError if the device failed a request: a rate of the others would mislead."""
    failed = [output for output in outputs if any(each.finish_reason == "error" for each in output.outputs)]
    if failed:
        raise ValueError(f"{len(failed)} of {len(outputs)} requests failed on the device")
    prompt_tokens = sum(request.prompt_len for request in requests)
    output_tokens = sum(len(each.token_ids) for output in outputs for each in output.outputs)
    return {
        "elapsed_time": seconds,
        "num_requests": len(requests),
        "total_num_tokens": prompt_tokens + output_tokens,
        "total_prompt_tokens": prompt_tokens,
        "total_output_tokens": output_tokens,
        "requests_per_second": len(requests) / seconds,
        "tokens_per_second": (prompt_tokens + output_tokens) / seconds,
        "output_tokens_per_second": output_tokens / seconds,
    }
