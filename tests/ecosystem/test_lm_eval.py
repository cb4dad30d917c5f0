"""lm-eval on tasks made of local data: over HTTP (`local-completions`, `local-chat-completions`), in process (`vllm`).

The `null` target's likelihoods mean nothing, but both ways must find the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import ServerProcess

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
QUESTIONS = [
    ("The sky is", ["blue", "green"], 0),
    ("Two and two is", ["five", "four"], 1),
    ("Snow is", ["hot", "cold"], 1),
]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
WRITE = """
task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.json"
    lines = [json.dumps({"question": question, "choices": choices, "answer": i}) for question, choices, i in QUESTIONS]
    data.write_text("\n".join(lines))
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "choice.yaml").write_text(CHOICE % data)
    (directory / "write.yaml").write_text(WRITE % data)
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(directory), include_defaults=False)


def _samples(tasks: Any, model: str, arguments: dict[str, Any], names: list[str], **options: Any) -> list[Any]:
    """What the model said to each request of each task."""
    result = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=names, task_manager=tasks, bootstrap_iters=0, **options
    )
    return [sample["resps"] for name in names for sample in result["samples"][name]]


def test_http_and_in_process_agree(
    server: ServerProcess, tiny_llama: Path, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_NEURON_TARGET", "null")
    names = ["local_choice", "local_write"]
    over_http = _samples(
        tasks,
        "local-completions",
        {
            "model": "test-model",
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": str(tiny_llama),
            "tokenizer_backend": "huggingface",
            "num_concurrent": 2,
            "max_length": 512,
        },
        names,
    )
    arguments = {"pretrained": str(tiny_llama), "max_model_len": 512, "max_num_seqs": 8}
    in_process = _samples(tasks, "vllm", arguments, names)
    assert len(over_http) == len(in_process) == 6
    for theirs, ours in zip(over_http, in_process, strict=True):
        assert str(theirs) == str(ours)


def test_chat(server: ServerProcess, tasks: Any) -> None:
    arguments = {"model": "test-model", "base_url": f"{server.url}/v1/chat/completions", "num_concurrent": 1}
    answers = _samples(tasks, "local-chat-completions", arguments, ["local_write"], apply_chat_template=True)
    assert len(answers) == 3
