"""What a benchmark says of the machine it ran on: what it is, what it can do, and how close a result came to that.

The limits are probed in the same run, before and after what is measured, since a shared machine is not the same from
one second to the next: a measurement between two probes of which one is far below the best is marked as disturbed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm.targets.cpu import ops
from vllm.version import __version__

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
DISTURBED = 0.85
"""Share of the best probe below which a measurement does not count."""

Limits = dict[str, float]
"""A second: read_bytes (memory), bf16_flops and int8_ops (dot products), by all threads together."""


def hardware() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": names[0] if names else platform.machine(), "cores": cores, "isa": ops.supported_isas()[0]}


def commit() -> str:
    """Of this checkout, with a plus if files differ from it; the version where there is no checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return __version__


def measure_limits() -> Limits:
    """What the machine can do at this moment, by the native core's own probes: some tens of milliseconds."""
    return dict(ops.measure_limits())


def best_of(probes: Iterable[Limits]) -> Limits:
    """The upper quartile of each limit: what the machine gives when it is quiet, without a single lucky probe."""
    several = list(probes)
    return {name: float(np.percentile([probe[name] for probe in several], 75, method="higher")) for name in several[0]}


def is_disturbed(probes: Iterable[Limits], best: Limits) -> bool:
    """Whether the machine could not give its best at one of the probes."""
    return any(probe[name] < DISTURBED * best[name] for probe in probes for name in best)


@dataclass(frozen=True, slots=True)
class Roofline:
    """What a model asks of the machine.

    weight_bytes: of the matrices, read once a step. products: multiplications of a token with them. peak: the limit
    that bounds those. Attention is left out, so the bound is a little too kind to the machine.
    """

    weight_bytes: int
    products: int
    peak: str

    @classmethod
    def of_artifact(cls, artifact: str | Path) -> Roofline:
        """Of an artifact of the `cpu` target, by its index. Embeddings count where they are the output matrix too."""
        weights = json.loads((Path(artifact) / "index.json").read_text())["weights"]
        head = "lm_head" if "lm_head" in weights else "embed"
        matrices = {name: each for name, each in weights.items() if len(each["shape"]) == 2 and name != "embed"}
        matrices[head] = weights[head]
        products = sum(int(np.prod(each["shape"])) for each in matrices.values())
        is_integer = all(each["format"].startswith(("int", "q")) for each in matrices.values())
        return cls(
            sum(each["num_bytes"] for each in matrices.values()), products, "int8_ops" if is_integer else "bf16_flops"
        )

    def tokens_per_second(self, tokens_a_step: int, limits: Limits) -> float:
        """The most that this machine could do, whichever of memory and arithmetic is slower."""
        seconds = max(self.weight_bytes / limits["read_bytes"], 2 * self.products * tokens_a_step / limits[self.peak])
        return tokens_a_step / seconds


def finish(benchmark: str, limits: Limits, result: Mapping[str, Any], save: bool) -> None:
    """Print the one line that a benchmark ends in; keep it in `results/` if asked to. A file's model is its name."""
    if "model" in result and Path(result["model"]).exists():
        result = {**result, "model": Path(result["model"]).name}
    line = {
        "benchmark": benchmark,
        "commit": commit(),
        "hardware": hardware(),
        "limits": {name: float(f"{value:.4g}") for name, value in limits.items()},
        **result,
    }
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{benchmark}.json").write_text(json.dumps(line, indent=1) + "\n")
    print(json.dumps(line))
