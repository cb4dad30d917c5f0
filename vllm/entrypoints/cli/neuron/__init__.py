"""`vllm neuron COMMAND`: what to know of a model on NeuronCores before and after it is compiled.

Exit statuses: 0 done, 1 faults or damage, 2 a wrong command line; `compile` and `inspect` have more, in their heads.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys

COMMANDS = {
    "plan": "Check a configuration and print what it will compile, hold and cost. Needs no device and no weights.",
    "compile": "Make the compiled artifact ahead of time.",
    "inspect": "Show what is in an artifact, and whether it would load for given flags.",
    "cache": "List, verify and prune stores of artifacts.",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        nearest = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"commands: {', '.join(COMMANDS)}"
        print(f"vllm neuron: there is no command {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"vllm.entrypoints.cli.neuron.{argv[0]}")
    try:
        status: int = module.main(argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def usage() -> str:
    lines = [f"  {name:<8}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: vllm neuron COMMAND ...    vllm neuron COMMAND --help", "", *lines])
