"""The commands as users run them, on the `null` target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.process import ServerProcess, serve
from vllm.entrypoints.cli.bench import COMMANDS
from vllm.entrypoints.cli.main import main


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, "--max-model-len", "256", "--max-num-seqs", "8") as running:
        yield running


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_serve(server: ServerProcess, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base-url", server.url, "--backend", backend, "--num-prompts", "20", "--ignore-eos", "--disable-tqdm"]
    words += ["--input-len", "30", "--output-len", "12", "--result-filename", str(tmp_path / "result.json")]
    assert main(["bench", "serve", *words, "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-detailed"]) == 0
    assert "Successful requests:                     20" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model_id"] == "test-model" and result["failed"] == 0
    assert result["output_lens"] == [12] * 20 and result["total_output_tokens"] == 240
    assert (result["input_lens"] == [30] * 20) == (backend == "openai"), "a chat template adds tokens"
    for ttft, itl, latency in zip(result["ttfts"], result["itls"], result["latencies"], strict=True):
        assert 0 < ttft <= ttft + sum(itl) <= latency + 1e-9 and len(itl) < 12
    for metric in ("ttft", "tpot", "itl", "e2el"):
        assert result[f"median_{metric}_ms"] <= result[f"p99_{metric}_ms"]


def test_serve_of_what_is_refused(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base-url", server.url, "--num-prompts", "2", "--disable-tqdm", "--input-len", "300"]
    assert main(["bench", "serve", *words]) == 1
    assert "2 failed, the first: HTTP 400" in capsys.readouterr().err


def engine_words(model: Path) -> list[str]:
    return ["--model", str(model), "--device", "null", "--max-model-len", "128", "--max-num-seqs", "4"]


def test_latency(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    words = ["--num-iters", "3", "--num-iters-warmup", "1", "--batch-size", "2", "--output-len", "4"]
    assert main(["bench", "latency", *engine_words(tiny_llama), *words, "--output-json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert len(report["latencies"]) == 3
    assert report["avg_latency"] == pytest.approx(sum(report["latencies"]) / 3)
    assert report["percentiles"]["50"] == sorted(report["latencies"])[1]


def test_throughput(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "throughput.json"
    words = ["--num-prompts", "10", "--input-len", "20", "--output-len", "5", "--n", "2", "--disable-tqdm"]
    assert main(["bench", "throughput", *engine_words(tiny_llama), *words, "--output-json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert (report["total_prompt_tokens"], report["total_output_tokens"]) == (200, 100)
    assert report["total_num_tokens"] == 300 and report["num_requests"] == 10
    assert report["tokens_per_second"] == pytest.approx(300 / report["elapsed_time"])
    assert "Throughput:" in capsys.readouterr().out


def test_startup(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURON_COMPILED_ARTIFACTS", raising=False)
    file = tmp_path / "startup.json"
    before = sorted(tiny_llama.rglob("*"))
    words = ["--num-iters-cold", "1", "--num-iters-warm", "2", "--output-json", str(file)]
    assert main(["bench", "startup", *engine_words(tiny_llama), *words]) == 0
    report = json.loads(file.read_text())
    assert len(report["cold_startup_times"]) == 1 and len(report["warm_startup_times"]) == 2
    assert report["avg_cold_compilation_time"] > 0 and report["avg_warm_compilation_time"] == 0
    for kind in ("cold", "warm"):
        for i, whole in enumerate(report[f"{kind}_startup_times"]):
            assert whole > sum(report[f"{kind}_{part}_times"][i] for part in ("import", "engine", "first_token"))
    assert sorted(tiny_llama.rglob("*")) == before, "nothing is left beside the checkpoint"


@pytest.mark.parametrize("command", ["latency", "throughput", "startup"])
def test_errors_are_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num-iters-cold", "1"] if command == "startup" else []
    assert main(["bench", command, "--model", "no/such-model", *words]) == 1
    assert f"vllm bench {command}: " in capsys.readouterr().err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert main(["bench", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    assert main(["bench", "throughputs"]) == 2
    assert "'throughput'" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", command, "--help"],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0 and f"usage: vllm bench {command}" in done.stdout
