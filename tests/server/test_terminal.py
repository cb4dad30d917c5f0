"""What a model, a server or a client says can neither change a terminal nor forge a record of a log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.server.conftest import server_args
from tests.server.fake_engine import FakeEngine
from tests.waiting import PATIENCE
from vllm.entrypoints.cli.terminal import TerminalWriter
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.server.launcher import build_server
from vllm.logger import RecordFormatter, visible

HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\x9bc\x7f\tcol\nline\r\nnext\rover\x00"
SHOWN = "a\\x1b]0;title\\x07\\x1b[2Jb\\x9bc\\x7f\tcol\nline\nnext\\x0dover\\x00"


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__(newline="")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def written(pieces: list[str], is_terminal: bool) -> str:
    screen = Screen(is_terminal)
    writer = TerminalWriter(screen)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    return screen.getvalue()


def test_a_terminal_is_shown_controls() -> None:
    for pieces in ([HOSTILE], list(HOSTILE)):
        assert written(pieces, is_terminal=True) == SHOWN + "\n"
        assert written(pieces, is_terminal=False) == HOSTILE + "\n"
    assert written(["end\r"], is_terminal=True) == "end\\x0d\n"
    assert written(["\u2603 \U0001f600 \u05d0"], is_terminal=True) == "\u2603 \U0001f600 \u05d0\n"
    assert written(["half \ud800"], is_terminal=True) == "half \\ud800\n", "no UTF-8, and no error"


class HostileServer(BaseHTTPRequestHandler):
    """Streams a hostile text, and refuses the question "no" with a hostile message."""

    def do_GET(self) -> None:
        self._answer(200, b'{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "no" in str(body.get("messages", body.get("prompt"))):
            self._answer(400, json.dumps({"error": {"message": HOSTILE}}).encode())
            return
        chunk = {"choices": [{"text": HOSTILE, "delta": {"content": HOSTILE}}]}
        self._answer(200, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), HostileServer)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def on_terminal(words: list[str]) -> str:
    """What a command leaves on a terminal."""
    here, there = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "vllm.entrypoints.cli.main", *words], stdout=there, stderr=there)
    os.close(there)
    output = b""
    try:
        while data := os.read(here, 4096):
            output += data
    except OSError:  # the other end is closed
        pass
    process.wait(PATIENCE)
    os.close(here)
    return output.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_clients(command: str, url: str) -> None:
    words = [command, "--url", url, "-q"]
    assert on_terminal([*words, "hello"]) == SHOWN + "\n"
    assert "\x1b" not in on_terminal([*words, "no"])
    piped = subprocess.run([sys.executable, "-m", "vllm.entrypoints.cli.main", *words, "hello"], capture_output=True)
    assert piped.stdout == (HOSTILE + "\n").encode()


def test_records_cannot_be_forged() -> None:
    formatter = RecordFormatter("%(levelname)s %(message)s")
    forged = "x\nERROR the engine is dead\x1b[2J"
    record = logging.LogRecord("vllm", logging.INFO, "f", 1, "request %s", (forged,), None)
    assert formatter.format(record) == "INFO request x\n    ERROR the engine is dead\\x1b[2J"
    try:
        raise ValueError(forged)
    except ValueError:
        record.exc_info = sys.exc_info()
    _, *rest = formatter.format(record).split("\n")
    assert len(rest) > 3 and all(line.startswith("    ") for line in rest)
    assert visible("plain \u2603\n\t") == "plain \u2603\n\t"


def test_records_of_the_http_layer_are_written_the_same() -> None:
    app = build_app(server_args())
    build_server(app, server_args(), engine_life=asyncio.Future(loop=asyncio.new_event_loop()))
    handlers = logging.getLogger("uvicorn").handlers
    assert handlers and all(isinstance(handler.formatter, RecordFormatter) for handler in handlers)


async def test_requests_and_answers_in_the_log(
    engine: FakeEngine, make_client: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    engine.text = HOSTILE
    client: httpx.AsyncClient = await make_client("--enable-log-requests", "--enable-log-outputs")
    body = {"prompt": HOSTILE, "user": HOSTILE, "stop": [HOSTILE], HOSTILE: 1}
    with caplog.at_level(logging.INFO, "vllm"):
        assert (await client.post("/v1/completions", json=body, headers={"X-Request-Id": "a\x1bb"})).status_code == 200
    assert len(caplog.records) >= 3
    for record in caplog.records:
        assert record.getMessage() == visible(record.getMessage()) and "\n" not in record.getMessage()
