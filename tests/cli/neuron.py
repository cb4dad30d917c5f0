"""`vllm neuron` in this process: status, output, and the JSON of `plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm.entrypoints.cli.main import main

CONFIGS = Path(__file__).resolve().parents[1] / "data" / "configs"


def plan(capsys: Any, model: str | Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of `vllm neuron plan`; `model` is a name under tests/data/configs, or a path."""
    path = CONFIGS / model if isinstance(model, str) else model
    capsys.readouterr()
    status = main(["neuron", "plan", "--model", str(path), "--json", *words])
    return status, json.loads(capsys.readouterr().out)
