"""Starts and restarts: what a server says before its engine runs, and when a dead one is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest

from tests.neuron.driver import resolved_config
from tests.server.conftest import server_args
from tests.server.fake_engine import FakeEngine
from tests.server.process import serve
from tests.waiting import PATIENCE, eventually, wait_until
from vllm.engine.processes.core_client import ProcessClient
from vllm.engine.processes.startup import PHASES, StartCancelled, StartProgress
from vllm.entrypoints.openai.api_server import build_app, init_app_state
from vllm.entrypoints.server.engine_life import EngineLife
from vllm.entrypoints.server.launcher import address_of, build_server, create_socket
from vllm.exceptions import EngineDeadError

SMALL = ("--max-model-len", "256", "--max-num-seqs", "4")


class Starts:
    """Engines to be started: each start waits until `go` is set, reports as it is told to, and gives a new engine."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.report: tuple[str, float, str] = ("compile", 0.25, "decode 4x128")
        self.failure: Exception | None = None
        self.engines: list[FakeEngine] = []
        self.num_shut_down = 0

    def __call__(self, progress: StartProgress) -> FakeEngine:
        while not self.go.wait(0.02):
            progress.report(*self.report)
        if self.failure:
            raise self.failure
        engine = FakeEngine()
        engine.shutdown = self._shut_down  # type: ignore[attr-defined]
        self.engines.append(engine)
        return engine

    def _shut_down(self) -> None:
        self.num_shut_down += 1


@contextlib.asynccontextmanager
async def starting_server(starts: Starts, *words: str) -> AsyncIterator[SimpleNamespace]:
    args = server_args("--port", "0", "--uvicorn-log-level", "warning", *words)
    app = build_app(args)
    life = EngineLife(
        app.state, starts, lambda engine: init_app_state(engine, app.state, args), args.max_engine_restarts
    )
    with create_socket(args) as sock:
        server = build_server(app, args, life.run())
        task = asyncio.create_task(server.run_until_stopped(sock))
        async with httpx.AsyncClient(base_url=address_of(sock, args), timeout=PATIENCE) as client:
            try:
                await eventually(lambda: server.started)
                yield SimpleNamespace(client=client, server=server, task=task)
            finally:
                if not task.done():
                    server.stop(0)
                await asyncio.wait((task,))


async def test_health_tells_the_progress_of_a_start() -> None:
    starts = Starts()
    async with starting_server(starts) as live:
        response = await _eventually_in_phase(live.client, "compile")
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        startup = response.json()["startup"]
        assert startup["share"] == 0.25 and startup["detail"] == "decode 4x128" and startup["seconds"] >= 0
        assert "compile 25%" in response.json()["error"]["message"]
        starts.report = ("load", 0.0, "")
        await _eventually_in_phase(live.client, "load")
        for path in ("/ping", "/v1/models", "/tokenize", "/no/such/path"):
            assert (await live.client.get(path)).status_code == 503
        for path in ("/live", "/metrics", "/version", "/load"):
            assert (await live.client.get(path)).status_code == 200
        assert "vllm:engine_ready 0.0" in (await live.client.get("/metrics")).text
        refused = await live.client.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503 and refused.json()["startup"]["phase"] == "load"
        starts.go.set()
        await _eventually_healthy(live.client)
        assert (await live.client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
        assert "vllm:engine_ready 1.0" in (await live.client.get("/metrics")).text


async def test_keys_are_asked_for_while_the_engine_starts() -> None:
    async with starting_server(Starts(), "--api-key", "k") as live:
        assert (await live.client.get("/v1/models")).status_code == 401
        assert (await live.client.get("/v1/models", headers={"Authorization": "Bearer k"})).status_code == 503


async def test_start_that_fails_ends_the_server() -> None:
    starts = Starts()
    async with starting_server(starts) as live:
        starts.failure = ValueError("no such checkpoint")
        starts.go.set()
        with pytest.raises(ValueError, match="no such checkpoint"):
            await asyncio.wait_for(asyncio.shield(live.task), PATIENCE)


async def test_start_is_called_off_when_the_server_stops() -> None:
    starts = Starts()
    async with starting_server(starts) as live:
        await _eventually_in_phase(live.client, "compile")
        live.server.stop(0)
        assert await asyncio.wait_for(live.task, PATIENCE) == 0
    assert not starts.engines


async def test_dead_engine_is_replaced_as_often_as_allowed() -> None:
    starts = Starts()
    starts.go.set()
    async with starting_server(starts, "--max-engine-restarts", "1") as live:
        await _eventually_healthy(live.client)
        first = starts.engines[0]
        first.gate.clear()
        running = asyncio.create_task(live.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 9}))
        await eventually(lambda: len(first.running) == 1)
        starts.go.clear()
        first.errored, first.failure, first.fail_after = True, EngineDeadError("gone"), 0
        first.gate.set()
        assert (await running).status_code == 503
        await _eventually_in_phase(live.client, "compile")
        assert (await live.client.get("/live")).status_code == 200
        starts.go.set()
        await _eventually_healthy(live.client)
        assert starts.num_shut_down == 1 and len(starts.engines) == 2
        assert (await live.client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
        starts.engines[1].errored = True
        assert await asyncio.wait_for(live.task, PATIENCE) == 1


def test_progress_of_a_real_start(tiny_llama: Path) -> None:
    """Listening comes first, then the phases in their order, then readiness."""
    with serve(tiny_llama, *SMALL, starting=True) as server:
        seen = []

        def ready() -> bool:
            response = server.get("/health")
            if response.status_code == 503:
                seen.append(response.json()["startup"]["phase"])
            return response.status_code == 200

        wait_until(ready)
        order = [PHASES.index(phase) for phase in seen]
        assert seen and order == sorted(order)
        phases = {"config", "process", "load"}
        metrics = server.get("/metrics").text
        assert all(f'phase="{phase}"' in metrics for phase in phases)


def test_signal_ends_a_start(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL, starting=True) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert not [line for line in server.log if "Traceback" in line]


def test_engine_that_is_killed_is_replaced(tiny_llama: Path) -> None:
    with serve(tiny_llama, *SMALL, "--max-engine-restarts", "1") as server:
        ask = {"prompt": "The quick", "max_tokens": 8, "seed": 1}
        before = httpx.post(f"{server.url}/v1/completions", json=ask).json()["choices"][0]["text"]
        server.engine.kill()
        wait_until(lambda: server.get("/health").status_code == 503)
        wait_until(lambda: server.get("/health").status_code == 200)
        assert httpx.post(f"{server.url}/v1/completions", json=ask).json()["choices"][0]["text"] == before
        assert server.metric("vllm:engine_restarts_total") == 1
        server.engine.kill()
        assert server.process.wait(PATIENCE) == 1


def test_child_of_a_start_that_was_called_off_is_gone(tiny_llama: Path) -> None:
    progress = StartProgress()
    progress.cancel()
    before = psutil.Process().children()
    with pytest.raises(StartCancelled):
        ProcessClient(resolved_config(tiny_llama, "null"), progress)
    assert psutil.Process().children() == before


async def _eventually_in_phase(client: httpx.AsyncClient, phase: str) -> httpx.Response:
    while True:
        response = await client.get("/health")
        if response.status_code == 503 and response.json().get("startup", {}).get("phase") == phase:
            return response
        await asyncio.sleep(0.02)


async def _eventually_healthy(client: httpx.AsyncClient) -> None:
    while (await client.get("/health")).status_code != 200:
        await asyncio.sleep(0.02)
