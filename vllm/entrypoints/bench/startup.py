"""`vllm bench startup`: from the start of a process to its first token.

Each round is a process of its own. Cold: nothing was compiled, in a directory made for the round. Warm: artifacts are
there. Python's start and all imports are in both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vllm import envs
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.bench.offline import parse_args, percentiles, write_report
from vllm.utils.argparse_utils import FlexibleArgumentParser

CHILD = "vllm.entrypoints.bench.first_token"
PARTS = ("startup", "import", "engine", "first_token", "compilation")
"""What a round consists of: startup is the whole, as the parent sees it; compilation is a part of engine."""


def main(argv: list[str]) -> int:
    parser = FlexibleArgumentParser(prog="vllm bench startup", description=__doc__)
    parser.add_argument("--num-iters-cold", type=int, default=3, help="Rounds without artifacts.")
    parser.add_argument("--num-iters-warmup", type=int, default=1, help="Rounds before the warm ones.")
    parser.add_argument("--num-iters-warm", type=int, default=3, help="Rounds with artifacts.")
    parser.add_argument("--input-len", type=int, default=16, help="Tokens of the prompt.")
    args = parse_args(parser, argv)
    try:
        report = measure(args)
    except (ValueError, OSError) as error:
        print(f"vllm bench startup: {error}", file=sys.stderr)
        return 1
    for kind in ("cold", "warm"):
        print(_row(kind, report))
    write_report(args, report)
    return 0


def _row(kind: str, report: dict[str, Any]) -> str:
    if f"avg_{kind}_startup_time" not in report:
        return f"{kind}: not measured"
    means = {part: report[f"avg_{kind}_{part}_time"] for part in PARTS}
    parts = ", ".join(f"{part} {means[part]:.3f}" for part in PARTS[1:])
    return f"Avg {kind} startup time: {means['startup']:.3f} seconds ({parts})"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report: seconds of each round by kind and part."""
    options = engine_options(args)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vllm-bench-startup-") as directory:
        cold = [run_child(options, args.input_len, Path(directory) / str(i)) for i in range(args.num_iters_cold)]
        report |= summarise("cold", cold)
    store = envs.NEURON_COMPILED_ARTIFACTS
    with tempfile.TemporaryDirectory(prefix="vllm-bench-startup-") as directory:
        kept = None if store else Path(directory)
        for _ in range(max(args.num_iters_warmup, 1)):
            run_child(options, args.input_len, kept)
        warm = [run_child(options, args.input_len, kept) for _ in range(args.num_iters_warm)]
    return report | summarise("warm", warm)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those options of the engine that differ from its defaults."""
    engine_args, defaults = EngineArgs.from_cli_args(args), EngineArgs()
    names = (each.name for each in dataclasses.fields(EngineArgs))
    return {name: value for name in names if (value := getattr(engine_args, name)) != getattr(defaults, name)}


def run_child(options: dict[str, Any], input_len: int, store: Path | None) -> dict[str, float]:
    """Seconds of one round by part. store: where its artifacts and caches go. Raises ValueError if it fails."""
    env = dict(os.environ)
    if store is not None:
        env |= {"NEURON_COMPILED_ARTIFACTS": str(store / "artifacts"), "VLLM_CACHE_ROOT": str(store / "cache")}
    command = [sys.executable, "-m", CHILD, json.dumps(options), str(input_len)]
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        seconds = time.perf_counter() - start
        _, log = child.communicate()
    if child.returncode or not line:
        raise ValueError(f"a process ended with status {child.returncode} before its first token:\n{log.strip()}")
    parts: dict[str, float] = json.loads(line)
    return {"startup": seconds, **parts}


def summarise(kind: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Entries of the report for one kind of round; none where none was run."""
    report: dict[str, Any] = {}
    for part in PARTS if rounds else ():
        times = [each[part] for each in rounds]
        report[f"avg_{kind}_{part}_time"] = float(np.mean(times))
        report[f"{kind}_{part}_times"] = times
        report[f"{kind}_{part}_percentiles"] = percentiles(times)
    return report
