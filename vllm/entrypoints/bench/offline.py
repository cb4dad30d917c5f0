"""What the benchmarks of an engine in this process share: options, prompts, the report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser

PERCENTAGES = (10, 25, 50, 75, 90, 99)


def parse_args(parser: FlexibleArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options of the benchmark and of the engine. The prefix cache is off unless asked for: it would skew repeats."""
    EngineArgs.add_cli_args(parser)
    parser.add_argument("--output-json", default=None, help="File to write the report to.")
    parser.set_defaults(enable_prefix_caching=False, disable_log_stats=True)
    return parser.parse_args(argv)


def add_output_args(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=int, default=1, help="Outputs for each prompt.")
    parser.add_argument("--disable-detokenize", action="store_true", help="Do not turn tokens into text.")


def sampling_params(args: argparse.Namespace, output_len: int) -> SamplingParams:
    """Exactly output_len tokens, drawn from the whole distribution."""
    return SamplingParams(
        n=args.n,
        temperature=1.0,
        top_p=1.0,
        ignore_eos=True,
        max_tokens=output_len,
        detokenize=not args.disable_detokenize,
    )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {str(p): float(np.percentile(seconds, p)) for p in PERCENTAGES}


def write_report(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    """Write the report, if it was asked for."""
    if args.output_json is not None:
        Path(args.output_json).expanduser().write_text(json.dumps(report, allow_nan=False) + "\n")
