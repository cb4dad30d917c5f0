"""Servers that are stopped, overloaded, left by their clients, or lose their engine; on the `null` target."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

FAULTS = Path(__file__).parents[1] / "engine" / "faults"
MODEL = "test-model"
SLOW = {"VLLM_NULL_STEP_MS": "10"}
SMALL = ("--max-model-len", "512", "--max-num-seqs", "4")
LONG = {"prompt": "a", "max_tokens": 500, "ignore_eos": True}


@pytest.fixture(scope="module")
def slow(tiny_llama: Path) -> Iterator[ServerProcess]:
    with serve(tiny_llama, *SMALL, env=SLOW) as running:
        yield running


def open_request(server: ServerProcess, body: dict[str, Any]) -> socket.socket:
    """A request whose answer is not read."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    connection.sendall(f"{head}{len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_free_rows_and_queue(slow: ServerProcess, stream: bool) -> None:
    """Ten requests over four rows: some run, some wait."""
    wait_until(slow.is_idle)
    connections = [open_request(slow, {**LONG, "stream": stream, "n": 1 + i % 2}) for i in range(10)]
    wait_until(lambda: slow.metric("vllm:num_requests_running") == 4 and slow.metric("vllm:num_requests_waiting") > 5)
    for connection in connections:
        connection.close()
    wait_until(slow.is_idle)
    wait_until(lambda: slow.get("/load").json() == {"server_load": 0})


def test_client_that_leaves_in_the_middle(slow: ServerProcess) -> None:
    stream = slow.client().completions.create(
        model=MODEL, prompt="a", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert slow.metric("vllm:num_requests_running") == 1
    stream.close()
    wait_until(slow.is_idle)


async def test_async_client_that_is_cancelled(slow: ServerProcess) -> None:
    async with slow.async_client() as client:
        task = asyncio.create_task(
            client.completions.create(model=MODEL, prompt="a", max_tokens=500, extra_body={"ignore_eos": True})
        )
        while slow.metric("vllm:num_requests_running") != 1:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(wait_until, slow.is_idle, 2)


def test_full_queue(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL, "--max-num-queued-reqs", "2", env=SLOW) as server:
        held = [open_request(server, {**LONG, "stream": True}) for _ in range(6)]
        wait_until(lambda: server.metric("vllm:num_requests_waiting") == 2)
        for stream in (False, True):
            response = httpx.post(f"{server.url}/v1/completions", json={**LONG, "stream": stream})
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1 and response.json()["error"]["code"] == 429
        assert server.metric("vllm:admission_rejections_total") == 2
        for connection in held:
            connection.close()
        wait_until(server.is_idle)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200


def test_running_streams_finish_at_sigterm(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL, "--shutdown-timeout", "30", env=SLOW) as server:
        texts: list[str] = []

        def read() -> None:
            stream = server.client().completions.create(
                model=MODEL, prompt="a", max_tokens=240, seed=1, stream=True, extra_body={"ignore_eos": True}
            )
            texts.append("".join(chunk.choices[0].text for chunk in stream))

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.metric("vllm:num_requests_running") == 4)
        wait_until(lambda: server.get("/load").json() == {"server_load": 6})
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/health").status_code == 503)
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503 and "retry-after" in refused.headers
        for thread in threads:
            thread.join()
        assert len(texts) == 6 and len(set(texts)) == 1 and texts[0]
        assert server.process.wait(PATIENCE) == 0


def test_sigterm_without_a_timeout_ends_streams_with_an_error(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL, env=SLOW) as server:
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=20
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]" and json.loads(events[-2][6:])["error"]["code"] == 503
        assert server.process.wait(PATIENCE) == 0


def test_dead_engine(tiny_llama: Path) -> None:
    """Open requests are told, /health says so within two seconds, and the server ends with an error."""
    with serve(tiny_llama, *SMALL, env={**SLOW, "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as server:
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=20
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.engine.kill()
            events = [line for line in lines if line]
            assert events[-1] == "data: [DONE]" and json.loads(events[-2][6:])["error"]["code"] == 503
        wait_until(lambda: server.get("/health").status_code == 503)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 503
        assert server.process.poll() is None
    with serve(tiny_llama, *SMALL) as server:
        server.engine.kill()
        assert server.process.wait(PATIENCE) == 1


def test_stuck_engine(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL) as server:
        engine = server.engine
        engine.suspend()
        wait_until(lambda: server.get("/health").status_code == 503)
        engine.resume()
        wait_until(lambda: server.get("/health").status_code == 200)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("restarts", [0, 1])
def test_engine_that_hangs_in_a_step(tiny_llama: Path, restarts: int) -> None:
    """/health says so within two seconds; when the step is given up, streams are told, and the engine is replaced or
    the server ends."""
    env = {"VLLM_NULL_HANG_AFTER": "5", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "4"}
    with serve(tiny_llama, *SMALL, "--max-engine-restarts", str(restarts), env=env) as server:
        first = server.engine
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=20
        ) as response:
            lines = filter(None, response.iter_lines())
            assert "choices" in json.loads(next(lines)[6:])
            wait_until(lambda: server.get("/health").status_code == 503)
            assert first.is_running(), "unhealthy before it is given up"
            events = list(lines)
        assert "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS" in "".join(server.log)
        assert events[-1] == "data: [DONE]" and json.loads(events[-2][6:])["error"]["code"] == 503
        if not restarts:
            assert server.process.wait(PATIENCE) == 1
            return
        wait_until(lambda: server.get("/health").status_code == 200)
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert answer.json()["usage"]["completion_tokens"] == 2 and server.engine != first


def test_a_pause_of_all_is_held_against_nobody(tiny_llama: Path) -> None:
    """A frozen container goes on as if nothing had been, whoever wakes first: requests that came meanwhile are
    answered on connections that were idle, and the engine is not held to be stuck."""
    with (
        serve(tiny_llama, *SMALL, env={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "1"}) as server,
        contextlib.ExitStack() as stack,
    ):
        front, engine = psutil.Process(server.process.pid), server.engine
        clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE)) for _ in range(4)]
        for client in clients:
            assert client.get("/health").status_code == 200
        front.suspend()
        engine.suspend()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answers = [pool.submit(client.get, "/health") for client in clients]
            time.sleep(2.5)
            front.resume()
            engine.resume()
            assert [answer.result().status_code for answer in answers] == [200] * 4


def test_no_process_is_left_behind(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL) as server:
        engine = server.engine
        server.process.kill()
        server.process.wait(PATIENCE)
    wait_until(lambda: not engine.is_running() or engine.status() == "zombie")


def test_vllm_serve_on_a_unix_socket(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with serve(tiny_llama, *SMALL, "--uds", str(path), module="vllm.entrypoints.cli.main") as server:
        assert server.url == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == MODEL
            answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
            assert answer.json()["usage"]["completion_tokens"] == 3
        with pytest.raises(AssertionError, match="cannot listen"), serve(tiny_llama, *SMALL, "--uds", str(path)):
            pass
        server.process.kill()
    with serve(tiny_llama, *SMALL, "--uds", str(path)) as server:
        assert server.url == f"unix:{path}", "the file that was left behind is no hindrance"
    assert not path.exists()  # S16


def test_several_names_and_priorities(tiny_llama: Path) -> None:
    words = (
        *SMALL,
        "--scheduling-policy",
        "priority",
        "--api-key",
        "k1",
        "k2",
        "--served-model-name",
        "first",
        "second",
    )
    with serve(tiny_llama, *words) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k2", max_retries=0)
        assert [model.id for model in client.models.list()] == ["first", "second"]
        answer = client.completions.create(model="second", prompt="a", extra_body={"priority": -5})
        assert answer.model == "first"
        assert 'model_name="first"' in server.get("/metrics").text
        assert not [line for line in server.log if "k1" in line or "k2" in line]


async def test_the_more_urgent_request_goes_first(tiny_llama: Path) -> None:
    """Over one row, which another request holds meanwhile; those of equal priority in the order they came."""
    ended: list[str] = []

    async def ask(client: openai.AsyncOpenAI, name: str, priority: int, max_tokens: int = 3) -> None:
        extra = {"priority": priority, "ignore_eos": True}
        await client.completions.create(model=MODEL, prompt=name, max_tokens=max_tokens, extra_body=extra)
        ended.append(name)

    words = ("--max-model-len", "256", "--max-num-seqs", "1", "--scheduling-policy", "priority")
    with serve(tiny_llama, *words, env=SLOW) as server:
        async with server.async_client() as client:
            tasks = [asyncio.create_task(ask(client, "holds", 0, 100))]
            await asyncio.to_thread(wait_until, lambda: server.metric("vllm:num_requests_running") == 1)
            for i, (name, priority) in enumerate([("low", 5), ("middle", 0), ("high", -5), ("also low", 5)]):
                tasks.append(asyncio.create_task(ask(client, name, priority)))
                waiting = i + 1
                await asyncio.to_thread(wait_until, lambda: server.metric("vllm:num_requests_waiting") == waiting)  # noqa: B023
            await asyncio.gather(*tasks)
    assert ended == ["holds", "high", "middle", "low", "also low"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-model-lenn", "9"], "--max-model-lenn"),
        (["--middleware", "no.such.thing"], "no.such.thing"),
        (["--host", "256.1.1.1"], "cannot listen"),
    ],
)
def test_start_that_fails_says_why(tiny_llama: Path, words: list[str], message: str) -> None:
    with pytest.raises(AssertionError, match="did not start") as caught, serve(tiny_llama, *SMALL, *words):
        pass
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_engine_whose_heart_fails(tiny_llama: Path, tmp_path: Path) -> None:
    """Its other threads are well, and would go on: it is a dead engine all the same."""
    fault = tmp_path / "fault"
    path = f"{FAULTS}:{FAULTS.parents[2]}"
    with (
        serve(tiny_llama, *SMALL, env={**SLOW, "PYTHONPATH": path, "FAULT_FILE": str(fault)}) as server,
        httpx.stream(
            "POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=PATIENCE
        ) as response,
    ):
        lines = filter(None, response.iter_lines())
        next(lines)
        fault.write_text("heartbeat")
        events = list(lines)
        assert events[-1] == "data: [DONE]" and json.loads(events[-2][6:])["error"]["code"] == 503
        assert server.process.wait(PATIENCE) == 1
    assert "a fault of the thread heartbeat" in "".join(server.log)
