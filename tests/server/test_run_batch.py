"""Files of requests, in the form of OpenAI's batch API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import State

from tests.server.conftest import server_args
from tests.server.fake_engine import FakeEngine
from tests.waiting import PATIENCE
from vllm.entrypoints.openai.api_server import init_app_state
from vllm.entrypoints.openai.run_batch import BatchRunner, main, run_file

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def line(custom_id: str, url: str, body: Any, **changes: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **changes})


@pytest.fixture
async def runner(engine: FakeEngine) -> BatchRunner:
    state = State()
    await init_app_state(engine, state, server_args())
    return BatchRunner(state)


async def test_lines_in_and_out(runner: BatchRunner, tmp_path: Path) -> None:
    lines = [
        line("a", "/v1/chat/completions", CHAT),
        "",
        line("b", "/v1/completions", {"prompt": "x", "max_tokens": 2}),
        "not json",
        line("c", "/v1/completions", {"prompt": ""}),
        line("d", "/v1/embeddings", {}),
        line("e", "/v1/completions", {"prompt": "x", "stream": True}),
        line("f", "/v1/completions", {"prompt": "x"}, method="GET"),
        line("g", "/v1/completions", {"prompt": "x", "model": "other"}),
        line("h", "/v1/completions", {"prompt": "x", "temprature": 1}),
        line("i", "/v1/completions", {"prompt": "y", "max_tokens": 2}),
        "[" * 200 + "]" * 200,
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    assert await run_file(runner, source, target) == (11, 8)
    answers = [json.loads(text) for text in target.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["a", "b", None, "c", "d", "e", "f", "g", "h", "i", None]
    statuses = [answer["response"]["status_code"] for answer in answers]
    assert statuses == [200, 200, 400, 400, 404, 400, 400, 404, 400, 200, 400]
    assert answers[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert answers[1]["response"]["body"]["usage"]["completion_tokens"] == 2
    for answer in answers:
        assert (answer["error"] is None) == (answer["response"]["status_code"] == 200)
    assert "`temperature`" in answers[8]["error"]["message"]


async def test_every_door_that_gives_text(runner: BatchRunner) -> None:
    response = await runner.run(line("a", "/v1/responses", {"input": "hello", "max_output_tokens": 3}))
    assert response["response"]["body"]["output"][0]["content"][0]["text"] and response["error"] is None
    message = await runner.run(line("b", "/v1/messages", {**CHAT}))
    assert message["response"]["body"]["content"][0]["text"] and message["error"] is None


@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x", "n": 10**9}, "n"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": [10**9]}, "prompt"),
        ("/v1/chat/completions", {**CHAT, "chat_template": "{{ 7 * 7 }}"}, "chat_template"),
        ("/v1/responses", {"input": "x", "temperature": -1}, "temperature"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/messages", {**CHAT, "stream": True}, "stream"),
    ],
)
async def test_batches_have_the_same_limits(runner: BatchRunner, url: str, body: dict[str, Any], param: str) -> None:
    """A second door without the first one's checks is how servers fall."""
    answer = await runner.run(line("a", url, body))
    assert answer["response"]["status_code"] == 400 and param in str(answer["error"])


async def test_failure_of_one_line(runner: BatchRunner, engine: FakeEngine) -> None:
    engine.failure = KeyError("internal")
    answer = await runner.run(line("a", "/v1/completions", {"prompt": "x"}))
    assert answer["response"]["status_code"] == 500 and "internal" not in json.dumps(answer)


def test_command(tiny_llama: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [{"prompt": f"Prompt {i}", "max_tokens": 4, "seed": i, "ignore_eos": True} for i in range(40)]
    lines = [line(str(i), "/v1/completions", body) for i, body in enumerate(bodies)]
    lines.append(line("bias", "/v1/chat/completions", {**CHAT, "logit_bias": {str(i): 1 for i in range(2000)}}))
    lines.append(line("stop", "/v1/messages", {**CHAT, "stop_sequences": ["x"] * 2000}))
    source.write_text("\n".join(lines))
    words = ["run-batch", "-i", str(source), "-o", str(target), "--model", str(tiny_llama), "--device", "null"]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.cli.main",
        *words,
        "--max-model-len",
        "128",
        "--max-num-seqs",
        "4",
    ]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    answers = [json.loads(text) for text in target.read_text().splitlines()]
    beyond, answers = answers[40:], answers[:40]
    assert [answer["response"]["status_code"] for answer in beyond] == [400, 400], "the engine's limits hold here too"
    assert [answer["custom_id"] for answer in answers] == [str(i) for i in range(40)]
    assert all(answer["response"]["body"]["usage"]["completion_tokens"] == 4 for answer in answers)
    missing = [*command[: command.index("-i") + 1], "http://x/in.jsonl", *command[command.index("-o") :]]
    done = subprocess.run(missing, timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 1 and "not a file" in done.stderr


def test_processes_for_http_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-i", "in", "-o", "out", "--model", "m", "--api-server-count", "2"])
    assert "--api-server-count 2 is for servers" in capsys.readouterr().err
