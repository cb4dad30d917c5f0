"""The scripts and command lines of the AWS Neuron guide for vLLM, as they stand but for the model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.tiny import make_checkpoint

PROMPTS = ["The president of the United States is", "The capital of France is", "The future of AI is"]


@pytest.fixture(scope="module")
def tinyllama(tmp_path_factory) -> Path:
    """TinyLlama's head counts (32 heads, 4 KV heads) on a random model of two layers."""
    return make_checkpoint(
        tmp_path_factory.mktemp("tinyllama"), hidden_size=128, num_attention_heads=32, num_key_value_heads=4
    )


def _texts(llm, sampling_params) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(PROMPTS, sampling_params)]


def test_offline_quickstart(tinyllama):
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(tinyllama), max_num_seqs=4, max_model_len=128, tensor_parallel_size=32)
    outputs = llm.generate(PROMPTS, SamplingParams(top_k=10, temperature=0.8, top_p=0.95))
    assert [output.prompt for output in outputs] == PROMPTS
    assert all(1 <= len(output.outputs[0].token_ids) <= 16 for output in outputs)


def test_offline_without_bucketing_gives_the_same_text(tinyllama):
    from vllm import LLM, SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    options = {"model": str(tinyllama), "max_num_seqs": 4, "max_model_len": 128, "tensor_parallel_size": 32}
    override = {"override_neuron_config": {"enable_bucketing": False}}
    assert _texts(LLM(**options), greedy) == _texts(LLM(**options, additional_config=override), greedy)


def test_bucket_lists(tinyllama):
    from vllm import LLM, SamplingParams

    override = {"context_encoding_buckets": [32, 64, 128], "token_generation_buckets": [64, 128]}
    llm = LLM(
        str(tinyllama),
        max_num_seqs=4,
        max_model_len=128,
        additional_config={"override_neuron_config": override},
    )
    llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=4), use_tqdm=False)
    used = {
        (metric.labels["kind"], metric.labels["bucket"])
        for metric in llm.get_metrics()
        if metric.name == "vllm:bucket_padding_tokens" and metric.value
    }
    assert used
    assert {bucket for kind, bucket in used if kind == "prefill"} <= {"32", "64", "128"}
    assert {bucket for kind, bucket in used if kind == "decode"} <= {"64", "128"}


def _artifact_files(checkpoint: Path) -> dict[Path, int]:
    """Every file of every artifact, with when it was written."""
    artifacts = [path for path in (checkpoint / "neuron-compiled-artifacts").iterdir() if path.is_dir()]
    return {file: file.stat().st_mtime_ns for path in artifacts for file in path.rglob("*") if file.is_file()}


def test_a_second_start_compiles_nothing(tinyllama):
    from vllm import LLM

    options = {"model": str(tinyllama), "max_num_seqs": 2, "max_model_len": 96}
    LLM(**options)
    before = _artifact_files(tinyllama)
    stats = LLM(**options).llm_engine.executor_stats()
    after = _artifact_files(tinyllama)
    assert stats["artifact_hit"]
    assert before == after


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen, url: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with code {process.returncode}")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server is not healthy")


@pytest.mark.parametrize(
    "additional",
    ['{"override_neuron_config": {"enable_bucketing": False,}}', json.dumps({"override_neuron_config": {}})],
)
def test_online(tinyllama, additional):
    from openai import OpenAI

    port = _free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tinyllama)]
    command += ["--tensor-parallel-size", "32", "--max-model-len", "128", "--max-num-seqs", "4"]
    command += ["--no-enable-prefix-caching", "--additional-config", additional, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "VLLM_NEURON_TARGET": "cpu"})
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}")
        client = OpenAI(api_key="EMPTY", base_url=f"http://127.0.0.1:{port}/v1")
        model = client.models.list().data[0].id
        completion = client.completions.create(
            model=model,
            prompt="Hello, my name is Llama",
            max_tokens=32,
            temperature=0.0,
            stream=False,
            extra_body={"top_k": 50},
        )
        assert completion.choices[0].finish_reason in ("stop", "length")
        assert completion.usage is not None and 1 <= completion.usage.completion_tokens <= 32
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
