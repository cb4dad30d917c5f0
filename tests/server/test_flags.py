"""Options of the server, each over a real socket: what it changes, and that it does not without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
import yaml

from tests.server.fake_engine import FakeEngine
from tests.server.live import live_server
from tests.server.process import ServerProcess
from tests.waiting import PATIENCE, eventually
from vllm.exceptions import QueueFullError

ASK = {"prompt": "a", "max_tokens": 3}
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed: server.pem and client.pem, each with its .key."""
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no openssl here to make certificates with")
    return directory


def trusting(directory: Path, with_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=directory / "server.pem")
    if with_certificate:
        context.load_cert_chain(directory / "client.pem", directory / "client.key")
    return context


async def test_tls(engine: FakeEngine, certificates: Path) -> None:
    words = ("--ssl-certfile", str(certificates / "server.pem"), "--ssl-keyfile", str(certificates / "server.key"))
    async with live_server(engine, *words) as server:
        assert server.url.startswith("https://")
        async with httpx.AsyncClient(base_url=server.url, verify=trusting(certificates)) as client:
            assert (await client.post("/v1/completions", json=ASK)).status_code == 200
            streamed = await client.post("/v1/completions", json={**ASK, "stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(base_url=server.url) as client:
                await client.get("/health")
        with pytest.raises(httpx.HTTPError):
            async with httpx.AsyncClient(base_url=server.url.replace("https", "http")) as client:
                await client.get("/health")


async def test_handshakes_that_stall_make_room(engine: FakeEngine, certificates: Path) -> None:
    """S3, before HTTP begins: each holds a descriptor, for as long as a handshake may take."""
    words = ("--ssl-certfile", str(certificates / "server.pem"), "--ssl-keyfile", str(certificates / "server.key"))
    async with live_server(engine, *words) as server:
        connections = server.app.state.connections
        connections.most = 4
        opened = []
        for _ in range(20):
            opened.append(await server.connect())
            opened[-1][1].write(b"\x16\x03\x01")
        for reader, _ in opened[:14]:
            with contextlib.suppress(ConnectionResetError):
                assert not await asyncio.wait_for(reader.read(), PATIENCE)
        async with httpx.AsyncClient(base_url=server.url, verify=trusting(certificates)) as client:
            assert (await client.get("/health")).status_code == 200
        assert len(connections) <= 4
        for _, writer in opened:
            writer.close()
        await eventually(lambda: not len(connections))


async def test_tls_that_asks_for_client_certificates(engine: FakeEngine, certificates: Path) -> None:
    words = ("--ssl-certfile", str(certificates / "server.pem"), "--ssl-keyfile", str(certificates / "server.key"))
    asked = ("--ssl-ca-certs", str(certificates / "client.pem"), "--ssl-cert-reqs", "2")
    async with live_server(engine, *words, *asked) as server:
        async with httpx.AsyncClient(base_url=server.url, verify=trusting(certificates, True)) as client:
            assert (await client.get("/health")).status_code == 200
        with pytest.raises(httpx.HTTPError):
            async with httpx.AsyncClient(base_url=server.url, verify=trusting(certificates)) as client:
                await client.get("/health")


@pytest.mark.parametrize("stripped", [True, False])
async def test_root_path(engine: FakeEngine, stripped: bool) -> None:
    """Behind a proxy that takes the prefix off, and behind one that leaves it on."""
    prefix = "" if stripped else "/llm"
    async with live_server(engine, "--root-path", "/llm", "--api-key", "k") as server, server.client() as client:
        key = {"Authorization": "Bearer k"}
        assert (await client.post(f"{prefix}/v1/completions", json=ASK, headers=key)).status_code == 200
        assert (await client.post(f"{prefix}/v1/completions", json=ASK)).status_code == 401
        assert (await client.get(f"{prefix}/health")).status_code == 200
        document = (await client.get(f"{prefix}/openapi.json", headers=key)).json()
        assert document["servers"] == [{"url": "/llm"}]


async def test_middleware_of_ones_own(engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extras.py").write_text(
        "async def stamp(request, call_next):\n"
        "    response = await call_next(request)\n"
        "    response.headers['x-stamp'] = request.url.path\n"
        "    return response\n"
        "class Teapot:\n"
        "    def __init__(self, app):\n"
        "        self.app = app\n"
        "    async def __call__(self, scope, receive, send):\n"
        "        if scope['type'] == 'http' and scope['path'] == '/teapot':\n"
        "            await send({'type': 'http.response.start', 'status': 418, 'headers': []})\n"
        "            await send({'type': 'http.response.body', 'body': b''})\n"
        "        else:\n"
        "            await self.app(scope, receive, send)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("--middleware", "extras.stamp", "--middleware", "extras.Teapot", "--api-key", "k")
    async with live_server(engine, *words) as server, server.client(headers={"Authorization": "Bearer k"}) as client:
        answer = await client.post("/v1/completions", json=ASK)
        assert answer.status_code == 200 and answer.headers["x-stamp"] == "/v1/completions"
        streamed = await client.post("/v1/completions", json={**ASK, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n") and streamed.headers["x-stamp"]
        assert (await client.get("/teapot")).status_code == 418
        without_key = await httpx.AsyncClient(base_url=server.url).get("/teapot")
        assert without_key.status_code == 401, "keys are asked for before any other code sees the request"


async def test_cors(engine: FakeEngine) -> None:
    question = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    words = ("--allowed-origins", json.dumps([ORIGIN]), "--allow-credentials", "--api-key", "k")
    async with live_server(engine, *words) as server, server.client() as client:
        allowed = await client.options("/v1/completions", headers=question)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert allowed.headers["access-control-allow-credentials"] == "true"
        refused = await client.options("/v1/completions", headers={**question, "Origin": "https://other.example"})
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        answer = await client.post("/v1/completions", json=ASK, headers={"Origin": ORIGIN, "Authorization": "Bearer k"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == ORIGIN


async def test_no_origin_is_allowed_by_default(engine: FakeEngine) -> None:
    async with live_server(engine) as server, server.client() as client:
        answer = await client.post("/v1/completions", json=ASK, headers={"Origin": ORIGIN})
        assert "access-control-allow-origin" not in answer.headers


async def test_request_id_headers(engine: FakeEngine) -> None:
    async with live_server(engine, "--enable-request-id-headers") as server, server.client() as client:
        answer = await client.post("/v1/completions", json=ASK, headers={"X-Request-Id": "mine-7"})
        assert answer.headers["x-request-id"] == "mine-7" and answer.json()["id"] == "cmpl-mine-7"
        named = await client.post("/v1/completions", json=ASK)
        assert named.json()["id"] == f"cmpl-{named.headers['x-request-id']}"
    async with live_server(FakeEngine()) as server, server.client() as client:
        answer = await client.post("/v1/completions", json=ASK, headers={"X-Request-Id": "mine-7"})
        assert "x-request-id" not in answer.headers


@pytest.mark.parametrize(("words", "status"), [((), 200), (("--disable-fastapi-docs",), 404)])
async def test_fastapi_docs(engine: FakeEngine, words: tuple[str, ...], status: int) -> None:
    async with live_server(engine, *words) as server, server.client() as client:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await client.get(path)).status_code == status


async def test_each_of_several_keys(engine: FakeEngine) -> None:
    async with live_server(engine, "--api-key", "first", "second") as server:
        for key, accepted in (("first", True), ("second", True), ("third", False), ("firstsecond", False)):
            client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            if accepted:
                assert (await client.completions.create(model="fake", **ASK)).choices[0].text
            else:
                with pytest.raises(openai.AuthenticationError):
                    await client.completions.create(model="fake", **ASK)


async def test_full_queue_tells_when_to_come_back(engine: FakeEngine) -> None:
    engine.failure = QueueFullError("the queue is full")
    async with live_server(engine) as server, server.client() as client:
        for path, body in (
            ("/v1/completions", ASK),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "RateLimitError"


def test_config_file(tiny_llama: Path, tmp_path: Path) -> None:
    """A file alone starts a server; what the command line says goes before it."""
    options = {
        "model": str(tiny_llama),
        "device": "null",
        "port": 0,
        "max-model-len": 128,
        "max_num_seqs": 2,
        "served-model-name": ["from-file"],
        "enable-prefix-caching": False,
        "api-key": ["k"],
        "allowed-origins": [ORIGIN],
        "middleware": ["extras.one", "extras.two"],
    }
    middleware = "async def one(request, call_next):\n    return await call_next(request)\ntwo = one\n"
    (tmp_path / "extras.py").write_text(middleware)
    file = tmp_path / "server.yaml"
    file.write_text(yaml.safe_dump(options))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = ServerProcess(
        ["--config", str(file), "--max-num-seqs", "3"], {"PYTHONPATH": path}, "vllm.entrypoints.openai.api_server"
    )
    try:
        (model,) = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k").models.list().data
        assert model.id == "from-file" and model.max_model_len == 128  # type: ignore[attr-defined]
        assert server.metric("vllm:num_slots") == 3
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [("max-model-lenn: 9", "max-model-lenn"), ("- a\n- b", "server.yaml"), ("a: [", "server.yaml")],
)
def test_config_file_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "model", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
