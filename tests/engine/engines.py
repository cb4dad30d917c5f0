"""Engines on the null target, whose text is a function of the tokens alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm import EngineArgs, SamplingParams

PROMPTS = ["The quick", "engine", "a prompt of some more words", "日本 😀"]


def engine_args(model: Path, **options: Any) -> EngineArgs:
    defaults = {"device": "null", "max_model_len": 96, "max_num_seqs": 4, "dtype": "float32"}
    return EngineArgs(model=str(model), **{**defaults, **options})


def greedy(max_tokens: int = 12, **fields: Any) -> SamplingParams:
    """No EOS: the random model would end anywhere."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **{"ignore_eos": True, **fields})
