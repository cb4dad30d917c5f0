"""`vllm run-batch -i in.jsonl -o out.jsonl --model M [options]`."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    from vllm.entrypoints.openai import run_batch

    return run_batch.main(argv)
