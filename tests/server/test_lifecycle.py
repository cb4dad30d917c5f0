"""Connections and ends: clients that leave, requests and engines that fail, servers that drain."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngine
from tests.server.live import LiveServer, live_server
from tests.waiting import PATIENCE, eventually
from vllm.exceptions import EngineDeadError, EngineGenerateError, QueueFullError

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
LONG = {"prompt": "a", "max_tokens": 50}


@pytest.fixture
async def live(engine: FakeEngine) -> AsyncIterator[LiveServer]:
    async with live_server(engine) as server:
        yield server


async def post_and_leave(server: LiveServer, path: str, body: dict[str, Any], engine: FakeEngine) -> None:
    """Send a request, wait until the engine has it, and close the connection."""
    _, writer = await server.connect()
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    await eventually(lambda: len(engine.running) > 0)
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_disconnect_ends_the_request(live: LiveServer, engine: FakeEngine, path: str, stream: bool) -> None:
    """The engine says nothing: as for a request that waits or computes its prompt."""
    engine.gate.clear()
    body = {**(HELLO if "chat" in path else {"prompt": ["a", "b"]}), "stream": stream}
    await post_and_leave(live, path, body, engine)
    await eventually(lambda: not engine.running)
    await eventually(lambda: len(live.app.state.in_flight) == 0)


async def test_disconnect_in_the_middle_of_a_stream(live: LiveServer, engine: FakeEngine) -> None:
    async with (
        live.client() as client,
        client.stream("POST", "/v1/completions", json={**LONG, "n": 2, "stream": True}) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        engine.gate.clear()
        assert len(engine.running) == 1
        await response.aclose()
    await eventually(lambda: not engine.running)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (QueueFullError("the queue is full"), 429),
        (EngineDeadError("gone"), 503),
        (EngineGenerateError("one row failed"), 500),
        (NotImplementedError("The model does not support this"), 501),
        (KeyError("internal"), 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_token(
    live: LiveServer, engine: FakeEngine, failure: Exception, status: int, stream: bool
) -> None:
    engine.failure = failure
    async with live.client() as client:
        response = await client.post("/v1/completions", json={**LONG, "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == status
    assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_failure_in_the_middle_of_a_stream(live: LiveServer, engine: FakeEngine) -> None:
    engine.failure, engine.fail_after = EngineGenerateError("one row failed"), 3
    async with live.client() as client:
        response = await client.post("/v1/chat/completions", json={**HELLO, "stream": True})
    events = response.text.strip().split("\n\n")
    assert response.status_code == 200
    assert events[-1] == "data: [DONE]"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["code"] == 500 and "one row failed" in error["message"]
    assert not engine.running


async def test_one_failed_prompt_ends_the_others(live: LiveServer, engine: FakeEngine) -> None:
    engine.failure, engine.fail_after = EngineGenerateError("one row failed"), 2
    async with live.client() as client:
        response = await client.post("/v1/completions", json={"prompt": ["a", "b", "c"], "max_tokens": 9})
    assert response.status_code == 500 and not engine.running


async def test_keep_alive_comments(engine: FakeEngine) -> None:
    engine.gate.clear()
    async with live_server(engine, "--sse-keep-alive-interval", "0.02") as server, server.client() as client:
        text = ""
        async with client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 3, "stream": True}) as response:
            async for piece in response.aiter_text():
                text += piece
                if text.count(": keep-alive\n\n") >= 2:
                    engine.gate.set()
    texts = [line for line in text.split("\n\n") if line.startswith("data: {")]
    assert len(texts) == 3 and text.endswith("data: [DONE]\n\n")


async def test_head_is_answered_without_a_body(engine: FakeEngine) -> None:
    """Claude Code asks so first. Afterwards the connection can still be used."""
    async with live_server(engine) as server, server.client() as client:
        for path, status in (("/", 200), ("/health", 200), ("/v1/models", 200), ("/v1/completions", 405), ("/x", 404)):
            response = await client.head(path)
            assert (response.status_code, response.content) == (status, b"")
        assert (await client.get("/health")).status_code == 200


async def test_drain_lets_running_streams_finish(engine: FakeEngine) -> None:
    engine.gate.clear()
    async with live_server(engine) as server, server.client() as client:
        running = asyncio.create_task(client.post("/v1/completions", json={**LONG, "stream": True}))
        await eventually(lambda: len(engine.running) == 1)
        server.server.stop(10)
        await eventually(lambda: server.app.state.in_flight.draining)
        assert (await client.get("/health")).status_code == 503
        refused = await client.post("/v1/completions", json=LONG)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert not server.task.done()
        engine.gate.set()
        response = await running
        assert response.text.endswith("data: [DONE]\n\n") and "error" not in response.text
        assert response.text.count("data: {") == LONG["max_tokens"]
        assert await server.task == 0


async def test_drain_ends_what_does_not_finish(engine: FakeEngine) -> None:
    engine.gate.clear()
    begun = asyncio.Event()  # a request that has said nothing yet is answered by a status

    async def read(client: httpx.AsyncClient) -> str:
        text = ""
        async with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            async for piece in response.aiter_text():
                text += piece
                begun.set()
        return text

    async with live_server(engine, "--sse-keep-alive-interval", "0.02") as server, server.client() as client:
        streamed = asyncio.create_task(read(client))
        plain = asyncio.create_task(client.post("/v1/completions", json=LONG))
        await eventually(lambda: len(engine.running) == 2)
        await begun.wait()
        server.server.stop(0)
        assert (await plain).status_code == 503
        events = (await streamed).strip().split("\n\n")
        assert events[-1] == "data: [DONE]" and json.loads(events[-2][6:])["error"]["code"] == 503
        assert await server.task == 0
    assert not engine.running


async def test_dead_engine(engine: FakeEngine) -> None:
    engine.gate.clear()
    async with live_server(engine) as server, server.client() as client:
        assert (await client.get("/health")).status_code == 200
        running = asyncio.create_task(client.post("/v1/completions", json=LONG))
        await eventually(lambda: len(engine.running) == 1)
        engine.errored = True
        engine.failure, engine.fail_after = EngineDeadError("gone"), 0
        engine.gate.set()
        assert (await client.get("/health")).status_code == 503
        assert (await running).status_code == 503
        assert await asyncio.wait_for(server.task, PATIENCE) == 1


async def test_dead_engine_may_be_outlived(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "1")
    async with live_server(engine) as server, server.client() as client:
        engine.errored = True
        await asyncio.sleep(0.8)
        assert not server.task.done()
        assert (await client.get("/health")).status_code == 503


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signal_stops_the_server(engine: FakeEngine, number: signal.Signals) -> None:
    """S15: SIGHUP, of a terminal that closes, ended everything at once."""
    engine.gate.clear()
    async with live_server(engine, "--shutdown-timeout", "60") as server, server.client() as client:
        running = asyncio.create_task(client.post("/v1/completions", json=LONG))
        await eventually(lambda: len(engine.running) == 1)
        signal.raise_signal(number)
        await eventually(lambda: server.app.state.in_flight.draining)
        signal.raise_signal(signal.SIGHUP)  # as systemd may send it behind another
        await asyncio.sleep(0)
        engine.gate.set()
        assert (await running).status_code == 200
        assert await asyncio.wait_for(server.task, PATIENCE) == 0


async def test_server_that_survives_its_terminal(engine: FakeEngine) -> None:
    """S15: nohup has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with live_server(engine) as server, server.client() as client:
            signal.raise_signal(signal.SIGHUP)
            assert (await client.get("/health")).status_code == 200
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_queries_are_in_no_log(engine: FakeEngine) -> None:
    """S13: a key that was sent there was written out."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", "uvicorn.asgi", "uvicorn.error")]
    async with live_server(engine, "--uvicorn-log-level", "trace", "--api-key", "right") as server:
        for logger in loggers:
            logger.addHandler(handler)
        async with server.client(headers={"X-Api-Key": "secret-1"}) as client:
            assert (await client.get("/v1/models?api_key=secret-2&x=1")).status_code == 401
            assert (await client.get("/health")).status_code == 200
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    text = "\n".join(records)
    assert '"GET /v1/models?... HTTP/1.1" 401' in text and '"GET /health HTTP/1.1" 200' in text
    assert "scope=" in text and "secret" not in text


async def test_slow_template_is_interrupted(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not keep its thread: more of them than there are threads all end."""
    monkeypatch.setenv("VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT", "1")
    async with live_server(engine) as server, server.client() as client:
        body = {**HELLO, "chat_template_kwargs": {"spin": True}}
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [400] * 3
        assert "too long" in answers[0].text
        assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 200


async def test_load_counts_what_is_running(live: LiveServer, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with live.client() as client:
        running = asyncio.create_task(client.post("/v1/completions", json=LONG))
        await eventually(lambda: len(engine.running) == 1)
        assert (await client.get("/load")).json() == {"server_load": 1}
        engine.gate.set()
        await running
        assert (await client.get("/load")).json() == {"server_load": 0}


async def test_many_streams_at_once(live: LiveServer, engine: FakeEngine) -> None:
    async with live.client(limits=httpx.Limits(max_connections=None)) as client:
        bodies = [{"prompt": chr(97 + i % 26), "max_tokens": 20, "stream": True} for i in range(128)]
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
    for body, answer in zip(bodies, answers, strict=True):
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
        text = "".join(event["choices"][0]["text"] for event in events)
        assert text == bytes(97 + (ord(body["prompt"]) + step) % 26 for step in range(20)).decode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by_header", [False, True])
async def test_request_that_takes_too_long(engine: FakeEngine, stream: bool, by_header: bool) -> None:
    engine.gate.clear()
    words, headers = ((), {"X-Request-Timeout": "0.6"}) if by_header else (("--request-timeout", "0.6"), {})
    async with live_server(engine, *words) as server, server.client(headers=headers) as client:
        answer = await client.post("/v1/completions", json={**LONG, "stream": stream})
        assert not engine.running, "its row is free"
        if stream:
            events = answer.text.strip().split("\n\n")
            assert events[-1] == "data: [DONE]" and json.loads(events[-2][6:])["error"]["code"] == 504
        else:
            assert answer.status_code == 504 and answer.json()["error"]["type"] == "RequestTimeoutError"
        engine.gate.set()
        assert (await client.post("/v1/completions", json={**LONG, "stream": stream})).status_code == 200


async def test_header_may_not_ask_for_more_time_than_the_server_gives(engine: FakeEngine) -> None:
    engine.gate.clear()
    async with live_server(engine, "--request-timeout", "0.3") as server, server.client() as client:
        answer = await client.post("/v1/completions", json=LONG, headers={"X-Request-Timeout": "60"})
        assert answer.status_code == 504
        for value in ("-1", "0", "nan", "inf", "soon", ""):
            answer = await client.post("/v1/completions", json=LONG, headers={"X-Request-Timeout": value})
            assert answer.status_code == 400 and "X-Request-Timeout" in answer.text
