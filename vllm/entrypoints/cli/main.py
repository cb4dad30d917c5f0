"""The `vllm` command. Each sub-command is a module with `main(argv) -> int`, imported when it is called.

To add one: a module beside this file (or a package, for a command with commands of its own), and a line in `COMMANDS`.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NamedTuple

from vllm.version import __version__


class Command(NamedTuple):
    module: str
    help: str


COMMANDS = {
    "serve": Command("vllm.entrypoints.cli.serve", "Serve a model over HTTP, with the API of OpenAI."),
    "run-batch": Command("vllm.entrypoints.cli.run_batch", "Answer a file of requests, without a server."),
    "chat": Command("vllm.entrypoints.cli.chat", "Talk with a running server."),
    "complete": Command("vllm.entrypoints.cli.complete", "Have a running server complete texts."),
    "bench": Command(
        "vllm.entrypoints.cli.bench", "Measure a server or an engine: serve, latency, throughput, startup."
    ),
    "neuron": Command("vllm.entrypoints.cli.neuron", "Plan, compile, inspect and keep models for NeuronCores."),
    "collect-env": Command("vllm.entrypoints.cli.collect_env", "Print what a bug report needs to say of this machine."),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command line, without the program's name. The exit status."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-v", "--version"):
        print(__version__)
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        print(unknown(words[0]), file=sys.stderr)
        return 2
    status: int = importlib.import_module(command.module).main(words[1:])
    return status


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: vllm COMMAND ...    vllm COMMAND --help    vllm --version", "", *lines])


def unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"commands: {', '.join(COMMANDS)}"
    return f"vllm: there is no command {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
