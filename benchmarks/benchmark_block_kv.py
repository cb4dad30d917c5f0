"""What blocks of KV and mixed steps cost the native core, where they bring nothing.

    python benchmarks/benchmark_block_kv.py [--model FILE.gguf] [--block-sizes 16 32 64] [--seconds 8] [--save]

One model is loaded once a layout: contiguous KV (a block is a row) and blocks of each size, in shuffled order as after
hours of use. All take turns, so that a change of the machine's speed meets all of them, for `--seconds` a case. Medians
over the rounds; a ratio is the median of the ratios within a round.

    layout   decode steps of 1, 8 and 32 rows at `--context` tokens, and one prompt of 512: milliseconds a step, and the
             ratio to contiguous KV
    mixed    a step of 32 decodes beside so many tokens of a prompt, the same two apart, and the ratio: below 1, the
             weights are read and unpacked once instead of twice
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_kernels import greedy, int32
from machine import best_of, finish, measure_limits
from options import default_model

from vllm.checkpoint import open_checkpoint
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.ops import NativeModel, ThreadPool
from vllm.targets.cpu.packing import pack
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.step import Step

DECODE_ROWS = (1, 8, 32)
MIXED_ROWS = 32
MIXED_TOKENS = (128, 256, 512)
PROMPT = 512


@dataclass(frozen=True)
class Piece:
    """A row of a step: it computes `new` tokens, up to `context`."""

    new: int
    context: int


class Layout:
    """A model whose KV cache has blocks of one size; rows take shuffled blocks."""

    def __init__(self, name: str, native: NativeModel, block_size: int, table: np.ndarray, program: int) -> None:
        self.name, self.native, self.block_size, self.table, self.program = name, native, block_size, table, program

    def seconds(self, pieces: list[Piece], first_row: int = 0) -> float:
        step, sampling = self._step(pieces, first_row), greedy(len(pieces), 0.0)
        start = time.perf_counter()
        self.native.run(self.program, step, sampling)
        return time.perf_counter() - start

    def _step(self, pieces: list[Piece], first_row: int) -> Step:
        row = np.repeat(np.arange(len(pieces)), [piece.new for piece in pieces])
        positions = np.concatenate([np.arange(piece.context - piece.new, piece.context) for piece in pieces])
        table = self.table[first_row : first_row + len(pieces)]
        starts = np.cumsum([0, *(piece.new for piece in pieces)])
        return Step(
            token_ids=int32(np.random.default_rng(0).integers(3, 1000, len(row))),
            positions=int32(positions),
            slots=int32(table[row, positions // self.block_size] * self.block_size + positions % self.block_size),
            row_start=int32(starts),
            context_len=int32([piece.context for piece in pieces]),
            block_table=int32(table),
            selected=int32(starts[1:] - 1),
            selected_row=int32(np.arange(len(pieces))),
            given_token=int32(np.full(len(pieces), -1)),
        )


def load_layouts(model: str, scheme: Any, block_sizes: list[int], folder: Path, context: int) -> list[Layout]:
    checkpoint = open_checkpoint(model)
    graph = build_graph(checkpoint.config)
    path = folder / "weights.bin"
    index = pack(graph, checkpoint, scheme, path)
    rows, longest, pool = MIXED_ROWS + 1, max(context, PROMPT), ThreadPool()
    layouts = []
    for size in [longest, *block_sizes]:
        blocks_a_row = -(-longest // size)
        native = NativeModel(
            path,
            index,
            **graph.shape,
            num_blocks=rows * blocks_a_row,
            block_size=size,
            max_context=longest,
            pool=pool,
        )
        order = np.random.default_rng(1).permutation if size < longest else np.arange
        table = order(rows * blocks_a_row).reshape(rows, blocks_a_row)
        program = native.add_program(plan(graph, MIXED_ROWS + PROMPT, 64, 256))
        layouts.append(Layout("contiguous" if size == longest else f"blocks of {size}", native, size, table, program))
    return layouts


Turn = tuple[Layout, list[Piece], int]
"""A step of a layout, and the first of its rows."""


def in_turns(turns: list[Turn], seconds: float) -> np.ndarray:
    """Seconds [round, turn], forwards and backwards; at least three rounds, after one that does not count."""
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < 4 or time.perf_counter() - start < seconds:
        order = turns if len(rounds) % 2 == 0 else turns[::-1]
        times = [layout.seconds(pieces, first) for layout, pieces, first in order]
        rounds.append(times if order is turns else times[::-1])
    return np.array(rounds[1:])


def measure_layouts(layouts: list[Layout], context: int, seconds: float) -> list[dict[str, Any]]:
    cases = {f"decode {rows}": [Piece(1, context)] * rows for rows in DECODE_ROWS}
    cases[f"prompt {PROMPT}"] = [Piece(PROMPT, PROMPT)]
    results = []
    for case, pieces in cases.items():
        times = in_turns([(layout, pieces, 0) for layout in layouts], seconds)
        for i, layout in enumerate(layouts):
            ratio = float(np.median(times[:, i] / times[:, 0]))
            result = {"case": case, "layout": layout.name, "ms": 1e3 * float(np.median(times[:, i])), "ratio": ratio}
            print(f"{case:12} {layout.name:14} {result['ms']:9.3f} ms  {ratio:6.3f} x contiguous", flush=True)
            results.append(result | {"rounds": len(times)})
    return results


def measure_mixed(layouts: list[Layout], context: int, seconds: float) -> list[dict[str, Any]]:
    decodes = [Piece(1, context)] * MIXED_ROWS
    results = []
    for tokens in MIXED_TOKENS:
        prompt = Piece(tokens, tokens)
        turns: list[Turn] = []
        for layout in layouts:
            turns += [(layout, decodes, 0), (layout, [prompt], MIXED_ROWS), (layout, [*decodes, prompt], 0)]
        times = in_turns(turns, seconds)
        for i, layout in enumerate(layouts):
            apart, mixed = times[:, 3 * i] + times[:, 3 * i + 1], times[:, 3 * i + 2]
            result = {
                "tokens": tokens,
                "layout": layout.name,
                "apart_ms": 1e3 * statistics.median(apart),
                "mixed_ms": 1e3 * statistics.median(mixed),
                "ratio": float(np.median(mixed / apart)),
            }
            print(
                f"{MIXED_ROWS} decodes + {tokens:3}  {layout.name:14} mixed {result['mixed_ms']:8.2f} ms  "
                f"apart {result['apart_ms']:8.2f} ms  {result['ratio']:6.3f} x",
                flush=True,
            )
            results.append(result | {"rounds": len(times)})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--scheme", default="native", help="Of the weights: native, int8, bf16, f32.")
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--context", type=int, default=192, help="Tokens of a row that decodes.")
    parser.add_argument("--seconds", type=float, default=8.0, help="Of each case, all layouts together.")
    parser.add_argument("--save", action="store_true", help="Keep the result in benchmarks/results/.")
    args = parser.parse_args()
    probes = [measure_limits()]
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or default_model()
        layouts = load_layouts(model, args.scheme, args.block_sizes, Path(folder), args.context)
        result = {
            "options": vars(args),
            "layout": measure_layouts(layouts, args.context, args.seconds),
            "mixed": measure_mixed(layouts, args.context, args.seconds),
        }
    probes.append(measure_limits())
    finish("block-kv", best_of(probes), result, args.save)


if __name__ == "__main__":
    main()
