"""Connections: those that stall, that are too many, that send what is no HTTP into a running answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest

from tests.server.conftest import BASE, make_app
from tests.server.fake_engine import FakeEngine
from tests.server.live import LiveServer, eventually, live_server
from vllm.entrypoints.server import http_protocol
from vllm.entrypoints.server.connections import NUM_FOR_PROBES, Connections
from vllm.entrypoints.server.http_protocol import BoundedHttpProtocol

HEAD = "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
BODY = json.dumps({"prompt": "a", "max_tokens": 8}).encode()
STREAM = json.dumps({"prompt": "a", "max_tokens": 8, "stream": True}).encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
JUNK = {
    "no HTTP": b"GET /health HTTP/1.1\nHost: x\n\n",
    "endless header": b"GET /health HTTP/1.1\r\nX-Big: " + b"a" * 70_000,
    "large header": b"GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 70_000 + b"\r\n\r\n",
    "no chunk": HEAD.format(path="/v1/completions", length="2", more="").encode().replace(
        b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"zz\r\n",
}  # fmt: skip


def post(body: bytes, path: str = "/v1/completions", more: str = "") -> bytes:
    return HEAD.format(path=path, length=len(body), more=more).encode() + body


def stalled(length: int = 100) -> bytes:
    return HEAD.format(path="/v1/completions", length=length, more="").encode() + b"{"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are kept for a while are closed sooner."""
    monkeypatch.setattr(http_protocol, "LINGER_SECONDS", 0.1)
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "1")


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def server(engine: FakeEngine) -> AsyncIterator[LiveServer]:
    async with live_server(engine) as running:
        yield running


class Wire:
    """A connection that was opened with some bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def rest(self) -> bytes:
        """All that comes until the connection closes."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.wait_for(self.reader.read(1 << 16), 60):
                data += chunk
        return data

    async def until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), 60)

    async def status(self) -> int:
        """Of the next answer."""
        return int((await self.until(b"\r\n")).split()[1])


async def send(server: LiveServer, data: bytes) -> Wire:
    reader, writer = await server.connect()
    writer.write(data)
    return Wire(reader, writer)


class TestWithinAnAnswer:
    """S9"""

    @pytest.mark.parametrize("junk", JUNK)
    async def test_a_stream_goes_on_to_its_end(self, server: LiveServer, engine: FakeEngine, junk: str) -> None:
        engine.gate.clear()
        wire = await send(server, post(STREAM))
        await eventually(lambda: bool(engine.running))
        wire.writer.write(JUNK[junk])
        (protocol,) = server.server.server_state.connections
        assert isinstance(protocol, BoundedHttpProtocol)
        await eventually(lambda: protocol._refused or bool(protocol.pipeline))
        engine.gate.set()
        answer = await wire.rest()
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"data: {") == 8
        stream, _, behind = answer.partition(b"0\r\n\r\n")
        assert stream.count(b"HTTP/1.1") == 1 and b"data: [DONE]" in stream
        assert behind.count(b"HTTP/1.1") == (junk == "large header")  # which is a request by itself

    async def test_requests_before_the_junk_are_answered(self, server: LiveServer, engine: FakeEngine) -> None:
        answer = await (await send(server, post(STREAM) + HEALTH + post(BODY) + JUNK["no HTTP"])).rest()
        assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"HTTP/1.1") == 3

    async def test_a_body_that_is_no_http(self, server: LiveServer, engine: FakeEngine) -> None:
        answer = await (await send(server, JUNK["no chunk"])).rest()
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
        answer = await (await send(server, HEALTH + JUNK["no chunk"])).rest()
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP/1.1") == 1

    async def test_nothing_but_junk(self, server: LiveServer) -> None:
        wire = await send(server, b"\x16\x03\x01\x02\x00")
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == 400


class TestTimeOfBodies:
    """S3"""

    async def test_a_body_that_stalls(self, engine: FakeEngine) -> None:
        async with live_server(engine, "--body-timeout", "0.1") as server:
            wire = await send(server, stalled())
            head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["message"] == "The body did not arrive within 0.1 seconds."

    async def test_time_of_an_answer_is_not_its_bodys(self, engine: FakeEngine) -> None:
        engine.gate.clear()
        async with live_server(engine, "--body-timeout", "0.1") as server:
            answered = await send(server, post(BODY))
            await eventually(lambda: bool(engine.running))
            late = await send(server, stalled())
            assert await late.status() == 408
            engine.gate.set()
            assert await answered.status() == 200

    async def test_no_limit(self, engine: FakeEngine) -> None:
        async with live_server(engine, "--body-timeout", "0") as server:
            wire = await send(server, post(BODY)[:-1])
            (protocol,) = await connections_of(server, 1)
            assert protocol._body_timer is None
            wire.writer.write(BODY[-1:])
            assert await wire.status() == 200


async def connections_of(server: LiveServer, count: int) -> list[BoundedHttpProtocol]:
    connections = server.server.server_state.connections
    await eventually(lambda: len(connections) == count)
    return list(connections)  # type: ignore[arg-type]


WAITING = {
    "body": stalled(),
    "header": b"GET / HTTP/1.1\r\nX-A: ",
    "nothing": b"",
    "idle": post(BODY),
}


class TestTooMany:
    """S3"""

    @pytest.mark.parametrize("data", WAITING.values(), ids=WAITING)
    async def test_those_that_wait_for_their_clients_make_room(self, server: LiveServer, data: bytes) -> None:
        server.app.state.connections.most = 4
        opened = []
        async with server.client() as client:
            for _ in range(20):
                opened.append(await send(server, data))
                assert (await client.get("/health", headers={"Connection": "close"})).status_code == 200
        assert len(server.app.state.connections) <= 4
        for wire in opened[:16]:
            await wire.rest()  # to its end

    async def test_those_that_are_answered_are_kept(self, server: LiveServer, engine: FakeEngine) -> None:
        server.app.state.connections.most = 3
        engine.gate.clear()
        streams = [await send(server, post(STREAM)) for _ in range(3)]
        await eventually(lambda: len(engine.running) == 3)
        for _ in range(2 * NUM_FOR_PROBES):
            probe = await send(server, HEALTH)
            assert await probe.status() == 200
            refused = await (await send(server, post(BODY))).rest()
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in refused and b"connection: close" in refused
        engine.gate.set()
        for stream in streams:
            assert (await stream.until(b"[DONE]")).count(b"data: {") == 8
            stream.writer.close()
        wire = await send(server, post(BODY))
        assert await wire.status() == 200

    async def test_a_server_that_stops_waits_for_no_body(self, engine: FakeEngine) -> None:
        async with live_server(engine) as server:
            wire = await send(server, stalled())
            (protocol,) = await connections_of(server, 1)
            await eventually(lambda: protocol.cycle is not None)
            server.server.stop(0)
            assert not await wire.rest()
            await server.task

    async def test_one_that_was_a_probe_may_stay(self, server: LiveServer, engine: FakeEngine) -> None:
        server.app.state.connections.most = 1
        engine.gate.clear()
        answered = await send(server, post(BODY))
        await eventually(lambda: bool(engine.running))
        probe = await send(server, HEALTH)
        await probe.until(b"\r\n\r\n")
        engine.gate.set()
        assert await answered.status() == 200
        answered.writer.close()
        await connections_of(server, 1)
        probe.writer.write(post(BODY))
        assert await probe.status() == 200

    async def test_an_answer_that_nobody_reads(self, server: LiveServer, engine: FakeEngine) -> None:
        """Its client is waited for, as one that does not send is."""
        wire = await send(server, post(STREAM))
        (protocol,) = await connections_of(server, 1)
        connections = server.app.state.connections
        await eventually(lambda: protocol in connections._waiting)
        connections.answer(protocol)
        protocol.pause_writing()
        assert protocol in connections._waiting
        protocol.resume_writing()
        wire.writer.close()
        await eventually(lambda: not len(connections))


class TestPlaces:
    def test_as_many_as_there_are_descriptors(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        num_open = psutil.Process().num_fds()
        connections = Connections()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 100, hard))
            connections.fit()
            assert 50 <= connections.most < 100 - NUM_FOR_PROBES
            resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 1, hard))
            connections.fit()
            assert connections.most > 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    async def test_a_server_fits_its_own(self, server: LiveServer) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert server.app.state.connections.most < soft


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Host: x\r\n", 200),
        (b"Host:\r\n", 200),
        (b"", 400),
        (b"Host: x\r\nHost: x\r\n", 400),
        (b"Host: x\r\nHOST: y\r\n", 400),
    ],
)
async def test_hosts(server: LiveServer, lines: bytes, status: int) -> None:
    """S10: RFC 9112, 3.2."""
    wire = await send(server, b"GET /health HTTP/1.1\r\n" + lines + b"\r\n")
    assert await wire.status() == status


async def test_older_clients_name_no_host(server: LiveServer) -> None:
    wire = await send(server, b"GET /health HTTP/1.0\r\n\r\n")
    assert await wire.status() == 200


@pytest.mark.parametrize(
    ("types", "status"),
    [
        (["application/json"], 200),
        (["application/json; charset=utf-8"], 200),
        (["application/json", "Application/JSON"], 200),
        (["application/json", "text/plain"], 400),
        (["text/plain", "application/json"], 400),
        ([], 400),
    ],
)
async def test_content_types(engine: FakeEngine, types: list[str], status: int) -> None:
    """S10: what names two types names none."""
    transport = httpx.ASGITransport(await make_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        headers = [("content-type", each) for each in types]
        assert (await client.post("/v1/completions", content=BODY, headers=headers)).status_code == status
