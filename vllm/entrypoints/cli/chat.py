"""`vllm chat`: a conversation with a running server."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vllm.entrypoints.cli.client import Answer, Client, ServerError, add_client_args, read_lines


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vllm chat", description="Talk with a running server. Ctrl-D ends.")
    add_client_args(parser)
    parser.add_argument("--system-prompt", default=None, help="What the model is told before the conversation.")
    args = parser.parse_args(argv)
    client = Client(args.url, args.api_key, args.model_name)
    messages = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    try:
        for text in [args.quick] if args.quick is not None else read_lines("> "):
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": _answer(client, messages, args)})
    except ServerError as error:
        print(f"vllm chat: {error}", file=sys.stderr)
        return 1
    return 0


def _answer(client: Client, messages: list[dict[str, str]], args: argparse.Namespace) -> str:
    body: dict[str, Any] = {"messages": messages}
    if args.max_tokens is not None:
        body["max_completion_tokens"] = args.max_tokens
    answer = Answer(args.stats)
    usage = None
    for chunk in client.stream("/chat/completions", body):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            answer.add(choice["delta"].get("content") or "")
    answer.finish(usage)
    return answer.text
