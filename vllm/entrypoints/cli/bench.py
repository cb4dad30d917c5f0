"""`vllm bench COMMAND`: how fast a server or an engine is. Each command is a module with `main(argv) -> int`."""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = {
    "serve": "Requests to a running server of the OpenAI API: throughput, and latencies as its clients see them.",
    "latency": "One batch through an engine in this process: seconds from prompts to last tokens.",
    "throughput": "Many requests through an engine in this process: requests and tokens a second.",
    "startup": "From the start of a process to its first token: without artifacts, and with them.",
}
"""Name -> help. The module of the same name is in `vllm.entrypoints.bench`."""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    name = argv[0]
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"benchmarks: {', '.join(COMMANDS)}"
        print(f"vllm bench: there is no benchmark {name!r}; {hint}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"vllm.entrypoints.bench.{name}").main(argv[1:])
    return status


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: vllm bench COMMAND ...    vllm bench COMMAND --help", "", *lines])
