"""Clients of others, each as it comes from its registry, against our server: `make test-clients`.

python -m tests.ecosystem                     # all of them; a table of the results goes into docs/ecosystem.md
python -m tests.ecosystem codex langchain     # these, without the table
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.ecosystem import checks
from tests.ecosystem.environments import CLIENTS, Client
from tests.server.process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "ecosystem.md"
BEGIN, END = "<!-- results of make test-clients -->\n", "<!-- end -->"
SECONDS = 900
SETTINGS = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
"""Of the server's environment: clients refer to items of earlier responses."""


@dataclass
class Result:
    """passed: names of checks. faults: name -> what is wrong; of the client as a whole under its own name."""

    client: Client
    version: str = "?"
    passed: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


def drive(client: Client, environment: Path, url: str) -> Result:
    result = Result(client)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_"))}
    words = client.command(environment, url, json.dumps(checks.ASKED))
    try:
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=SECONDS)
        told = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        result.faults[client.name] = f"not done within {SECONDS} s"
        return result
    except (ValueError, IndexError):
        result.faults[client.name] = f"status {done.returncode}: {done.stderr[-1500:]}"
        return result
    result.version = told["version"]
    for name, given in told["results"].items():
        fault = given["error"] if "error" in given else checks.fault(name, given["value"])
        if fault is None:
            result.passed.append(name)
        else:
            result.faults[name] = fault
    return result


def table(results: list[Result]) -> str:
    lines = ["| client | version | driven | result |", "| --- | --- | --- | --- |"]
    for each in results:
        driven = ", ".join(name.replace("_", " ") for name in [*each.passed, *each.faults])
        outcome = "; ".join(f"**{name.replace('_', ' ')} fails**" for name in each.faults) or "all of it"
        lines.append(f"| {each.client.name} | {each.version} | {driven} | {outcome} |")
    return "\n".join([f"{datetime.date.today():%Y-%m-%d}:", "", *lines, ""])


def write(results: list[Result]) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}{table(results)}{END}{rest.partition(END)[2]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=", ".join(client.key for client in CLIENTS))
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-clients", help="where they are installed")
    args = parser.parse_args()
    if unknown := set(args.clients) - {client.key for client in CLIENTS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    chosen = [client for client in CLIENTS if not args.clients or client.key in args.clients]
    results = []
    with tempfile.TemporaryDirectory() as directory:
        server = ServerProcess([f"{directory}/model", "--port", "0"], SETTINGS, "tests.ecosystem.obedient")
        try:
            for client in chosen:
                environment = args.environments.absolute() / client.key
                client.install(environment)
                results.append(drive(client, environment, server.url))
                _print(results[-1])
        finally:
            server.stop()
    if not args.clients:
        write(results)
    return any(each.faults for each in results)


def _print(result: Result) -> None:
    print(
        f"{result.client.name} {result.version}: {len(result.passed)} passed, {len(result.faults)} failed", flush=True
    )
    for name, fault in result.faults.items():
        print(f"  {name}: {fault}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
