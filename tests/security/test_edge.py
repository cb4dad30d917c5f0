"""What reaches the server's edge: keys, odd paths and hosts, sizes, and what error bodies give away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

import vllm
from tests.server.conftest import make_app, server_args
from tests.server.fake_engine import FakeEngine
from tests.server.live import LiveServer, live_server
from tests.waiting import PATIENCE
from vllm.entrypoints.openai.middleware.authentication import OPEN_PATHS
from vllm.entrypoints.server.launcher import address_of, create_socket

KEYS = ("first-key", "second-key")
BODY = {"prompt": "a", "max_tokens": 2}


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def locked(engine: FakeEngine) -> AsyncIterator[LiveServer]:
    async with live_server(engine, "--api-key", *KEYS) as server:
        yield server


@pytest.fixture
async def small(engine: FakeEngine) -> AsyncIterator[LiveServer]:
    limits = ("--max-body-bytes", "10000", "--max-header-bytes", "4096", "--max-header-count", "20")
    async with live_server(engine, *limits) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def raw(server: LiveServer, data: bytes) -> bytes:
    """Send bytes as they are; the head of the answer."""
    reader, writer = await server.connect()
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    finally:
        writer.close()


def all_routes(router: Any) -> Iterator[Route]:
    """Those of included routers too."""
    for route in router.routes:
        if isinstance(route, Route):
            yield route
        else:
            yield from all_routes(route.original_router)


class TestKeys:
    async def test_every_route_needs_a_key(self, locked: LiveServer) -> None:
        routes = list(all_routes(locked.app))
        assert {route.path for route in routes} > {"/v1/completions", "/tokenize", "/openapi.json", "/version"}
        async with locked.client() as client:
            for route in routes:
                for method in route.methods or ():
                    path = route.path.replace("{model:path}", "fake")
                    response = await client.request(method, path, json=BODY)
                    expected = route.path not in OPEN_PATHS
                    assert (response.status_code == 401) is expected, (method, path, response.status_code)

    async def test_open_paths(self) -> None:
        assert {"/", "/dashboard", "/health", "/live", "/metrics", "/ping"} == OPEN_PATHS

    async def test_body_of_the_refusal(self, locked: LiveServer) -> None:
        async with locked.client() as client:
            response = await client.post("/v1/completions", json=BODY)
        assert response.json()["error"]["code"] == 401
        assert response.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize("key", KEYS)
    async def test_each_key_opens(self, locked: LiveServer, key: str) -> None:
        async with locked.client(headers=bearer(key)) as client:
            assert (await client.post("/v1/completions", json=BODY)).status_code == 200
            assert (await client.get("/v1/models")).status_code == 200

    @pytest.mark.parametrize(
        "header",
        ["", "first-key", "Bearer", "Bearer first", "Bearer first-key2", "Bearer FIRST-KEY", "Basic first-key",
         "Bearer first-key second-key", "Bearer first-key,second-key", "Bearer \xff"],
    )  # fmt: skip
    async def test_wrong_keys(self, locked: LiveServer, header: str) -> None:
        async with locked.client() as client:
            response = await client.get("/v1/models", headers=[(b"authorization", header.encode("latin-1"))])
        assert response.status_code == 401

    async def test_two_headers_are_refused(self, locked: LiveServer) -> None:
        headers = [("authorization", "Bearer first-key"), ("authorization", "Bearer wrong")]
        async with locked.client() as client:
            assert (await client.get("/v1/models", headers=headers)).status_code == 401

    @pytest.mark.parametrize(
        "target",
        ["/v1/models", "//v1/models", "/v1//models", "/v1/models/", "/V1/models", "/%76%31/models", "/v1%2fmodels",
         "/health/../v1/models", "/health/..%2fv1/models", "/./v1/models", "/metrics/", "/metrics/../v1/models",
         "/v1/models?x=/health", "/v1/models;/health", "/v1/models#/health", "http://x/v1/models",
         "http:///health/v1/models", "/health%00", "/openapi.json", "/docs"],
    )  # fmt: skip
    @pytest.mark.parametrize("host", ["x", "x/health?", "x#", "", "/health"])
    async def test_odd_targets_and_hosts(self, locked: LiveServer, target: str, host: str) -> None:
        request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        status = (await raw(locked, request.encode())).split(b" ", 2)[1]
        assert status in (b"401", b"400")

    async def test_websockets_and_forwarding_headers_open_nothing(self, locked: LiveServer) -> None:
        request = (
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
            b"X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /health\r\nX-Forwarded-Prefix: /health\r\n\r\n"
        )
        assert b" 401 " in (await raw(locked, request)).split(b"\r\n")[0]

    @pytest.mark.parametrize("prefix", ["/proxy", "/health"])
    async def test_root_path(self, engine: FakeEngine, prefix: str) -> None:
        async with live_server(engine, "--api-key", *KEYS, "--root-path", prefix) as server, server.client() as client:
            for path in ("/v1/models", f"{prefix}/v1/models"):
                assert (await client.get(path)).status_code == 401
                assert (await client.get(path, headers=bearer(KEYS[0]))).status_code in (200, 404)

    async def test_preflight_needs_no_key_but_opens_nothing(self, engine: FakeEngine) -> None:
        origin = {"Origin": "https://page.example"}
        async with live_server(
            engine, "--api-key", KEYS[0], "--allowed-origins", '["https://page.example"]'
        ) as server, server.client(headers=origin) as client:  # fmt: skip
            asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            response = await client.options("/v1/completions", headers=asked)
            assert response.status_code == 200 and response.headers["access-control-allow-origin"] == origin["Origin"]
            refused = await client.get("/v1/models")
            assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == origin["Origin"]
            other = await client.get("/health", headers={"Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers

    async def test_key_of_the_environment(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_API_KEY", "from-env")
        async with live_server(engine) as server, server.client() as client:
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.get("/v1/models", headers=bearer("from-env"))).status_code == 200

    async def test_comparison_is_constant_time(self) -> None:
        source = (Path(vllm.__file__).parent / "entrypoints/openai/middleware/authentication.py").read_text()
        assert "hmac.compare_digest" in source


class TestSizes:
    async def test_declared_body(self, small: LiveServer) -> None:
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        assert b" 413 " in (await raw(small, request)).split(b"\r\n")[0]

    async def test_streamed_body(self, small: LiveServer) -> None:
        """No length is declared, and the body does not end."""
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        assert b" 413 " in (await raw(small, head + chunk * 4)).split(b"\r\n")[0]

    async def test_body_within_the_limit(self, small: LiveServer) -> None:
        async with small.client() as client:
            assert (await client.post("/v1/completions", json=BODY)).status_code == 200
            error = (await client.post("/v1/completions", json={**BODY, "user": "x" * 10_000})).json()["error"]
        assert error["code"] == 413 and "10000 bytes" in error["message"]

    @pytest.mark.parametrize(
        "headers",
        [
            b"X-Big: " + b"a" * 5000 + b"\r\n",
            b"X-Big: " + b"a" * 200_000,
            b"".join(b"X-%d: a\r\n" % i for i in range(30)),
            b"".join(b"X-%d: %s\r\n" % (i, b"a" * 300) for i in range(19)),
        ],
    )
    async def test_headers(self, small: LiveServer, headers: bytes) -> None:
        request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"
        assert b" 431 " in (await raw(small, request)).split(b"\r\n")[0]

    async def test_header_without_an_end_is_not_kept(self, small: LiveServer) -> None:
        reader, writer = await small.connect()
        writer.write(b"GET / HTTP/1.1\r\nX-Big: ")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            for _ in range(2000):
                writer.write(b"a" * 65536)
                await writer.drain()
                await asyncio.sleep(0)
            await reader.readexactly(1 << 20)
        writer.close()

    async def test_long_target(self, small: LiveServer) -> None:
        request = b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b" 431 " in (await raw(small, request)).split(b"\r\n")[0]
        longer = b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        assert re.search(rb" 4(00|31) ", (await raw(small, longer)).split(b"\r\n")[0])  # by httptools' version

    async def test_trailers(self, small: LiveServer) -> None:
        content = json.dumps(BODY).encode()
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(content), content)
        )
        assert b" 200 " in (await raw(small, head + b"X-Trailer: a\r\n\r\n")).split(b"\r\n")[0]
        assert b" 431 " in (await raw(small, head + b"X-Trailer: " + b"a" * 100_000)).split(b"\r\n")[0]

    async def test_keep_alive_does_not_add_up(self, small: LiveServer) -> None:
        """The bound is on one request's headers, not on a connection's."""
        async with small.client(headers={"X-Some": "a" * 1000}) as client:
            for _ in range(20):
                assert (await client.get("/health")).status_code == 200

    async def test_deep_and_wide_json(self, engine: FakeEngine) -> None:
        async with live_server(engine) as server, server.client() as client:
            bodies = [
                b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
                b'{"messages": [' + b"1," * 500_000 + b"1]}",
                b'{"messages": [{"role": "user", "content": "a"}], "stop": [' + b"1," * 500_000 + b"1]}",
                b'{"messages": [{"role": "user", "content": [' + b"1," * 500_000 + b"1]}]}",
            ]
            for body in bodies:
                headers = {"Content-Type": "application/json"}
                response = await client.post("/v1/chat/completions", content=body, headers=headers)
                assert response.status_code == 400 and len(response.content) < 5000
            assert (await client.get("/health")).status_code == 200


class TestErrorBodies:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"prompt": {"a": object.__doc__}}),
            ("/v1/completions", {"prompt": "a", "n": "<script>alert(1)</script>"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": {"a": 1}}]}),
            ("/tokenize", {"messages": 1}),
            ("/invocations", {"messages": 1}),
            ("/detokenize", {"tokens": "abc"}),
        ],
    )
    async def test_no_addresses_paths_or_traces(self, engine: FakeEngine, path: str, body: Any) -> None:
        transport = httpx.ASGITransport(await make_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            response = await client.post(path, json=body)
        assert response.status_code == 400
        assert not re.search(r"0x[0-9a-f]{6,}|Traceback|\.py|site-packages|<script>", response.text)


class TestListening:
    def test_loopback_unless_told(self) -> None:
        args = server_args("--port", "0")
        with create_socket(args) as sock:
            assert sock.getsockname()[0] == "127.0.0.1"
            assert address_of(sock, args).startswith("http://127.0.0.1:")

    def test_port_that_is_taken(self) -> None:
        with create_socket(server_args("--port", "0")) as sock:
            sock.listen()
            port = sock.getsockname()[1]
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
                create_socket(server_args("--port", str(port)))
