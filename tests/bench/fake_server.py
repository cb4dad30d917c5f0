"""A server of the OpenAI API over a plain socket, that sends the bytes it is told to and counts its clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Write = Callable[[bytes], Awaitable[None]]
Answer = Callable[[dict[str, Any], Write], Awaitable[None]]


@dataclass
class FakeServer:
    """answer(body, write): writes a whole response. root: what /v1/models says was loaded."""

    answer: Answer
    root: str = "nowhere"
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    connections: int = 0
    running: int = 0
    most_running: int = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[FakeServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, Closed):
            while True:
                await self._answer_one(reader, write)
        writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, write: Write) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
        body = await reader.readexactly(length)
        self.headers.append(head)
        if head.startswith("GET /v1/models"):
            await write(response(json.dumps({"data": [{"id": "fake", "root": self.root}]}).encode()))
            return
        if head.startswith("GET"):
            await write(response(b"", "404 Not Found"))
            return
        self.bodies.append({"path": head.split()[1], **json.loads(body)})
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.answer(self.bodies[-1], write)
        finally:
            self.running -= 1


class Closed(Exception):
    """Raised by an answer to end the connection."""


def response(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def text_event(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def usage_event(prompt_tokens: int, completion_tokens: int) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return event({"choices": [], "usage": usage})


DONE = b"data: [DONE]\n\n"
