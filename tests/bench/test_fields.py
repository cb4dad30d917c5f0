"""Reports have vLLM's fields, each of them, of the type that programs which read them expect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.test_cli import engine_words
from tests.server.process import serve
from vllm.entrypoints.bench.speculation import summarise
from vllm.entrypoints.cli.main import main

ANY = object
SERVE: dict[str, Any] = {
    "date": str, "endpoint_type": str, "backend": str, "label": ANY, "model_id": str, "tokenizer_id": str,
    "num_prompts": int, "request_rate": ANY, "burstiness": float, "max_concurrency": ANY, "duration": float,
    "completed": int, "failed": int, "total_input_tokens": int, "total_output_tokens": int, "request_throughput": float,
    "request_goodput": ANY, "output_throughput": float, "total_token_throughput": float,
    "max_output_tokens_per_s": float, "max_concurrent_requests": int, "rtfx": float, "latencies": list,
    "queue_times": list,
    **{f"{kind}_{metric}_ms": float for kind in ("mean", "median", "std", "p50", "p99")
       for metric in ("ttft", "tpot", "itl", "e2el")},
}  # fmt: skip
DETAILED: dict[str, Any] = dict.fromkeys(
    ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors"), list
)
SPECULATION: dict[str, Any] = {
    "spec_decode_acceptance_rate": float, "spec_decode_acceptance_length": float, "spec_decode_num_drafts": int,
    "spec_decode_draft_tokens": int, "spec_decode_accepted_tokens": int,
    "spec_decode_per_position_acceptance_rates": list,
}  # fmt: skip
LATENCY: dict[str, Any] = {"avg_latency": float, "latencies": list, "percentiles": dict}
THROUGHPUT: dict[str, Any] = {
    "elapsed_time": float, "num_requests": int, "total_num_tokens": int, "requests_per_second": float,
    "tokens_per_second": float,
}  # fmt: skip
STARTUP: dict[str, Any] = {
    f"{before}{kind}_{part}_{after}": kind_of_value
    for kind in ("cold", "warm")
    for part in ("startup", "compilation")
    for before, after, kind_of_value in (("avg_", "time", float), ("", "times", list), ("", "percentiles", dict))
}
PERCENTILES = {"10", "25", "50", "75", "90", "99"}


def check(report: dict[str, Any], fields: dict[str, Any]) -> None:
    assert not fields.keys() - report.keys()
    assert not [name for name, kind in fields.items() if not isinstance(report[name], kind)]


@pytest.mark.parametrize("detailed", [False, True])
def test_serve(tiny_llama: Path, tmp_path: Path, detailed: bool) -> None:
    file = tmp_path / "result.json"
    words = ["--num-prompts", "6", "--max-concurrency", "2", "--input-len", "20", "--output-len", "12"]
    words += ["--disable-tqdm"]
    words += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99", "--ignore-eos"]
    words += ["--save-detailed" if detailed else "--save-result", "--result-filename", str(file)]
    words += ["--extra-body", '{"allowed_token_ids": [40]}']  # what is easily drafted
    with serve(tiny_llama, "--max-model-len", "64", "--spec-method", "ngram", "--spec-tokens", "2") as server:
        assert main(["bench", "serve", "--base-url", server.url, *words]) == 0
    report = json.loads(file.read_text())
    check(report, {**SERVE, **SPECULATION, **(DETAILED if detailed else {})})
    assert detailed or not DETAILED.keys() & report.keys()
    assert len(report["latencies"]) == len(report["queue_times"]) == 6
    first, second, *others = report["queue_times"]
    assert max(first, second) < min(others), "two are sent at once, the others wait"
    assert report["spec_decode_accepted_tokens"] > 0
    assert len(report["spec_decode_per_position_acceptance_rates"]) == 2


def test_latency(tiny_llama: Path, tmp_path: Path) -> None:
    report = report_of("latency", tiny_llama, tmp_path, "--num-iters", "1", "--num-iters-warmup", "0")
    check(report, LATENCY)
    assert report["percentiles"].keys() == PERCENTILES


def test_throughput(tiny_llama: Path, tmp_path: Path) -> None:
    words = ("--num-prompts", "2", "--input-len", "8", "--output-len", "4", "--disable-tqdm")
    check(report_of("throughput", tiny_llama, tmp_path, *words), THROUGHPUT)


def test_startup(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEURON_COMPILED_ARTIFACTS", raising=False)
    report = report_of("startup", tiny_llama, tmp_path, "--num-iters-cold", "1", "--num-iters-warm", "1")
    check(report, STARTUP)
    assert report["cold_startup_percentiles"].keys() == PERCENTILES


def report_of(command: str, model: Path, directory: Path, *words: str) -> dict[str, Any]:
    file = directory / "report.json"
    assert main(["bench", command, *engine_words(model), *words, "--output-json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def test_speculation_is_what_happened_in_between() -> None:
    before = {"drafts": 10, "draft_tokens": 40, "accepted_tokens": 20, "0": 10, "1": 10}
    after = {"drafts": 14, "draft_tokens": 48, "accepted_tokens": 26, "0": 14, "1": 12}
    assert summarise(before, after) == {
        "spec_decode_acceptance_rate": 75.0,
        "spec_decode_acceptance_length": 2.5,
        "spec_decode_num_drafts": 4,
        "spec_decode_draft_tokens": 8,
        "spec_decode_accepted_tokens": 6,
        "spec_decode_per_position_acceptance_rates": [1.0, 0.5],
    }
    assert summarise(None, None) == summarise(after, after) == summarise(before, None) == {}
