"""The application behind a real socket, in this process: what only a connection can show."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from tests.server.conftest import make_app, server_args
from tests.waiting import PATIENCE, eventually
from vllm.entrypoints.server.launcher import DrainingServer, address_of, build_server, create_socket


@dataclass
class LiveServer:
    app: FastAPI
    url: str
    server: DrainingServer
    task: asyncio.Task[int]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    def client(self, **kwargs: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, **kwargs)


@contextlib.asynccontextmanager
async def live_server(engine: Any, *words: str) -> AsyncIterator[LiveServer]:
    args = server_args("--port", "0", "--uvicorn-log-level", "warning", *words)
    app = await make_app(engine, *words)
    with create_socket(args) as sock:
        url = address_of(sock, args)
        server = build_server(app, args)
        task = asyncio.create_task(server.run_until_stopped(sock))
        try:
            await eventually(lambda: server.started)
            yield LiveServer(app, url, server, task)
        finally:
            if not task.done():
                server.stop(0)
            await task
