"""What rounding costs: perplexity of a model on plain text, by what weights and the KV cache are kept as.

    python benchmarks/perplexity.py [--model M] [--weights f32 bf16 native] [--kv f32 bf16 f8 int8] [--tokens 20480]

The text is the language reference that ships with Python (`pydoc_data.topics`), in windows of 512 tokens; each token
after a window's first is predicted from those before it in its window. --weights takes packing's schemes; native is the
file's own formats. Every scheme meets every KV type. Losses are against the first case. Ends in one JSON line.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from machine import commit, hardware
from options import default_model, make_parser

from vllm.checkpoint import Checkpoint, open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer
from vllm.targets.cpu.models import build_graph
from vllm.targets.cpu.ops import NativeModel, ThreadPool
from vllm.targets.cpu.packing import pack
from vllm.targets.cpu.plan import plan
from vllm.targets.cpu.step import Step

WINDOW = 512
SCORED_AT_ONCE = 64


def text_tokens(checkpoint: Checkpoint, count: int) -> np.ndarray:
    """int32 [count]: the first tokens of the text."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = load_tokenizer(checkpoint).backend.encode(text, add_special_tokens=False).ids
    if len(ids) < count:
        raise SystemExit(f"the text has {len(ids)} tokens, fewer than --tokens {count}")
    return np.array(ids[:count], np.int32)


def score_step(tokens: np.ndarray) -> Step:
    """One row from position 0, every token but the last scoring the one after it."""
    count = np.arange(len(tokens), dtype=np.int32)
    zeros = np.zeros(len(tokens), np.int32)
    return Step(
        token_ids=tokens,
        positions=count,
        slots=count,
        row_start=np.array([0, len(tokens)], np.int32),
        context_len=np.array([len(tokens)], np.int32),
        block_table=np.zeros((1, 1), np.int32),
        selected=count[:-1].copy(),
        selected_row=zeros[:-1].copy(),
        given_token=tokens[1:].copy(),
    )


def total_logprob(model: NativeModel, program: int, tokens: np.ndarray) -> tuple[float, int]:
    """Sum of log-probabilities, and how many."""
    total, count = 0.0, 0
    for start in range(0, len(tokens), WINDOW):
        window = tokens[start : start + WINDOW]
        if len(window) < 2:
            break
        scored = model.run(program, score_step(window), num_prompt_logprobs=np.zeros(1, np.int32)).prompt_logprobs
        if scored is None:
            raise AssertionError("a step that scores gave no log-probabilities")
        total += float(scored.logprob.sum(dtype=np.float64))
        count += len(scored.logprob)
    return total, count


def measure(
    checkpoint: Checkpoint, tokens: np.ndarray, schemes: list[str], kv_types: list[str], threads: int | None
) -> dict[str, float]:
    """Perplexity by "<weights>/<kv>"."""
    graph = build_graph(checkpoint.config, WINDOW)
    pool = ThreadPool(threads)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in schemes:
            path = Path(folder) / "weights.bin"
            index = pack(graph, checkpoint, scheme, path)  # type: ignore[arg-type]
            for kv in kv_types:
                fixed = {"num_blocks": 1, "block_size": WINDOW, "max_context": WINDOW, "pool": pool}
                model = NativeModel(path, index, kv_dtype=kv, **graph.shape, **fixed)  # type: ignore[arg-type]
                program = model.add_program(plan(graph, WINDOW, SCORED_AT_ONCE))
                total, count = total_logprob(model, program, tokens)
                results[f"{scheme}/{kv}"] = perplexity = math.exp(-total / count)
                loss = perplexity / next(iter(results.values())) - 1
                print(f"weights {scheme:10} kv {kv:5} perplexity {perplexity:.4f}  {loss:+.2%}", file=sys.stderr)
    return results


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--weights", nargs="+", default=["f32", "bf16", "native", "int8"], help="Packing schemes.")
    parser.add_argument("--kv", nargs="+", default=["bf16"], help="Types of the KV cache: f32, bf16, f8, int8.")
    parser.add_argument("--tokens", type=int, default=20480, help="Tokens of text.")
    parser.add_argument("--threads", type=int, default=None, help="Threads. Default: as many as there are cores.")
    args = parser.parse_args()
    if args.device != "cpu":
        raise SystemExit("perplexity is measured on the cpu target")
    checkpoint = open_checkpoint(args.model or default_model())
    results = measure(checkpoint, text_tokens(checkpoint, args.tokens), args.weights, args.kv, args.threads)
    line = {"benchmark": "perplexity", "commit": commit(), "hardware": hardware(), "tokens": args.tokens}
    print(json.dumps({**line, "perplexity": {name: round(value, 4) for name, value in results.items()}}))


if __name__ == "__main__":
    main()
