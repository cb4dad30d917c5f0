"""`vllm bench serve` against a server that says what it is told to."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from vllm.entrypoints.bench.http_client import HttpClient
from vllm.entrypoints.bench.serve import add_cli_args, check_args, main, parse_goodput, run, save

from .fake_server import DONE, END, HEAD, Closed, FakeServer, Write, chunk, event, response, text_event, usage_event


async def three_tokens(body: dict[str, Any], write: Write) -> None:
    await write(HEAD)
    for data in (text_event("a"), text_event("b"), text_event("c", "length"), usage_event(11, 3) + DONE):
        await write(chunk(data))
        await asyncio.sleep(0.001)
    await write(END)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    args = parser.parse_args(["--disable-tqdm", "--input-len", "11", "--output-len", "3", *words])
    check_args(args)
    return args


async def bench(server: FakeServer, *words: str) -> dict[str, Any]:
    async with server.listening():
        return await run(parsed("--port", str(server.port), *words))


async def test_requests_and_report(tiny_llama: Path) -> None:
    server = FakeServer(three_tokens, root=str(tiny_llama))
    report = await bench(
        server, "--num-prompts", "6", "--max-concurrency", "2", "--ignore-eos", "--top-k", "5", "--num-warmups", "1",
        "--extra-body", '{"seed": 3, "temperature": 1}', "--header", "X-Team=a b", "--percentile-metrics", "ttft,e2el",
        "--metric-percentiles", "50,99.9", "--goodput", "e2el:60000", "--metadata", "run=7", "--label", "mine",
    )  # fmt: skip
    assert (report["completed"], report["failed"]) == (6, 0)
    assert (report["total_input_tokens"], report["total_output_tokens"]) == (66, 18)
    assert (report["model_id"], report["tokenizer_id"]) == ("fake", str(tiny_llama))
    assert (report["run"], report["label"], report["request_rate"]) == ("7", "mine", "inf")
    assert report["request_goodput"] == report["request_throughput"] == pytest.approx(6 / report["duration"])
    assert {"p50_ttft_ms", "p99.9_e2el_ms"} <= report.keys() and "mean_itl_ms" not in report
    assert 0 < report["p50_ttft_ms"] < report["p50_e2el_ms"]
    assert report["generated_texts"] == ["abc"] * 6
    assert server.most_running <= 2 and server.connections <= 3, "connections are used again"
    assert len(server.bodies) == 7
    assert len({body["prompt"] for body in server.bodies}) == 7, "a warm-up is no measured request"
    body = server.bodies[0]
    assert body["path"] == "/v1/completions" and body["stream"] and body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["max_tokens"], body["ignore_eos"], body["top_k"]) == ("fake", 3, True, 5)
    assert (body["seed"], body["temperature"]) == (3, 1)
    assert all("X-Team: a b" in head for head in server.headers)


async def test_chat_and_named_model(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(body: dict[str, Any], write: Write) -> None:
        choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
        await write(response(event({"choices": [choice]}) + DONE))

    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    server = FakeServer(answer)
    report = await bench(
        server, "--backend", "openai-chat", "--num-prompts", "2",
        "--model", str(tiny_llama), "--served-model-name", "alias", "--endpoint", "/other/chat",
    )  # fmt: skip
    assert report["completed"] == 2 and report["model_id"] == "alias"
    body = server.bodies[0]
    assert body["path"] == "/other/chat" and body["messages"][0]["role"] == "user"
    assert (body["model"], body["max_completion_tokens"]) == ("alias", 3)
    assert all("Authorization: Bearer sesame" in head for head in server.headers)


async def test_some_fail(tiny_llama: Path) -> None:
    count = 0

    async def answer(body: dict[str, Any], write: Write) -> None:
        nonlocal count
        count += 1
        if count == 1:
            await write(response(b'{"error": {"message": "queue is full"}}', "429 Too Many Requests"))
        elif count == 2:
            await write(HEAD + chunk(text_event("a")))
            raise Closed
        elif count == 3:
            await write(b"this is no HTTP\r\n\r\n")
            raise Closed
        else:
            await three_tokens(body, write)

    report = await bench(
        FakeServer(answer, root=str(tiny_llama)),
        "--num-prompts",
        "5",
        "--max-concurrency",
        "1",
        "--request-rate",
        "500",
    )
    assert (report["completed"], report["failed"]) == (2, 3)
    assert report["total_output_tokens"] == 6
    full, broken, other, *rest = report["errors"]
    assert "429: queue is full" in full and "ended before the answer" in broken and "no HTTP" in other
    assert rest == ["", ""]


async def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async def answer(body: dict[str, Any], write: Write) -> None:
        await write(response(b"{}"))
        raise Closed

    server = FakeServer(answer)
    async with server.listening():
        client = HttpClient(f"http://127.0.0.1:{server.port}")
        for _ in range(3):
            assert (await client.post("/v1/completions", b"{}")).status == 200
        client.close()
    assert server.connections == 3


async def test_a_body_may_end_with_its_connection(tiny_llama: Path) -> None:
    async def answer(body: dict[str, Any], write: Write) -> None:
        await write(b"HTTP/1.1 200 OK\r\n\r\n" + text_event("a", "stop"))
        raise Closed

    report = await bench(FakeServer(answer, root=str(tiny_llama)), "--num-prompts", "2", "--max-concurrency", "1")
    assert (report["completed"], report["generated_texts"]) == (2, ["a", "a"])


async def test_saved_report(tiny_llama: Path, tmp_path: Path) -> None:
    for words, names in ((["--save-result"], None), (["--result-filename", "r.json", "--save-detailed"], "r.json")):
        args = parsed("--result-dir", str(tmp_path / "deep"), "--num-prompts", "2", *words)
        server = FakeServer(three_tokens, root=str(tiny_llama))
        async with server.listening():
            args.port = server.port
            save(args, await run(args))
        (file,) = [path for path in (tmp_path / "deep").iterdir() if names is None or path.name == names]
        saved = json.loads(file.read_text())
        assert saved["completed"] == 2 and saved["total_input_tokens"] == 22
        assert ("ttfts" in saved) == (names is not None)
        if names is None:
            assert file.name.startswith("openai-infqps-fake-")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--percentile-metrics", "ttft,tpto"], "'tpto'"),
        (["--metric-percentiles", "101"], "between 0 and 100"),
        (["--goodput", "itl:5"], "'itl:5'"),
        (["--goodput", "ttft"], "METRIC:MS"),
        (["--request-rate", "0"], "--request-rate"),
        (["--burstiness", "-1"], "--burstiness"),
        (["--max-concurrency", "0"], "--max-concurrency"),
        (["--extra-body", "[]"], "--extra-body"),
        (["--metadata", "x"], "--metadata"),
        (["--base-url", "nowhere"], "'nowhere'"),
        (["--port", "9", "--ready-check-timeout-sec", "0"], "no server answers at http://127.0.0.1:9"),
    ],
)
def test_faults(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_goodput_pairs() -> None:
    assert parse_goodput(["ttft:200", "e2el:1e3"]) == {"ttft": 200, "e2el": 1000}


async def test_no_tokenizer_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="--tokenizer"):
        await bench(FakeServer(three_tokens, root="no/such/model"), "--num-prompts", "1")
