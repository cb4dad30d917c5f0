"""`vllm complete`: texts completed by a running server."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vllm.entrypoints.cli.client import Answer, Client, ServerError, add_client_args, read_lines


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vllm complete", description="Complete texts. Ctrl-D ends.")
    add_client_args(parser)
    args = parser.parse_args(argv)
    client = Client(args.url, args.api_key, args.model_name)
    try:
        for text in [args.quick] if args.quick is not None else read_lines("> "):
            _complete(client, text, args)
    except ServerError as error:
        print(f"vllm complete: {error}", file=sys.stderr)
        return 1
    return 0


def _complete(client: Client, text: str, args: argparse.Namespace) -> None:
    body: dict[str, Any] = {"prompt": text}
    if args.max_tokens is not None:
        body["max_tokens"] = args.max_tokens
    answer = Answer(args.stats)
    usage = None
    for chunk in client.stream("/completions", body):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            answer.add(choice["text"])
    answer.finish(usage)
